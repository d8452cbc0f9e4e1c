"""A run as a page of HTML: the answer first, then a collapsible row per iteration, then the totals.

The page is text, structure and checked pictures: no script, no style sheet, no address to load, no attribute that holds a
word of a model, a kernel or a user. A picture is a `data:` address written from bytes that were checked for this page. It reads
well where a notebook is not trusted, through nbconvert, on light and on dark, and takes less than 256 KB with at most 500
`<details>` however long the run was; what does not fit is told by its count. It is displayed with `raw=True`, never through
`HTML()`, which opens files and addresses.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Container, Iterable, Iterator, Sequence

from rlm_jupyter.pictures import NoPicture
from rlm_jupyter.trace import Call, Cell, Iteration, Trace
from rlm_jupyter.widgets import images, reading, words
from rlm_jupyter.widgets.fit import Frame, Part, Slot, fill, fixed
from rlm_jupyter.widgets.images import Album

CAP = 208 * 1024
"""Bytes of one page in a saved notebook: 256 KB less the plain text beside it and the summary line."""
LIVE_CAP = 64 * 1024
"""Bytes of the page that is sent while a run goes on, pictures aside."""
LIVE_PICTURES = 192 * 1024
"""Bytes that the pictures of the last turn may add to it; those of earlier turns are told in words until the end."""
DETAILS_CAP = 480
"""Collapsible rows of one page: their cost in a browser grows faster than their number."""

NOTICES = 40
"""Notices shown, the latest."""

LINE = "rgba(128,128,128,.3)"
GOOD, BAD, WARN, PLAIN = "#4a9f50", "#e25050", "#d99020", "rgba(128,128,128,.3)"
"""Legible on light and on dark; JupyterLab's own colours come before them in `ink`, where a notebook is trusted."""
VARIABLES = {GOOD: "--jp-success-color1", BAD: "--jp-error-color1", WARN: "--jp-warn-color1"}
TONES = {"answered": GOOD, "running": PLAIN, "failed": BAD}

COLOURS = {
    "Comment": "var(--jp-mirror-editor-comment-color, gray)",
    "String": "var(--jp-mirror-editor-string-color, indianred)",
    "Keyword": "var(--jp-mirror-editor-keyword-color, seagreen)",
    "Operator.Word": "var(--jp-mirror-editor-keyword-color, seagreen)",
}
HIGHLIGHT_CAP = 8 * 1024
"""Characters of the longest code that is coloured."""

ROOT = "line-height:1.5;font-variant-numeric:tabular-nums;padding:0 0 .3em 0"
MUTED = "opacity:.7"
SMALL = "opacity:.7;font-size:.9em"
PROSE = "white-space:pre-wrap;word-wrap:break-word;margin:0 0 .7em 0"
BLOCK = (
    "font-family:var(--jp-code-font-family,monospace);font-size:.92em;line-height:1.45;white-space:pre-wrap;"
    "word-wrap:break-word;margin:0 0 .6em 0;max-height:32em;overflow:auto;"
)
CODE = BLOCK + "padding:.6em .8em;border-radius:4px;background-color:rgba(128,128,128,.12)"
OUTPUT = BLOCK + f"padding:.1em .8em;border-left:2px solid {LINE};background-color:transparent"
ERROR = BLOCK + f"padding:.1em .8em;border-left:2px solid {BAD};background-color:transparent"
SUMMARY = "cursor:pointer;padding:.3em 0"
ROW = "display:inline-flex;justify-content:space-between;align-items:baseline;column-gap:1.5em;width:96%"
LEFT = "min-width:30%;flex-grow:1;overflow:hidden;text-overflow:ellipsis;white-space:nowrap"
MIDDLE = "min-width:6em;overflow:hidden;text-overflow:ellipsis;white-space:nowrap;font-size:.9em"
RIGHT = "flex-shrink:0;max-width:62%;text-align:right;font-size:.9em;opacity:.7"
IMAGE = "display:block;max-width:100%;max-height:36em;width:auto;height:auto;margin:.2em 0 .7em 0;background-color:#fff"
"""Light under transparent plots, whose text is dark."""
CALLS = (
    f"margin:.2em 0 .4em .4em;padding-left:.8em;border-left:2px solid {LINE};font-size:.92em;white-space:pre-wrap;"
    "word-wrap:break-word;max-height:36em;overflow:auto"
)
LABEL = "display:inline-block;width:8em;opacity:.7;vertical-align:top"
VALUE = "display:inline-block;max-width:calc(100% - 9em);word-wrap:break-word"


