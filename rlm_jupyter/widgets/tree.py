"""The tree of a run as rows that open: iterations, in each its cells, in each its sub-calls and children, which are trees too.

Every row tells what it took and how it ended before it is opened. What `rows` gives no row is counted in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from rlm_jupyter.events import Usage
from rlm_jupyter.pictures import NoPicture
from rlm_jupyter.tree import Branch, Call, Cell, Child, Iteration
from rlm_jupyter.widgets import images, reading, words
from rlm_jupyter.widgets.fit import Frame, Part, Slot
from rlm_jupyter.widgets.images import Album
from rlm_jupyter.widgets.markup import (
    BAD,
    BLOCK,
    CALLS,
    CODE,
    ERROR,
    HIGHLIGHT_CAP,
    IMAGE,
    LEFT,
    LINE,
    MIDDLE,
    MUTED,
    OUTPUT,
    PROSE,
    RIGHT,
    ROW,
    SECOND,
    SMALL,
    SUMMARY,
    TONES,
    WARN,
    dotted,
    escape,
    highlight,
    ink,
    say,
    tag,
)  # fmt: skip
from rlm_jupyter.widgets.rows import CELLS, Drawn


def answer(branch: Branch, claim: int = 0, face: list[Part] | None = None, note: str | None = None) -> list[Part]:
    """Give how an RLM ended: its answer (or `face` in the place of its text), its error, and what is to be said of them."""
    note = words.outcome(branch) if note is None else note
    parts: list[Part] = list(face or ())
    if branch.answer and face is None:
        style = PROSE if branch.answer_type in ("", "str") else BLOCK
        parts += [f'<div dir="auto" style="{style};{framed(branch)}">', Slot(words.visible(branch.answer), claim), "</div>"]
    if branch.error:
        parts += tag("pre", ERROR, Slot(words.visible(branch.error).strip("\n"), claim, cap=4096))
    if note:
        parts += tag("div", f"{MUTED};margin:0 0 .7em 0", say(note))
    return parts


def framed(branch: Branch) -> str:
    """Give the style of an answer's frame."""
    tone = TONES.get(branch.status, WARN)
    return f"border-left:3px solid {tone};padding:.1em 0 .1em 1em;max-height:none;margin:.4em 0 .7em 0"


def iterations(branch: Branch, drawn: Drawn, whole: int = 1_000_000, last_is_open: bool = False) -> list[Part]:
    """Give the rows of an RLM's iterations; only the last `whole` of them can be opened."""
    turns = drawn.turns[branch.node]
    parts: list[Part] = []
    shown = [*turns.first, *turns.last]
    for index, iteration in enumerate(shown):
        if turns.left_out and index == len(turns.first):
            parts += _gap(turns.left_out)
        is_last = index == len(shown) - 1
        parts += _iteration(iteration, drawn, index >= len(shown) - whole, is_open=last_is_open and is_last)
    return parts if shown or not turns.left_out else _gap(turns.left_out)


def _gap(left_out: Sequence[Iteration]) -> list[Part]:
    cells = [cell for iteration in left_out for cell in iteration.cells]
    calls, children = [c for cell in cells for c in cell.calls], [c for cell in cells for c in cell.children]
    told = "; ".join(([words.batch(calls)] if calls else []) + ([words.kin(children)] if children else []))
    line = f"… {words.count(len(left_out), 'more iteration')} not drawn" + (f": {told}" if told else "")
    return tag("div", f"{SMALL};padding:.3em 0;border-top:1px solid {LINE}", say(line))


