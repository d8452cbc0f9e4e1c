"""Which parts of a run get a row of their own on a page, where there is no room for all of them.

A row is a `<details>`, whose cost in a browser grows faster than their number: a page has at most `DETAILS_CAP` of them. The
iterations of the root come first, the first and the last of them; then batches, then children with their iterations, one level
of the tree after the other; then sub-calls. Of each kind what failed comes first. What gets no row is counted where it stands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from rlm_jupyter.tree import Branch, Call, Cell, Child, Iteration
from rlm_jupyter.widgets import reading
from rlm_jupyter.widgets.images import Album

DETAILS_CAP = 480
CELLS = 20
"""Cells of one iteration that are drawn."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """How much of a run gets rows of its own; smaller with each `level` that is tried.

    `family` bounds the rows of children and of their iterations together.
    """

    iterations: int
    groups: int
    family: int
    rows: int
    whole: int = 1_000_000

    @classmethod
    def levels(cls, live: bool) -> Iterator[Limits]:
        iterations, groups, family, rows = 150, 60, 150, DETAILS_CAP
        for _ in range(8):
            yield cls(iterations, groups, family, min(rows, DETAILS_CAP - iterations - groups), 2 if live else 1_000_000)
            iterations, groups, family, rows = max(iterations * 2 // 3, 2), groups // 2, family * 2 // 3, rows // 2


@dataclasses.dataclass(frozen=True, slots=True)
class Turns:
    """The iterations of one RLM that are drawn, and those between them that are not."""

    first: Sequence[Iteration]
    left_out: Sequence[Iteration]
    last: Sequence[Iteration]

    @classmethod
    def of(cls, every: Sequence[Iteration], most: int) -> Turns:
        if len(every) <= most:
            return cls(every, (), ())
        first = min(3, most // 2)
        last = len(every) - (most - first)
        return cls(every[:first], every[first:last], every[last:])

    def cells(self) -> list[Cell]:
        return [cell for turn in (*self.first, *self.last) for cell in turn.cells[:CELLS]]


@dataclasses.dataclass(slots=True)
class Drawn:
    """What gets rows: the iterations of each RLM by its node; groups, calls and children by identity; and the pictures."""

    album: Album
    turns: dict[str, Turns]
    groups: set[int] = dataclasses.field(default_factory=set)
    rows: set[int] = dataclasses.field(default_factory=set)
    cells: list[Cell] = dataclasses.field(default_factory=list)

    def has(self, thing: Call | Child) -> bool:
        return id(thing) in self.rows

    def opens(self, group: Sequence[Call | Child]) -> bool:
        """Tell whether a group of several has a row that opens into theirs."""
        return id(group[0]) in self.groups


def drawn(root: Branch, turns: Sequence[Iteration], limits: Limits, album: Album) -> Drawn:
    """Choose what gets rows; `turns` are the iterations of the root that are shown at all."""
    found = Drawn(album, {root.node: Turns.of(turns, limits.iterations)})
    level = found.turns[root.node].cells()
    family = limits.family
    while level:
        found.cells += level
        children = _children(found, level, limits)
        granted = sorted(children, key=lambda child: child.status == "answered")[: family - family // 3]
        family -= len(granted)
        found.rows.update(id(child) for child in granted)
        most = reading.fair([len(child.iterations) for child in granted], family)
        level = []
        for child, number in zip(granted, most, strict=True):
            found.turns[child.node] = Turns.of(child.iterations, number)
            family -= min(number, len(child.iterations))
            level += found.turns[child.node].cells()
    _calls(found, limits, limits.rows - (limits.family - family))
    return found


def _children(found: Drawn, cells: Sequence[Cell], limits: Limits) -> list[Child]:
    """Give the children of some cells that may have a row: those made singly, and those of batches that have one."""
    kin = [group for cell in cells for group in reading.families(cell)]
    several = sorted((group for group in kin if len(group) > 1), key=lambda group: all(c.status == "answered" for c in group))
    kept = several[: max(limits.groups - len(found.groups), 0)]
    found.groups.update(id(group[0]) for group in kept)
    return [child for group in kin if len(group) == 1 or found.opens(group) for child in group]


def _calls(found: Drawn, limits: Limits, room: int) -> None:
    every = [group for cell in found.cells for group in reading.groups(cell)]
    single = [group for group in every if len(group) == 1]
    several = [group for group in every if len(group) > 1]
    several.sort(key=lambda group: all(call.state != "failed" for call in group))
    several = several[: max(limits.groups - len(found.groups), 0)]
    found.groups.update(id(group[0]) for group in several)
    failed = [[call for call in group if call.state == "failed"] for group in (*several, *single)]
    rest = [[call for call in group if call.state != "failed"] for group in (*several, *single)]
    left = room
    for wanted in (failed, rest):
        granted = reading.fair([len(group) for group in wanted], max(left, 0))
        left -= sum(granted)
        found.rows.update(id(call) for group, number in zip(wanted, granted, strict=True) for call in group[:number])
