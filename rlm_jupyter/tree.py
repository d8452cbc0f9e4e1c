"""What the tree of a run is made of: RLMs with their iterations, in each the cells that ran, in each cell its sub-calls.

A cell also has the child RLMs that it began, which have iterations of their own. `Trace` builds the tree, the views draw it.
Nothing here knows where an event comes from, or what is shown of it.
"""

from __future__ import annotations

import dataclasses

from rlm_jupyter.events import ChildEnded, RunEnded, Usage


@dataclasses.dataclass(slots=True)
class Call:
    """A sub-call: one prompt to a sub-LM and its reply. `state`: running, ok or failed."""

    call: str
    batch: str
    model: str
    prompt: str
    started: float
    state: str = "running"
    reply: str = ""
    error: str = ""
    usage: Usage = dataclasses.field(default_factory=Usage)
    cost: float | None = None
    attempts: int = 0
    seconds: float = 0.0


@dataclasses.dataclass(slots=True)
class Output:
    """A piece of output, adjacent pieces of one stream joined.

    `picture` is 0, or the number of a picture in `Trace.pictures` (if it still is among them), which `text` tells in words.
    """

    stream: str
    text: str
    picture: int = 0


@dataclasses.dataclass(slots=True)
class Cell:
    """One piece of code that ran. `status`: running, ok, error, interrupted or died."""

    cell: int
    code: str
    started: float
    status: str = "running"
    outputs: list[Output] = dataclasses.field(default_factory=list)
    calls: list[Call] = dataclasses.field(default_factory=list)
    children: list[Child] = dataclasses.field(default_factory=list)
    error: str = ""
    omitted: int = 0
    seconds: float = 0.0


@dataclasses.dataclass(slots=True)
class Iteration:
    """One turn of the loop: the root LM's reply and the cells that came of it. Iteration 0 is set-up code.

    `last`: the one request more that was made for the answer after a cap was used up.
    """

    iteration: int
    started: float
    reply: str = ""
    state: str = "asking"
    usage: Usage = dataclasses.field(default_factory=Usage)
    cost: float | None = None
    attempts: int = 0
    seconds: float = 0.0
    cells: list[Cell] = dataclasses.field(default_factory=list)
    last: bool = False


@dataclasses.dataclass(slots=True, kw_only=True)
class Branch:
    """One RLM of the tree, the root or a child: what it was asked, its iterations, and how it ended.

    `status` is `running` until the end, then as `RLMResult.status`. `requests`, `usage` and `cost` are of it and all below it.
    """

    node: str = "0"
    question: str = ""
    context_type: str = ""
    context_size: int = 0
    context_description: str = ""
    kernel: str = ""
    started: float = 0.0
    seconds: float = 0.0
    status: str = "running"
    limit: str = ""
    answer: str = ""
    answer_type: str = ""
    error: str = ""
    max_iterations: int = 0
    iterations: list[Iteration] = dataclasses.field(default_factory=list)
    requests: int = 0
    usage: Usage = dataclasses.field(default_factory=Usage)
    cost: float | None = None

    def iteration(self, number: int, at: float) -> Iteration:
        """Give an iteration by its number, the latest of that number; one that is new where there is none."""
        for iteration in reversed(self.iterations):
            if iteration.iteration == number:
                return iteration
        self.iterations.append(Iteration(number, at))
        return self.iterations[-1]

    def count(self, usage: Usage, cost: float | None, attempts: int) -> None:
        """Add what requests took."""
        self.usage += usage
        self.requests += attempts
        if cost is not None:
            self.cost = (self.cost or 0.0) + cost

    def end(self, event: RunEnded | ChildEnded) -> None:
        """Take the end, and the totals that the host's ledger has."""
        self.status, self.limit, self.error = event.status, event.limit, event.error
        self.answer, self.answer_type, self.seconds = event.answer, event.answer_type, event.seconds
        self.requests, self.usage, self.cost = event.calls, event.usage, event.cost
        if self.iterations:
            self.iterations[-1].state = "ended"


@dataclasses.dataclass(slots=True, kw_only=True)
class Child(Branch):
    """A child RLM, begun by a cell of its parent. `depth`: 1 for a child of the root. `batch`: as of `Call`."""

    parent: str
    call: str
    batch: str
    model: str
    depth: int
