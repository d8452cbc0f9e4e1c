"""A run on a terminal: a live transcript, or plain lines where there is no terminal.

On a terminal, rich draws the transcript with one status line under it that is gone at the end; elsewhere the same lines are
written without a single escape code. A child is told when it begins, and as one indented block when it has ended, since several
go on at once. Words of a model, a kernel or a user are never markup.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, ClassVar, Protocol, TextIO, cast

from rlm_jupyter import events
from rlm_jupyter.events import Event
from rlm_jupyter.trace import Trace
from rlm_jupyter.tree import Iteration
from rlm_jupyter.widgets import reading, text, words
from rlm_jupyter.widgets.text import BANG, BAR, INDENT, Block, Detail, led
from rlm_jupyter.widgets.view import Face

LINES = 40
"""Lines shown of one piece of output; of code and prose four times as many."""
DOT = "\u00b7"
"""What stands between figures."""
INTERVAL = 0.25
"""Seconds between two states of the status line."""


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
        self._file.write(_fitting(text + "\n", getattr(self._file, "encoding", None) or "utf-8"))
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
        shown.no_wrap, shown.overflow = True, "ellipsis" if _has(self._console.encoding, "…") else "crop"
        self._live.update(shown, refresh=True)


def _fitting(text: str, encoding: str) -> str:
    """Give a text as an encoding can write it: our own dots become dashes, what else it lacks `\\u....`."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        if not _has(encoding, DOT):
            text = text.replace(f" {DOT} ", " - ")
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _has(encoding: str, text: str) -> bool:
    return text.encode(encoding, "ignore").decode(encoding) == text


class _Lossy:
    """A text file that writes something else for what its encoding lacks, instead of raising in the middle of a run."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.encoding = getattr(file, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        self._file.write(_fitting(text, self.encoding))
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
        for notice in trace.notices:
            self._paper.put("notice", words.one_line(notice, 600))
        for iteration in trace.iterations:
            self._paper.put("heading", f"\n{text.name(iteration)}")
            self._put(text.blocks(iteration, Detail()))
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

    def finish(self, face: Face | None = None) -> None:
        """Take the status line away and write the answer and the totals."""
        if self._finished:
            return
        self._finished = True
        self._paper.status([])
        self._close_iteration()
        self._paper.put("heading", "\n" + text.headline(self._trace))
        if self._trace.answer:
            self._paper.put("answer", "\n" + words.visible(events.clip(self._trace.answer)).strip("\n"))
        if self._trace.error:
            self._paper.put("error", "\n" + led(shorten(self._trace.error, LINES, 4096), BANG))
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

    def _put(self, blocks: Iterator[Block]) -> None:
        for style, told in blocks:
            self._paper.put(style, shorten(told, LINES, 8_000))

    def _tell(self, event: Event) -> None:
        put = self._paper.put
        if event.node != self._trace.node and not isinstance(event, (events.ChildStarted, events.ChildEnded, events.Notice)):
            return
        match event:
            case events.RunStarted():
                put("figures", " · ".join(words.opening(self._trace)))
            case events.IterationStarted():
                self._close_iteration()
                self._open = self._trace.iterations[-1] if self._trace.iterations else None
                of = "" if event.last else f" of {event.of}"
                put("heading", f"\n{text.name(self._trace.iterations[-1])}{of}")
            case events.ReplyEnded():
                self._prose()
            case events.CellStarted():
                put("code", led(shorten(event.code.strip("\n"), 4 * LINES, 16_000), INDENT))
            case events.CellEnded():
                self._put(self._came_of(event.cell))
            case events.ChildStarted() if event.parent == self._trace.node:
                put("figures", f"{BAR}rlm_query: {words.one_line(event.question, 160)}")
            case events.ChildEnded():
                self._put(self._child(event.node))
            case events.Notice():
                put("notice", words.one_line(event.text, 600))

    def _prose(self) -> None:
        if self._trace.iterations:
            found = [piece.text for piece in reading.pieces(self._trace.iterations[-1]) if not piece.is_code]
            if found:
                self._paper.put("prose", words.visible(shorten("\n\n".join(found), 4 * LINES, 16_000)))

    def _child(self, node: str) -> Iterator[Block]:
        """Give a child of the root that has ended; those below it are told with it."""
        for child in reversed(self._trace.children):
            if child.node == node and child.parent == self._trace.node:
                yield from text.family(child, "rlm_query", Detail())

    def _came_of(self, number: int) -> Iterator[Block]:
        for iteration in reversed(self._trace.iterations):
            for cell in iteration.cells:
                if cell.cell == number:
                    yield from text.outcome(cell, Detail(children=0))
                    return

    def _close_iteration(self) -> None:
        """Tell the code of the last reply that did not run, and what the iteration took."""
        iteration, self._open = self._open, None
        if iteration is None:
            return
        for piece in reading.pieces(iteration):
            if piece.is_code:
                self._paper.put("figures", "code that did not run:")
                self._paper.put("code", led(shorten(piece.text, LINES, 8_000), INDENT))
        self._paper.put("figures", " · ".join(words.iteration_figures(iteration)))
