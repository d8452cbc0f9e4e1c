"""The reading ends of a kernel's descriptors 1 and 2.

They are read only while a cell runs: what a thread or a child writes between two cells waits in the pipe, bounded, and comes
with the next cell, marked as what it is (see `cells`). Who holds the writing ends, and for how long, ends or delays no cell.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
from collections.abc import Callable

from . import processes
from .loop import Loop

_SIZE = 256 * 1024
_SET_PIPE_SIZE = 1031
_PIECES = 64

Take = Callable[[str, bytes], None]


class OutputPipes:
    """`stdout` and `stderr` of one kernel. `writers` are for its process, to be closed once it has them."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._fds: dict[str, int] = {}
        self.writers: list[int] = []
        for stream in ("stdout", "stderr"):
            read, write = os.pipe()
            os.set_blocking(read, False)
            if processes.LINUX:
                with contextlib.suppress(OSError):
                    fcntl.fcntl(write, _SET_PIPE_SIZE, _SIZE)
            self._fds[stream] = read
            self.writers.append(write)

    def close_writers(self) -> None:
        while self.writers:
            os.close(self.writers.pop())

    def watch(self, take: Take) -> None:
        """Hand what comes to `take`, piece by piece, until `unwatch`."""
        for stream, fd in self._fds.items():
            self._loop.watch(fd, functools.partial(self._read, stream, take))

    def unwatch(self) -> None:
        for fd in self._fds.values():
            self._loop.unwatch(fd)

    def glance(self, take: Take) -> None:
        """Read once what waits there."""
        for stream in self._fds:
            self._read(stream, take)

    def drain(self, take: Take) -> None:
        """Read what is there now; at most a bounded amount, since somebody may write for ever."""
        for stream in self._fds:
            for _ in range(_PIECES):
                if not self._read(stream, take):
                    break

    def close(self) -> None:
        self.unwatch()
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def _read(self, stream: str, take: Take) -> bool:
        try:
            data = os.read(self._fds[stream], _SIZE)
        except BlockingIOError:
            return False
        if data:
            take(stream, data)
        else:
            self._loop.unwatch(self._fds[stream])
        return bool(data)
