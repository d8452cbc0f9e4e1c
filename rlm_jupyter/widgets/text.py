"""A run as text: a live transcript for terminals, plain lines where there is no terminal, and the text of a finished run.

On a terminal, rich draws the transcript with one status line under it that is gone at the end; elsewhere the same lines are
written without a single escape code. Words of a model, a kernel or a user are never markup: they reach the screen with their
control characters written out.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, ClassVar, Protocol, TextIO, cast

from rlm_jupyter import events
from rlm_jupyter.events import Event
from rlm_jupyter.trace import Cell, Iteration, Trace
from rlm_jupyter.widgets import reading, words
from rlm_jupyter.widgets.fit import Part, Slot, fill, fixed

CAP = 24 * 1024
"""Bytes of the text of a finished run."""
LINES = 40
"""Lines shown of one piece of output; of code and prose four times as many."""
INTERVAL = 0.25
"""Seconds between two states of the status line."""
INDENT = "    "
BAR = "  | "
BANG = "  ! "


def render(trace: Trace, cap: int = CAP) -> str:
    """Give a run as plain text of at most about `cap` bytes: summary line, answer, iterations, totals."""
    parts: list[Part] = []
    for most in (200, 60, 20, 6, 2, 0):
        parts = [*_conclusion(trace), *_iterations(trace, most), *_totals(trace)]
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
        parts += ["\n", Slot(_led(trace.error, BANG), 0, cap=4096), "\n"]
    if note := words.outcome(trace):
        parts.append(f"\n{note}\n")
    return parts


def _iterations(trace: Trace, most: int) -> list[Part]:
    first = min(1, most // 2)
    left = max(len(trace.iterations) - most, 0)
    parts: list[Part] = []
    for index, iteration in enumerate(trace.iterations):
        if left and first <= index < first + left:
            if index == first:
                parts.append(f"\n[... {words.count(left, 'more iteration')} not shown ...]\n")
            continue
        figures = " · ".join(words.iteration_figures(iteration))
        parts.append(f"\n{_name(iteration)} · {figures}\n")
        for style, text in _blocks(iteration):
            parts += [text + "\n"] if style == "figures" else [Slot(text, 1 if style == "failed" else 2), "\n"]
    return parts


def _blocks(iteration: Iteration) -> Iterator[tuple[str, str]]:
    """Give the blocks of an iteration, as pairs of a style and a text with its indentation."""
    for piece in reading.pieces(iteration):
        if piece.is_code:
            yield "figures", "code that did not run:"
        yield ("code", _led(piece.text, INDENT)) if piece.is_code else ("prose", words.visible(piece.text))
    for cell in iteration.cells[:20]:
        yield "code", _led(cell.code.strip("\n"), INDENT)
        yield from _outcome(cell)
    if len(iteration.cells) > 20:
        yield "figures", f"and {words.count(len(iteration.cells) - 20, 'more cell')}"


def _outcome(cell: Cell) -> Iterator[tuple[str, str]]:
    """Give what came of a cell: its sub-calls, its output, and its error where that is not in the output."""
    found = reading.groups(cell)
    for group in found[:10]:
        yield "figures", f"{BAR}{words.batch(group)}"
        for call in [call for call in group if call.state == "failed"][:5]:
            yield "failed", f"{BANG}{words.one_line(call.error, 200)}"
    if len(found) > 10:
        yield "figures", f"{BAR}and {words.batch([call for group in found[10:] for call in group])}"
    segments = reading.segments(cell)
    for segment in segments:
        yield ("error" if segment.bad else "output"), _led(segment.text, BANG if segment.bad else BAR)
    if cell.omitted:
        yield "figures", f"{BAR}{words.size(cell.omitted)} of output were not kept"
    told = cell.status == "error" and any(segment.bad and cell.error.strip() in segment.text for segment in segments)
    if cell.status not in ("ok", "running") and not told:
        yield "failed", f"{BANG}cell {cell.cell}: {words.cell_status(cell)}"


def _totals(trace: Trace) -> list[Part]:
    rows = words.totals(trace)
    if trace.question:
        rows.insert(0, ("question", words.one_line(trace.question, 600)))
    parts: list[Part] = ["\n"]
    parts += [f"{label:<12} {text}\n" for label, text in rows]
    if len(trace.notices) > 40:
        parts.append(f"{'notice':<12} {words.count(len(trace.notices) - 40, 'earlier notice')} not shown\n")
    return parts + [f"{'notice':<12} {words.one_line(notice, 300)}\n" for notice in trace.notices[-40:]]


def _name(iteration: Iteration) -> str:
    return "Set-up code" if iteration.iteration == 0 else f"Iteration {iteration.iteration}"


def _led(text: str, lead: str) -> str:
    return "\n".join(lead + line for line in words.visible(text).strip("\n").split("\n"))


def shorten(text: str, lines: int, chars: int) -> str:
    """Keep the first and the last lines of `text`, saying how many are left out between them."""
    rows = text.split("\n")
    if len(rows) > lines:
        half = lines // 2
        rows = [*rows[:half], f"{INDENT}[... {words.count(len(rows) - 2 * half, 'line')} left out ...]", *rows[-half:]]
    return events.clip("\n".join(rows), chars)


class Paper(Protocol):
    """What a transcript is written on."""

    def put(self, style: str, text: str) -> None:
        """Write a text that may have several lines."""

    def status(self, lines: list[str]) -> None:
        """Show `lines` under the transcript until the next `status`; [] takes them away."""


class Plain:
    """Lines without any escape code, for pipes, files and CI."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def put(self, style: str, text: str) -> None:
        encoding = getattr(self._file, "encoding", None) or "utf-8"
        self._file.write((text + "\n").encode(encoding, "backslashreplace").decode(encoding))
        self._file.flush()

    def status(self, lines: list[str]) -> None:
        """Plain lines have no place for a status."""


