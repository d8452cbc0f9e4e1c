"""The children of a run's tree: who makes them, how many work at once, how they end.

A child is an RLM with a kernel of its own beside its parent's, for one item of an `rlm_query`. Its context and its answer go
from kernel to kernel and never through this process; what is known of them here is a description.

At most `max_concurrent_children` children of the whole tree work at once. A node that waits for children of its own does not
count: it lends its place to them, and the last of them hands it back; so nobody holds what somebody below needs. Places go to
the deepest who wait, so what has begun ends before more is begun, and there are never more kernels than that many on each
level (docs/decisions/023). Requests to LMs are counted apart from this, by one limiter for the tree, which nobody holds while
waiting for a child.
"""

from __future__ import annotations

import asyncio
import dataclasses
import heapq
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio

from rlm_jupyter import events
from rlm_jupyter.budget import Budget
from rlm_jupyter.errors import LimitReached, RLMError, SettingsError
from rlm_jupyter.events import Emit, clip
from rlm_jupyter.kernels.messages import CallOutcome, CallRequest, Described
from rlm_jupyter.lm.handler import LMHandler
from rlm_jupyter.lm.providers import models_of
from rlm_jupyter.loop import Answer, Node
from rlm_jupyter.settings import RunSettings
from rlm_jupyter.values import as_text


@dataclass(order=True, slots=True)
class _Waiter:
    """Who waits for a place: the deepest first, then who came first."""

    height: int
    number: int
    turn: anyio.Event = field(default_factory=anyio.Event, compare=False)
    gone: bool = field(default=False, compare=False)


@dataclass(slots=True)
class Seat:
    """A node of the tree as the places see it: how deep it is, and for how many children it waits."""

    depth: int = 0
    awaited: int = 0


class Places:
    """So many children may work at once. `taken`: how many do."""

    def __init__(self, most: int) -> None:
        self.taken = 0
        self._most = most
        self._numbers = itertools.count()
        self._waiting: list[_Waiter] = []

    @asynccontextmanager
    async def below(self, parent: Seat) -> AsyncIterator[Seat]:
        """Wait for a place for a child, and hold it. The parent lends its own while it waits for any child."""
        waiter = _Waiter(-parent.depth - 1, next(self._numbers))
        heapq.heappush(self._waiting, waiter)  # first, so that what the parent lends goes to nobody above
        parent.awaited += 1
        self.taken -= parent.awaited == 1 and parent.depth > 0
        self._admit()
        try:
            await waiter.turn.wait()
            yield Seat(parent.depth + 1)
        finally:
            placed = waiter.turn.is_set()
            waiter.gone = True
            parent.awaited -= 1
            if parent.awaited == 0 and parent.depth:
                self.taken += not placed  # the place of the last child is the parent's again; it works on also without one
            else:
                self.taken -= placed
            self._admit()

    def _admit(self) -> None:
        while self._waiting and (self._waiting[0].gone or self.taken < self._most):
            waiter = heapq.heappop(self._waiting)
            if not waiter.gone:
                self.taken += 1
                waiter.turn.set()


@dataclass(slots=True)
class _Member:
    """A node of the tree as the family sees it: its seat, its handler, its children so far."""

    seat: Seat
    handler: LMHandler
    born: int = 0


