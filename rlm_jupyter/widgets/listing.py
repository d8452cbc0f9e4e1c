"""The runs of a session as a table: one line each, the newest last; as text, and as HTML for a notebook."""

from __future__ import annotations

from collections.abc import Sequence

from rlm_jupyter.trace import Trace
from rlm_jupyter.widgets import words
from rlm_jupyter.widgets.markup import LINE, MUTED, TONES, WARN, ink, page, say

HEAD = ("run", "status", "turns", "requests", "cost", "time", "question")
NONE_YET = "no run in this session yet; %%rlm? tells how to ask"
ROWS = 200
"""Runs of the table in a notebook, the newest ones."""
CELL = "padding:.2em 1em .2em 0;text-align:left;vertical-align:top;border-bottom:1px solid"


def render(traces: Sequence[Trace]) -> str:
    """Give the table as text, or the line that says that there is none yet."""
    if not traces:
        return NONE_YET
    rows = [HEAD, *(_row(trace) for trace in traces)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    )


def bundle(traces: Sequence[Trace]) -> dict[str, str]:
    """Give the table as a display bundle, to be shown with `display(bundle(traces), raw=True)`."""
    plain = render(traces)
    if not traces:
        return {"text/html": "".join(map(str, page(say(plain)))), "text/plain": plain}
    head = "".join(f'<th style="{CELL} {LINE};{MUTED}">{name}</th>' for name in HEAD)
    shown = traces[-ROWS:]
    lines = [f"<tr>{head}</tr>", *(_line(trace) for trace in shown)]
    left = f'<div style="{MUTED}">{say(f"and {len(traces) - ROWS:,} earlier ones")}</div>' if len(traces) > ROWS else ""
    table = f'<table style="border-collapse:collapse">{"".join(lines)}</table>{left}'
    return {"text/html": "".join(map(str, page(table))), "text/plain": plain}


def _line(trace: Trace) -> str:
    cells = [f'<td style="{CELL} {LINE}">{say(text)}</td>' for text in _row(trace)]
    tone = ink(TONES.get(trace.status, WARN))
    cells[1] = f'<td style="{CELL} {LINE};{tone}">{say(_row(trace)[1])}</td>'
    return f"<tr>{''.join(cells)}</tr>"


def _row(trace: Trace) -> tuple[str, ...]:
    runs = trace.status == "running"
    of = f" of {int(words.figure(trace.max_iterations)):,}" if runs and trace.max_iterations else ""
    return (
        words.one_line(trace.run, 40),
        f"{words.ended(trace)}: {words.state(trace).lower()}" if runs else words.ended(trace),
        f"{len(words.turns(trace)):,}{of}",
        f"{int(words.figure(trace.requests)):,}",
        words.money(trace.cost, usage=trace.usage),
        words.duration(words.elapsed(trace)),
        words.one_line(trace.question or "(the context is the question)", 60),
    )