class Terminal:
    """A terminal, drawn by rich: nothing that is written to it is read as markup."""

    STYLES: ClassVar[dict[str, str]] = {
        "figures": "dim",
        "error": "red",
        "failed": "red",
        "heading": "bold",
        "answer": "bold",
        "notice": "yellow",
    }

    def __init__(self, file: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=cast("IO[str]", _Lossy(file)), markup=False, emoji=False, highlight=False)
        self._live = Live(
            console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )

    def put(self, style: str, text: str) -> None:
        from rich.syntax import Syntax
        from rich.text import Text

        if style == "code":
            self._console.print(Syntax(text, "python", theme="ansi_dark", background_color="default", word_wrap=True))
        else:
            self._console.print(Text(text, style=self.STYLES.get(style, "")))

    def status(self, lines: list[str]) -> None:
        from rich.text import Text

        if lines and not self._live.is_started:
            self._live.start()
        if not lines:
            self._live.update("")
            self._live.stop()
            return
        shown = Text("\n").join(Text(line, style="dim" if n else "") for n, line in enumerate(lines))
        shown.no_wrap, shown.overflow = True, "ellipsis"
        self._live.update(shown, refresh=True)


class _Lossy:
    """A text file that writes `\\u....` for what its encoding lacks, instead of raising in the middle of a run."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.encoding = getattr(file, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        self._file.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        self._file.flush()

    def isatty(self) -> bool:
        return self._file.isatty()

    def fileno(self) -> int:
        return self._file.fileno()


def _paper(file: TextIO) -> Paper:
    return Terminal(file) if file.isatty() and os.environ.get("TERM") != "dumb" else Plain(file)


class TextView:
    """A live transcript of a run: iterations as they happen, then the answer and the totals.

    Parameters
    ----------
    file
        Where to write; standard output by default. A terminal gets colours and a status line.
    clock
        Seconds that only grow.
    """

    def __init__(self, file: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._paper = _paper(sys.stdout if file is None else file)
        self._clock = clock
        self._trace = Trace()
        self._began = self._shown = clock()
        self._open: Iteration | None = None
        self._finished = False

    def start(self, trace: Trace) -> None:
        """Begin to show `trace`, which may be empty still."""
        self._trace = trace
        self._began = self._clock()
        self._shown = self._began - INTERVAL
        if trace.run:
            self._paper.put("figures", " · ".join(words.opening(trace)))
        for iteration in trace.iterations:
            self._paper.put("heading", f"\n{_name(iteration)}")
            for style, text in _blocks(iteration):
                self._paper.put(style, shorten(text, LINES, 8_000))
            if iteration.state == "ended":
                self._paper.put("figures", " · ".join(words.iteration_figures(iteration)))
            else:
                self._open = iteration

    def update(self, event: Event | None) -> None:
        """Show `event`, which is folded into the trace already; None is a tick of the clock."""
        if self._finished:
            return
        if event is not None:
            self._tell(event)
        now = self._clock()
        if now - self._shown >= INTERVAL:
            self._shown = now
            self._paper.status(self._status(now - self._began))

    def finish(self) -> None:
        """Take the status line away and write the answer and the totals."""
        if self._finished:
            return
        self._finished = True
        self._paper.status([])
        self._close_iteration()
        self._paper.put("heading", "\n" + headline(self._trace))
        if self._trace.answer:
            self._paper.put("answer", "\n" + words.visible(self._trace.answer).strip("\n"))
        if self._trace.error:
            self._paper.put("error", "\n" + _led(shorten(self._trace.error, LINES, 4096), BANG))
        if note := words.outcome(self._trace):
            self._paper.put("figures", "\n" + note)
        rows = [row for row in words.totals(self._trace) if row[0] != "context"]
        self._paper.put("figures", "\n" + "\n".join(f"{label:<12} {text}" for label, text in rows))

    def _status(self, seconds: float) -> list[str]:
        lines = [" · ".join([words.state(self._trace), *words.progress(self._trace, seconds)])]
        last = self._trace.iterations[-1] if self._trace.iterations else None
        if last is not None and last.state == "asking" and last.reply:
            lines.append(INDENT + words.last_line(last.reply))
        return lines

    def _tell(self, event: Event) -> None:
        put = self._paper.put
        match event:
            case events.RunStarted():
                put("figures", " · ".join(words.opening(self._trace)))
            case events.IterationStarted():
                self._close_iteration()
                self._open = self._trace.iterations[-1] if self._trace.iterations else None
                put("heading", f"\nIteration {event.iteration} of {event.of}")
            case events.ReplyEnded():
                self._prose()
            case events.CellStarted():
                put("code", _led(shorten(event.code.strip("\n"), 4 * LINES, 16_000), INDENT))
            case events.CellEnded():
                for style, text in self._came_of(event.cell):
                    put(style, shorten(text, LINES, 8_000))
            case events.Notice():
                put("notice", words.one_line(event.text, 600))

    def _prose(self) -> None:
        if self._trace.iterations:
            found = [piece.text for piece in reading.pieces(self._trace.iterations[-1]) if not piece.is_code]
            if found:
                self._paper.put("prose", words.visible(shorten("\n\n".join(found), 4 * LINES, 16_000)))

    def _came_of(self, number: int) -> Iterator[tuple[str, str]]:
        for iteration in reversed(self._trace.iterations):
            for cell in iteration.cells:
                if cell.cell == number:
                    yield from _outcome(cell)
                    return

    def _close_iteration(self) -> None:
        """Tell the code of the last reply that did not run, and what the iteration took."""
        iteration, self._open = self._open, None
        if iteration is None:
            return
        for piece in reading.pieces(iteration):
            if piece.is_code:
                self._paper.put("figures", "code that did not run:")
                self._paper.put("code", _led(shorten(piece.text, LINES, 8_000), INDENT))
        self._paper.put("figures", " · ".join(words.iteration_figures(iteration)))
