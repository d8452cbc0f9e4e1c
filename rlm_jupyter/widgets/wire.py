"""What the live view is told: events as short records for the page, every text visible, every size and number bounded.

An `Encoder` reads events in order and gives records, plain JSON values whose keys `front/store.js` folds. Names that others
chose (nodes, calls, batches) stay here: a record speaks of numbers of ours. Records of a whole run can be made anew at any
time from its trace, for a page that comes late or missed a message.

Bounds: a text is cut in the middle at `TEXT_CAP` characters, and once `ROOM` characters of prompts, replies and output were
told, at `SHORT_CAP`, so that a page is not filled by a run of a hundred thousand calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rlm_jupyter import events
from rlm_jupyter.events import Event, Usage, clip
from rlm_jupyter.pictures import NoPicture
from rlm_jupyter.trace import PictureRoom, Trace
from rlm_jupyter.tree import Branch, Cell, Iteration
from rlm_jupyter.widgets import images, reading, words

Record = dict[str, Any]
"""One fact for the page. `k` names its kind, `b` its branch (0: the root), `c` its cell, `at` when, in seconds."""

TEXT_CAP = 32 * 1024
SHORT_CAP = 600
ROOM = 24 * 1024 * 1024
NUMBER_CAP = 2**50
TONES = {"answered": "good", "failed": "bad", "running": "running"}


def number(value: Any) -> float:
    """Give a finite figure that JSON and a page can hold; 0 for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return 0
    if isinstance(value, int):
        return max(-NUMBER_CAP, min(value, NUMBER_CAP))
    return value if math.isfinite(value) and abs(value) < NUMBER_CAP else 0


def price(value: Any) -> float | None:
    return None if value is None else number(value)


def line(value: Any, cap: int = 200) -> str:
    return words.one_line(value, cap)


def spent(usage: Usage, cost: Any, seconds: Any) -> Record:
    """Give the figures of one request or of many."""
    tok = max(number(usage.input_tokens), 0) + max(number(usage.output_tokens), 0)
    return {"tok": tok, "est": bool(usage.estimated), "cost": price(cost), "s": number(seconds)}


def pieces(iteration: Iteration) -> list[tuple[bool, str]]:
    """Give a reply without the code that ran, as the page takes it."""
    return [(piece.is_code, words.visible(clip(piece.text, TEXT_CAP))) for piece in reading.pieces(iteration)]


def prose(reply: str) -> list[tuple[bool, str]]:
    """Give the prose of a reply whose code is about to run."""
    text = clip(reply, TEXT_CAP)
    return pieces(Iteration(1, 0.0, text, cells=[Cell(0, code, 0.0) for code in reading.code_of(text)]))


