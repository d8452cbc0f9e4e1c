"""Where kernels live: one environment per run or session, one supervisor in it, any number of kernels.

An environment knows its stream and its place and nothing of how either came to be: `local` and `docker` give both. It routes
the supervisor's messages to the kernels, notices when the supervisor falls silent, and ends everything.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from rlm_jupyter.errors import KernelDied, ProtocolError
from rlm_jupyter.kernels.guest import wire
from rlm_jupyter.kernels.guest.frames import HEADER_CAP, MESSAGE_CAP, Header
from rlm_jupyter.kernels.kernel import Kernel
from rlm_jupyter.kernels.messages import Incoming, OnCall, failed
from rlm_jupyter.kernels.transports import FramedStream
from rlm_jupyter.settings import BATCH_CAP, CHILDREN_CAP, CONTEXT_CAP, PICTURE_CAP, PROMPT_CAP, VALUE_CAP

if TYPE_CHECKING:
    from rlm_jupyter.contexts import Payload

START_SECONDS = 60.0
SILENCE_SECONDS = 15.0
"""A supervisor tells every 2 s that it is alive; one that is silent for so long is taken for dead."""


def guest_caps() -> dict[str, int]:
    """Give the caps that a supervisor and its kernels keep on their side."""
    return {
        "prompt": PROMPT_CAP,
        "batch": BATCH_CAP,
        "children": CHILDREN_CAP,
        "context": CONTEXT_CAP,
        "value": VALUE_CAP,
        "picture": PICTURE_CAP,
        "message": MESSAGE_CAP - HEADER_CAP,
    }


class Place(Protocol):
    """Where a supervisor runs, and what can be done to it besides talking."""

    name: str
    isolation: str
    lends: bool
    """Whether `borrow` is worth a try."""

    async def lost(self) -> str:
        """Say in a sentence what has happened when the stream has ended, and what is lost with it; in less than 2 s."""

    async def deliver(self, payload: Payload) -> str:
        """Put a context where the kernels can read it; give its file's name."""

    def discard(self, path: str) -> None:
        """Remove it again."""

    def borrow(self, descriptor: int, size: int) -> memoryview | None:
        """Map so many bytes of sealed memory that the supervisor holds; None where that is not memory of this machine."""

    def kill(self) -> None:
        """Kill the supervisor, at once and without waiting."""

    async def end(self) -> None:
        """Wait, for a short time, until everything is gone; kill what is left and remove the files."""


