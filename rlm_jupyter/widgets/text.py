"""A run as plain text: of one that is over the whole, as the text that stands beside its page; and the blocks it is made of.

A block is a style and a text; children stand indented below the cell that began them. Words of a model, a kernel or a user have
their control characters written out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from rlm_jupyter.trace import Trace
from rlm_jupyter.tree import Branch, Call, Cell, Child, Iteration
from rlm_jupyter.widgets import reading, words
from rlm_jupyter.widgets.fit import Part, Slot, fill, fixed

CAP = 24 * 1024
"""Bytes of the text of a finished run."""
INDENT = "    "
BAR = "  | "
BANG = "  ! "

Block = tuple[str, str]
"""A style (heading, figures, prose, code, call, output, error, failed) and a text."""
CLAIMS = {"failed": 1, "call": 3}
"""Whose texts are cut last and first; see `fit`."""


def render(trace: Trace, cap: int = CAP) -> str:
    """Give a run as plain text of at most about `cap` bytes: summary line, answer, iterations, totals."""
    parts: list[Part] = []
    for detail in (*LEVELS, None):
        parts = [*_conclusion(trace), *(_iterations(trace, detail) if detail else _none(trace)), *_totals(trace)]
        if fixed(parts) <= cap * 6 // 10:
            break
    return fill(parts, cap, str).rstrip("\n") + "\n"


def headline(trace: Trace) -> str:
    """Give the summary line of a run that has ended."""
    word = "Not ended" if trace.status == "running" else words.status(trace)
    return " · ".join([word, *words.headline(trace)])


def _conclusion(trace: Trace) -> list[Part]:
    parts: list[Part] = [headline(trace) + "\n"]
    if trace.answer:
        parts += ["\n", Slot(words.visible(trace.answer).strip("\n"), 0), "\n"]
    if trace.error:
        parts += ["\n", Slot(led(trace.error, BANG), 0, cap=4096), "\n"]
    if note := words.outcome(trace):
        parts.append(f"\n{note}\n")
    return parts


@dataclasses.dataclass(frozen=True, slots=True)
class Detail:
    """How much is told: iterations of each RLM, sub-calls of each batch, children of each cell."""

    iterations: int = 1_000_000
    calls: int = 0
    children: int = 1_000_000


LEVELS = (Detail(200, 1000), Detail(200, 20, 50), Detail(60, 5, 20), Detail(20, 2, 5), Detail(6, 0, 2), Detail(2, 0, 0))


def _none(trace: Trace) -> list[Part]:
    return [f"\n[... {words.count(len(trace.iterations), 'iteration')} not shown ...]\n"] if trace.iterations else []


def _iterations(trace: Trace, detail: Detail) -> list[Part]:
    parts: list[Part] = []
    for style, text in iterations(trace, detail):
        if style == "heading":
            parts.append(f"\n{text}\n")
        else:
            parts += [text + "\n"] if style == "figures" else [Slot(text, CLAIMS.get(style, 2)), "\n"]
    return parts


def iterations(branch: Branch, detail: Detail, indent: str = "") -> Iterator[Block]:
    """Give the iterations of an RLM as blocks: pairs of a style and a text with its indentation."""
    first = min(1, detail.iterations // 2)
    left = max(len(branch.iterations) - detail.iterations, 0)
    for index, iteration in enumerate(branch.iterations):
        if left and first <= index < first + left:
            if index == first:
                yield "heading", f"{indent}[... {words.count(left, 'more iteration')} not shown ...]"
            continue
        figures = " · ".join(words.iteration_figures(iteration))
        yield "heading", f"{indent}{name(iteration)} · {figures}"
        yield from blocks(iteration, detail, indent)


def blocks(iteration: Iteration, detail: Detail, indent: str = "") -> Iterator[Block]:
    """Give what an iteration said and did."""
    for piece in reading.pieces(iteration):
        if piece.is_code:
            yield "figures", f"{indent}code that did not run:"
        yield ("code", led(piece.text, indent + INDENT)) if piece.is_code else ("prose", led(piece.text, indent))
    for cell in iteration.cells[:20]:
        yield "code", led(cell.code.strip("\n"), indent + INDENT)
        yield from outcome(cell, detail, indent)
    if len(iteration.cells) > 20:
        yield "figures", f"{indent}and {words.count(len(iteration.cells) - 20, 'more cell')}"


def outcome(cell: Cell, detail: Detail, indent: str = "") -> Iterator[Block]:
    """Give what came of a cell: its sub-calls and children, its output, and its error where that is not in the output."""
    bar, bang = indent + BAR, indent + BANG
    found = reading.groups(cell)
    for group in found[:10]:
        yield "figures", f"{bar}{words.batch(group)}"
        yield from _calls(group, detail.calls, indent)
    if len(found) > 10:
        yield "figures", f"{bar}and {words.batch([call for group in found[10:] for call in group])}"
    yield from _children(cell, detail, indent)
    segments = reading.segments(cell)
    for segment in segments:
        yield ("error" if segment.bad else "output"), led(segment.text, bang if segment.bad else bar)
    if cell.omitted:
        yield "figures", f"{bar}{words.size(cell.omitted)} of output were not kept"
    told = cell.status == "error" and any(segment.bad and cell.error.strip() in segment.text for segment in segments)
    if cell.status not in ("ok", "running") and not told:
        yield "failed", f"{bang}cell {cell.cell}: {words.cell_status(cell)}"


def _calls(group: Sequence[Call], most: int, indent: str) -> Iterator[Block]:
    """Give the first `most` sub-calls of a group with prompt and reply, and what failed of the others."""
    for number, call in enumerate(group[:most], 1):
        yield "figures", indent + BAR + " · ".join([f"{number:,} {words.one_line(call.state, 20)}", *words.call_figures(call)])
        for label, text in (("prompt", call.prompt), ("reply", call.reply)):
            if text:
                yield "call", led(f"{label}: {text}", indent + BAR + INDENT)
        if call.error:
            yield "failed", led(call.error, indent + BANG)
    if most and len(group) > most:
        yield "figures", f"{indent}{BAR}and {len(group) - most:,} more"
    for call in [call for call in group[most:] if call.state == "failed"][:5]:
        yield "failed", f"{indent}{BANG}{words.one_line(call.error, 200)}"


def _children(cell: Cell, detail: Detail, indent: str) -> Iterator[Block]:
    left = detail.children
    for group in reading.families(cell)[:20]:
        if len(group) > 1 or not left:
            yield "figures", f"{indent}{BAR}{words.kin(group)}"
        for number, child in enumerate(group[:left], 1):
            yield from family(child, f"{number:,}" if len(group) > 1 else "rlm_query", detail, indent)
        left = max(left - len(group), 0)


def family(child: Child, label: str, detail: Detail, indent: str = "") -> Iterator[Block]:
    """Give a child as a tree of its own, indented: how it ended, what it was asked, its answer, its iterations."""
    yield "figures", indent + BAR + " · ".join([f"{label} {words.ended(child)}", *words.child_figures(child)])
    within = indent + INDENT
    for label, text in (("question", child.question), ("answer", child.answer)):
        if text:
            yield "prose", led(f"{label}: {text}", within)
    if child.error:
        yield "failed", led(child.error, indent + BANG)
    yield from iterations(child, detail, within)


def _totals(trace: Trace) -> list[Part]:
    rows = words.totals(trace)
    if trace.question:
        rows.insert(0, ("question", words.one_line(trace.question, 600)))
    parts: list[Part] = ["\n"]
    parts += [f"{label:<12} {text}\n" for label, text in rows]
    if len(trace.notices) > 40:
        parts.append(f"{'notice':<12} {words.count(len(trace.notices) - 40, 'earlier notice')} not shown\n")
    return parts + [f"{'notice':<12} {words.one_line(notice, 300)}\n" for notice in trace.notices[-40:]]


def name(iteration: Iteration) -> str:
    """Name an iteration."""
    if iteration.last:
        return "A last request, for the answer"
    return "Set-up code" if iteration.iteration == 0 else f"Iteration {iteration.iteration}"


def led(text: str, lead: str) -> str:
    """Give visible text with `lead` before each line."""
    return "\n".join(lead + line for line in words.visible(text).strip("\n").split("\n"))
