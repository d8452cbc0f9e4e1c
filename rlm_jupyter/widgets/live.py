"""One run as a widget: what `front/` draws, fed with events. `inline.py` shows it in a cell; it may stand in any container.

    widget = LiveWidget(on_stop=run.stop)
    trace = Trace()
    widget.start(trace)
    for event in run.feed():
        if event is not None:
            trace.add(event)
        widget.update(event)
    widget.finish()

It holds no state but its own code and a name: what is shown goes to the page in messages and is saved nowhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import resources
from typing import Any
from uuid import uuid4

import anywidget
import ipywidgets
import traitlets

from rlm_jupyter.events import Event
from rlm_jupyter.trace import Trace
from rlm_jupyter.widgets.channel import Channel
from rlm_jupyter.widgets.teller import Message, Teller

SOURCES = ("words.js", "store.js", "rows.js", "cells.js", "timeline.js", "live.js")
"""The page's own code, one module when put together in this order."""


@functools.cache
def source(*names: str) -> str:
    """Give the text of files of ours for the page."""
    folder = resources.files("rlm_jupyter.widgets") / "front"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


def open_channel(widget: Any) -> Channel:
    """Open the line of a widget whose state has no bytes in it."""
    return Channel(
        target_name="jupyter.widget",
        data={"state": widget.get_state(), "buffer_paths": []},
        metadata={"version": ipywidgets.widgets.widget.__protocol_version__},
    )


class LiveWidget(anywidget.AnyWidget):
    """One run, as a widget. Use it from one thread; the page may ask for a stop from another.

    Parameters
    ----------
    on_stop
        What the Stop button does, from any thread; None: there is no such button.
    """

    name = traitlets.Unicode().tag(sync=True)

    def __init__(self, on_stop: Callable[[], None] | None = None) -> None:
        self._teller = Teller(self._tell, on_stop)
        self._esm = source(*SOURCES)
        self._css = source("live.css")
        super().__init__(name=uuid4().hex, layout=ipywidgets.Layout(width="100%"))
        self.on_msg(self._heard)

    def open(self) -> None:
        """Open the line to the page."""
        if self.comm is None:  # type: ignore[has-type]  # a trait of ipywidgets
            self.comm = open_channel(self)

    @property
    def answered(self) -> bool:
        """Whether the page has said anything: only then is it known that there is one."""
        return self._teller.heard.is_set()

    def start(self, trace: Trace) -> None:
        """Begin to show `trace`; it is empty, or a run under way."""
        self._teller.start(trace)

    def update(self, event: Event | None) -> None:
        """Show `event`, which is in the trace already; None is a tick of the clock, about every 0.25 s."""
        self._teller.update(event)

    def finish(self) -> None:
        """Show what has not been shown yet. The widget stays; `close` takes it away."""
        self._teller.flush()

    def close(self) -> None:
        """Take the widget away, on the page and here."""
        layout = self.layout
        super().close()
        if layout is not None:
            layout.close()

    def _tell(self, message: Message) -> None:
        self.send(message)

    def _heard(self, widget: Any, content: Any, buffers: Any) -> None:
        self._teller.hear(content)
