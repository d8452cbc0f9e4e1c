"""An interrupt at any line between the making of a run and the giving of its result: the run never goes on unwatched (P9).

What a user's Ctrl-C hits is chance. Here it is not: a first run tells which lines of ours the caller's thread passes, and
each of them is then interrupted in a run of its own.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import pytest

import rlm_jupyter
from rlm_jupyter import RLM, RLMResult, RunStopped
from rlm_jupyter.run import Run
from rlm_jupyter.testing import ScriptedServer
from rlm_jupyter.trace import Trace
from rlm_jupyter.trace_file import purge
from tests.models import answer
from tests.notebooks import gone
from tests.shells import open_shell

Line = tuple[str, int]
HOUSE = Path(rlm_jupyter.__file__).parent
BEGINNING = {str(HOUSE / "engine.py"), threading.__file__}
WATCHED = {str(HOUSE / name) for name in ("asked.py", "rlm.py", "run.py", "course.py", "record.py", "feed.py", "engine.py")}


class Lines:
    """The lines of ours that this thread passes after `since` was entered; an interrupt when it reaches `at`."""

    def __init__(self, since: str, at: Line | None = None) -> None:
        self.passed: dict[Line, str] = {}
        self.runs: list[Run] = []
        self._since, self._at = since, at
        self._on = False

    def __enter__(self) -> Lines:
        self._before = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *exception: object) -> None:
        sys.settrace(self._before)

    def ended(self, error: BaseException | None) -> BaseException | None:
        """Wait for the end of a run that was stopped: on a slow machine the caller has its prompt back before that."""
        if isinstance(error, RunStopped):
            for run in self.runs:
                run.future.result(60)
        return error

    def _called(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        code = frame.f_code
        if code is Run.__init__.__code__:
            self.runs.append(frame.f_locals["self"])
        self._on = self._on or (code.co_filename in WATCHED and code.co_name == self._since)
        return self._passes if self._on and (code.co_filename in WATCHED or code is threading.Thread.start.__code__) else None

    def _passes(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        line = (frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and line not in self.passed:
            self.passed[line] = frame.f_code.co_name
            if line == self._at:
                raise KeyboardInterrupt
        return self._passes


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Hold that neither a worker thread nor a process is left when the test is over."""
    before = psutil.Process().children(recursive=True)
    yield
    assert [thread for thread in threading.enumerate() if thread.name == "rlm_jupyter" and thread.is_alive()] == []
    assert gone([process for process in psutil.Process().children(recursive=True) if process not in before])


def check(error: BaseException | None, result: RLMResult | None, traces: Path, asked: int) -> None:
    """Hold that a run never began, or ended in a result, and that the error tells which of both it was."""
    assert error is None or isinstance(error, (RunStopped, KeyboardInterrupt))
    kept = [Trace.from_file(path).status for path in traces.iterdir()]
    if result is None:
        assert isinstance(error, KeyboardInterrupt)
        assert (kept, asked) == ([], 0), "nothing was begun"
        return
    assert kept == [result.status]
    assert result.status in ("answered", "stopped")
    if result.status == "stopped":
        assert isinstance(error, RunStopped)
    assert not isinstance(error, RunStopped) or error.result is result
    purge(traces)


@pytest.mark.timeout(600)
def test_p09_an_interrupt_at_any_line_of_the_magic_stops_the_run_and_binds_out(nothing_left: None, own_traces: Path) -> None:
    with open_shell() as shell, ScriptedServer(lambda request: answer()) as server:
        cell = f"%%rlm --base-url {server.url} --model m --view none --out got\nq"
        with Lines("watch") as lines:
            assert shell.run(cell).error is None
        assert {"watch", "begin", "portal", "start", "show", "__next__", "rest"} <= set(lines.passed.values())
        purge(own_traces)
        for at, function in lines.passed.items():
            if at[0] in BEGINNING:
                shell.run("%reload_ext rlm_jupyter")
            magics = shell.shell.magics_manager.registry["RLMMagics"]
            magics.runs.clear()
            shell.namespace["got"], asked = None, len(server.requests)
            with Lines("watch", at) as again:
                error = shell.run(cell).error
            assert at in again.passed or function == "__next__", "only whether a clock ticks is chance"
            check(again.ended(error), shell.namespace["got"], own_traces, len(server.requests) - asked)
            assert [run.status for run in magics.runs.values() if run.status == "running"] == []


@pytest.mark.timeout(600)
def test_p09_an_interrupt_at_any_line_of_a_completion_stops_the_run(nothing_left: None, own_traces: Path) -> None:
    def complete(rlm: RLM) -> BaseException | None:
        try:
            rlm.completion("c", "q")
        except (KeyboardInterrupt, RunStopped) as error:
            return error
        return None

    with ScriptedServer(lambda request: answer()) as server, ExitStack() as opened:
        model = {"model_name": "m", "base_url": server.url}
        rlm = opened.enter_context(RLM(backend_kwargs=model))
        with Lines("completion") as lines:
            assert complete(rlm) is None
        assert {"completion", "make", "wait", "begin", "portal", "start", "_successful"} <= set(lines.passed.values())
        purge(own_traces)
        for at, function in lines.passed.items():
            if at[0] in BEGINNING:
                rlm = opened.enter_context(RLM(backend_kwargs=model))
            asked = len(server.requests)
            with Lines("completion", at) as again:
                error = complete(rlm)
            assert at in again.passed
            if function == "_successful":  # the run has ended, and nobody has its result yet
                assert [Trace.from_file(path).status for path in own_traces.iterdir()] == ["answered"]
                purge(own_traces)
            else:
                result = error.result if isinstance(error, RunStopped) else None
                check(again.ended(error), result, own_traces, len(server.requests) - asked)
