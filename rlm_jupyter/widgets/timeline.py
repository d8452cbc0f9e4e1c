"""The same run as bars over time, one strip for each level of the tree: what ran at once, and what waited.

Drawn with nothing but borders and widths of our own figures, so that it is there where a notebook is not trusted and on paper,
where backgrounds are left out. A level with more than a few things at once is drawn as their number over time. What a trace
says of times is bounded: nothing is drawn outside of the run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from rlm_jupyter.trace import Trace
from rlm_jupyter.tree import Branch, Call, Child
from rlm_jupyter.widgets import words
from rlm_jupyter.widgets.figures import figure
from rlm_jupyter.widgets.fit import Part
from rlm_jupyter.widgets.markup import BAD, SMALL, say, tag

ASK, CODE, CALL, CHILD = "#4c8bd8", "#8a8f98", "#2f9e93", "#9673d3"
NAMES = {ASK: "asking the model", CODE: "running code", CALL: "sub-call", CHILD: "child", BAD: "failed"}
LEVELS = 4
"""Levels of the tree that are drawn; deeper ones are drawn with the last of them."""
LANES = 6
BARS = 60
"""Bars of one strip, and slices of one that shows numbers."""
NARROW = 0.3
"""Per cent of the width that a bar takes at least."""
GAP = 0.15
"""Per cent of the width between two bars."""
HEIGHT = 7
TALL = 28

LABEL = "flex-shrink:0;width:13em;line-height:1.25"
STRIP = f"display:flex;height:{HEIGHT}px;margin:1px 0"


@dataclasses.dataclass(frozen=True, slots=True)
class Bar:
    """Something that took time, in parts of the run's time from 0 to 1."""

    start: float
    end: float
    colour: str


Lane = Sequence[Bar]


@dataclasses.dataclass(frozen=True, slots=True)
class Level:
    """What one level of the tree did: a lane for each RLM of it, and one for each of their sub-calls."""

    branches: list[Lane]
    calls: list[Lane]


class Clock:
    """Turns the seconds of a trace into parts of its time."""

    def __init__(self, trace: Trace) -> None:
        self._start = figure(trace.started)
        self.seconds = figure(words.elapsed(trace))

    def bar(self, started: float, seconds: float, runs: bool, colour: str) -> Bar:
        start = self._part(figure(started) - self._start)
        end = 1.0 if runs else self._part(figure(started) - self._start + figure(seconds))
        return Bar(start, max(start, end), colour)

    def _part(self, seconds: float) -> float:
        return min(max(seconds / self.seconds, 0.0), 1.0)


def draw(trace: Trace) -> list[Part]:
    """Give the timeline of a run that has ended; nothing where it took no time."""
    clock = Clock(trace)
    if not clock.seconds or not trace.iterations:
        return []
    levels = _levels(trace, clock)
    rows: list[Part] = []
    used: set[str] = set()
    for depth, level in enumerate(levels):
        name = "root" if depth == 0 else "children" if depth == 1 else f"level {depth}"
        name = f"{name} and deeper" if depth == LEVELS - 1 else name
        calls = "sub-calls" if depth == 0 else "their sub-calls"
        for told, lanes, colour in ((name, level.branches, CHILD), (calls, level.calls, CALL)):
            packed = _packed([lane for lane in lanes if lane])
            crowd = len(packed) > LANES
            drawn = _numbers(lanes, colour) if crowd else [part for lane in packed for part in _strip(lane)]
            if packed:
                rows += _row(told, len(packed), drawn)
                used.update({colour} if crowd else {bar.colour for lane in packed for bar in lane})
                used.update({BAD} if any(bar.colour == BAD for lane in lanes for bar in lane) else ())
    legend = " ".join(
        f'<span style="display:inline-block;margin-right:1.2em"><span style="border-left:.8em solid {colour}">&nbsp;</span>'
        f"{told}</span>"
        for colour, told in NAMES.items()
        if colour in used
    )
    axis = tag("div", "display:flex;column-gap:.8em", *tag("span", LABEL), *_scale(clock.seconds))
    return tag("div", f"{SMALL};opacity:.85;padding:.6em 0 .4em 0", *rows, *axis, *tag("div", "padding-left:13.8em", legend))


def _scale(seconds: float) -> list[Part]:
    ends = (f"<span>{say(told)}</span>" for told in ("0 s", words.duration(seconds / 2), words.duration(seconds)))
    return tag("div", "display:flex;flex-grow:1;justify-content:space-between;opacity:.7", *ends)


