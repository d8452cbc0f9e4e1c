"""What becomes of a question that was asked in a cell: its run is watched there, or begun in the background, or by a panel.

Of the user's namespace only the variable of `--out` is written, also when the run fails or is stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from IPython.core.error import UsageError

from rlm_jupyter.background import RESULT_WITHIN, begin
from rlm_jupyter.errors import SettingsError
from rlm_jupyter.events import Event
from rlm_jupyter.result import RLMResult
from rlm_jupyter.run import Run
from rlm_jupyter.settings import many
from rlm_jupyter.trace import Trace
from rlm_jupyter.widgets.view import Face, open_view

Value = TypeVar("Value", RLMResult, Run)


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """A run that was made, and what its cell wants of it.

    Attributes
    ----------
    view, format
        How it is shown, and its answer.
    out, folder
        The variable that receives the result, and where files of the code are saved; None: neither.
    runs, space
        The session's runs, to which it is added when it begins, and its namespace.
    """

    run: Run
    view: str
    format: str
    out: str | None
    folder: str | None
    runs: dict[str, Run]
    space: dict[str, Any]

    def watch(self) -> RLMResult:
        """Begin the run, show it until it ends, bind `out`, and give the result; an interrupt stops the run."""
        run = self.run
        view, trace, feed = open_view(self.view, on_stop=run.stop), Trace(), run.feed()
        result: RLMResult | None = None

        def show(events: Iterable[Event | None]) -> None:
            for event in events:
                if event is not None:
                    trace.add(event)
                view.update(event)

        try:
            try:
                self.runs[run.id] = run
                view.start(trace)
                run.begin()
                show(feed)
                result = self._bind(run.future.result())
            except KeyboardInterrupt:  # of a run that has ended meanwhile it gives the result, too
                stopped = run.interrupted()
                assert stopped.result is not None
                result = self._bind(stopped.result)
            except BaseException:
                run.stop()
                raise
            show(feed.rest())
        finally:
            view.finish(Face(result.value if result is not None else None, self.format))
        return result

    def begin(self) -> Run:
        """Begin the run in the background, bound to `out` from now on."""
        self.runs[self.run.id] = self.run
        begin(self.run, self.view, self.format)
        return self._bind(self.run)

    def begin_aside(self) -> tuple[Run, str | None, Callable[[], tuple[str, Face]]]:
        """Begin the run for somebody else to watch; give it, its `out`, and what the cell would do at its end."""
        self.runs[self.run.id] = self.run
        self.run.begin()

        def finish() -> tuple[str, Face]:
            result = self._bind(self.run.future.result(RESULT_WITHIN))
            try:
                line = self.save_files(result)
            except UsageError as error:
                line = str(error)
            return line, Face(result.value, self.format)

        return self.run, self.out, finish

    def save_files(self, result: RLMResult) -> str:
        """Save the files of the code where they are wanted, and give the line that says so."""
        if self.folder is None:
            return ""
        try:
            saved = result.save_files(self.folder)
        except SettingsError as error:
            raise UsageError(str(error)) from None
        names = ", ".join(str(path) for path in saved[:10]) + (", ..." if len(saved) > 10 else "")
        return f"{many(len(saved), 'file')} saved: {names}" if saved else "no files were written by the code, so none are saved"

    def _bind(self, value: Value) -> Value:
        if self.out is not None:
            self.space[self.out] = value
        return value
