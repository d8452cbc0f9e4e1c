"""A run as a page of HTML: the answer first, then the tree as rows that open, the timeline, the totals.

The page is text, structure and checked pictures: no script, no style sheet, no address to load, no attribute that holds a
word of a model, a kernel or a user. A picture is a `data:` address written from bytes that were checked for this page. It reads
well where a notebook is not trusted, through nbconvert, on light and on dark, and takes less than 256 KB with at most 500
`<details>` however long the run was; what does not fit is told by its count. It is displayed with `raw=True`, never through
`HTML()`, which opens files and addresses.
"""

from __future__ import annotations

from collections.abc import Container

from rlm_jupyter.trace import Trace
from rlm_jupyter.tree import Iteration
from rlm_jupyter.widgets import answers, reading, timeline, tree, words
from rlm_jupyter.widgets.fit import Part, fill, fixed
from rlm_jupyter.widgets.images import Album
from rlm_jupyter.widgets.markup import LABEL, LINE, MUTED, TONES, VALUE, WARN, dotted, escape, ink, page, say, tag
from rlm_jupyter.widgets.rows import Limits, drawn
from rlm_jupyter.widgets.view import Face

CAP = 208 * 1024
"""Bytes of one page in a saved notebook: 256 KB less the plain text beside it and the summary line."""
LIVE_CAP = 64 * 1024
"""Bytes of the page that is sent while a run goes on, pictures aside."""
LIVE_PICTURES = 192 * 1024
"""Bytes that the pictures of the last turn may add to it; those of earlier turns are told in words until the end."""
NOTICES = 40
"""Notices shown, the latest."""


def head(trace: Trace) -> str:
    """Give the summary line of a run that has ended."""
    tone = TONES.get(trace.status, WARN)
    word = "Not ended" if trace.status == "running" else words.status(trace)
    figures = dotted(words.headline(trace))
    return "".join(map(str, page(f'<b style="{ink(tone)}">{say(word)}</b> <span style="{MUTED}">· {figures}</span>')))


def render(trace: Trace, cap: int = CAP, face: Face | None = None) -> str:
    """Give a run as one page of at most `cap` bytes: summary line, answer, iterations, timeline, totals."""
    first = head(trace)
    return first + body(trace, cap - len(first.encode()) - 64, face=face)


def body(trace: Trace, cap: int = CAP, live: bool = False, below: Container[int] = (), face: Face | None = None) -> str:
    """Give what stands under the summary line.

    `live`: the run goes on; only its last iterations can be opened. `below`: the pictures that are shown below the run.
    `face`: what is known of the answer beside its text.
    """
    turns = _turns(trace, live)
    numbers = reading.pictured(turns[-1:]) if live else list(trace.pictures)
    album = Album.of(trace.pictures, [number for number in numbers if number in trace.pictures], below, live)
    extra = LIVE_PICTURES if live and album.pictures else 0
    result = [] if live else answers.draw(trace, face or Face())
    cap += answers.free(result)
    strips = [] if live else timeline.draw(trace)
    if fixed(strips) > cap // 6:
        strips = []
    parts: list[Part] = []
    for limits in Limits.levels(live):
        rows = tree.iterations(trace, drawn(trace, turns, limits, album), limits.whole, last_is_open=live)
        parts = page(*result, *rows, *strips, *_ending(trace, live))
        if fixed(parts) <= cap * 6 // 10:
            return fill(parts, cap, escape, extra)
    if fixed(parts) > cap:
        parts = page(*result)
    return fill(parts, cap, escape, extra)


def _turns(trace: Trace, live: bool) -> list[Iteration]:
    """Give the iterations that have rows: while the run goes on, those that have ended."""
    unfinished = live and trace.iterations and trace.iterations[-1].state != "ended"
    return trace.iterations[:-1] if unfinished else trace.iterations


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
