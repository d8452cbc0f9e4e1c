"""The standard streams of a process in a sandbox, by offset: what a client that lost its connection needs to go on.

`Output` keeps what was written until it has been sent and a while longer; a reader that comes back asks for the next byte.
A process that writes more than anybody reads is held up by its pipe, so that a flood costs no more memory than `AHEAD`.
`Input` takes each byte once, however often it is sent.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections import deque
from collections.abc import AsyncGenerator

PIECE = 256 << 10
AHEAD = 32 << 20
BEHIND = 96 << 20
"""Bytes kept after they were sent: more than an HTTP/2 window of the SDK (64 MiB), which may all be lost on the way."""
SET_PIPE_SIZE = 1031


class OffsetError(Exception):
    """The reader asks for bytes that are no longer kept, or the writer has left out some."""


class ClosedError(Exception):
    """Standard input is closed, by the client or by the process."""


def pipe() -> tuple[int, int]:
    """Give the reading and the writing end of a pipe of a megabyte."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, SET_PIPE_SIZE, 1 << 20)
    return reading, writing


class Output:
    """What one process wrote to one of its streams."""

    def __init__(self) -> None:
        self.size, self.sent, self.ended = 0, 0, False
        self._start = 0
        self._pieces: deque[bytes] = deque()
        self._fd, self._reading = -1, False
        self._more = asyncio.Event()

    def attach(self, fd: int) -> None:
        """Read from a pipe from now on; the descriptor is ours."""
        self._fd = fd
        os.set_blocking(fd, False)
        self._flow()

    def add(self, data: bytes) -> None:
        self._pieces.append(data)
        self.size += len(data)
        self._changed()

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            if self._fd >= 0:
                self._stop()
                os.close(self._fd)
                self._fd = -1
            self._changed()

    def _changed(self) -> None:
        waited, self._more = self._more, asyncio.Event()
        waited.set()

    async def read(self, offset: int) -> AsyncGenerator[bytes]:
        """Give the pieces from an offset on, until the stream has ended."""
        if offset < self._start or offset > self.size:
            raise OffsetError(f"byte {offset} is not kept; there are {self._start} to {self.size}")
        while True:
            for piece in self._from(offset):
                offset += len(piece)
                yield piece
                self._sent(offset)
            if offset < self.size:
                continue
            if self.ended:
                return
            await self._more.wait()

    def _from(self, offset: int) -> list[bytes]:
        """Give the pieces that are there now, the first one cut to begin at the offset."""
        found, at = [], self.size
        for piece in reversed(self._pieces):
            if at <= offset:
                break
            at -= len(piece)
            found.append(piece if at >= offset else piece[offset - at :])
        return found[::-1]

    def _sent(self, offset: int) -> None:
        self.sent = max(self.sent, offset)
        while self._pieces and self._start + len(self._pieces[0]) <= self.sent - BEHIND:
            self._start += len(self._pieces.popleft())
        self._flow()

    def _flow(self) -> None:
        wanted = self._fd >= 0 and self.size - self.sent < AHEAD
        if wanted and not self._reading:
            asyncio.get_running_loop().add_reader(self._fd, self._readable)
            self._reading = True
        elif not wanted:
            self._stop()

    def _stop(self) -> None:
        if self._reading:
            asyncio.get_running_loop().remove_reader(self._fd)
            self._reading = False

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a terminal whose other side is gone
        if data:
            self.add(data)
            self._flow()
        else:
            self.end()


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


class Input:
    """Standard input of a process: bytes by offset, each taken once."""

    def __init__(self, fd: int) -> None:
        self.size, self.closed = 0, False
        self._fd = fd
        self._turn = asyncio.Lock()
        self._writer: asyncio.Task[None] | None = None
        os.set_blocking(fd, False)

    async def write(self, offset: int, data: bytes, eof: bool) -> None:
        """Write what has not been written yet; wait while the process does not read."""
        async with self._turn:
            if offset > self.size:
                raise OffsetError(f"bytes are missing: {self.size} are written, these begin at {offset}")
            fresh = memoryview(data)[self.size - offset :]
            if self.closed and fresh:
                raise ClosedError("standard input is closed")
            while fresh:
                fresh = fresh[await self._some(fresh) :]
            if eof:
                self.close()

    async def _some(self, data: memoryview) -> int:
        while not self.closed:
            try:
                count = os.write(self._fd, data)
            except BlockingIOError:
                await self._writable()
                continue
            except OSError as error:
                self.close()
                raise ClosedError("the process does not read its standard input any more") from error
            self.size += count
            return count
        raise ClosedError("standard input is closed")

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_writer(self._fd, _settle, ready)
        try:
            await ready
        finally:
            if self._fd >= 0:
                loop.remove_writer(self._fd)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1

    def begin(self, task: asyncio.Task[None]) -> None:
        """A stream of writes begins; one that is still there from a lost connection gives way."""
        self.evict()
        self._writer = task

    def evict(self) -> None:
        if self._writer is not None and self._writer is not asyncio.current_task():
            self._writer.cancel()
        self._writer = None
