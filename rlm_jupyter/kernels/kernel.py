"""One kernel as the host sees it.

The contract, for every environment:

- `load`, `execute`, `value`, `close` are awaited one at a time; `interrupt` may come at any moment.
- Each raises `KernelDied` when the process is gone, or its supervisor, or the connection; from then on `alive` is False and
  every further call raises it at once. Nothing is ever restarted: what was in the kernel is lost, and the text says so.
- `ProtocolError` when the other end does what the protocol does not allow; the whole environment is closed then.
- Each can be cancelled. Cancelling `load` and `execute` interrupts the kernel by the ladder SIGINT, SIGINT, SIGKILL of the tree
  and waits, shielded, at most about 4.5 s for that; the kernel stays usable if it came back.
- Everything that arrives is bounded and untrusted: output is text without terminal sequences, a value is bytes whose digest
  was checked, or memory that was sealed before it was handed over; calls are answered only while their cell runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from rlm_jupyter.errors import KernelDied, KernelError, KernelStartError, ProtocolError
from rlm_jupyter.kernels.calls import Calls
from rlm_jupyter.kernels.guest import wire
from rlm_jupyter.kernels.messages import Answer
from rlm_jupyter.kernels.text import TextDecoder, plain
from rlm_jupyter.pictures import NoPicture, Picture, check
from rlm_jupyter.settings import CONTEXT_CAP, OUTPUT_CAP, VALUE_CAP
from rlm_jupyter.values import Value

if TYPE_CHECKING:
    from rlm_jupyter.contexts import Payload
    from rlm_jupyter.kernels.environment import Environment

LADDER_SECONDS = 4.5
"""How long the supervisor's ladder may take until the supervisor itself is taken for stuck."""
CLOSE_SECONDS = 3.0
KILL_SECONDS = 1.0
"""How much longer whoever closes a kernel waits for its supervisor to be killed."""
PART_SECONDS = 30.0
PARTS_AHEAD = 16
LOAD_SECONDS = 60.0
LOAD_BYTES_A_SECOND = 10 * 1024 * 1024

_ENDS: dict[type[wire.Message], tuple[type[wire.Message], ...]] = {
    wire.Start: (wire.Started, wire.StartFailed),
    wire.Context: (wire.Loaded,),
    wire.Inherit: (wire.Loaded,),
    wire.Execute: (wire.Done,),
    wire.LendValue: (wire.ValueLent,),
    wire.Close: (wire.Closed,),
}