def _levels(trace: Trace, clock: Clock) -> list[Level]:
    found: list[Level] = []
    branches: list[tuple[int, Branch]] = [(0, trace), *((child.depth, child) for child in trace.children)]
    for depth, branch in branches:
        place = min(depth, LEVELS - 1)
        while len(found) <= place:
            found.append(Level([], []))
        found[place].branches.append(list(_work(branch, clock)))
        cells = [cell for iteration in branch.iterations for cell in iteration.cells]
        found[place].calls.extend([_call(call, clock)] for cell in cells for call in cell.calls)
    return found


def _work(branch: Branch, clock: Clock) -> Iterator[Bar]:
    """Give what an RLM did, one after the other: asking, and running code."""
    for iteration in branch.iterations:
        if iteration.iteration or iteration.reply:
            runs = iteration.state == "asking" and branch.status == "running"
            yield clock.bar(iteration.started, iteration.seconds, runs, ASK)
        for cell in iteration.cells:
            bad = cell.status not in ("ok", "running")
            yield clock.bar(cell.started, cell.seconds, cell.status == "running", BAD if bad else CODE)
    if isinstance(branch, Child) and branch.status == "failed" and not branch.iterations:
        yield clock.bar(branch.started, branch.seconds, False, BAD)


def _call(call: Call, clock: Clock) -> Bar:
    return clock.bar(call.started, call.seconds, call.state == "running", BAD if call.state == "failed" else CALL)


def _row(told: str, most: int, strips: Sequence[Part]) -> list[Part]:
    """Give one strip with its name, and how many there were at once."""
    label = told + (f", {most:,} at once" if most > 1 else "")
    return tag(
        "div",
        "display:flex;align-items:center;column-gap:.8em;padding:1px 0",
        *tag("span", LABEL, say(label)),
        *tag("div", "flex-grow:1;min-width:0", *strips),
    )


def _packed(lanes: Sequence[Lane]) -> list[list[Bar]]:
    """Put lanes that follow one another in time into one; give as many as were there at once."""
    found: list[list[Bar]] = []
    ends: list[float] = []
    for lane in sorted(lanes, key=lambda lane: lane[0].start):
        free = next((place for place, end in enumerate(ends) if end <= lane[0].start), len(found))
        if free == len(found):
            found.append([])
            ends.append(0.0)
        found[free] += lane
        ends[free] = max(bar.end for bar in lane)
    return found


def _merged(lane: Lane) -> list[Bar]:
    """Give a lane in `BARS` slices, each in the colour that took most of it."""
    share: list[dict[str, float]] = [{} for _ in range(BARS)]
    for bar in lane:
        for place in range(int(bar.start * BARS), min(int(bar.end * BARS) + 1, BARS)):
            within = min(bar.end, (place + 1) / BARS) - max(bar.start, place / BARS)
            share[place][bar.colour] = share[place].get(bar.colour, 0.0) + within
    found: list[Bar] = []
    for place, colours in enumerate(share):
        if not colours:
            continue
        colour = max(colours, key=lambda name: colours[name])
        if found and found[-1].colour == colour and found[-1].end * BARS > place - 0.5:
            found[-1] = Bar(found[-1].start, (place + 1) / BARS, colour)
        else:
            found.append(Bar(place / BARS, (place + 1) / BARS, colour))
    return found


def _strip(lane: Lane) -> list[Part]:
    """Draw what followed one another, at most `BARS` of them."""
    parts: list[Part] = []
    cursor = 0.0
    for bar in lane if len(lane) <= BARS else _merged(lane):
        left = max(bar.start * 100, cursor)
        width = min(max(bar.end * 100 - left - GAP, NARROW), 100 - left)
        if width <= 0:
            continue
        gap = f"margin-left:{left - cursor:.1f}%;" if left - cursor >= 0.05 else ""
        parts.append(f'<div style="{gap}width:{width:.1f}%;border-top:{HEIGHT}px solid {bar.colour}"></div>')
        cursor = left + width
    return tag("div", STRIP, *parts)


def _numbers(lanes: Sequence[Lane], colour: str) -> list[Part]:
    """Draw how many of the lanes there were in each slice of time, red on top where one failed."""
    counts, failed = [0] * BARS, [False] * BARS
    for lane in filter(None, lanes):
        first = min(int(lane[0].start * BARS), BARS - 1)
        last = min(int(max(bar.end for bar in lane) * BARS), BARS - 1)
        for place in range(first, last + 1):
            counts[place] += 1
        failed[last] |= any(bar.colour == BAD for bar in lane)
    highest = max(counts)
    parts: list[Part] = []
    for number, bad in zip(counts, failed, strict=True):
        tall = max(round(TALL * number / highest), 1) if number else 0
        top = f";border-top:2px solid {BAD}" if bad else ""
        parts.append(f'<div style="width:{100 / BARS:.2f}%;border-bottom:{tall}px solid {colour}{top}"></div>')
    return tag("div", f"display:flex;align-items:flex-end;height:{TALL + 2}px", *parts)