class Encoder:
    """Reads the events of one run, in order, and gives the records that tell them."""

    def __init__(self) -> None:
        self._branches: dict[str, int] = {"0": 0}
        self._calls: dict[tuple[str, str], int] = {}
        self._batches: dict[str, int] = {"": 0}
        self._told: dict[int, list[tuple[bool, str]]] = {}
        self._turns: dict[int, Iteration] = {}
        self._room = ROOM
        self._pictures = PictureRoom()

    def records(self, event: Event) -> Iterator[Record]:
        """Give what `event` tells, most often one record."""
        known = self._branches.get(event.node)
        if known is None and not isinstance(event, events.ChildStarted):
            return
        branch = known or 0
        tell = _TELL.get(type(event))
        if tell is not None:
            for record in tell(self, event, branch):
                yield {"b": branch, "at": number(event.at), **record}

    def all(self, trace: Trace) -> Iterator[Record]:
        """Give the records of a run as it stands, with what streams in at the moment."""
        for event in list(trace.events):
            yield from self.records(event)
        branches: list[Branch] = [trace, *trace.children]
        for branch in branches:
            last = branch.iterations[-1] if branch.iterations else None
            known = self._branches.get(branch.node)
            if known is not None and last is not None and last.state == "asking" and last.reply:
                part = self._text(last.reply)
                yield {"k": "part", "b": known, "i": number(last.iteration), "t": part, "at": number(last.started)}

    def _text(self, text: Any) -> str:
        """Give a text that others wrote, as much of it as there is room for."""
        if not isinstance(text, str):
            text = words.visible(text)
        cut = clip(text, TEXT_CAP if self._room > 0 else SHORT_CAP)
        self._room -= len(cut)
        return words.visible(cut)

    def _batch(self, batch: str) -> int:
        return self._batches.setdefault(batch, len(self._batches))

    def _run(self, event: events.RunStarted, branch: int) -> Iterator[Record]:
        trace = Trace.from_events([event])
        question = words.visible(clip(str(event.question), 4000))
        cap = max(number(words.setting(trace, "max_cost")), 0)
        yield {"k": "run", "q": question, "told": words.opening(trace), "max_cost": cap}

    def _turn(self, event: events.IterationStarted, branch: int) -> Iterator[Record]:
        yield from self._settled(branch)
        yield {"k": "turn", "i": number(event.iteration), "of": number(event.of)}

    def _part(self, event: events.ReplyPart, branch: int) -> Iterator[Record]:
        yield {"k": "part", "i": number(event.iteration), "t": self._text(event.text)}

    def _restart(self, event: events.ReplyRestarted, branch: int) -> Iterator[Record]:
        yield {"k": "restart", "i": number(event.iteration)}

    def _reply(self, event: events.ReplyEnded, branch: int) -> Iterator[Record]:
        told = prose(event.text)
        self._turns[branch] = Iteration(event.iteration, event.at, clip(event.text, TEXT_CAP))
        self._told[branch] = told
        figures = spent(event.usage, event.cost, event.seconds) | {"att": number(event.attempts)}
        yield {"k": "reply", "i": number(event.iteration), "pieces": told, **figures}

    def _settled(self, branch: int) -> Iterator[Record]:
        """Tell the prose of the last reply anew, now that it is known which of its code ran."""
        turn = self._turns.pop(branch, None)
        if turn is None:
            return
        told = pieces(turn)
        if told != self._told[branch]:
            yield {"k": "prose", "i": number(turn.iteration), "pieces": told}

    def _cell(self, event: events.CellStarted, branch: int) -> Iterator[Record]:
        if (turn := self._turns.get(branch)) is not None and turn.iteration == event.iteration:
            turn.cells.append(Cell(0, event.code, 0.0))
        yield {"k": "cell", "i": number(event.iteration), "c": number(event.cell), "code": self._text(event.code)}

    def _out(self, event: events.CellOutput, branch: int) -> Iterator[Record]:
        text = self._text(event.text)
        bad = event.stream in ("stderr", "error")
        if event.stream not in ("stdout", "stderr") and not text.endswith("\n"):
            text += "\n"
        yield {"k": "out", "c": number(event.cell), "bad": bad, "err": event.stream == "error", "t": text}

    def _picture(self, event: events.CellPicture, branch: int) -> Iterator[Record]:
        kept = self._pictures.keep(event)
        assert isinstance(kept, events.CellPicture)
        cell = number(event.cell)
        try:
            picture = images.opened(kept)
        except NoPicture as reason:
            yield {"k": "pic", "c": cell, "told": line(f"a picture, not shown: {reason}"), "w": 0, "h": 0}
            return
        yield {
            "k": "pic",
            "c": cell,
            "type": picture.media_type,
            "data": images.coded(picture),
            "w": picture.width,
            "h": picture.height,
            "told": images.told(picture, event.cell),
        }

    def _done(self, event: events.CellEnded, branch: int) -> Iterator[Record]:
        omitted = f"{words.size(event.omitted)} of output were not kept" if event.omitted else ""
        yield {
            "k": "done",
            "c": number(event.cell),
            "status": line(event.status, 20),
            "error": line(event.error),
            "omitted": omitted,
            "s": number(event.seconds),
        }

    def _call(self, event: events.CallStarted, branch: int) -> Iterator[Record]:
        key = self._calls.setdefault((event.node, event.call), len(self._calls) + 1)
        yield {
            "k": "call",
            "id": key,
            "c": number(event.cell),
            "g": self._batch(event.batch),
            "m": line(event.model, 60),
            "p": self._text(event.prompt),
        }

    def _got(self, event: events.CallEnded, branch: int) -> Iterator[Record]:
        key = self._calls.get((event.node, event.call))
        if key is not None:
            figures = spent(event.usage, event.cost, event.seconds) | {"att": number(event.attempts)}
            yield {"k": "got", "id": key, "r": self._text(event.reply), "e": self._text(event.error), **figures}

    def _child(self, event: events.ChildStarted, branch: int) -> Iterator[Record]:
        parent = self._branches.get(event.parent)
        if parent is None:
            return
        key = self._branches.setdefault(event.node, len(self._branches))
        context = f"{line(event.context_type, 40)}, {words.size(event.context_size)}" if event.context_type else ""
        yield {
            "k": "child",
            "b": parent,
            "id": key,
            "c": number(event.cell),
            "g": self._batch(event.batch),
            "m": line(event.model, 60),
            "q": self._text(event.question),
            "ctx": context,
        }

    def _ended(self, event: events.ChildEnded, branch: int) -> Iterator[Record]:
        yield from self._settled(branch)
        told = Trace(status=event.status, limit=event.limit)
        yield {
            "k": "ended",
            "status": words.status(told).lower(),
            "good": event.status in ("answered", "unmarked"),
            "answer": self._text(event.answer),
            "error": self._text(event.error),
            **spent(event.usage, event.cost, event.seconds),
        }

    def _retry(self, event: events.RequestRetried, branch: int) -> Iterator[Record]:
        told = f"attempt {number(event.attempt):.0f} failed: {line(event.error)}; again in {words.duration(event.wait)}"
        yield {"k": "retry", "id": self._calls.get((event.node, event.call), 0), "t": told}

    def _notice(self, event: events.Notice, branch: int) -> Iterator[Record]:
        yield {"k": "notice", "t": words.visible(clip(str(event.text), 2000))}

    def _end(self, event: events.RunEnded, branch: int) -> Iterator[Record]:
        yield from self._settled(branch)
        told = Trace(
            status=event.status, limit=event.limit, answer=event.answer, answer_type=event.answer_type, error=event.error
        )
        yield {
            "k": "end",
            "status": line(event.status, 20),
            "tone": TONES.get(event.status, "warn"),
            "answer": words.visible(clip(str(event.answer), 2 * TEXT_CAP)),
            "error": words.visible(clip(str(event.error), 4096)),
            "note": words.outcome(told),
            **spent(event.usage, event.cost, event.seconds),
        }