def _iteration(iteration: Iteration, drawn: Drawn, whole: bool, is_open: bool) -> list[Part]:
    trouble = words.trouble(iteration)
    line = (
        f'<span style="{ROW}"><span style="{LEFT}"><span style="{MUTED}">{iteration.iteration}</span>&ensp;'
        f"{say(reading.teaser(iteration))}</span>"
        + (f'<span style="{MIDDLE};{ink(BAD)}">{say(words.one_line(trouble, 80))}</span>' if trouble else "")
        + f'<span style="{RIGHT}">{dotted(words.iteration_figures(iteration))}</span></span>'
    )
    if not whole:
        gap = '<span style="display:inline-block;width:1em"></span>'
        return tag("div", f"border-top:1px solid {LINE};padding:.3em 0", gap, line)
    parts: list[Part] = [
        f'<details{" open" if is_open else ""} style="border-top:1px solid {LINE}"><summary style="{SUMMARY}">{line}</summary>',
        '<div style="padding:.4em 0 .4em 1.1em">',
    ]
    for piece in reading.pieces(iteration):
        if piece.is_code:
            parts += tag("div", SMALL, "code that did not run") + tag("pre", CODE, _code(piece.text))
        else:
            parts += [f'<div dir="auto" style="{PROSE}">', Slot(words.visible(piece.text)), "</div>"]
    for cell in iteration.cells[:CELLS]:
        parts += _cell(cell, drawn)
    if len(iteration.cells) > CELLS:
        parts += tag("div", SMALL, f"and {words.count(len(iteration.cells) - CELLS, 'more cell')}")
    return [*parts, "</div></details>"]


def _cell(cell: Cell, drawn: Drawn) -> list[Part]:
    figures = [f"cell {cell.cell}", words.cell_status(cell)] + (
        [] if cell.status == "running" else [words.duration(cell.seconds)]
    )
    style = SMALL if cell.status in ("ok", "running") else f"font-size:.9em;{ink(BAD)}"
    parts = tag("div", style, dotted(figures)) + tag("pre", CODE, _code(cell.code))
    parts += _calls(cell, drawn) + _children(cell, drawn)
    for segment in reading.segments(cell, drawn.album.pictures):
        if segment.picture:
            parts.append(_picture(segment, cell, drawn.album))
        else:
            parts += tag("pre", ERROR if segment.bad else OUTPUT, Slot(words.visible(segment.text)))
    if cell.omitted:
        parts += tag("div", SMALL, say(f"{words.size(cell.omitted)} of output were not kept"))
    return parts


def _calls(cell: Cell, drawn: Drawn) -> list[Part]:
    parts: list[Part] = []
    missing: list[Call] = []
    for group in reading.groups(cell):
        if len(group) > 1 and drawn.opens(group):
            parts += _group(group, drawn)
        elif len(group) == 1 and drawn.has(group[0]):
            parts += tag("div", CALLS, *_call(group[0], "llm_query", group[0].model))
        else:
            missing += group
    if missing:
        parts += tag("div", SMALL, say(f"sub-calls without a row: {words.batch(missing)}"))
    return parts


def _children(cell: Cell, drawn: Drawn) -> list[Part]:
    parts: list[Part] = []
    missing: list[Child] = []
    for group in reading.families(cell):
        if len(group) > 1 and drawn.opens(group):
            parts += _family(group, drawn)
        elif len(group) == 1 and drawn.has(group[0]):
            parts += tag("div", CALLS, *_child(group[0], "rlm_query", drawn))
        else:
            missing += group
    if missing:
        parts += tag("div", SMALL, say(f"children without a row: {words.kin(missing)}"))
    return parts


def _family(group: Sequence[Child], drawn: Drawn) -> list[Part]:
    """Give a batch of children as one row that opens into theirs."""
    parts = _several(words.kin(group), [(child.usage, child.cost) for child in group], {child.model for child in group})
    for number, child in enumerate(group, 1):
        if drawn.has(child):
            parts += _child(child, _number(number, group), drawn)
    if missing := [child for child in group if not drawn.has(child)]:
        parts += tag("div", MUTED, say(f"and {len(missing):,} more without a row: {words.kin(missing)}"))
    return [*parts, "</div></details>"]


