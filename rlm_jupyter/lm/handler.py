"""Answers every LM call of a run, in-process: the root's (`ask`) and those of the code in a kernel (`answer`).

Here meet the things that must hold for the whole tree: one limiter for requests under way, one budget reserved before each
request, retries, and a ledger by call id, so that no reply that got lost on its way is ever asked for, or paid, twice.
The handler believes its own ledger and nothing that a REPL says. Code may name the run's models only, errors reach it as
outcomes and never as text, and after a cap is reached every further call is refused at once, without an event or a byte kept.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import anyio
import anyio.lowlevel

from rlm_jupyter import events
from rlm_jupyter.budget import Budget, RequestTooLarge
from rlm_jupyter.errors import LimitReached, LMError, ProtocolError, SettingsError
from rlm_jupyter.events import Emit, Usage, clip
from rlm_jupyter.kernels.messages import CallOutcome, CallRequest
from rlm_jupyter.lm.attempts import Attempts
from rlm_jupyter.lm.client import LM, Completion, Message
from rlm_jupyter.lm.ledger import Entry, Ledger
from rlm_jupyter.lm.outlay import Outlay, Tally
from rlm_jupyter.lm.parts import Parts
from rlm_jupyter.lm.prices import Price
from rlm_jupyter.lm.providers import models_of
from rlm_jupyter.lm.sizes import size_of
from rlm_jupyter.settings import BATCH_CAP, MIB, PROMPT_CAP, RunSettings

STAGGER = 4
"""Turns of the event loop between the first requests of a batch. Started all at once they are built all at once, sent all at
once and answered all at once: each wave then costs the work of the whole batch, where it could cost that of one request."""


@dataclass(frozen=True, slots=True)
class RootReply:
    """The root LM's reply and what it took, failed attempts included."""

    text: str
    finish_reason: str
    usage: Usage
    cost: float | None
    attempts: int
    seconds: float


Answerer = Callable[[CallRequest, int], Awaitable[CallOutcome]]
"""Answers one prompt of a call, by its place. Raises nothing but a cancellation."""


