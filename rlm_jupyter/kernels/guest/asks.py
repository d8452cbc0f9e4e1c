"""The unix socket on which the code of one kernel asks: a listener, and a connection per process and thread.

The first message must be the kernel's token, within a short time and a small size; anything else closes the connection without
any effect. After it each connection has one request under way at most, and each request gets one answer. A request may bring
one descriptor, which is closed unless somebody takes it while the request is handled.

What all connections of a kernel hold together is bounded: of a few requests of the greatest size, the one that goes above the
bound is cut off. While the host is slow to take what was asked, nothing more is read.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
from collections.abc import Callable
from typing import Protocol

from .frames import FrameError, Header, Outbox, Parser, pack
from .loop import READ, WRITE, Loop

HELLO_SECONDS = 10.0
HELLO_CAP = 4096
CONNECTION_CAP = 8192
HELD_MESSAGES = 2
"""How many requests of the greatest size a kernel may be in the middle of."""
_READ_SIZE = 1024 * 1024
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)

Ask = Callable[["AskConnection", Header, bytes], None]


class Hub(Protocol):
    """What asking needs of the supervisor."""

    loop: Loop

    def pressed(self, resume: Callable[[], None]) -> bool:
        """Whether the host is slow to take what is sent; `resume` is called when it has caught up."""


class AskConnection:
    """One thread of a kernel that asks. `call` is the id of the LM call it waits for, or ''."""

    def __init__(self, listener: AskListener, sock: socket.socket) -> None:
        self.call = ""
        self._fd: int | None = None
        self._listener = listener
        self._loop = listener.loop
        self._sock = sock
        self._parser = Parser(HELLO_CAP)
        self._outbox = Outbox()
        self._known = False
        self._waiting = False
        self._full = False
        self._held = 0
        self._hello = self._loop.later(HELLO_SECONDS, self.close)
        self._loop.watch(sock.fileno(), self._ready)

    def answer(self, header: Header, body: bytes = b"", fd: int | None = None) -> None:
        """Answer the request under way, with a descriptor if one is given. A connection that is closed already loses it."""
        if self._sock.fileno() < 0:
            return
        self._waiting = False
        self.call = ""
        pieces = pack(header, body)
        if fd is not None:
            try:  # the answer to the last request was read: there is room for a few bytes
                sent = socket.send_fds(self._sock, pieces[:1], [fd])
            except OSError:
                self.close()
                return
            pieces[0] = pieces[0][sent:]
        self._outbox.put(pieces)
        self._write()
        self._count()

    def descriptor(self) -> int | None:
        """Give the descriptor that came with the request, to be closed by whoever takes it."""
        fd, self._fd = self._fd, None
        return fd

    def close(self) -> None:
        if self._sock.fileno() < 0:
            return
        self._drop_descriptor()
        self._hello.cancel()
        self._loop.unwatch(self._sock.fileno())
        self._sock.close()
        self._listener.held -= self._held
        self._held = 0
        self._listener.forget(self)

    def _drop_descriptor(self) -> None:
        fd = self.descriptor()
        if fd is not None:
            os.close(fd)

    def _ready(self) -> None:
        if self._full:
            self._write()
            self._count()
        if self._sock.fileno() < 0:
            return
        if self._known and self._listener.pressed(self._go_on):
            self._loop.unwatch(self._sock.fileno())
            return
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, _READ_SIZE, 1, _CLOSE_ON_EXEC)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if fds:
            self._drop_descriptor()
            self._fd = fds[0]
        if not data:
            self.close()
            return
        try:
            for header, body in self._parser.feed(data):
                self._take(header, body)
        except FrameError:
            self.close()
        self._count()

    def _go_on(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.watch(self._sock.fileno(), self._ready, READ | WRITE if self._full else READ)

    def _count(self) -> None:
        """Take note of what is held for this connection; cut it off where that is too much."""
        if self._sock.fileno() < 0:
            return
        held = self._parser.held + self._outbox.size
        self._listener.held += held - self._held
        self._held = held
        if self._listener.held > HELD_MESSAGES * self._listener.cap:
            self._listener.cut += 1
            self.close()

    def _take(self, header: Header, body: bytes) -> None:
        if self._sock.fileno() < 0:
            return
        if not self._known:
            if not self._listener.is_token(header):
                raise FrameError("no token")
            self._known = True
            self._hello.cancel()
            self._parser.cap = self._listener.cap
            return
        if self._waiting:
            raise FrameError("a request before the answer to the last one")
        self._waiting = True
        self._listener.ask(self, header, body)
        self._drop_descriptor()

    def _write(self) -> None:
        try:
            done = self._outbox.write(self._sock.fileno())
        except OSError:
            self.close()
            return
        if done is self._full:
            self._full = not done
            self._loop.watch(self._sock.fileno(), self._ready, READ | WRITE if self._full else READ)


class AskListener:
    """Accept a kernel's threads and hand their requests to `ask`; tell `gone` of each that hangs up."""

    def __init__(self, hub: Hub, path: str, token: str, cap: int, ask: Ask, gone: Callable[[AskConnection], None]) -> None:
        self.loop = loop = hub.loop
        self.pressed = hub.pressed
        self.cap = cap
        self.ask = ask
        self.held = 0
        self.cut = 0
        self._path = path
        self._token = token.encode()
        self._gone = gone
        self._connections: set[AskConnection] = set()
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(path)
        self._sock.listen(4096)
        self._sock.setblocking(False)
        loop.watch(self._sock.fileno(), self._accept)

    def is_token(self, header: Header) -> bool:
        given = header.get("token")
        text = given if header.get("kind") == "hello" and isinstance(given, str) else ""
        return hmac.compare_digest(text.encode("utf-8", "replace"), self._token)

    def forget(self, connection: AskConnection) -> None:
        self._connections.discard(connection)
        self._gone(connection)

    def close(self) -> None:
        self.loop.unwatch(self._sock.fileno())
        self._sock.close()
        for connection in list(self._connections):
            connection.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                return
            if len(self._connections) >= CONNECTION_CAP:
                sock.close()
                continue
            sock.setblocking(False)
            self._connections.add(AskConnection(self, sock))
