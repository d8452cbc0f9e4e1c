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
import signal
from typing import TYPE_CHECKING

import anyio

from rlm_jupyter.errors import KernelDied, KernelError, KernelStartError, ProtocolError
from rlm_jupyter.kernels.calls import Calls
from rlm_jupyter.kernels.cell import Cell, CellResult, OnOutput
from rlm_jupyter.kernels.finals import Final, Finals
from rlm_jupyter.kernels.guest import wire
from rlm_jupyter.kernels.messages import OnCall
from rlm_jupyter.kernels.orders import Orders
from rlm_jupyter.kernels.text import plain
from rlm_jupyter.settings import CONTEXT_CAP
from rlm_jupyter.values import Value

if TYPE_CHECKING:
    from rlm_jupyter.contexts import Payload
    from rlm_jupyter.kernels.environment import Environment

LADDER_SECONDS = 4.5
"""How long the supervisor's ladder may take until the supervisor itself is taken for stuck."""
CLOSE_SECONDS = 3.0
KILL_SECONDS = 1.0
"""How much longer whoever closes a kernel waits for its supervisor to be killed."""
LOAD_SECONDS = 60.0
LOAD_BYTES_A_SECOND = 10 * 1024 * 1024


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
        The last answer that code gave, also in a cell that then failed or was interrupted; None where there is none.
    """

    def __init__(self, environment: Environment, number: int, answer: OnCall, *, parent: int = 0, children: int = 0) -> None:
        self.number = number
        self.parent = parent
        self._children = children
        self.how = ""
        self.pid = 0
        self.python = ""
        self._environment = environment
        self._calls = Calls(environment.send, answer)
        self._orders = Orders(environment)
        self._finals = Finals(environment, self._orders, number, parent)
        self._closed = False
        self._busy: asyncio.Future[wire.Message] | None = None
        self._cell: Cell | None = None
        self._cells = 0
        self._loads = 0

    @property
    def alive(self) -> bool:
        return self._orders.ended is None

    @property
    def candidate(self) -> Final | None:
        return self._finals.candidate

    async def start(self, seconds: float) -> None:
        """Wait until the kernel takes code; called by the environment."""
        try:
            message = await self._orders.give(wire.Start(self.number, self.parent, self._children), seconds)
        except TimeoutError:
            raise KernelStartError(f"the kernel did not start within {seconds:.0f} s") from None
        if isinstance(message, wire.StartFailed):
            self._orders.ended = KernelDied("this kernel never started")
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
            raise self._orders.broken(ProtocolError("the kernel loaded what was not sent"))
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
        cell = self._cell = Cell(self._cells, on_output)
        try:
            message = await self._work(wire.Execute(self.number, cell.number, code.encode("utf-8", "backslashreplace")), None)
        finally:
            self._cell = None
            await self._calls.end()
        assert isinstance(message, wire.Done)
        if message.cell != cell.number:
            raise self._orders.broken(ProtocolError("the supervisor ended a cell that does not run"))
        return cell.end(message, self.candidate if message.final is not None and message.status == "ok" else None)

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

    async def gone(self) -> Exception:
        """Wait until the kernel can be used no more, whatever it does or does not do meanwhile, and give why."""
        await self._orders.over.wait()
        ended = self._orders.ended
        assert ended is not None
        return type(ended)(*ended.args)

    async def value(self, final: Final) -> Value:
        """Fetch an answer; bytes that travelled are checked against the digest that came with it."""
        return await self._finals.fetch(final)

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
        with self._orders.sent(wire.Close(self.number)) as wait:
            if not await self._environment.answered(wait, CLOSE_SECONDS):
                self._environment.kill(KernelDied("The kernel could not be closed in time and was killed with its supervisor."))
        self._environment.forget(self)

    # What the environment tells

    def receive(self, message: wire.Message) -> None:
        """Take a message of the supervisor that is about this kernel."""
        if isinstance(message, wire.Output):
            if self._cell is not None:
                self._cell.output(message)
        elif isinstance(message, wire.Picture):
            if self._cell is not None:
                self._cell.picture(message)
        elif isinstance(message, wire.Call):
            self._calls.take(message, self._cell.number if self._cell is not None else 0)
        elif isinstance(message, wire.Dropped):
            self._calls.drop(message)
        elif isinstance(message, wire.ValuePart):
            self._finals.take_part(message, late=self._closed)
        elif isinstance(message, wire.Died):
            self.fail(KernelDied(_death(message, self._cell is not None)))
        elif (wait := self._orders.wait_for(message)) is not None:
            if isinstance(message, wire.Done) and message.final is not None:
                self._finals.announce(message.final)  # here, since whoever waited may have been cancelled
            wait.set_result(message)

    def fail(self, error: Exception) -> None:
        """Take the kernel for lost; whoever waits for it gets the error. That it is closed is told also of one that is lost."""
        self._orders.fail(error)
        self._finals.fail(error)
        self._calls.cancel()

    # Orders

    def _check_free(self) -> None:
        self._orders.check()
        if self._busy is not None:
            raise RuntimeError("a kernel does one thing at a time")

    async def _work(self, order: wire.Context | wire.Inherit | wire.Execute, seconds: float | None) -> wire.Message:
        """Give an order; when cancelled or too slow, interrupt the kernel first. A child's is only ever closed then."""
        with self._orders.sent(order) as wait:
            self._busy = wait
            try:
                if not await self._environment.answered(wait, seconds):
                    await self.interrupt()
                    self._orders.check()
                    raise KernelError(f"the kernel was interrupted: it had not finished after {seconds:.0f} s")
                return wait.result()
            except asyncio.CancelledError:
                if not self.parent:
                    with anyio.CancelScope(shield=True):
                        await self.interrupt()
                raise
            finally:
                self._busy = None


def _death(message: wire.Died, in_cell: bool) -> str:
    when = "while a cell ran" if in_cell else "between two cells"
    if message.signal:
        with contextlib.suppress(ValueError):
            how = f"was killed by {signal.Signals(message.signal).name} (signal {message.signal})"
            hint = " Out of memory is a common cause." if message.signal == 9 and not message.notes else ""
            return _death_text(how, when, message.notes, hint)
        return _death_text(f"was killed by signal {message.signal}", when, message.notes, "")
    return _death_text(f"ended itself with exit status {message.exit_code}", when, message.notes, "")


def _death_text(how: str, when: str, notes: tuple[str, ...], hint: str) -> str:
    steps = f" ({plain('; '.join(notes))})" if notes else ""
    return f"The kernel {how} {when}{steps}.{hint}\nEvery variable in it is lost; what was put out before is kept."


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no reason was given"
