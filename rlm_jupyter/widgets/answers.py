"""The face of an answer: a table as a table, a picture as a picture, markdown drawn where it was asked for, else its text.

A value came from a kernel: its cells are text, its picture is one that was checked, and its markdown loses whatever is not in a
short list of tags. Nothing here asks a value for HTML of its own.
"""

from __future__ import annotations

from rlm_jupyter.pictures import NoPicture, Picture, check
from rlm_jupyter.trace import Trace
from rlm_jupyter.widgets import images, markdown, tree, words
from rlm_jupyter.widgets.fit import Part, Slot, weight
from rlm_jupyter.widgets.grid import Grid, grid
from rlm_jupyter.widgets.markup import IMAGE, LINE, MUTED, escape, say, tag
from rlm_jupyter.widgets.view import Face

GRID_CAP = 64 * 1024
"""Bytes of a table, above which the answer's text is shown."""
PICTURE_CAP = 4_000_000
"""Characters of base64 of a picture that is shown as an answer; it is not counted as part of the page."""

TABLE = "border-collapse:collapse;font-size:.92em;margin:.2em 0;font-variant-numeric:tabular-nums"
CELL = f"padding:.15em .7em;text-align:left;border-bottom:1px solid {LINE};max-width:24em;word-wrap:break-word"


def draw(trace: Trace, face: Face) -> list[Part]:
    """Give the answer of a run, its error, and what is to be said of them."""
    if isinstance(face.value, Picture):
        return _framed(trace, *_picture(face.value))
    if (found := grid(face.value)) is not None and weight(drawn := _table(found)) <= GRID_CAP:
        return _framed(trace, drawn, found.told)
    if face.format == "markdown" and trace.answer and trace.answer_type in ("", "str"):
        slot = Slot(words.visible(trace.answer), 0, escape=markdown.render)
        return tree.answer(trace, face=[f'<div dir="auto" style="{tree.framed(trace)}">', slot, "</div>"])
    return tree.answer(trace)


def free(parts: list[Part]) -> int:
    """Give the bytes of an answer's picture, which are not counted as part of a page."""
    return sum(len(part) for part in parts if isinstance(part, str) and "<img src=" in part)


def _framed(trace: Trace, drawn: str, told: str) -> list[Part]:
    style = f"{tree.framed(trace)};overflow:auto"
    told = f"The answer is a {told}." if trace.status == "answered" else ""
    return tree.answer(trace, face=[f'<div style="{style}">{drawn}</div>'], note=told or None)


def _table(found: Grid) -> str:
    head = "".join(f'<th style="{CELL}">{say(name)}</th>' for name in found.head)
    lines = []
    for row in found.rows:
        cells = "".join(
            f'<td dir="auto" style="{CELL}{";" + MUTED if found.index and not place else ""}">{escape(text)}</td>'
            for place, text in enumerate(row)
        )
        lines.append(f"<tr>{cells}</tr>")
    return f'<table style="{TABLE}"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def _picture(picture: Picture) -> tuple[str, str]:
    """Give a picture, checked anew, and what is said of it."""
    told = f"picture of {picture.width}x{picture.height}"
    try:
        checked = check(picture.data)
    except NoPicture as reason:
        return "".join(map(str, tag("span", MUTED, say(f"not shown: {reason}")))), told
    data = images.coded(checked)
    if len(data) > PICTURE_CAP:
        return "".join(map(str, tag("span", MUTED, say("too large to be shown here: it is in result.value")))), told
    name = f"picture of {checked.width}x{checked.height} given as the answer"
    return f'<img src="data:{checked.media_type};base64,{data}" alt="{name}" style="{IMAGE}">', told