def escape(text: str) -> str:
    """Give visible text as HTML text.

    Newlines become references, since a saved notebook indents each line of a text. Dollars and backslashes are followed by
    an empty element: notebooks typeset mathematics wherever a text has two dollars or a `\\(`, and MathJax has an `\\href`.
    """
    return html.escape(text, quote=False).translate(_TRANSLATION)


_TRANSLATION = str.maketrans({"\n": "&#10;", "$": "$<b></b>", "\\": "\\<b></b>"})


def ink(colour: str) -> str:
    """Give the style of a colour of ours: fixed where variables are stripped, the theme's own elsewhere."""
    return f"color:{colour};color:var({VARIABLES[colour]},{colour})" if colour in VARIABLES else "color:inherit"


def page(*inner: Part) -> list[Part]:
    """Give the outermost element, whose classes tell typesetters of mathematics to leave it alone."""
    return [f'<div class="mathjax_ignore tex2jax_ignore" style="{ROOT}">', *inner, "</div>"]


def tag(name: str, style: str, *inner: Part) -> list[Part]:
    return [f'<{name} style="{style}">' if style else f"<{name}>", *inner, f"</{name}>"]


def highlight(code: str) -> str:
    """Give visible Python code as HTML with its keywords, strings and comments in the theme's colours."""
    from pygments.lexers.python import PythonLexer  # type: ignore[import-untyped]

    found: list[tuple[str, str]] = []
    for kind, text in PythonLexer(stripnl=False, ensurenl=False).get_tokens(code):
        colour = next((colour for name, colour in COLOURS.items() if name in repr(kind)), "")
        if found and (found[-1][0] == colour or not text.strip()):
            found[-1] = (found[-1][0], found[-1][1] + text)
        else:
            found.append((colour, text))
    return "".join(f'<span style="color:{colour}">{escape(text)}</span>' if colour else escape(text) for colour, text in found)


def say(text: str) -> str:
    """Give a short text of any origin as HTML, isolated so that its direction moves nothing else."""
    return f"<bdi>{escape(words.visible(text))}</bdi>"


