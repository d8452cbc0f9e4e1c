"""The text of a run: plain where there is no terminal, a clean transcript where there is one, and never more than text."""

from __future__ import annotations

import io
import re

import pytest

from rlm_jupyter import events
from rlm_jupyter.events import Event
from rlm_jupyter.trace import Trace
from rlm_jupyter.widgets import fit, text, words
from rlm_jupyter.widgets.terminal import TextView
from tests.browser.lab import notebook, output_cell
from tests.payloads import EVERYTHING, PAYLOADS, run_of, unseen
from tests.runs import ANSWER, Script, fenced, long_run, short_run
from tests.test_html import HUGE

STYLING = re.compile(r"\x1b\[[0-9;]*m")
CONTROL = re.compile(r"\x1b\[\?25[lh]|\x1b\[\d*[AK]|\x1b\[2K|\r")


class Teletype(io.StringIO):
    """A terminal of 100 columns, as far as a program can tell."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Ascii(io.StringIO):
    """A file that takes ASCII only, as standard output with LANG=C."""

    encoding = "ascii"

    def write(self, text: str) -> int:
        return super().write(text.encode("ascii").decode())


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def watch(file: io.StringIO, stream: list[Event], step: float = 0.3) -> str:
    trace, clock = Trace(), Clock()
    view = TextView(file, clock)
    view.start(trace)
    for event in stream:
        clock.now += step
        trace.add(event)
        view.update(event)
    view.update(None)
    view.finish()
    return file.getvalue()


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", PAYLOADS)
def test_p13_a_payload_in_every_field_is_text(name: str) -> None:
    stream = run_of(PAYLOADS[name])
    assert not unseen(text.render(Trace.from_events(stream)))
    assert not unseen(watch(io.StringIO(), stream))


@pytest.mark.parametrize("name", PAYLOADS)
def test_p13_a_payload_on_a_terminal_is_text(name: str) -> None:
    shown = watch(Teletype(), run_of(PAYLOADS[name]))
    assert not unseen(CONTROL.sub("", STYLING.sub("", shown)))


def test_model_text_is_not_markup() -> None:
    shown = STYLING.sub("", watch(Teletype(), run_of(PAYLOADS["rich markup"])))
    assert PAYLOADS["rich markup"] in shown


def test_without_a_terminal_there_is_no_escape_code() -> None:
    shown = watch(io.StringIO(), short_run().end(answer=ANSWER).events)
    assert "\x1b" not in shown
    assert "\r" not in shown
    for fact in ("Iteration 4 of 30", "300 llm_query: 298 ok, 2 failed", "Answered · 5 iterations", ANSWER, "5 of at most 30"):
        assert fact in shown
    assert shown.index("Iteration 5 of 30") < shown.index(ANSWER) < shown.index("cost         $")


def test_a_terminal_is_left_with_the_same_transcript_and_no_status_line() -> None:
    stream = short_run().end(answer="Eleven.").events
    plain = watch(io.StringIO(), stream)
    shown = watch(Teletype(), stream)
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1
    assert "Running code" in shown or "Waiting for sub-calls" in shown
    left = " ".join(STYLING.sub("", _screen(shown)).split())
    for word in ("Starting", "Asking the model", "Running code", "Waiting for sub-calls", "Working"):
        assert word not in left
    assert left == " ".join(plain.split())


def _screen(written: str) -> str:
    """Give what is left on a terminal: the lines that were not taken back by cursor-up and erase."""
    rows, row = [""], 0
    for piece in re.findall(r"\x1b\[\d*A|\x1b\[2K|\x1b\[\?25[lh]|\x1b\[[0-9;]*m|\r|\n|[^\x1b\r\n]+", written):
        if piece == "\n":
            row += 1
            rows += [""] * (row + 1 - len(rows))
        elif piece.endswith("A") and piece.startswith("\x1b"):
            row -= int(piece[2:-1] or 1)
        elif piece == "\x1b[2K":
            rows[row] = ""
        elif piece != "\r" and not piece.startswith("\x1b[?"):
            rows[row] += piece
    return "\n".join(rows)


def test_code_is_coloured_on_a_terminal() -> None:
    shown = watch(Teletype(), short_run().end().events)
    assert re.search(r"\x1b\[[0-9;]+m[^\x1b]*for\x1b\[0m", shown)


def test_the_status_line_is_written_at_most_four_times_a_second() -> None:
    stream = HUGE["calls"]().events[:2_000]
    trace, clock, file = Trace(), Clock(), Teletype()
    view = TextView(file, clock)
    view.start(trace)
    for event in stream:
        clock.now += 0.01
        trace.add(event)
        view.update(event)
    seconds = clock.now
    assert 10 < file.getvalue().count("iteration 1 of 30 · ") <= seconds * 4 + 1
    view.finish()


def test_a_terminal_that_is_dumb_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in watch(Teletype(), short_run().end().events)


def test_what_an_encoding_lacks_is_written_out() -> None:
    shown = watch(Ascii(), Script().ask("naïve · 漢").end(status="unmarked", answer="naïve 漢").events)
    assert "na\\xefve \\u6f22" in shown
    assert "Answered in prose - 1 iteration - " in shown  # the dots between figures are ours


def test_output_is_capped_and_says_so() -> None:
    lines = "".join(f"line {number}\n" for number in range(10_000))
    script = Script().ask(fenced("Look.", "go()")).run("go()", ("stdout", lines)).done().end(answer="done")
    shown = watch(io.StringIO(), script.events)
    assert "line 0\n" in shown
    assert "line 9999\n" in shown
    assert re.search(r"\[\.\.\. 9,9\d\d lines left out \.\.\.\]", shown)
    assert len(shown) < 6_000


def test_one_endless_line_is_capped_too() -> None:
    script = Script().ask(fenced("Look.", "go()")).run("go()", ("stdout", "x" * 200_000)).done().end(answer="done")
    assert len(watch(io.StringIO(), script.events)) < 12_000


@pytest.mark.parametrize("name", HUGE)
def test_the_text_of_a_run_is_bounded_whatever_it_was(name: str) -> None:
    shown = text.render(Trace.from_events(HUGE[name]().end(answer=ANSWER).events))
    assert fit.weight(shown) <= text.CAP + 64
    assert ANSWER in shown
    assert shown.startswith("Answered")


def test_code_that_did_not_run_is_told_at_the_end_of_its_iteration() -> None:
    script = Script().ask(fenced("Two.", "raise ValueError", "never = 1")).run("raise ValueError").done("error", "ValueError")
    script.ask("So be it.").end(status="unmarked", answer="So be it.")
    shown = watch(io.StringIO(), script.events)
    assert shown.index("code that did not run:") < shown.index("never = 1") < shown.index("Iteration 2 of 30")
    assert shown.count("raise ValueError") == 1


def test_a_run_under_way_and_a_run_that_is_over_are_shown_from_their_beginning() -> None:
    for script in (short_run(), short_run().end(answer=ANSWER)):
        file = io.StringIO()
        view = TextView(file, Clock())
        view.start(Trace.from_events(script.events))
        view.finish()
        shown = file.getvalue()
        assert shown.count("\nIteration ") == 5
        assert "300 llm_query: 298 ok, 2 failed" in shown


def test_the_end_is_told_once() -> None:
    file = io.StringIO()
    view = TextView(file, Clock())
    view.start(Trace.from_events(short_run().end(answer=ANSWER).events))
    view.finish()
    view.finish()
    view.update(events.Notice(text="too late"))
    assert file.getvalue().count(ANSWER) == 1
    assert "too late" not in file.getvalue()


def test_a_failure_stop_and_limit_are_told_with_what_was_kept() -> None:
    shown = watch(io.StringIO(), long_run(3).end("limit", "half an answer", limit="max_cost").events)
    assert "Limit reached: max_cost" in shown
    assert "half an answer" in shown
    assert "not a marked answer" in shown
    assert text.render(Trace.from_events(run_of(EVERYTHING)))


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.05, "50 ms"),
        (3.24, "3.2 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (65, "1 min 05 s"),
        (3600, "1 h"),
        (7400, "2 h 03 min"),
    ],
)
def test_durations(seconds: float, told: str) -> None:
    assert words.duration(seconds) == told


@pytest.mark.parametrize(
    ("amount", "told"),
    [
        (0, "$0.00"),
        (0.0123, "$0.0123"),
        (0.00001, "under $0.0001"),
        (2, "$2.00"),
        (1234.5, "$1,234.50"),
        (float("nan"), "$0.00"),
    ],
)
def test_dollars(amount: float, told: str) -> None:
    assert words.dollars(amount) == told


def test_sizes_and_counts() -> None:
    assert [words.size(number) for number in (0, 1, 999, 5_243_911, 123_456, 7e12)] == [
        "0 bytes", "1 byte", "999 bytes", "5.2 MB", "123 KB", "7,000 GB",
    ]  # fmt: skip
    assert words.count(1, "iteration") == "1 iteration"
    assert words.count(1_234, "retry") == "1,234 retries"
    assert words.count(2, "llm_query") == "2 llm_query"


@pytest.mark.parametrize(
    "shown", ["\n" * 5_000, 'a "quoted" \\ line\t\n' * 500, "漢字\n" * 500, ""], ids=["lines", "quotes", "wide", "empty"]
)
def test_the_weight_of_a_text_is_what_a_saved_notebook_spends_on_it(shown: str) -> None:
    with_it, without = (len(notebook([output_cell({"text/plain": text_})]).encode()) for text_ in (shown, ""))
    assert with_it - without <= fit.weight(shown) + 2 * fit.LINE