def _child(child: Child, label: str, drawn: Drawn) -> list[Part]:
    """Give a child as a row that opens into what it was asked, how it ended, and its own tree."""
    tone = TONES.get(child.status, WARN)
    left = f'{label} <b style="{ink(tone)}">{say(words.ended(child))}</b> · {say(words.one_line(child.question, 90))}'
    first = words.one_line(child.answer or child.error, 140)
    context = f"{words.one_line(child.context_type, 40)}, {words.size(child.context_size)}" if child.context_type else ""
    described = words.one_line(child.context_description, 200)
    return [
        f'<details><summary style="padding:.1em 0"><span style="{ROW}"><span style="{LEFT}">{left}</span>'
        f'<span style="{RIGHT}">{dotted(words.child_figures(child))}</span></span>'
        + (f'<span style="{SECOND}">{say(first)}</span>' if first else "")
        + '</summary><div style="padding:.2em 0 .4em 1.1em"><dl><dt>question</dt><dd>',
        Slot(words.visible(child.question), 1, cap=16 * 1024),
        "</dd>",
        *([f"<dt>context</dt><dd>{say(context)}{': ' + say(described) if described else ''}</dd>"] if context else []),
        "</dl>",
        *answer(child, 1),
        *iterations(child, drawn),
        "</div></details>",
    ]


def _group(group: Sequence[Call], drawn: Drawn) -> list[Part]:
    """Give a batch of sub-calls as one row that opens into theirs."""
    models = {call.model for call in group}
    parts = _several(words.batch(group), [(call.usage, call.cost) for call in group], models)
    for number, call in enumerate(group, 1):
        if drawn.has(call):
            parts += _call(call, _number(number, group), call.model if len(models) > 1 else "")
    if missing := [call for call in group if not drawn.has(call)]:
        parts += tag("div", MUTED, say(f"and {len(missing):,} more without a row: {words.batch(missing)}"))
    return [*parts, "</div></details>"]


def _several(told: str, took: Sequence[tuple[Usage, float | None]], models: AbstractSet[str]) -> list[Part]:
    """Give the head of a row that opens into several."""
    usage, cost = words.sums(took)
    figures = [words.tokens(usage)] + ([words.money(cost, None, usage)] if cost is not None else [])
    figures += [words.one_line(next(iter(models)), 60)] if len(models) == 1 else []
    return [
        f'<details style="margin:0 0 .6em 0"><summary style="cursor:pointer">{say(told)} '
        f'<span style="{SMALL}">· {dotted(figures)}</span></summary><div style="{CALLS}">'
    ]


def _number(number: int, group: Sequence[object]) -> str:
    return f"{number:,}".rjust(len(f"{len(group):,}"), "\u2007")


def _call(call: Call, label: str, model: str) -> list[Part]:
    tone = f' style="color:{BAD}"' if call.state == "failed" else ""
    claim = 1 if call.state == "failed" else 2
    first = say(words.one_line(call.error or call.reply or call.prompt, 60))
    figures = dotted(words.call_figures(call, bool(model)))
    parts: list[Part] = [
        f"<details><summary>{label} <b{tone}>{escape(call.state)}</b> · {figures + ' · ' if figures else ''}{first}</summary>",
        "<dl><dt>prompt</dt><dd>",
        Slot(words.visible(call.prompt), claim, cap=16 * 1024),
        "</dd>",
    ]
    for name, text in (("reply", call.reply), ("error", call.error)):
        if text:
            parts += [f"<dt>{name}</dt><dd>", Slot(words.visible(text), claim, cap=16 * 1024), "</dd>"]
    return [*parts, "</dl></details>"]


def _picture(segment: reading.Segment, cell: Cell, album: Album) -> Part:
    """Give a picture for its row, or what is said in its place."""
    found = album.pictures[segment.picture]
    name = words.one_line(segment.text.strip("[]"), 60)
    if isinstance(found, NoPicture):
        return "".join(map(str, tag("div", SMALL, say(f"{name}, not shown: {found}"))))
    source = f"data:{found.media_type};base64,{images.coded(found)}"
    return Frame(
        f'<img src="{source}" alt="{images.told(found, cell.cell)}" style="{IMAGE}">',
        "".join(map(str, tag("div", SMALL, say(f"{name}, {album.elsewhere(segment.picture)}")))),
    )


def _code(code: str) -> Slot:
    text = words.visible(code).strip("\n")
    return Slot(text, escape=highlight if len(text) <= HIGHLIGHT_CAP else escape)
