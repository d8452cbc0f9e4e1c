"""What requests took: summed for one call over its attempts, and for a node of the tree over all below it.

Sums only: what may be spent is the budget's to say, and what one request cost a reservation's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rlm_jupyter.budget import Reservation
from rlm_jupyter.events import Usage


@dataclass(slots=True)
class Tally:
    """What the attempts at one call took so far. `on_turn` is told once, when it is the call's turn to be made."""

    on_turn: Callable[[], None] | None = None
    started: float = field(default_factory=time.monotonic)
    usage: Usage = field(default_factory=Usage)
    cost: float | None = None
    attempts: int = 0
    partial: str = ""

    def turn(self) -> None:
        """Begin: what the call waited before is not its own time."""
        on_turn, self.on_turn = self.on_turn, None
        if on_turn is not None:
            self.started = time.monotonic()
            on_turn()

    def add(self, reservation: Reservation, usage: Usage) -> float | None:
        """Settle one attempt, and give its cost."""
        cost = reservation.settle(usage)
        self.attempts += 1
        self.usage += usage
        if cost is not None:
            self.cost = (self.cost or 0.0) + cost
        return cost

    @property
    def seconds(self) -> float:
        """Since the call was made, its retries and what they waited included."""
        return time.monotonic() - self.started


@dataclass(slots=True)
class Outlay:
    """What a node of the tree and all below it have taken so far; `above` is its parent's."""

    above: Outlay | None = None
    calls: int = 0
    usage: Usage = field(default_factory=Usage)
    cost: float | None = None

    def add(self, usage: Usage, cost: float | None) -> None:
        """Count one request, here and for all above."""
        self.calls += 1
        self.usage += usage
        if cost is not None:
            self.cost = (self.cost or 0.0) + cost
        if self.above is not None:
            self.above.add(usage, cost)
