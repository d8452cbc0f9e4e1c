"""The standard input and output of one `sandbox.exec` as the asyncio transport that a `FramedStream` speaks over.

The SDK resumes both directions by offset when its connection is cut, and gives up after about ten seconds of refusals; then
this asks it to go on where it was. Once the process has spoken it must go on to, if only to say that it is alive. After
`silence` seconds without a byte that is told, and something is asked of the SDK, now and again: on a connection that only
waits for an answer it would never notice that nothing passes any more. After `patience` seconds the process is given up.
What waits to be written is bounded by what its writers respect (`pause_writing`); what is read is pulled piece by piece, so
that a flood waits where it comes from.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rlm_jupyter.kernels.guest.frames import Header
from rlm_jupyter.kernels.transports import WRITE_AHEAD, FramedStream

if TYPE_CHECKING:
    from modal.container_process import ContainerProcess

PIECE = 1024 * 1024
"""Bytes that are drained at once: the SDK waits a round trip for each."""
AGAIN_SECONDS = 0.5


class Silence(OSError):
    """The process has not been heard of for too long."""


class Finality:
    """Tells errors of the SDK that trying again cannot mend from those of a connection."""

    def __init__(self) -> None:
        from modal import exception as known

        # A process that is gone, a stream whose end is closed, a sandbox that is over; an account that may not any more.
        self._final = (
            known.NotFoundError, known.InvalidError, known.DataLossError, known.AuthError, known.PermissionDeniedError,
            known.ClientClosed, known.UnimplementedError,
        )  # fmt: skip

    def __call__(self, error: Exception) -> bool:
        return isinstance(error, self._final)


class ExecTransport(asyncio.Transport):
    """Bytes both ways between a process in a sandbox and an asyncio protocol. `begin` starts it; `abort` ends it."""

    def __init__(
        self,
        process: ContainerProcess[bytes],
        protocol: FramedStream,
        silence: float,
        patience: float,
        told: Callable[[str], None],
    ) -> None:
        super().__init__()
        self._process, self._protocol, self._told = process, protocol, told
        self._silence, self._patience = silence, patience
        self._loop = asyncio.get_running_loop()
        self._final = Finality()
        self._waiting: deque[memoryview] = deque()
        self._size = 0
        self._high, self._low = WRITE_AHEAD, WRITE_AHEAD // 4
        self._filled = asyncio.Event()
        self._reading = asyncio.Event()
        self._reading.set()
        self._paused = False
        self._closing = False
        self._reason: Exception | None = None
        self._heard = 0.0
        self._overdue = self._lost = False
        self._nudging: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        self._protocol.connection_made(self)
        self._tasks = [self._loop.create_task(self._read()), self._loop.create_task(self._write())]
        self._tasks[0].add_done_callback(lambda _: self._end(None))

    # What a protocol calls

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self._closing or not len(data):
            return
        self._waiting.append(memoryview(data))
        self._size += len(data)
        self._filled.set()
        if self._size > self._high and not self._paused:
            self._paused = True
            self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return self._size

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = WRITE_AHEAD if high is None else high
        self._low = self._high // 4 if low is None else low

    def pause_reading(self) -> None:
        self._reading.clear()

    def resume_reading(self) -> None:
        self._reading.set()

    def is_reading(self) -> bool:
        return self._reading.is_set()

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._end(None)

    def abort(self) -> None:
        self._end(None)

    # The two directions

    async def _read(self) -> None:
        while True:
            try:
                async with contextlib.aclosing(self._process.stdout.__aiter__()) as pieces:
                    async for piece in pieces:
                        self._hear()
                        self._protocol.data_received(piece)
                        if self._closing:
                            return
                        await self._reading.wait()
                return
            except Exception as error:
                if not await self._worth_another(error):
                    return

    async def _write(self) -> None:
        stdin = self._process.stdin
        while True:
            await self._filled.wait()
            piece = self._take()
            stdin.write(piece)
            while True:
                try:
                    await stdin.drain.aio()
                    break
                except Exception as error:  # what was not taken is still in the SDK's buffer
                    if not await self._worth_another(error, reading=False):
                        return
            self._size -= len(piece)
            if self._paused and self._size <= self._low:
                self._paused = False
                self._protocol.resume_writing()

    def _take(self) -> bytes:
        """Give what is to be drained next: what waits, up to a piece."""
        parts: list[memoryview] = []
        room = PIECE
        while self._waiting and room:
            part = self._waiting.popleft()
            if len(part) > room:
                self._waiting.appendleft(part[room:])
                part = part[:room]
            parts.append(part)
            room -= len(part)
        if not self._waiting:
            self._filled.clear()
        return b"".join(parts)

    async def _worth_another(self, error: Exception, *, reading: bool = True) -> bool:
        """Whether to try again after an error, after a while. A final one is kept if a reader met it, and ends the stream.

        A writer that meets one leaves it to the reader to come to the last word of the process.
        """
        if self._final(error):
            if reading:
                self._reason = ConnectionResetError(str(error))
            return False
        await asyncio.sleep(AGAIN_SECONDS)
        return True

    def _hear(self) -> None:
        if self._lost:
            self._told(f"the supervisor is heard of again, after {self._loop.time() - self._heard:.1f} s")
        self._heard, self._overdue, self._lost = self._loop.time(), False, False
        if self._watch is None:
            self._listen_for_silence()

    def _listen_for_silence(self) -> None:
        if self._closing:
            return
        silent = self._loop.time() - self._heard
        # After a pause of our own the signs of life may be there, only unread: look once more.
        sure, self._overdue = self._overdue, silent >= self._silence
        if sure and silent >= self._patience:
            self._end(Silence(f"nothing was heard of it for {self._patience:.0f} s"))
            return
        if sure and self._overdue:
            if not self._lost:
                self._lost = True
                self._told(
                    f"nothing was heard of the supervisor for {silent:.1f} s; waiting for it, {self._patience:.0f} s at most"
                )
            if self._nudging is None or self._nudging.done():
                self._nudging = self._loop.create_task(self._nudge())
        wait = AGAIN_SECONDS if self._overdue else self._silence - silent
        self._watch = self._loop.call_later(max(wait, 0.01), self._listen_for_silence)

    async def _nudge(self) -> None:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._process.poll.aio(), self._silence)
        await asyncio.sleep(AGAIN_SECONDS)

    def _end(self, reason: Exception | None) -> None:
        if self._closing:
            return
        self._closing = True
        self._waiting.clear()
        if self._watch is not None:
            self._watch.cancel()
        current = asyncio.current_task(self._loop)
        for task in (*self._tasks, self._nudging):
            if task is not None and task is not current:
                task.cancel()
        self._loop.call_soon(self._protocol.connection_lost, reason or self._reason)


def open_exec(
    process: ContainerProcess[bytes],
    receive: Callable[[Header, bytes], None],
    closed: Callable[[Exception | None], None],
    *,
    silence: float,
    patience: float,
    told: Callable[[str], None],
) -> FramedStream:
    """Speak over a process's standard streams; `receive`, `closed` as of FramedStream. `told` gets a line when it is lost."""
    stream = FramedStream()
    stream.receive, stream.closed = receive, closed
    ExecTransport(process, stream, silence, patience, told).begin()
    return stream