OnOutput = Callable[["Output"], None]


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of what a cell puts out. `stream`: stdout, stderr, result, display or error. Plain text, also of a picture."""

    stream: str
    text: str
    picture: Picture | None = None


@dataclass(frozen=True, slots=True)
class Final:
    """An answer given with FINAL_VAR; `name` is '' when it was given by value. `Kernel.value` fetches it.

    That of a child stays beside the kernels: `preview` is its beginning as text, and `Kernel.bring` hands it to the parent.
    """

    number: int
    name: str
    type_name: str
    size: int
    preview: str = ""


@dataclass(frozen=True, slots=True)
class CellResult:
    """How a cell ended. `status`: ok, error or interrupted. `omitted`: bytes of output not kept. `notes`: kill ladder steps.

    `final` is there only where the cell ended well; the answer of one that did not is the kernel's `candidate`.
    """

    status: str
    error: str
    omitted: int
    seconds: float
    final: Final | None
    notes: tuple[str, ...]


class _Cell:
    """The cell that runs: where its output goes, which calls it has under way."""

    def __init__(self, number: int, on_output: OnOutput) -> None:
        self.number = number
        self.on_output = on_output
        self.started = time.monotonic()
        self.decoders: dict[str, TextDecoder] = {}
        self.received = 0
        self.pictures = 0


class Kernel:
    """A running IPython kernel. Made by `Environment.start_kernel` only.

    Attributes
    ----------
    number
        Its name within the environment, from 1.
    how
        `spare` (was ready before it was asked for), `forked` or `cold`.
    pid
        Its process id where it runs, for showing only.
    python
        The version of its Python.
    alive
        Whether it can still be used.
    candidate
        The last answer that code gave, also in a cell that then failed or was interrupted.
    """

    def __init__(self, environment: Environment, number: int, answer: Answer, *, parent: int = 0, children: int = 0) -> None:
        self.number = number
        self.parent = parent
        self._children = children
        self.how = ""
        self.pid = 0
        self.python = ""
        self.candidate: Final | None = None
        self._environment = environment
        self._calls = Calls(environment.send, answer)
        self._ended: Exception | None = None
        self._closed = False
        self._waits: dict[asyncio.Future[wire.Message], tuple[type[wire.Message], ...]] = {}
        self._busy: asyncio.Future[wire.Message] | None = None
        self._cell: _Cell | None = None
        self._cells = 0
        self._loads = 0
        self._finals: dict[int, wire.FinalInfo] = {}
        self._parts: deque[tuple[int, int, asyncio.Future[bytes]]] = deque()

    @property
    def alive(self) -> bool:
        return self._ended is None

    async def start(self, seconds: float) -> None:
        """Wait until the kernel takes code; called by the environment."""
        try:
            message = await self._request(wire.Start(self.number, self.parent, self._children), seconds)
        except TimeoutError:
            raise KernelStartError(f"the kernel did not start within {seconds:.0f} s") from None
        if isinstance(message, wire.StartFailed):
            self._ended = KernelDied("this kernel never started")
            text = plain(message.text).strip()
            raise KernelStartError(f"the kernel did not start: {_last_line(text)}")
        assert isinstance(message, wire.Started)
        self.how, self.pid, self.python = message.how, message.pid, plain(message.python)

    async def load(self, name: str, payload: Payload) -> None:
        """Set the global `name` to a context; the kernel checks the digest of its bytes.

        Raises
        ------
        KernelError
            When it did not arrive as it was sent.
        """
        self._check_free()
        self._loads += 1
        path = await self._environment.deliver(payload)
        try:
            order = wire.Context(self.number, self._loads, name, path, payload.form, payload.size, payload.digest)
            message = await self._work(order, LOAD_SECONDS + payload.size / LOAD_BYTES_A_SECOND)
        finally:
            self._environment.discard(path)
        self._check_loaded(message)

    async def inherit(self, parcel: int, place: int) -> None:
        """Set the global `context` from what the parent has left for this child; the host sees no byte of it.

        Raises
        ------
        KernelError
            When it is not there, or cannot be had in this kernel.
        """
        self._check_free()
        self._loads += 1
        order = wire.Inherit(self.number, self._loads, parcel, place)
        self._check_loaded(await self._work(order, LOAD_SECONDS + CONTEXT_CAP / LOAD_BYTES_A_SECOND))

    def bring(self, final: Final, call: str, place: int) -> None:
        """Hand an answer to the parent, for item `place` of its call; it is there before the next order is carried out."""
        self._environment.send(wire.Bring(self.number, final.number, call, place))

    def _check_loaded(self, message: wire.Message) -> None:
        assert isinstance(message, wire.Loaded)
        if message.load != self._loads:
            raise self._break(ProtocolError("the kernel loaded what was not sent"))
        if message.error:
            raise KernelError(f"the context did not reach the kernel: {plain(message.error)}")

    async def execute(self, code: str, on_output: OnOutput) -> CellResult:
        """Run a cell and wait until it, its output and its LM calls are over.

        Parameters
        ----------
        code
            The cell. Lone surrogates become escapes.
        on_output
            Called in the event loop with each piece of output, in order, before this returns.
        """
        self._check_free()
        self._cells += 1
        cell = self._cell = _Cell(self._cells, on_output)
        try:
            message = await self._work(wire.Execute(self.number, cell.number, code.encode("utf-8", "backslashreplace")), None)
        finally:
            self._cell = None
            await self._calls.end()
        assert isinstance(message, wire.Done)
        return self._result(cell, message)

    async def interrupt(self) -> bool:
        """Interrupt what the kernel does by the ladder; whether the kernel is still there afterwards."""
        wait = self._busy
        if wait is not None and not wait.done() and self.alive:
            self._environment.send(wire.Interrupt(self.number))
            await asyncio.wait({wait}, timeout=LADDER_SECONDS)
            if not wait.done():
                self._environment.kill(
                    KernelDied(
                        f"The kernel and its supervisor did not answer for {LADDER_SECONDS:.1f} s (stopped, or the "
                        "processors were too busy) and were killed; every variable in them is lost."
                    )
                )
        return self.alive

    async def value(self, final: Final) -> Value:
        """Fetch an answer; bytes that travelled are checked against the digest that came with it."""
        self._check_alive()
        info = self._finals.get(final.number)
        if info is None:
            raise KernelError("this answer is no longer kept by the kernel")
        if info.size > wire.VALUE_PIECE and (lent := await self._lent(info)) is not None:
            return Value(info.form, info.type_name, lent)
        pieces: list[bytes] = []
        digest = hashlib.sha256()
        offsets = deque(range(0, info.size, wire.VALUE_PIECE))
        under_way: deque[asyncio.Future[bytes]] = deque()
        hashed: asyncio.Future[None] | None = None
        try:
            while offsets or under_way:
                while offsets and len(under_way) < PARTS_AHEAD:
                    under_way.append(self._ask_part(info.number, offsets.popleft()))
                part = under_way.popleft()
                if not await self._environment.answered(part, PART_SECONDS):
                    raise TimeoutError
                pieces.append(part.result())
                if info.size <= wire.VALUE_PIECE:
                    digest.update(pieces[-1])
                    continue
                if hashed is not None:  # one piece after the other, in a thread, while the next one comes
                    await hashed
                hashed = asyncio.get_running_loop().run_in_executor(None, digest.update, pieces[-1])
            if hashed is not None:
                await hashed
        except TimeoutError:
            raise self._break(KernelDied("The kernel's supervisor stopped answering; the variables are lost.")) from None
        data = b"".join(pieces)
        if len(data) != info.size or digest.hexdigest() != info.digest:
            raise KernelError("the answer arrived with another size or digest than it was sent with")
        return Value(info.form, info.type_name, data)

    async def close(self) -> None:
        """End the kernel and all that it started. Safe to repeat.

        While a connection that is lost is made again nobody waits for long: it is ended when the connection is back.
        """
        with anyio.CancelScope(shield=True):
            if self._environment.alive and not self._closed:
                self._closed = True
                closing = asyncio.ensure_future(self._end())
                self._environment.keep(closing)
                await asyncio.wait({closing}, timeout=CLOSE_SECONDS + KILL_SECONDS)
            self.fail(KernelDied("This kernel was closed."))

    async def _end(self) -> None:
        """Have the supervisor end the kernel; one that is heard of and does not is killed."""
        with self._sent(wire.Close(self.number)) as wait:
            if not await self._environment.answered(wait, CLOSE_SECONDS):
                self._environment.kill(KernelDied("The kernel could not be closed in time and was killed with its supervisor."))
        self._environment.forget(self)

    # What the environment tells

    def receive(self, message: wire.Message) -> None:
        """Take a message of the supervisor that is about this kernel."""
        if isinstance(message, wire.Output):
            self._output(message)
        elif isinstance(message, wire.Picture):
            self._picture(message)
        elif isinstance(message, wire.Call):
            self._calls.take(message, self._cell.number if self._cell is not None else 0)
        elif isinstance(message, wire.Dropped):
            self._calls.drop(message)
        elif isinstance(message, wire.ValuePart):
            self._part(message)
        elif isinstance(message, wire.Died):
            self.fail(KernelDied(_death(message, self._cell is not None)))
        else:
            for wait, expected in self._waits.items():
                if isinstance(message, expected) and not wait.done():
                    if isinstance(message, wire.Done):  # here, since whoever waited may have been cancelled
                        self._take_final(message)
                    wait.set_result(message)
                    break

    def fail(self, error: Exception) -> None:
        """Take the kernel for lost; whoever waits for it gets the error. That it is closed is told also of one that is lost."""
        if self._ended is None:
            self._ended = error
        for wait, expected in self._waits.items():
            if not wait.done() and not (wire.Closed in expected and self._environment.alive):
                wait.set_exception(error)
                wait.exception()
        while self._parts:
            part = self._parts.popleft()[2]
            if not part.done():
                part.set_exception(error)
                part.exception()
        self._calls.cancel()

    # Requests

    def _check_alive(self) -> None:
        if self._ended is not None:
            raise type(self._ended)(*self._ended.args)

    def _check_free(self) -> None:
        self._check_alive()
        if self._busy is not None:
            raise RuntimeError("a kernel does one thing at a time")

    async def _request(self, order: wire.Message, seconds: float | None) -> wire.Message:
        """Send an order and wait for the message that ends it; TimeoutError after `seconds`."""
        with self._sent(order) as wait:
            if not await self._environment.answered(wait, seconds):
                raise TimeoutError
            return wait.result()

    async def _work(self, order: wire.Context | wire.Inherit | wire.Execute, seconds: float | None) -> wire.Message:
        """Like `_request`; when cancelled or too slow, interrupt the kernel first. A child's is only ever closed then."""
        with self._sent(order) as wait:
            self._busy = wait
            try:
                if not await self._environment.answered(wait, seconds):
                    await self.interrupt()
                    self._check_alive()
                    raise KernelError(f"the kernel was interrupted: it had not finished after {seconds:.0f} s")
                return wait.result()
            except asyncio.CancelledError:
                if not self.parent:
                    with anyio.CancelScope(shield=True):
                        await self.interrupt()
                raise
            finally:
                self._busy = None

    @contextlib.contextmanager
    def _sent(self, order: wire.Message) -> Iterator[asyncio.Future[wire.Message]]:
        """Send an order; give the future of the message that ends it."""
        wait: asyncio.Future[wire.Message] = asyncio.get_running_loop().create_future()
        self._waits[wait] = _ENDS[type(order)]
        self._environment.send(order)
        try:
            yield wait
        finally:
            del self._waits[wait]

    def _break(self, error: Exception) -> Exception:
        self._environment.kill(error)
        return error

    # Cells

    def _output(self, message: wire.Output) -> None:
        cell = self._cell
        if cell is None or message.cell != cell.number:
            return
        cell.received += len(message.data)
        if cell.received > OUTPUT_CAP + 1024:
            raise ProtocolError("the supervisor sent more output of a cell than it may")
        if message.omitted:
            self._flush(cell)
            cell.on_output(Output(message.stream, f"\n[... {message.omitted:,} bytes of output left out ...]\n"))
        text = cell.decoders.setdefault(message.stream, TextDecoder()).feed(
            message.data, message.stream in ("result", "display", "error")
        )
        if text:
            cell.on_output(Output(message.stream, text))

    def _picture(self, message: wire.Picture) -> None:
        cell = self._cell
        if cell is None or message.cell != cell.number:
            return
        cell.pictures += 1
        if cell.pictures > wire.PICTURES_OF_A_CELL:
            raise ProtocolError("the supervisor sent more pictures of a cell than it may")
        self._flush(cell)
        try:
            picture = check(message.data)
        except NoPicture as reason:
            cell.on_output(Output("display", f"[a picture is not shown: {reason}]\n"))
        else:
            cell.on_output(Output("display", f"[a picture of {picture.width}x{picture.height}]\n", picture))

    def _flush(self, cell: _Cell) -> None:
        """Hand on what decoders still hold."""
        for stream, decoder in cell.decoders.items():
            if text := decoder.feed(b"", final=True):
                cell.on_output(Output(stream, text))
        cell.decoders.clear()

    def _result(self, cell: _Cell, done: wire.Done) -> CellResult:
        if done.cell != cell.number:
            raise self._break(ProtocolError("the supervisor ended a cell that does not run"))
        cell_seconds = time.monotonic() - cell.started
        self._flush(cell)
        final = self.candidate if done.final is not None and done.status == "ok" else None
        return CellResult(done.status, plain(done.error), done.omitted, cell_seconds, final, tuple(map(plain, done.notes)))

    def _take_final(self, done: wire.Done) -> None:
        info = done.final
        if info is None:
            return
        if info.size > VALUE_CAP:
            raise ProtocolError("the supervisor announced a value above the cap")
        if info.form == "pickle" and not self.parent:
            raise ProtocolError("the supervisor announced a value that is for kernels only")
        self._finals[info.number] = info
        self.candidate = Final(info.number, plain(info.name), plain(info.type_name), info.size, plain(info.preview))

    # Values

    async def _lent(self, info: wire.FinalInfo) -> memoryview | None:
        """Give the memory itself in which the kernel left an answer, where that is sealed and of this machine."""
        if not self._environment.lends:
            return None
        try:
            message = await self._request(wire.LendValue(self.number, info.number), PART_SECONDS)
        except TimeoutError:
            raise self._break(KernelDied("The kernel's supervisor stopped answering; the variables are lost.")) from None
        assert isinstance(message, wire.ValueLent)
        if message.number != info.number:
            raise self._break(ProtocolError("the supervisor lent another value than it was asked for"))
        return self._environment.borrow(message.descriptor, info.size) if message.descriptor else None

    def _ask_part(self, number: int, offset: int) -> asyncio.Future[bytes]:
        self._check_alive()
        part: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._parts.append((number, offset, part))
        self._environment.send(wire.GetValue(self.number, number, offset))
        return part

    def _part(self, message: wire.ValuePart) -> None:
        if not self._parts and self._closed:
            return
        if not self._parts:
            raise ProtocolError("the supervisor sent a value that nobody asked for")
        number, offset, part = self._parts.popleft()
        if (message.number, message.offset) != (number, offset):
            raise ProtocolError("the supervisor sent another piece of a value than it was asked for")
        if not part.done():
            part.set_result(message.data)


def _death(message: wire.Died, in_cell: bool) -> str:
    when = "while a cell ran" if in_cell else "between two cells"
    if message.signal:
        with contextlib.suppress(ValueError):
            how = f"was killed by {signal.Signals(message.signal).name} (signal {message.signal})"
            break_reason = " Out of memory is a common cause." if message.signal == 9 and not message.notes else ""
            return _death_text(how, when, message.notes, break_reason)
        return _death_text(f"was killed by signal {message.signal}", when, message.notes, "")
    return _death_text(f"ended itself with exit status {message.exit_code}", when, message.notes, "")


def _death_text(how: str, when: str, notes: tuple[str, ...], hint: str) -> str:
    steps = f" ({plain('; '.join(notes))})" if notes else ""
    return f"The kernel {how} {when}{steps}.{hint}\nEvery variable in it is lost; what was put out before is kept."


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no reason was given"