_TELL: dict[type[Event], Callable[[Encoder, Any, int], Iterator[Record]]] = {
    events.RunStarted: Encoder._run,
    events.IterationStarted: Encoder._turn,
    events.ReplyPart: Encoder._part,
    events.ReplyRestarted: Encoder._restart,
    events.ReplyEnded: Encoder._reply,
    events.CellStarted: Encoder._cell,
    events.CellOutput: Encoder._out,
    events.CellPicture: Encoder._picture,
    events.CellEnded: Encoder._done,
    events.CallStarted: Encoder._call,
    events.CallEnded: Encoder._got,
    events.ChildStarted: Encoder._child,
    events.ChildEnded: Encoder._ended,
    events.RequestRetried: Encoder._retry,
    events.Notice: Encoder._notice,
    events.RunEnded: Encoder._end,
}


GROWING = {"part": ("b", "i"), "out": ("b", "c", "bad", "err")}
"""Kinds of records that are pieces of one text, and what two pieces of the same have in common."""


def joined(records: Iterable[Record]) -> list[Record]:
    """Give `records` with adjacent pieces of one text joined, as a stream of small pieces makes them."""
    found: list[Record] = []
    for record in records:
        common = GROWING.get(record["k"])
        last = found[-1] if found and found[-1]["k"] == record["k"] else None
        if common is not None and last is not None and all(last[name] == record[name] for name in common):
            last["t"] += record["t"]
        else:
            found.append(record if common is None else dict(record))
    return found