class LMHandler:
    """The one place through which a run asks language models. Belongs to one event loop.

    The nodes of a tree have one each, made by `below`: they share budget, limiter, clients, prices and ledger.

    Parameters
    ----------
    settings, budget
        The run's; the budget is shared by the whole tree.
    open_lm
        Gives the client of a model, which the handler closes: `lm.providers.open_lm` with the settings.
    emit, node
        Where events go, and the node of the tree that they belong to.

    Attributes
    ----------
    limit
        The cap that is used up, or None. The run has to end when it is set, whatever the code does.
    spent
        What this node and all below it have taken.
    """

    def __init__(
        self, settings: RunSettings, budget: Budget, open_lm: Callable[[str], LM], emit: Emit, node: str = "0"
    ) -> None:
        self._settings, self._budget, self._emit, self._node = settings, budget, emit, node
        self._attempts = Attempts(settings, budget, open_lm, emit, node)
        self._models = models_of(settings)
        self._ledger = Ledger()
        self._told: list[LimitReached] = []

    def below(self, node: str, settings: RunSettings) -> LMHandler:
        """Give the handler of a child, with its name and settings; it shares all that holds for the whole tree."""
        child = copy.copy(self)
        child._node, child._settings, child._attempts = node, settings, self._attempts.below(node, settings)
        return child

    @property
    def spent(self) -> Outlay:
        return self._attempts.spent

    @property
    def limit(self) -> LimitReached | None:
        return self._budget.limit

    @property
    def model(self) -> str:
        """The model that `ask` asks."""
        return self._settings.model

    async def aclose(self) -> None:
        """Close every client."""
        await self._attempts.aclose()

    def price(self, model: str) -> Price | None:
        """Give the price of a model of the run, None where none is known."""
        return self._attempts.price(model)

    async def ask(
        self,
        messages: Sequence[Message],
        iteration: int,
        on_text: Callable[[str], None] | None = None,
        *,
        growth: int = 0,
        last: bool = False,
    ) -> RootReply:
        """Ask the root LM, streamed; `ReplyEnded` tells its end, also that of a failure or a stop.

        Pieces of the text go to `on_text`, or where there is none are told as `ReplyPart`. With `growth`, the bytes by which
        its history can grow until the next request, room is kept for a last one. The `last` one takes that room, and has one
        attempt.
        Raises `LMError` when no attempt succeeds and `LimitReached` when a cap is used up.
        """
        self._attempts.lm(self._settings.model)  # a SettingsError before anything is reserved
        parts = Parts(self._emit, self._node, iteration, on_text)
        size = size_of(messages)
        tally = Tally()
        text, reason = "", "failed"
        try:
            keep = size + growth if growth else 0
            completion = await self._attempts.complete(
                self._settings.model, messages, size, tally, parts=parts, keep=keep, last=last
            )
            text, reason = completion.text, completion.finish_reason
        except LimitReached as limit:
            self._tell(limit)
            raise
        except LMError:
            raise
        except BaseException:
            reason = "stopped"
            raise
        finally:
            parts.flush()
            if tally.attempts:
                reply = RootReply(text, reason, tally.usage, tally.cost, tally.attempts, tally.seconds)
                self._emit(
                    events.ReplyEnded(
                        node=self._node,
                        iteration=iteration,
                        text=clip(text or tally.partial),
                        finish_reason=reason,
                        usage=tally.usage,
                        cost=tally.cost,
                        attempts=tally.attempts,
                        seconds=reply.seconds,
                    )
                )
        return reply

    async def answer(self, request: CallRequest, child: Answerer | None = None) -> list[CallOutcome]:
        """Answer a call of code in a kernel: one outcome per prompt, in their order. Raises nothing but a cancellation.

        The same id again gives the same outcomes; the same id with another body is refused. `child` answers each prompt of a
        call for child RLMs.
        """
        count = len(request.prompts)
        if count == 0:
            return []
        refusal = self._refusal(request)
        if refusal:
            return _refused(refusal, count)
        try:
            entry = self._ledger.find(request)
        except ProtocolError as error:
            return _refused(str(error), count)
        if entry is None:
            return self._over(count) if self._budget.limit is not None else await self._first(request, child)
        await entry.done.wait()
        if entry.outcomes is None:
            return _refused("this call was answered before and its reply is no longer kept", count)
        return list(entry.outcomes)

    async def _first(self, request: CallRequest, child: Answerer | None) -> list[CallOutcome]:
        entry = self._ledger.begin(request)
        outcomes = _refused("stopped", len(request.prompts))
        try:
            await self._all(request, entry, outcomes, child)
        finally:
            self._ledger.finish(request, entry, outcomes)
        return outcomes

    async def _all(self, request: CallRequest, entry: Entry, outcomes: list[CallOutcome], child: Answerer | None) -> None:
        """Make the calls of a request, as many at once as the limiter, or the places of children, may let through, in order."""
        width = self._settings.max_concurrency if child is None else self._settings.max_concurrent_children

        async def one(number: int) -> CallOutcome:
            if child is None:
                return await self._one(request, entry, number)
            if self._budget.limit is not None:
                return self._over(1)[0]
            entry.asked = True
            return await child(request, number)

        if len(request.prompts) == 1:
            outcomes[0] = await one(0)
            return
        numbers = iter(range(len(request.prompts)))

        async def work() -> None:
            for number in numbers:
                outcomes[number] = await one(number)

        async with anyio.create_task_group() as group:
            for _ in range(min(len(request.prompts), width)):
                group.start_soon(work)
                for _ in range(STAGGER):
                    await anyio.lowlevel.checkpoint()

    async def _one(self, request: CallRequest, entry: Entry, number: int) -> CallOutcome:
        """Make one sub-call: its events, and its outcome whatever happens."""
        if self._budget.limit is not None:
            return self._over(1)[0]
        prompt, model = request.prompts[number], request.model or self._settings.sub()
        messages: list[Message] = [{"role": "user", "content": prompt}]
        size = size_of(messages)
        if refusal := self._unsendable(model, size):
            return CallOutcome(error=refusal)
        entry.asked = True
        call = f"{request.call}.{number}" if request.batch else request.call
        batch = request.call if request.batch else ""
        started = events.CallStarted(
            node=self._node, call=call, batch=batch, cell=request.cell, model=model, prompt=clip(prompt)
        )
        tally, outcome = Tally(on_turn=lambda: self._emit(started)), CallOutcome(error="stopped")
        try:
            completion = await self._attempts.complete(model, messages, size, tally, call=call)
            outcome = _outcome(completion, model)
        except RequestTooLarge as error:
            outcome = CallOutcome(error=str(error))
        except LimitReached as limit:
            self._tell(limit)
            outcome = CallOutcome(error=str(limit))
        except LMError as error:
            outcome = CallOutcome(error=str(error))
        finally:
            tally.turn()  # one that ends before its turn is told all the same
            self._emit(
                events.CallEnded(
                    node=self._node,
                    call=call,
                    cell=request.cell,
                    reply=clip(outcome.text or ""),
                    error=clip(outcome.error or ""),
                    usage=tally.usage,
                    cost=tally.cost,
                    attempts=tally.attempts,
                    seconds=tally.seconds,
                )
            )
        return outcome

    def _refusal(self, request: CallRequest) -> str:
        """Give what is wrong with a call before anything is spent, or ''."""
        if request.model is not None and request.model not in self._models:
            name = clip(request.model, 100)
            allowed = ", ".join(self._models)
            return f"code may not use the model {name!r} in this run; it may use {allowed}, or leave model out"
        if not request.batch and len(request.prompts) != 1:
            return "a call that is no batch has one prompt"
        if len(request.prompts) > BATCH_CAP:
            return f"a batch has at most {BATCH_CAP:,} prompts, not {len(request.prompts):,}"
        return ""

    def _unsendable(self, model: str, size: int) -> str:
        """Give why a prompt cannot be sent at all, before it has cost an event; or ''."""
        if size > PROMPT_CAP:
            return f"the prompt has {size / MIB:.1f} MiB; at most {PROMPT_CAP // MIB} MiB can be sent: send less of it"
        try:
            self._attempts.lm(model)
        except SettingsError as error:
            return str(error)
        too_large = self._budget.too_large(model, self.price(model), size)
        return f"{too_large}: send less of it" if too_large else ""

    def _over(self, count: int) -> list[CallOutcome]:
        limit = self._budget.limit
        assert limit is not None
        self._tell(limit)
        return _refused(str(limit), count)

    def _tell(self, limit: LimitReached) -> None:
        """Emit one notice of the cap that ended the run."""
        self._budget.reach(limit)  # new to it is one request too large for the whole cap, and the root's: nothing can be done
        if not self._told:
            self._told.append(limit)
            self._emit(events.Notice(node=self._node, text=f"limit reached: {limit}"))


def _refused(error: str, count: int) -> list[CallOutcome]:
    return [CallOutcome(error=error)] * count


def _outcome(completion: Completion, model: str) -> CallOutcome:
    if not completion.text and completion.finish_reason == "length":
        return CallOutcome(error=f"{model} used all of its output tokens before it wrote any text (max_output_tokens)")
    return CallOutcome(text=completion.text)