class Family:
    """Makes the nodes of one run's tree. Belongs to one event loop.

    Parameters
    ----------
    settings, budget, emit
        The run's.
    """

    def __init__(self, settings: RunSettings, budget: Budget, emit: Emit) -> None:
        self._settings, self._budget, self._emit = settings, budget, emit
        self.places = Places(settings.max_concurrent_children)
        self._most = settings.max_concurrent_children * (settings.max_depth - 1)
        self._members: dict[Node, _Member] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def root(self, handler: LMHandler) -> Node:
        """Give the root of the tree."""
        node = Node(self._settings, handler, self._budget, self._emit, bear=self.bear if self._settings.max_depth > 1 else None)
        self._members[node] = _Member(Seat(), handler)
        return node

    async def aclose(self) -> None:
        """Close the root, and wait until every kernel of the tree is gone. Each has a deadline of its own for that."""
        for node in list(self._members):
            self._close(node)
        while self._closing:
            await asyncio.wait(self._closing)

    def _close(self, node: Node) -> None:
        """Have a node's kernel closed beside what goes on: nobody waits for that but a next child, and the end of the run."""
        if self._members.pop(node, None) is None:
            return
        task = asyncio.get_running_loop().create_task(node.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def bear(self, parent: Node, request: CallRequest, place: int) -> CallOutcome:
        """Have a child answer one prompt of a call. Raises nothing but a cancellation."""
        async with self.places.below(self._members[parent].seat) as seat:
            if (limit := self._budget.limit) is not None:
                return CallOutcome(error=str(limit))
            if len(self._members) > self._most:  # cannot be, unless code drops its calls to get more than its share
                return CallOutcome(error=f"{self._most} children are there already: wait for them")
            while len(self._closing) >= self._settings.max_concurrent_children:
                await asyncio.wait(self._closing, return_when=asyncio.FIRST_COMPLETED)
            return await self._child(parent, seat, request, place)

    async def _child(self, parent: Node, seat: Seat, request: CallRequest, place: int) -> CallOutcome:
        """Make a child, let it live, and tell its beginning and its end."""
        above, context = self._members[parent], request.contexts[place]
        try:
            settings = self._settings_of(request.model, above.handler)
        except SettingsError as refusal:
            return CallOutcome(error=str(refusal))
        above.born += 1
        name = f"{parent.name}.{above.born}"
        handler = above.handler.below(name, settings)
        bear = self.bear if seat.depth + 1 < settings.max_depth else None
        node = Node(settings, handler, self._budget, self._emit, name=name, bear=bear, parent=parent)
        self._members[node] = _Member(seat, handler)
        started = time.monotonic()
        self._tell_beginning(node, request, place, context, settings.model)
        answer, error = Answer("stopped"), "stopped"
        try:
            answer, error = await self._life(node, request, place, context)
        finally:
            self._close(node)
            self._tell_end(name, answer, error, handler, time.monotonic() - started)
        if error:
            return CallOutcome(error=error)
        return CallOutcome(text="" if answer.final is not None else as_text(answer.value), brought=answer.final is not None)

    def _settings_of(self, model: str | None, handler: LMHandler) -> RunSettings:
        """Give a child's settings: the run's, with its own model, and the models of the sub-calls as they are."""
        run = self._settings
        chosen = model or handler.model
        return dataclasses.replace(run, model=chosen, sub_model=run.sub(), allowed_models=models_of(run))

    async def _life(self, node: Node, request: CallRequest, place: int, context: Described) -> tuple[Answer, str]:
        """Let a child answer, and hand its answer over; how it ended, and why there is no answer ('' where there is one)."""
        parent = node.parent
        assert parent is not None
        try:
            await node.repl.open_below(request.parcel, place)
            if self._settings.setup_code:
                await node.repl.set_up(self._settings.setup_code)
            question = request.prompts[place] if context.own else None
            answer = await node.run(question, context.text, parent.place)
        except LimitReached as limit:
            return Answer("limit", limit=limit), f"the child gave no answer: {limit}"
        except RLMError as error:
            return Answer("failed"), f"the child failed: {error}"
        except ValueError as error:
            return Answer("failed"), f"the child's set-up code failed: {error}"
        except Exception as error:  # a bug of ours must end the child only, and be told
            return Answer("failed"), f"the child failed: internal error: {type(error).__name__}: {error}"
        if answer.final is not None:
            node.repl.bring(answer.final, request.call, place)
        return answer, "" if answer.type_name else f"the child gave no answer: {answer.limit}"

    def _tell_beginning(self, node: Node, request: CallRequest, place: int, context: Described, model: str) -> None:
        assert node.parent is not None
        self._emit(
            events.ChildStarted(
                node=node.name,
                parent=node.parent.name,
                cell=request.cell,
                call=f"{request.call}.{place}" if request.batch else request.call,
                batch=request.call if request.batch else "",
                model=model,
                question=clip(request.prompts[place]),
                context_type=context.type_name,
                context_size=context.size,
                context_description=clip(context.text),
            )
        )

    def _tell_end(self, name: str, answer: Answer, error: str, handler: LMHandler, seconds: float) -> None:
        spent = handler.spent
        self._emit(
            events.ChildEnded(
                node=name,
                status=answer.status,
                limit=answer.limit.limit if answer.limit is not None else "",
                answer=clip(as_text(answer.value)) if answer.type_name else "",
                answer_type=answer.type_name,
                error=clip(error),
                calls=spent.calls,
                usage=spent.usage,
                cost=spent.cost,
                seconds=seconds,
            )
        )
