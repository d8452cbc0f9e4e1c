"""The REPL of one node: a kernel that holds the context, and the cells that run in it.

Each cell is told as events, from its beginning to its end. When a cap is used up a cell may still run for `GRACE` seconds and
is interrupted then, so that code which swallows the error that says so does not go on for ever. What the cells mean for the
node, and what is answered to the LM calls they make, is not decided here.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

from rlm_jupyter import events, files
from rlm_jupyter.contexts import Context
from rlm_jupyter.errors import KernelDied, RLMError
from rlm_jupyter.kernels.cell import CellResult, Output
from rlm_jupyter.kernels.environment import Environment
from rlm_jupyter.kernels.finals import Final
from rlm_jupyter.kernels.kernel import Kernel
from rlm_jupyter.kernels.messages import OnCall
from rlm_jupyter.pictures import Picture
from rlm_jupyter.settings import FILES_CAP, FILES_COUNT_CAP, MIB, many
from rlm_jupyter.values import Value, decode

T = TypeVar("T")

FILES_WITHIN = 30.0
"""Seconds for fetching the files that the code wrote."""
GRACE = 5.0
"""Seconds that a cell may still run after a cap is used up: time to finish with what it has, not to go on for ever."""


class Repl:
    """A kernel, once it is opened, and its cells.

    Parameters
    ----------
    emit
        Where its events go.
    answer, children
        Of `Environment.start_kernel`.
    above
        The REPL of the node's parent; None of the root's.

    Attributes
    ----------
    exhausted
        Set when a cap is used up; a child's is that of its parent until it gets one of its own.
    """

    def __init__(self, emit: events.Emit, answer: OnCall, children: int, above: Repl | None) -> None:
        self.exhausted: anyio.Event = above.exhausted if above is not None else anyio.Event()
        self._emit = emit
        self._answer, self._children = answer, children
        self._above = above
        self._environment: Environment | None = None
        self._opened: Kernel | None = None
        self._cells = 0

    @property
    def _kernel(self) -> Kernel:
        assert self._opened is not None, "the REPL was not opened"
        return self._opened

    @property
    def alive(self) -> bool:
        """Whether there is a kernel that can still be used."""
        return self._opened is not None and self._opened.alive

    @property
    def killed(self) -> bool:
        """Whether there was a kernel, and it is gone."""
        return self._opened is not None and not self._opened.alive

    @property
    def candidate(self) -> Final | None:
        """The last answer that code gave, also in a cell that did not end well; None where the kernel is gone."""
        return self._kernel.candidate if self.alive else None

    async def open(self, environment: Environment, context: Context) -> None:
        """Start the kernel and put the context into it. `close` ends it, also after a failure here."""
        await self._start(environment, None)
        await self._kernel.load("context", context.payload)

    async def open_below(self, parcel: int, place: int) -> None:
        """Start a child's kernel beside its parent's, and have it take the context that the parent left for it."""
        above = self._above
        assert above is not None, "the root has no parent"
        assert above._environment is not None, "the parent was not opened"
        await self._start(above._environment, above._kernel)
        await self._kernel.inherit(parcel, place)

    async def _start(self, environment: Environment, parent: Kernel | None) -> None:
        started = time.monotonic()
        self._environment = environment
        self._opened = await environment.start_kernel(self._answer, parent=parent, children=self._children)
        self._emit(events.KernelStarted(kernel=self._kernel.number, how=self._kernel.how, seconds=time.monotonic() - started))

    async def close(self) -> None:
        """End the kernel."""
        if self._opened is not None:
            await self._opened.close()

    async def unless_lost(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something while no cell runs, as long as there is a kernel: the loss is told at once, and `work` is given up."""
        result: list[T] = []
        failed: list[Exception] = []

        async def watch() -> None:
            failed.append(await self._kernel.gone())
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            try:
                result.append(await work())
            except Exception as error:  # raised inside, it would leave the task group as an ExceptionGroup
                failed.append(error)
            group.cancel_scope.cancel()
        if failed:
            raise failed[0]
        return result[0]

    async def set_up(self, code: str) -> None:
        """Run set-up code before anything is spent; a KernelDied or ValueError tells why it did not go well."""
        result, _ = await self.run(0, code)
        if result.status != "ok":
            error = " ".join(result.error.split()).rstrip(":")
            raise ValueError(error[:300] or result.status)

    async def run(self, iteration: int, code: str) -> tuple[CellResult, tuple[Output, ...]]:
        """Run a cell of an iteration; give how it ended, and what it put out."""
        self._cells += 1
        cell = self._cells
        outputs: list[Output] = []
        self._emit(events.CellStarted(iteration=iteration, cell=cell, code=events.clip(code)))

        def on_output(output: Output) -> None:
            outputs.append(output)
            self._emit(events.CellOutput(cell=cell, stream=output.stream, text=events.clip(output.text)))
            if output.picture is not None:
                self._emit(_shown(cell, output.picture))

        def ended(status: str, error: str, omitted: int = 0) -> None:
            seconds = time.monotonic() - started
            self._emit(
                events.CellEnded(cell=cell, status=status, error=events.clip(error, 1000), omitted=omitted, seconds=seconds)
            )

        started = time.monotonic()
        try:
            result = await self._execute(code, on_output)
        except KernelDied as error:
            ended("died", str(error))
            raise
        except anyio.get_cancelled_exc_class():
            ended("interrupted", "the run was stopped")
            raise
        for note in result.notes:
            self._emit(events.Notice(text=f"cell {cell}: {note}"))
        ended(result.status, result.error, result.omitted)
        return result, tuple(outputs)

    async def _execute(self, code: str, on_output: Callable[[Output], None]) -> CellResult:
        """Run one cell; after a cap is used up it has `GRACE` seconds to end, then it is interrupted."""

        async def watch() -> None:
            await self.exhausted.wait()
            await anyio.sleep(GRACE)
            await self._kernel.interrupt()

        result: CellResult | RLMError
        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            try:
                result = await self._kernel.execute(code, on_output)
            except RLMError as error:  # raised inside, it would leave the task group as an ExceptionGroup
                result = error
            group.cancel_scope.cancel()
        if isinstance(result, RLMError):
            raise result
        return result

    async def value(self, final: Final) -> Value:
        """Fetch an answer."""
        return await self._kernel.value(final)

    def bring(self, final: Final, call: str, place: int) -> None:
        """Hand an answer to the kernel of the node's parent, for item `place` of its call."""
        self._kernel.bring(final, call, place)

    async def files(self) -> dict[str, bytes]:
        """Fetch what the code wrote in its folder, by a cell of ours. That it cannot be had is told, and ends nothing."""
        code = f"__import__('sys').modules['_rlm_repl'].repl.give_files({FILES_CAP}, {FILES_COUNT_CAP})"
        found: Any = None
        reason = ""
        printed: list[str] = []
        try:
            with anyio.move_on_after(FILES_WITHIN):
                result = await self._kernel.execute(code, lambda output: printed.append(output.text[:20]))
                found = decode(await self.value(result.final)) if result.final is not None else None
        except RLMError as error:
            reason = f": {error}"
        if found is None:
            self._emit(events.Notice(text=f"the files that the code wrote could not be had{reason}"))
        if (told := "".join(printed[:4]).strip()).isdecimal() and len(told) < 10:
            caps = f"{FILES_COUNT_CAP:,} files and {FILES_CAP // MIB} MiB"
            self._emit(
                events.Notice(text=f"left out of what the code wrote: {many(int(told), 'file')}; at most {caps} are kept")
            )
        return files.clean(found)


def _shown(cell: int, picture: Picture) -> events.CellPicture:
    data = base64.b64encode(picture.data).decode("ascii")
    return events.CellPicture(cell=cell, media_type=picture.media_type, width=picture.width, height=picture.height, data=data)
