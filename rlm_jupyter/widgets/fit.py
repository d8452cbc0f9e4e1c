"""Fitting many texts into a page of bounded size: who gets how much of it.

A page is a list of parts: fixed strings of our own; slots, texts that may be cut; and frames, which are written whole or told
in words. Slots have claims: those of claim 0 are served first, what they leave goes to claim 1, and so on. Within a claim the
short texts are kept whole and the long ones are cut to one common length, in the middle, saying how many characters were left
out. Frames, the last first, get what the texts do not need, and `FRAMES` of the page if that is more.

Sizes are what a saved notebook spends: UTF-8 inside a JSON string, a raw newline counted with the indentation of its line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

LINE = 16
"""What nbformat spends on a line of a multi-line string: indentation, two quotes, an escaped newline, a comma."""
SHARES = {0: 0.75, 1: 0.5}
"""The part of what is left that a claim may take; the last claim may take it all."""

FRAMES = 0.4
"""The part of what is left beside the fixed strings that frames may take from the texts."""

Escape = Callable[[str], str]


@dataclasses.dataclass(slots=True)
class Slot:
    """A text that may be cut. `text` is visible already, but not escaped; `cap` bounds it whatever space there is.

    `escape` is what is written for it, where that differs from the rest of the page.
    """

    text: str
    claim: int = 2
    cap: int = 64 * 1024
    escape: Escape | None = None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A string of ours that is written whole, or, where there is no room for it, `words` instead, a string of ours too."""

    whole: str
    words: str


Part = str | Slot | Frame


def weight(text: str) -> int:
    """Give the bytes that `text` takes in a saved notebook."""
    quoted = text.count('"') + text.count("\\") + text.count("\t")
    return len(text.encode("utf-8", "surrogatepass")) + quoted + LINE * text.count("\n")


def cut(text: str, room: int, escape: Escape) -> str:
    """Give `text`, escaped, in at most `room` bytes (and 4 more): whole, or its head and tail with a count between them."""
    keep = min(len(text), max(room, 0))
    while keep > 0:
        left = len(text) - keep
        if left <= 0:
            piece = text
        elif room < 160:
            piece = text[:keep] + "…"
        else:
            head = keep * 3 // 5
            piece = f"{text[:head]}\n[... {left:,} characters left out ...]\n{text[len(text) - (keep - head) :]}"
        escaped = escape(piece)
        spent = weight(escaped)
        if spent <= room:
            return escaped
        keep = min(keep - 1, int(keep * room / spent * 0.97) if room < 160 else int(keep * (room - 60) / spent))
    return "…" if text else ""


def common_room(weights: Sequence[int], room: int) -> int:
    """Give the length to which all must be cut so that together they take at most `room`."""
    left, pending = room, sorted(weights)
    for index, need in enumerate(pending):
        share = left // (len(pending) - index)
        if need > share:
            return max(share, 0)
        left -= need
    return max(pending, default=0)


def fixed(parts: Sequence[Part]) -> int:
    """Give the bytes that are spent before any slot gets a text."""
    return sum(4 if isinstance(part, Slot) else weight(part.words if isinstance(part, Frame) else part) for part in parts)


def fill(parts: Sequence[Part], cap: int, escape: Escape, extra: int = 0) -> str:
    """Join the parts, the slots cut so that the whole stays within `cap` bytes (if its fixed strings alone do).

    `extra` bytes more are there for frames only.
    """
    room = max(cap - fixed(parts), 0)
    slots = [part for part in parts if isinstance(part, Slot)]
    framed = _framed([part for part in parts if isinstance(part, Frame)], slots, room, escape, extra)
    room -= max(sum(weight(frame.whole) - weight(frame.words) for frame in framed) - extra, 0)
    texts = _texts(slots, room, escape)
    return "".join(
        part
        if isinstance(part, str)
        else texts[id(part)]
        if isinstance(part, Slot)
        else part.whole
        if part in framed
        else part.words
        for part in parts
    )


def _framed(frames: Sequence[Frame], slots: Sequence[Slot], room: int, escape: Escape, extra: int) -> list[Frame]:
    """Choose the frames that are written whole, the last first."""
    if not frames:
        return []
    needed = sum(weight(cut(slot.text, slot.cap, slot.escape or escape)) for slot in slots)
    left = extra + max(int(room * FRAMES), room - needed)
    chosen: list[Frame] = []
    for frame in reversed(frames):
        more = weight(frame.whole) - weight(frame.words)
        if more <= left:
            chosen.append(frame)
            left -= more
    return chosen


def _texts(slots: Sequence[Slot], room: int, escape: Escape) -> dict[int, str]:
    """Give the text of each slot, by identity, so that together they take at most `room`."""
    claims = sorted({slot.claim for slot in slots})
    texts: dict[int, str] = {}
    for claim in claims:
        mine = [slot for slot in slots if slot.claim == claim]
        whole = [cut(slot.text, slot.cap, slot.escape or escape) for slot in mine]
        weights = [weight(text) for text in whole]
        allowed = room if claim == claims[-1] else int(room * SHARES.get(claim, 1.0))
        limit = common_room(weights, allowed)
        for slot, text, need in zip(mine, whole, weights, strict=True):
            texts[id(slot)] = text if need <= limit else cut(slot.text, limit, slot.escape or escape)
            room -= min(need, weight(texts[id(slot)]))
        room = max(room, 0)
    return texts
