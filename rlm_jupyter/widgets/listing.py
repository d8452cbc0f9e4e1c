"""The runs of a session as a table of text: one line each, the newest last."""

from __future__ import annotations

from collections.abc import Sequence

from rlm_jupyter.trace import Trace
from rlm_jupyter.widgets import words

HEAD = ("run", "status", "turns", "requests", "cost", "time", "question")


def render(traces: Sequence[Trace]) -> str:
    """Give the table, or the line that says that there is none yet."""
    if not traces:
        return "no run in this session yet; %%rlm? tells how to ask"
    rows = [HEAD, *(_row(trace) for trace in traces)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    )


def _row(trace: Trace) -> tuple[str, ...]:
    return (
        trace.run,
        trace.status,
        str(len(words.turns(trace))),
        f"{trace.requests:,}",
        words.money(trace.cost, usage=trace.usage),
        words.duration(trace.seconds) if trace.status != "running" else "",
        words.one_line(trace.question or "(the context is the question)", 60),
    )
