"""The host as its supervisor has it: orders come in over its stream, reports go out, numbered from 1.

A host that closes the stream, breaks the protocol, has ended or is silent for longer than its lease is taken for gone. One that
is slow to read is waited for: meanwhile no more is read of what kernels ask.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from . import codec, wire
from .fields import WireError
from .frames import FrameError, Outbox, Parser, pack
from .loop import READ, WRITE, Loop
from .streams import HostStream

BACKLOG = 64 * 1024 * 1024
"""How many bytes may wait for the host until no more is read of what kernels ask."""
_READ_SIZE = 128 * 1024
"""Read at once: of more, the memory for each read would be asked of the system, and given back."""


class Host:
    """The host at the other end of a stream.

    Parameters
    ----------
    settings
        The line that it wrote.
    stream
        The stream to it; where that is a port, the token has not been sent yet.
    carry_out
        Called with each of its orders.
    over
        Called when nothing more can come of it.
    """

    def __init__(
        self,
        loop: Loop,
        settings: dict[str, Any],
        stream: HostStream,
        carry_out: Callable[[wire.Message], object],
        over: Callable[[], object],
    ) -> None:
        self._loop, self._settings, self._stream = loop, settings, stream
        self._carry_out, self._over = carry_out, over
        self._heard = time.monotonic()
        self._parser = Parser()
        self._outbox = Outbox()
        self._full = False
        self._held_up: list[Callable[[], None]] = []
        self._sent = 0

    def listen(self) -> None:
        """Take its orders from now on, and say who calls where it asks for that."""
        self._loop.watch(self._stream.reader, self._read)
        if "token" in self._settings:
            self._outbox.put(pack({"kind": "hello", "token": self._settings["token"]}))

    def send(self, message: wire.Message) -> None:
        header, body = codec.encode(message)
        self._sent += 1
        header["n"] = self._sent
        self._outbox.put(pack(header, body))
        self._write()

    def pressed(self, resume: Callable[[], None]) -> bool:
        """Whether more waits for the host than is good; then `resume` is called when that is over."""
        if self._outbox.size < BACKLOG:
            return False
        self._held_up.append(resume)
        return True

    def gone(self) -> bool:
        """Whether its process has ended, or it was silent for too long."""
        host, lease = self._settings.get("host_pid"), self._settings.get("lease")
        return bool((host and os.getppid() != host) or (lease and time.monotonic() - self._heard > lease))

    def _read(self) -> None:
        if self._full:
            self._write()
        try:
            data = os.read(self._stream.reader, _READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._over()
            return
        self._heard = time.monotonic()
        try:
            for header, body in self._parser.feed(data):
                self._carry_out(codec.decode(header, body, wire.TO_SUPERVISOR))
        except (FrameError, WireError):
            self._over()

    def _write(self) -> None:
        try:
            done = self._outbox.write(self._stream.writer)
        except OSError:
            self._over()
            return
        if self._held_up and self._outbox.size < BACKLOG:
            held_up, self._held_up = self._held_up, []
            for resume in held_up:
                resume()
        if done is self._full:
            self._full = not done
            if self._stream.reader == self._stream.writer:
                self._loop.watch(self._stream.reader, self._read, READ | WRITE if self._full else READ)
            elif self._full:
                self._loop.watch(self._stream.writer, self._write, WRITE)
            else:
                self._loop.unwatch(self._stream.writer)
