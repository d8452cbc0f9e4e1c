"""The recursive loop of one node: ask the LM, read its reply, run the code, feed the output back, finish.

One node owns one kernel and one message list, which only grows. It knows nothing of display, of threads or of how a model
is reached: it asks an `LMHandler`, runs cells in a `Kernel` and emits events. It refuses to go on after a cap is used up,
also when the code in the kernel swallows the error that says so; then the LM is asked once more, for its answer.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio

from rlm_jupyter import events, files, prompts, replies
from rlm_jupyter.budget import Budget
from rlm_jupyter.contexts import Context
from rlm_jupyter.errors import KernelDied, LimitReached, RLMError
from rlm_jupyter.kernels.cell import CellResult, Output
from rlm_jupyter.kernels.environment import Environment
from rlm_jupyter.kernels.finals import Final
from rlm_jupyter.kernels.kernel import Kernel
from rlm_jupyter.kernels.messages import CallOutcome, CallRequest
from rlm_jupyter.lm.client import ImagePart, Message, TextPart
from rlm_jupyter.lm.handler import LMHandler
from rlm_jupyter.pictures import Picture
from rlm_jupyter.settings import FILES_CAP, FILES_COUNT_CAP, RunSettings, many
from rlm_jupyter.values import decode

PICTURES_FOR_LM, PICTURE_FOR_LM = 4, 4 * 1024 * 1024
"""Pictures of one turn that an LM is sent at most, where it is sent any, and bytes of one."""
FILES_WITHIN = 30.0
"""Seconds for fetching the files that the code wrote."""
GRACE = 5.0
"""Seconds that a cell may still run after a cap is used up: time to finish with what it has, not to go on for ever."""
TOKEN_BYTES, WORDS_BYTES = 4, 4_000
"""Bytes that a token of a reply is taken for, and those of our own words, in how much a history can grow in one turn."""
CANDIDATE_AT_ONCE = 1024 * 1024
"""Bytes up to which a candidate is fetched when its cell has failed; a larger one when it is needed, if it is there then."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """How a node ended: `answered`, `unmarked` or `limit` (then with the cap); the value and the name of its type.

    A `candidate` is what it has where it has not ended so. Of a child's value there is only the beginning,
    as text: `final` is the answer itself, which stays beside the kernels.
    """

    status: str
    value: Any = None
    type_name: str = ""
    limit: LimitReached | None = None
    final: Final | None = None


Bear = Callable[["Node", CallRequest, int], Awaitable[CallOutcome]]
"""Has one prompt of a node's call answered by a child of it."""


