"""The recursive loop of one node: ask the LM, read its reply, run the code, feed the output back, finish.

One node has one REPL and one conversation. It knows nothing of display, of threads or of how a model is reached: it asks an
`LMHandler`, runs cells in its `Repl` and emits events. It refuses to go on after a cap is used up, also when the code in the
kernel swallows the error that says so; then the LM is asked once more, for its answer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio

from rlm_jupyter import events, prompts, replies
from rlm_jupyter.budget import Budget
from rlm_jupyter.contexts import Context
from rlm_jupyter.conversation import Conversation
from rlm_jupyter.errors import KernelDied, LimitReached, RLMError
from rlm_jupyter.kernels.environment import Environment
from rlm_jupyter.kernels.finals import Final
from rlm_jupyter.kernels.messages import CallOutcome, CallRequest
from rlm_jupyter.lm.handler import LMHandler
from rlm_jupyter.pictures import Picture
from rlm_jupyter.repl import Repl
from rlm_jupyter.settings import RunSettings, many
from rlm_jupyter.values import Unreadable, decode

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
    """One RLM: a REPL that holds the context, and the conversation about it.

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
    repl
        Its kernel and the cells that run there.
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
        self.repl: Repl = Repl(self._emit, self.answer_calls, self._working, parent.repl if parent is not None else None)
        self._conversation = Conversation(prompts.SYSTEM)
        self._errors = 0
        self._best: Answer | None = None
        self._turn = 0
        self._ran: list[prompts.Ran] = []
        self._over: LimitReached | None = None

    def _emit(self, event: events.Event) -> None:
        self._emit_event(event if event.node == self.name else dataclasses.replace(event, node=self.name))

    async def open(self, environment: Environment, context: Context) -> None:
        """Start the node's kernel and put the context into it. `close` ends it, also after a failure here."""
        await self.repl.open(environment, context)

    async def close(self) -> None:
        """End the kernel."""
        await self.repl.close()

    @property
    def _working(self) -> int:
        """How many children may work at once in the tree; 0 where this node may have none."""
        return self._settings.max_concurrent_children if self._bear is not None else 0

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
            self.repl.exhausted.set()
        return outcomes

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
        self._conversation.tell(prompts.first_message(question, description, self._left(1), place, self._working))
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
                if final is not None and (answer := await self._taken(final)) is not None:
                    return answer
                self._conversation.tell(
                    prompts.outputs_message(self._ran, skipped, left, cut=self._cut(reply)), self._pictures()
                )
            elif reply.cut:
                self._conversation.tell(f"{self._cut(reply)}\n\n{prompts.turn_line(left)}")
            elif reply.final_name is not None:
                final, skipped = await self._run_blocks(iteration, (f"FINAL_VAR({reply.final_name!r})",))
                if final is not None and (answer := await self._taken(final)) is not None:
                    return answer
                self._conversation.tell(prompts.outputs_message(self._ran, skipped, left))
            elif reply.final_text is not None:
                return Answer("answered", reply.final_text, "str")
            elif nudges == len(prompts.NUDGES):
                return Answer("unmarked", reply.prose, "str")
            else:
                self._emit(events.Notice(text=f"turn {iteration}: the LM wrote no code; it was told how to go on"))
                self._conversation.tell(f"{prompts.NUDGES[nudges]}\n\n{prompts.turn_line(left)}")
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
            self._over, self.repl.exhausted = reached, anyio.Event()
        self.repl.exhausted.set()
        try:
            with anyio.move_on_after(self._budget.remaining(last=self.parent is None)):
                if (answer := await self._ask_once_more(reached)) is not None:
                    return dataclasses.replace(answer, status="limit", limit=reached)
        except RLMError as error:
            self._emit(events.Notice(text=f"the last request, for the answer, brought none: {error}"))
        return dataclasses.replace(await self.best() or Answer("limit"), status="limit", limit=reached)

    async def _ask_once_more(self, reached: LimitReached) -> Answer | None:
        self._conversation.tell_end(prompts.last_message(str(reached), alive=self.repl.alive))
        iteration = self._turn + 1
        reply = await self._ask(iteration, last=True)
        blocks = reply.blocks or ((f"FINAL_VAR({reply.final_name!r})",) if reply.final_name is not None else ())
        if blocks and self.repl.alive:
            final, _ = await self._run_blocks(iteration, blocks)
            return await self._answer(final) if final is not None else None
        text = reply.final_text or ("" if blocks or reply.cut else reply.prose)
        return Answer("limit", text, "str") if text.strip() else None

    async def best(self) -> Answer | None:
        """Give the last candidate: the answer of a cell that then failed or was interrupted; None where there is none.

        That of a child is gone with its kernel.
        """
        if self.parent is not None and not self.repl.alive:
            return None
        if (candidate := self.repl.candidate) is not None:
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
        asking = functools.partial(
            self._handler.ask, self._conversation.messages, iteration, growth=growth, last=last and self.parent is None
        )
        reply = await (asking() if last else self.repl.unless_lost(asking))
        self._conversation.answered(reply.text)
        return replies.read(reply.text, truncated=reply.finish_reason == "length")

    async def _run_blocks(self, iteration: int, blocks: Sequence[str]) -> tuple[Final | None, int]:
        """Run a reply's blocks in order up to the first error or the answer; give the answer and how many were skipped."""
        self._ran = []
        for place, code in enumerate(blocks):
            result, outputs = await self.repl.run(iteration, code)
            self._ran.append(prompts.Ran(outputs, result.status, result.omitted, result.notes, result.error))
            self._errors = 0 if result.status == "ok" else self._errors + 1
            if result.final is not None:
                return result.final, 0
            candidate = self.repl.candidate
            if result.status != "ok" and candidate is not None and candidate.size <= CANDIDATE_AT_ONCE:
                await self.best()
            if result.status != "ok" or self._handler.limit is not None:
                return None, len(blocks) - place - 1
        return None, 0

    async def _taken(self, final: Final) -> Answer | None:
        """Give the answer of a turn; None where this side cannot read it, which the LM is told: all that led to it is paid."""
        try:
            return await self._answer(final)
        except Unreadable as error:
            self._errors += 1
            note = prompts.UNREAD.format(error=error)
            self._ran[-1] = dataclasses.replace(self._ran[-1], status="error", notes=(*self._ran[-1].notes, note))
            self._emit(events.Notice(text=f"turn {self._turn}: an answer was not taken: {error}"))
            return None

    async def _answer(self, final: Final) -> Answer:
        if self.parent is not None:
            return Answer("answered", final.preview, final.type_name, final=final)
        value = await self.repl.value(final)
        return Answer("answered", decode(value), value.type_name)

    def _pictures(self) -> list[Picture]:
        """Give the pictures of this turn, if the LM is to see them."""
        if not self._settings.show_pictures:
            return []
        return [output.picture for ran in self._ran for output in ran.outputs if output.picture is not None]

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
