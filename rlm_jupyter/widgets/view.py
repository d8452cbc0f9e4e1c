"""What a view is, and which one is chosen where.

`auto` is text outside of a notebook's kernel; in one it is `live` where JupyterLab or Notebook 7 sent the cell and HTML where
another front end did. A view is told each event after it was folded into the trace, from the thread that waits for the run;
it draws, and decides nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

from rlm_jupyter.events import Event
from rlm_jupyter.trace import Trace

VIEWS = ("auto", "live", "html", "text", "none")


@dataclasses.dataclass(frozen=True, slots=True)
class Face:
    """What is known of an answer beside its text: its value (None: nothing is); `format`: text, or markdown to be drawn."""

    value: Any = None
    format: str = "text"


class View(Protocol):
    """Shows one run, live. All three are called from one thread, `finish` exactly once and last, whatever happened."""

    def start(self, trace: Trace) -> None:
        """Begin to show `trace`; it is empty, or a run under way."""

    def update(self, event: Event | None) -> None:
        """Show `event`, which is in the trace already; None is a tick of the clock, about every 0.25 s."""

    def finish(self, face: Face | None = None) -> None:
        """Leave behind what should be seen of a run that is over; `face`: what is known of its answer beside its text."""


class NoView:
    """Shows nothing."""

    def start(self, trace: Trace) -> None:
        """Do nothing."""

    def update(self, event: Event | None) -> None:
        """Do nothing."""

    def finish(self, face: Face | None = None) -> None:
        """Do nothing."""


def choose_view(name: str = "auto") -> str:
    """Give live, html, text or none for `name`; a ValueError names the choices."""
    if name not in VIEWS:
        raise ValueError(f"--view {name}: no such view; choose one of {', '.join(VIEWS)}")
    if name != "auto":
        return name
    if not _in_notebook():
        return "text"
    from rlm_jupyter.widgets.channel import in_lab

    return "live" if in_lab() else "html"


def open_view(name: str = "auto", on_stop: Callable[[], None] | None = None, *, beside: bool = False) -> View:
    """Make the view that `name` asks for; what draws it is imported only now.

    `on_stop`: what a Stop button in it does, from any thread. `beside`: of a run in the background. Its cell ends after
    `start`, so the view may only update what it has displayed then; a transcript would be written into what the user types
    next, so there is none.
    """
    match choose_view(name):
        case "live":
            from rlm_jupyter.widgets.inline import LiveView

            return LiveView(on_stop, beside=beside)
        case "html":
            from rlm_jupyter.widgets.html import HtmlView

            return HtmlView(beside=beside)
        case "text" if not beside:
            from rlm_jupyter.widgets.terminal import TextView

            return TextView()
    return NoView()


def _in_notebook() -> bool:
    """Tell whether a front end that draws HTML shows what this process displays: an ipykernel of any make."""
    import sys

    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return shell is not None and shell.has_trait("kernel") and getattr(shell, "kernel", None) is not None