class Environment:
    """A supervisor and its kernels.

    Attributes
    ----------
    name
        `local`, ...
    isolation
        What separates the code from the user's machine, told truthfully.
    apart
        Whether each kernel runs as a user of its own.
    notices
        What the user should know of it besides, and could not be known before it was there.
    began
        Of `time.monotonic()`: since when there is something to be billed, where somebody bills it.

    Parameters
    ----------
    place
        Where the supervisor runs.
    silence
        Seconds without a sign of life after which the supervisor is taken for dead.
    away
        Where a lost connection is made again: seconds without a sign of life after which it is taken for lost, so that what is
        waited for is not late.
    """

    def __init__(self, place: Place, silence: float = SILENCE_SECONDS, away: float = math.inf) -> None:
        self.name = place.name
        self.isolation = place.isolation
        self.apart = False
        self.notices: tuple[str, ...] = ()
        self.began = time.monotonic()
        self._place = place
        self._silence, self._away = silence, away
        self._stream: FramedStream | None = None
        self._reply: Callable[[wire.Reply], None] | None = None
        self._incoming = Incoming()
        self._kernels: dict[int, Kernel] = {}
        self._count = 0
        self._ended: Exception | None = None
        self._heard = self._returned = 0.0
        self._overdue = False
        self._inquest: asyncio.Future[None] | None = None
        self._kept: set[asyncio.Future[None]] = set()
        self._watch: asyncio.TimerHandle | None = None
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def alive(self) -> bool:
        """Whether kernels can still be started here."""
        return self._ended is None

    @property
    def sent(self) -> int:
        """Bytes that went to the supervisor over its stream so far."""
        return self._stream.sent if self._stream is not None else 0

    async def connect(self, stream: FramedStream) -> None:
        """Take over a stream whose supervisor is about to say Ready; called once, by the launcher."""
        self._stream = stream
        self._heard = asyncio.get_running_loop().time()
        self._listen_for_silence()
        await asyncio.wait({self._ready})
        self._ready.result()

    async def start_kernel(self, answer: OnCall, *, parent: Kernel | None = None, children: int = 0) -> Kernel:
        """Start a kernel whose LM calls `answer` answers; a child of `parent`, and one that may have `children` at once.

        Raises
        ------
        KernelStartError
            When it does not come up; nothing is left of it then.
        KernelDied
            When the supervisor is gone.
        """
        if self._ended is not None:
            raise type(self._ended)(*self._ended.args)
        self._count += 1
        kernel = Kernel(self, self._count, answer, parent=parent.number if parent is not None else 0, children=children)
        self._kernels[kernel.number] = kernel
        try:
            await kernel.start(START_SECONDS)
        except BaseException:
            await kernel.close()
            raise
        return kernel

    def forget(self, kernel: Kernel) -> None:
        """Take note that a kernel is closed: nothing more may be told of it."""
        self._kernels.pop(kernel.number, None)

    async def close(self) -> None:
        """End all kernels, the supervisor, and whatever they started. Safe to repeat."""
        with anyio.CancelScope(shield=True):
            self.send(wire.Shutdown())
            self._end(KernelDied("This environment was closed."))
            await self._place.end()
            if self._stream is not None:
                self._stream.close()
            for task in tuple(self._kept):
                task.cancel()

    # What kernels and launcher use

    def answer_by(self, reply: Callable[[wire.Reply], None]) -> None:
        """Have calls answered another way than over the stream; they come by `called` then."""
        self._reply = reply

    def called(self, message: wire.Call | wire.Dropped) -> None:
        """Take a call that came another way than over the stream, maybe after its kernel was closed."""
        kernel = self._kernels.get(message.kernel)
        if kernel is not None:
            kernel.receive(message)
        elif isinstance(message, wire.Call):
            self.send(failed(message, "the kernel is gone"))

    def send(self, message: wire.Message) -> None:
        if self._reply is not None and isinstance(message, wire.Reply):
            self._reply(message)
        elif self._stream is not None:
            self._stream.send(message)

    async def answered(self, wait: asyncio.Future[Any], seconds: float | None) -> bool:
        """Wait for something of the supervisor's; whether it came within `seconds`, not counting those without a connection."""
        loop = asyncio.get_running_loop()
        asked = loop.time()
        while not wait.done():
            now = loop.time()
            left = None if seconds is None else max(asked, self._returned) + seconds - now
            if left is not None and left <= 0:
                if now - self._heard <= self._away:
                    return False
                left = self._away
            await asyncio.wait({wait}, timeout=left)
        return True

    def keep(self, task: asyncio.Future[None]) -> None:
        """Hold a task that may outlive who made it; it ends with the environment."""
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)

    async def deliver(self, payload: Payload) -> str:
        return await self._place.deliver(payload)

    def discard(self, path: str) -> None:
        self._place.discard(path)

    @property
    def lends(self) -> bool:
        return self._place.lends

    def borrow(self, descriptor: int, size: int) -> memoryview | None:
        return self._place.borrow(descriptor, size)

    def kill(self, error: Exception) -> None:
        """Give the supervisor up: kill it, and tell every kernel why."""
        self._end(error)
        self._place.kill()
        if self._stream is not None:
            self._stream.close(error)

    def receive(self, header: Header, body: bytes) -> None:
        """Take a message of the supervisor. A ProtocolError closes the stream."""
        message = self._incoming.read(header, body)
        now = asyncio.get_running_loop().time()
        if now - self._heard > self._away:
            self._returned = now
        self._heard = now
        self._overdue = False
        if isinstance(message, wire.Ready):
            if message.protocol != wire.PROTOCOL:
                raise ProtocolError(f"the supervisor speaks protocol {message.protocol}; this is {wire.PROTOCOL}")
            self.apart = message.apart
            if not self._ready.done():
                self._ready.set_result(None)
        elif isinstance(message, wire.Heartbeat):
            self.send(wire.Alive())
        else:
            kernel = self._kernels.get(getattr(message, "kernel", 0))
            if kernel is None:
                raise ProtocolError("the supervisor spoke of a kernel that nobody started")
            kernel.receive(message)

    def closed(self, reason: Exception | None) -> None:
        """Take note that the stream has ended."""
        if reason is not None and not isinstance(reason, OSError):
            self.kill(reason)
        else:
            self._inquest = asyncio.ensure_future(self._tell_loss())

    async def _tell_loss(self) -> None:
        if self._ended is None:
            self._end(KernelDied(await self._place.lost()))

    def _end(self, error: Exception) -> None:
        if self._ended is not None:
            return
        self._ended = error
        if self._watch is not None:
            self._watch.cancel()
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()
        for kernel in list(self._kernels.values()):
            kernel.fail(error)

    def _listen_for_silence(self) -> None:
        loop = asyncio.get_running_loop()
        left = self._heard + self._silence - loop.time()
        if left <= 0 and self._overdue:
            self.kill(KernelDied("The process that runs the kernels fell silent and was killed; every variable is lost."))
        elif self._ended is None:
            # After a pause of our own the signs of life may be there, only unread: look once more.
            self._overdue = left <= 0
            self._watch = loop.call_later(max(left, 1.0), self._listen_for_silence)
