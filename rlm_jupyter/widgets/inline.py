"""A run in a cell, live: the widget of `live.py` while it goes on, the static page of `html.py` in its place when it is over.

The plain HTML view comes first. Only when the widget's page has answered does the widget take its place; where it never does
(no widgets in the front end, or nobody there) the run is shown and saved as plain HTML. Nothing of the widget is left at the
end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rlm_jupyter.events import Event
from rlm_jupyter.trace import Trace
from rlm_jupyter.widgets.displays import Publish, publish
from rlm_jupyter.widgets.html import HtmlView

if TYPE_CHECKING:
    from rlm_jupyter.widgets.live import LiveWidget
    from rlm_jupyter.widgets.view import Face

EMPTY = {"text/html": "", "text/plain": ""}


class Slots:
    """The displays of one run, in the order in which the plain view asks for them, and what may stand in them.

    The widget takes the place of the first, and while it is there the others are empty; at the end the plain view has them
    all again. Nothing is left of the widget in what is saved then.
    """

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self._names: list[str] = []
        self._covered = False

    def publish(self, bundle: dict[str, str], *, display_id: str, update: bool) -> None:
        """Show what the plain view shows, as long as the widget does not stand in its place."""
        if not self._covered:
            known = display_id in self._names
            if not known:
                self._names.append(display_id)
            self._publish(bundle, display_id=display_id, update=update or known)

    def cover(self, bundle: dict[str, Any]) -> None:
        """Put `bundle` in the first place and empty the others."""
        self._covered = True
        for place, name in enumerate(self._names):
            self._publish(bundle if place == 0 else EMPTY, display_id=name, update=True)

    def uncover(self) -> None:
        """Let the plain view show itself again."""
        self._covered = False


class LiveView:
    """Shows one run in a cell of a notebook by a widget, if its page answers, and by the plain HTML view until then.

    Parameters
    ----------
    on_stop
        What the widget's Stop button does, from any thread.
    publish
        How a bundle reaches the front end; IPython's display by default.
    beside
        The cell ends after `start`, and nothing is displayed later: as in `HtmlView`.
    """

    def __init__(self, on_stop: Callable[[], None] | None = None, publish: Publish = publish, *, beside: bool = False) -> None:
        self._slots = Slots(publish)
        self._plain = HtmlView(self._slots.publish, beside=beside)
        self._trace = Trace()
        self._on_stop = on_stop
        self._widget: LiveWidget | None = None
        self._shown = self._finished = False

    def start(self, trace: Trace) -> None:
        """Begin to show `trace`; it is empty, or a run under way."""
        self._trace = trace
        self._plain.start(trace)

    def update(self, event: Event | None) -> None:
        """Show `event`, which is in the trace already; None is a tick of the clock."""
        if self._finished:
            return
        widget = self._widget or self._open()
        widget.update(event)
        if self._shown:
            return
        if widget.answered:
            self._shown = True
            self._slots.cover(_bundle(widget))
        else:
            self._plain.update(event)

    def _open(self) -> LiveWidget:
        from rlm_jupyter.widgets.live import LiveWidget  # takes its time; the plain view is seen meanwhile

        self._widget = LiveWidget(self._on_stop)
        self._widget.start(self._trace)
        return self._widget

    def finish(self, face: Face | None = None) -> None:
        """Put the static result in the place of the widget."""
        if self._finished:
            return
        self._finished = True
        self._slots.uncover()
        self._plain.finish(face)
        if self._widget is not None:
            self._widget.close()


def _bundle(widget: LiveWidget) -> dict[str, Any]:
    """Give what shows a widget in an output."""
    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    return {"application/vnd.jupyter.widget-view+json": view, "text/plain": "a recursive run, live"}
