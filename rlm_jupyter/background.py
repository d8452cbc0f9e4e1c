"""A run in the background: the cell that starts it ends at once, and its view goes on from a thread of ours.

The displays are made in the cell, before it ends, and are only ever updated from the thread: an update reaches its display
whatever cell runs meanwhile. So nothing is printed or newly displayed here, since that would land in another cell's output.
The thread ends with the run, and never keeps the process alive.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from rlm_jupyter.trace import Trace
from rlm_jupyter.widgets.view import Face, open_view

if TYPE_CHECKING:
    from rlm_jupyter.feed import Feed
    from rlm_jupyter.run import Run
    from rlm_jupyter.widgets.view import View


RESULT_WITHIN = 60.0
"""Seconds between the last event of a run and its result, in which its environment is given back."""


def begin(run: Run, view_name: str, answer_format: str = "text") -> None:
    """Show a run in the cell that runs now, and begin it. When it cannot begin, or at an interrupt, it is stopped."""
    try:
        attach(run, view_name, answer_format)
        run.shown = True
        run.begin()
    except BaseException:
        run.stop()
        run.begin()  # so that it ends, and its view with it
        raise


def attach(run: Run, view_name: str, answer_format: str = "text") -> None:
    """Show a run in the cell that runs now, from its first event on, whoever began it and wherever else it is shown."""
    view, trace, feed = open_view(view_name, run.stop, beside=True), Trace(), run.feed()
    view.start(trace)
    arguments = (run, view, trace, feed, answer_format)
    threading.Thread(target=_follow, args=arguments, name=f"rlm_jupyter view {run.id}", daemon=True).start()


def _follow(run: Run, view: View, trace: Trace, feed: Feed, answer_format: str) -> None:
    """Show events as they come, to the end of the run."""
    value = None
    try:
        for event in feed:
            if event is not None:
                trace.add(event)
            view.update(event)
        with contextlib.suppress(TimeoutError):
            value = run.future.result(RESULT_WITHIN).value
    finally:
        view.finish(Face(value, answer_format))