class Node:
    """One RLM: a kernel that holds the context, and the conversation about it.

    Parameters
    ----------
    settings, handler, budget, emit
        Its own settings and handler; the budget is the tree's.
    name
        Of the node: `0` is the root, `0.2` its second child.
    bear
        Makes its children; None where it may have none.
    parent
        The node whose child it is.

    Attributes
    ----------
    name, parent
        As given.
    place
        What its LM is told of where its code runs.
    """

    def __init__(
        self,
        settings: RunSettings,
        handler: LMHandler,
        budget: Budget,
        emit: events.Emit,
        *,
        name: str = "0",
        bear: Bear | None = None,
        parent: Node | None = None,
    ) -> None:
        self.name, self.parent, self.place = name, parent, ""
        self._settings = settings
        self._handler = handler
        self._budget = budget
        self._emit_event = emit
        self._bear = bear
        self._environment: Environment | None = None
        self._messages: list[Message] = []
        self._cells = 0
        self._errors = 0
        self._best: Answer | None = None
        self._turn = 0
        self._ran: list[prompts.Ran] = []
        self._exhausted: anyio.Event = parent._exhausted if parent is not None else anyio.Event()
        self._over: LimitReached | None = None
        self._opened: Kernel | None = None

    def _emit(self, event: events.Event) -> None:
        self._emit_event(event if event.node == self.name else dataclasses.replace(event, node=self.name))

    @property
    def _kernel(self) -> Kernel:
        assert self._opened is not None, "the node was not opened"
        return self._opened

    @property
    def alive(self) -> bool:
        """Whether there is a kernel that can still be used."""
        return self._opened is not None and self._opened.alive

    @property
    def killed(self) -> bool:
        """Whether there was a kernel, and it is gone."""
        return self._opened is not None and not self._opened.alive

    async def open(self, environment: Environment, context: Context) -> None:
        """Start the node's kernel and put the context into it. `close` ends it, also after a failure here."""
        await self._start(environment, None)
        await self._kernel.load("context", context.payload)

    async def open_below(self, parcel: int, place: int) -> None:
        """Start a child's kernel beside its parent's, and have it take the context that the parent left for it."""
        parent = self.parent
        assert parent is not None, "the root has no parent"
        assert parent._environment is not None, "the parent was not opened"
        await self._start(parent._environment, parent._kernel)
        await self._kernel.inherit(parcel, place)

    async def _start(self, environment: Environment, parent: Kernel | None) -> None:
        started = time.monotonic()
        self._environment = environment
        self._opened = await environment.start_kernel(self.answer_calls, parent=parent, children=self._working)
        self._emit(events.KernelStarted(kernel=self._kernel.number, how=self._kernel.how, seconds=time.monotonic() - started))

    @property
    def _working(self) -> int:
        """How many children may work at once in the tree; 0 where this node may have none."""
        return self._settings.max_concurrent_children if self._bear is not None else 0

    def bring(self, final: Final, call: str, place: int) -> None:
        """Hand a child's answer to its parent's kernel."""
        self._kernel.bring(final, call, place)

    async def close(self) -> None:
        """End the kernel."""
        if self._opened is not None:
            await self._opened.close()

    async def answer_calls(self, request: CallRequest) -> Sequence[CallOutcome]:
        """Answer LM calls that code in the kernel makes, and notice when a cap is used up."""
        if self._over is not None:
            outcomes = [CallOutcome(error=str(self._over))] * len(request.prompts)
        elif not request.contexts:
            outcomes = await self._handler.answer(request)
        elif self._bear is None:
            text = f"no deeper RLM is allowed here (--max-depth {self._settings.max_depth})"
            outcomes = [CallOutcome(error=text)] * len(request.prompts)
        else:
            outcomes = await self._handler.answer(request, functools.partial(self._bear, self))
        if self._handler.limit is not None:
            self._exhausted.set()
        return outcomes

    async def set_up(self, code: str) -> None:
        """Run set-up code before anything is spent; a KernelDied or ValueError tells why it did not go well."""
        await self._run_cell(0, code)
        if self._ran[-1].status != "ok":
            error = " ".join(self._ran[-1].error.split()).rstrip(":")
            raise ValueError(error[:300] or self._ran[-1].status)

    async def run(self, question: str | None, description: str, place: str = "") -> Answer:
        """Go round until there is an answer. When a cap is used up the root asks once more, for the best that there is.

        So does a child at a cap of its own (turns, errors in a row), as long as the tree has room for that request.

        `place`: what the LM is told of where its code runs.

        Raises
        ------
        LMError
            The root LM could not be asked, after the retries it deserves.
        LimitReached
            The tree of a child has come to a cap.
        KernelDied
            The kernel is gone, with every variable in it.
        """
        self.place = place
        first = prompts.first_message(question, description, self._left(1), place, self._working)
        self._messages = [{"role": "system", "content": prompts.SYSTEM}, {"role": "user", "content": first}]
        try:
            with anyio.move_on_after(self._budget.remaining() if self.parent is None else None):
                return await self._turns()
            reached = self._budget.out_of_time()
        except LimitReached as limit:
            if self.parent is not None and self._handler.limit is not None:
                raise
            reached = limit
        except KernelDied:
            if self.parent is not None or self._handler.limit is None:
                raise
            reached = self._handler.limit  # the code had to be killed, since it would not end after a cap was used up
        return await self._last_answer(reached)

    async def _turns(self) -> Answer:
        nudges = 0
        for iteration in range(1, self._settings.max_iterations + 1):
            reply = await self._ask(iteration)
            left = self._left(iteration + 1)
            if reply.blocks:
                nudges = 0
                final, skipped = await self._run_blocks(iteration, reply.blocks)
                if final is not None:
                    return await self._answer(final)
                self._tell(prompts.outputs_message(self._ran, skipped, left, cut=self._cut(reply)), self._pictures())
            elif reply.cut:
                self._tell(f"{self._cut(reply)}\n\n{prompts.turn_line(left)}")
            elif reply.final_name is not None:
                final, skipped = await self._run_blocks(iteration, (f"FINAL_VAR({reply.final_name!r})",))
                if final is not None:
                    return await self._answer(final)
                self._tell(prompts.outputs_message(self._ran, skipped, left))
            elif reply.final_text is not None:
                return Answer("answered", reply.final_text, "str")
            elif nudges == len(prompts.NUDGES):
                return Answer("unmarked", reply.prose, "str")
            else:
                self._emit(events.Notice(text=f"turn {iteration}: the LM wrote no code; it was told how to go on"))
                self._tell(f"{prompts.NUDGES[nudges]}\n\n{prompts.turn_line(left)}")
                nudges += 1
            if self._handler.limit is not None:
                raise self._handler.limit
            if (most := self._settings.max_consecutive_errors) is not None and self._errors >= most:
                text = f"{many(self._errors, 'cell')} in a row ended in an error (--max-consecutive-errors {most})"
                raise LimitReached("max_consecutive_errors", text, used=self._errors, cap=most)
        count = self._settings.max_iterations
        text = f"no answer after {many(count, 'iteration')} (--max-iterations {count})"
        raise LimitReached("max_iterations", text, used=count, cap=count)

    async def _last_answer(self, reached: LimitReached) -> Answer:
        """Ask for the answer, the root in the room kept for that; give it, else the best there was."""
        if self.parent is None:
            self._budget.reach(reached)
        else:
            self._over, self._exhausted = reached, anyio.Event()
        self._exhausted.set()
        try:
            with anyio.move_on_after(self._budget.remaining(last=self.parent is None)):
                if (answer := await self._ask_once_more(reached)) is not None:
                    return dataclasses.replace(answer, status="limit", limit=reached)
        except RLMError as error:
            self._emit(events.Notice(text=f"the last request, for the answer, brought none: {error}"))
        return dataclasses.replace(await self.best() or Answer("limit"), status="limit", limit=reached)

    async def _ask_once_more(self, reached: LimitReached) -> Answer | None:
        self._tell_end(prompts.last_message(str(reached), alive=self._kernel.alive))
        iteration = self._turn + 1
        reply = await self._ask(iteration, last=True)
        blocks = reply.blocks or ((f"FINAL_VAR({reply.final_name!r})",) if reply.final_name is not None else ())
        if blocks and self._kernel.alive:
            final, _ = await self._run_blocks(iteration, blocks)
            return await self._answer(final) if final is not None else None
        text = reply.final_text or ("" if blocks or reply.cut else reply.prose)
        return Answer("limit", text, "str") if text.strip() else None

    async def best(self) -> Answer | None:
        """Give the last candidate: the answer of a cell that then failed or was interrupted; None where there is none.

        That of a child is gone with its kernel.
        """
        if self.parent is not None and not self.alive:
            return None
        candidate = self._kernel.candidate if self.alive else None
        if candidate is not None:
            try:
                self._best = dataclasses.replace(await self._answer(candidate), status="candidate")
            except RLMError as error:
                self._emit(events.Notice(text=f"an answer that code gave could not be had: {error}"))
        return self._best

    async def _ask(self, iteration: int, *, last: bool = False) -> replies.Reply:
        self._turn = iteration
        self._emit(events.IterationStarted(iteration=iteration, of=self._settings.max_iterations, last=last))
        growth = (
            0
            if last or self.parent is not None
            else TOKEN_BYTES * self._settings.max_output_tokens + prompts.OUTPUT_FOR_LM + WORDS_BYTES
        )
        reply = await self._handler.ask(self._messages, iteration, growth=growth, last=last and self.parent is None)
        self._messages.append({"role": "assistant", "content": reply.text})
        return replies.read(reply.text, truncated=reply.finish_reason == "length")

    async def _run_blocks(self, iteration: int, blocks: Sequence[str]) -> tuple[Final | None, int]:
        """Run a reply's blocks in order up to the first error or the answer; give the answer and how many were skipped."""
        self._ran = []
        for place, code in enumerate(blocks):
            result = await self._run_cell(iteration, code)
            self._errors = 0 if result.status == "ok" else self._errors + 1
            if result.final is not None:
                return result.final, 0
            candidate = self._kernel.candidate
            if result.status != "ok" and candidate is not None and candidate.size <= CANDIDATE_AT_ONCE:
                await self.best()
            if result.status != "ok" or self._handler.limit is not None:
                return None, len(blocks) - place - 1
        return None, 0

    async def _run_cell(self, iteration: int, code: str) -> CellResult:
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
        self._ran.append(prompts.Ran(tuple(outputs), result.status, result.omitted, result.notes, result.error))
        return result

    async def _execute(self, code: str, on_output: Callable[[Output], None]) -> CellResult:
        """Run one cell; after a cap is used up it has `GRACE` seconds to end, then it is interrupted."""

        async def watch() -> None:
            await self._exhausted.wait()
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

    async def files(self) -> dict[str, bytes]:
        """Fetch what the code wrote in its folder, by a cell of ours. That it cannot be had is told, and ends nothing."""
        code = f"__import__('sys').modules['_rlm_repl'].repl.give_files({FILES_CAP}, {FILES_COUNT_CAP})"
        found: Any = None
        reason = ""
        try:
            with anyio.move_on_after(FILES_WITHIN):
                result = await self._kernel.execute(code, lambda output: None)
                found = decode(await self._kernel.value(result.final)) if result.final is not None else None
        except RLMError as error:
            reason = f": {error}"
        if found is None:
            self._emit(events.Notice(text=f"the files that the code wrote could not be had{reason}"))
        return files.clean(found)

    async def _answer(self, final: Final) -> Answer:
        if self.parent is not None:
            return Answer("answered", final.preview, final.type_name, final=final)
        value = await self._kernel.value(final)
        return Answer("answered", decode(value), value.type_name)

    def _pictures(self) -> list[Picture]:
        """Give the last pictures of this turn, if the LM is to see them."""
        if not self._settings.show_pictures:
            return []
        shown = [output.picture for ran in self._ran for output in ran.outputs if output.picture is not None]
        return [picture for picture in shown if len(picture.data) <= PICTURE_FOR_LM][-PICTURES_FOR_LM:]

    def _tell(self, text: str, pictures: Sequence[Picture] = ()) -> None:
        content: str | list[TextPart | ImagePart] = text
        if pictures:
            content = [{"type": "text", "text": text}, *map(_part, pictures)]
        self._messages.append({"role": "user", "content": content})

    def _tell_end(self, text: str) -> None:
        """Tell the end: in the last message where that is not answered yet, since some servers want turns to alternate."""
        last = self._messages[-1]
        if last["role"] == "user" and isinstance(last["content"], str):
            self._messages[-1] = {"role": "user", "content": f"{last['content']}\n\n{text}"}
        else:
            self._tell(text)

    def _cut(self, reply: replies.Reply) -> str:
        return prompts.CUT.format(limit=self._settings.max_output_tokens) if reply.cut else ""

    def _left(self, iteration: int) -> prompts.Left:
        settings, budget = self._settings, self._budget
        priced = settings.max_cost is not None and self._handler.price(settings.model) is not None
        calls, tokens, dollars = budget.left()
        return prompts.Left(
            iteration=min(iteration, settings.max_iterations),
            iterations=settings.max_iterations,
            calls=calls,
            seconds=budget.remaining(),
            dollars=dollars if priced else None,
            tokens=tokens,
        )


def _shown(cell: int, picture: Picture) -> events.CellPicture:
    data = base64.b64encode(picture.data).decode("ascii")
    return events.CellPicture(cell=cell, media_type=picture.media_type, width=picture.width, height=picture.height, data=data)


def _part(picture: Picture) -> ImagePart:
    data = base64.b64encode(picture.data).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:{picture.media_type};base64,{data}"}}