def dotted(parts: Iterable[str]) -> str:
    return " · ".join(say(part) for part in parts if part)


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """How much of a run gets rows of its own; smaller with each `level` that is tried."""

    iterations: int
    groups: int
    rows: int
    whole: int = 1_000_000

    @classmethod
    def levels(cls, live: bool) -> Iterator[Limits]:
        iterations, groups, rows = 150, 60, DETAILS_CAP
        for _ in range(8):
            rows = min(rows, DETAILS_CAP - iterations - groups)
            yield cls(iterations, groups, rows, 2 if live else 1_000_000)
            iterations, groups, rows = max(iterations * 2 // 3, 2), groups // 2, rows // 2


def head(trace: Trace) -> str:
    """Give the summary line of a run that has ended."""
    tone = TONES.get(trace.status, WARN)
    word = "Not ended" if trace.status == "running" else words.status(trace)
    figures = dotted(words.headline(trace))
    return "".join(map(str, page(f'<b style="{ink(tone)}">{say(word)}</b> <span style="{MUTED}">· {figures}</span>')))


def render(trace: Trace, cap: int = CAP) -> str:
    """Give a run as one page of at most `cap` bytes: summary line, answer, iterations, totals."""
    first = head(trace)
    return first + body(trace, cap - len(first.encode()) - 64)


def body(trace: Trace, cap: int = CAP, live: bool = False, below: Container[int] = ()) -> str:
    """Give what stands under the summary line.

    `live`: the run goes on; only its last iterations can be opened. `below`: the pictures that are shown below the run.
    """
    turns = _turns(trace, live)
    numbers = [output.picture for turn in (turns[-1:] if live else turns) for cell in turn.cells for output in cell.outputs]
    album = Album.of(trace.pictures, [number for number in numbers if number in trace.pictures], below, live)
    extra = LIVE_PICTURES if live and album.pictures else 0
    parts: list[Part] = []
    for limits in Limits.levels(live):
        parts = page(*(() if live else _answer(trace)), *_iterations(turns, limits, live, album), *_ending(trace, live))
        if fixed(parts) <= cap * 6 // 10:
            return fill(parts, cap, escape, extra)
    if fixed(parts) > cap:
        parts = page(*_answer(trace))
    return fill(parts, cap, escape, extra)


def _turns(trace: Trace, live: bool) -> list[Iteration]:
    """Give the iterations that have rows: while the run goes on, those that have ended."""
    unfinished = live and trace.iterations and trace.iterations[-1].state != "ended"
    return trace.iterations[:-1] if unfinished else trace.iterations


def _answer(trace: Trace) -> list[Part]:
    note = words.outcome(trace)
    parts: list[Part] = []
    if trace.answer:
        style = PROSE if trace.answer_type in ("", "str") else BLOCK
        tone = TONES.get(trace.status, WARN)
        framed = f"border-left:3px solid {tone};padding:.1em 0 .1em 1em;max-height:none;margin:.4em 0 .7em 0"
        parts += [f'<div dir="auto" style="{style};{framed}">', Slot(words.visible(trace.answer), 0), "</div>"]
    if trace.error:
        parts += tag("pre", ERROR, Slot(words.visible(trace.error).strip("\n"), 0, cap=4096))
    if note:
        parts += tag("div", f"{MUTED};margin:0 0 .7em 0", say(note))
    return parts


def _iterations(every: Sequence[Iteration], limits: Limits, live: bool, album: Album) -> list[Part]:
    first = min(3, limits.iterations // 2)
    shown, gap = list(every), []
    if len(every) > limits.iterations:
        last = len(every) - (limits.iterations - first)
        shown, gap = [*every[:first], *every[last:]], list(every[first:last])
    drawn = _drawn([cell for iteration in shown for cell in iteration.cells], limits, album)
    parts: list[Part] = []
    for index, iteration in enumerate(shown):
        if gap and index == first:
            parts += tag("div", f"{SMALL};padding:.3em 0;border-top:1px solid {LINE}", say(_gap(gap)))
        whole = index >= len(shown) - limits.whole
        parts += _iteration(iteration, drawn, whole, is_open=live and index == len(shown) - 1)
    return parts


def _gap(iterations: Sequence[Iteration]) -> str:
    calls = [call for iteration in iterations for cell in iteration.cells for call in cell.calls]
    return f"… {words.count(len(iterations), 'more iteration')} not drawn" + (f": {words.batch(calls)}" if calls else "")


@dataclasses.dataclass(frozen=True, slots=True)
class Drawn:
    """Which groups of calls, and which calls in them, get a row of their own (by identity), and which pictures are drawn."""

    groups: frozenset[int]
    rows: frozenset[int]
    album: Album


def _drawn(cells: Sequence[Cell], limits: Limits, album: Album) -> Drawn:
    every = [group for cell in cells for group in reading.groups(cell)]
    single = [group for group in every if len(group) == 1]
    several = [group for group in every if len(group) > 1]
    several.sort(key=lambda group: all(call.state != "failed" for call in group))
    kept = several[: limits.groups] + single
    failed = [[call for call in group if call.state == "failed"] for group in kept]
    rest = [[call for call in group if call.state != "failed"] for group in kept]
    rows: set[int] = set()
    for wanted in (failed, rest):
        granted = reading.fair([len(group) for group in wanted], limits.rows - len(rows))
        rows.update(id(call) for group, number in zip(wanted, granted, strict=True) for call in group[:number])
    return Drawn(frozenset(id(group[0]) for group in several[: limits.groups]), frozenset(rows), album)


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
    for cell in iteration.cells[:20]:
        parts += _cell(cell, drawn)
    if len(iteration.cells) > 20:
        parts += tag("div", SMALL, f"and {words.count(len(iteration.cells) - 20, 'more cell')}")
    return [*parts, "</div></details>"]


def _cell(cell: Cell, drawn: Drawn) -> list[Part]:
    figures = [f"cell {cell.cell}", words.cell_status(cell)] + (
        [] if cell.status == "running" else [words.duration(cell.seconds)]
    )
    style = SMALL if cell.status in ("ok", "running") else f"font-size:.9em;{ink(BAD)}"
    parts = tag("div", style, dotted(figures)) + tag("pre", CODE, _code(cell.code))
    left_out = 0
    for group in reading.groups(cell):
        if len(group) > 1 and id(group[0]) in drawn.groups:
            parts += _group(group, drawn)
        elif len(group) == 1 and id(group[0]) in drawn.rows:
            parts += tag("div", CALLS, *_call(group[0], "llm_query", group[0].model))
        else:
            left_out += len(group)
    if left_out:
        missing = [c for g in reading.groups(cell) if id(g[0]) not in drawn.groups and id(g[0]) not in drawn.rows for c in g]
        parts += tag("div", SMALL, say(f"sub-calls without a row: {words.batch(missing)}"))
    for segment in reading.segments(cell, drawn.album.pictures):
        if segment.picture:
            parts.append(_picture(segment, cell, drawn.album))
        else:
            parts += tag("pre", ERROR if segment.bad else OUTPUT, Slot(words.visible(segment.text)))
    if cell.omitted:
        parts += tag("div", SMALL, say(f"{words.size(cell.omitted)} of output were not kept"))
    return parts


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


def _group(group: Sequence[Call], drawn: Drawn) -> list[Part]:
    models = {call.model for call in group}
    usage, cost = words.sums((call.usage, call.cost) for call in group)
    figures = [words.tokens(usage)] + ([words.money(cost, None, usage)] if cost is not None else [])
    figures += [words.one_line(next(iter(models)), 60)] if len(models) == 1 else []
    parts: list[Part] = [
        f'<details style="margin:0 0 .6em 0"><summary style="cursor:pointer">{say(words.batch(group))} '
        f'<span style="{SMALL}">· {dotted(figures)}</span></summary><div style="{CALLS}">'
    ]
    for number, call in enumerate(group, 1):
        if id(call) in drawn.rows:
            parts += _call(call, f"{number:,}".rjust(len(f"{len(group):,}"), "\u2007"), call.model if len(models) > 1 else "")
    if missing := [call for call in group if id(call) not in drawn.rows]:
        parts += tag("div", MUTED, say(f"and {len(missing):,} more without a row: {words.batch(missing)}"))
    return [*parts, "</div></details>"]


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


def _ending(trace: Trace, live: bool) -> list[Part]:
    rows = [] if live else words.totals(trace)
    if rows and trace.question:
        rows.insert(0, ("question", words.one_line(trace.question, 600)))
    if len(trace.notices) > NOTICES:
        rows.append(("notice", f"{words.count(len(trace.notices) - NOTICES, 'earlier notice')} not shown"))
    rows += [("notice", words.one_line(notice, 300)) for notice in trace.notices[-NOTICES:]]
    lines = [
        f'<div><span style="{LABEL}">{label}</span><span style="{VALUE}">{say(text)}</span></div>'
        for label, text in rows
    ]  # fmt: skip
    return tag("div", f"border-top:1px solid {LINE};padding:.5em 0 0 0;font-size:.92em", *lines)
