"""A run in a notebook: one status line while it goes on, the page of `page.py` when it is over.

Two displays, each updated in its place: the status line (at most 2 KB, at most 4 times a second, only when it changed) and the
page, sent again only when an iteration ends. At the end the same two hold the static result: nothing is left that needs a
script, a widget or trust. Each picture stands below them once more, as an output of its own: the page has room for few, and
there are readers of notebooks that show no picture within HTML.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import uuid4

from rlm_jupyter.events import Event, IterationStarted, RunEnded
from rlm_jupyter.trace import Trace
from rlm_jupyter.widgets import images, page, text, words
from rlm_jupyter.widgets.displays import Publish, publish
from rlm_jupyter.widgets.markup import MUTED, SMALL, dotted, say
from rlm_jupyter.widgets.markup import page as element
from rlm_jupyter.widgets.page import CAP, render
from rlm_jupyter.widgets.view import Face

__all__ = ["HtmlView", "bundle", "render"]

INTERVAL = 0.25
"""Seconds between two sendings of the status line."""
STATUS_CAP = 2000
"""Bytes of the status line, its plain text included."""


def bundle(trace: Trace, cap: int = CAP, face: Face | None = None) -> dict[str, str]:
    """Give a finished run as a display bundle, to be shown with `display(bundle(trace), raw=True)`."""
    return {"text/html": render(trace, cap, face), "text/plain": text.render(trace)}


class HtmlView:
    """Shows one run in a notebook by two displays.

    Parameters
    ----------
    publish
        How a bundle reaches the front end; IPython's display by default.
    clock
        Seconds that only grow.
    beside
        The cell ends after `start`: both displays are made then, and nothing is displayed later.
    """

    def __init__(
        self, publish: Publish = publish, clock: Callable[[], float] = time.monotonic, *, beside: bool = False
    ) -> None:
        self._publish = publish
        self._beside = beside
        self._clock = clock
        self._trace = Trace()
        self._name = f"rlm-{uuid4().hex[:16]}"
        self._sent: set[str] = set()
        self._last: dict[str, str] = {}
        self._began = self._shown = clock()
        self._finished = False

    def start(self, trace: Trace) -> None:
        """Begin to show `trace`, which may be empty still."""
        self._trace = trace
        self._began = self._shown = self._clock()
        self._send("status", self._status(0.0))
        if self._beside:
            self._send("page", self._live_page())

    def update(self, event: Event | None) -> None:
        """Show what `event` changed; None is a tick of the clock."""
        if self._finished:
            return
        if isinstance(event, IterationStarted) and event.node == self._trace.node and len(self._trace.iterations) > 1:
            self._send("page", self._live_page())
        now = self._clock()
        if now - self._shown < INTERVAL or isinstance(event, RunEnded):
            return
        if self._send("status", self._status(now - self._began)):
            self._shown = now

    def finish(self, face: Face | None = None) -> None:
        """Put the static result in the place of both displays."""
        if self._finished:
            return
        self._finished = True
        head = page.head(self._trace)
        below = {} if self._beside else images.below(self._trace.pictures)
        self._send("status", {"text/html": head, "text/plain": text.headline(self._trace)})
        body = page.body(self._trace, CAP - len(head.encode()), below=below, face=face)
        self._send("page", {"text/html": body, "text/plain": text.render(self._trace)})
        for number, picture in below.items():
            plain = images.told(picture, self._trace.pictures[number].cell)
            self._publish(
                {picture.media_type: images.coded(picture), "text/plain": plain},
                display_id=f"{self._name}-picture-{number}",
                update=False,
            )

    def _send(self, part: str, content: dict[str, str]) -> bool:
        if self._last.get(part) == content["text/html"]:
            return False
        self._last[part] = content["text/html"]
        self._publish(content, display_id=f"{self._name}-{part}", update=part in self._sent)
        self._sent.add(part)
        return True

    def _status(self, seconds: float) -> dict[str, str]:
        trace = self._trace
        state, figures = words.state(trace), words.progress(trace, seconds)
        if not trace.iterations:
            figures = words.opening(trace) or figures
        plain = " · ".join([state, *figures])
        line = f'<b>{say(state)}</b> <span style="{MUTED}">· {dotted(figures)}</span>'
        last = trace.iterations[-1] if trace.iterations else None
        reply = words.last_line(last.reply) if last is not None and last.state == "asking" else ""
        for shown in (reply, reply[:40], ""):
            second = f'<div style="{SMALL}">{say(shown)}</div>' if shown else ""
            full = "".join(map(str, element(f"{line}{_bar(trace)}{second}")))
            if len(full.encode()) + len(plain.encode()) <= STATUS_CAP:
                return {"text/html": full, "text/plain": plain}
        return {"text/html": f"<div>{say(state)}</div>", "text/plain": state}

    def _live_page(self) -> dict[str, str]:
        done = words.count(sum(turn.state == "ended" for turn in words.turns(self._trace)), "iteration")
        return {"text/html": page.body(self._trace, page.LIVE_CAP, live=True), "text/plain": f"{done} so far"}


def _bar(trace: Trace) -> str:
    """Draw how many of the sub-calls of the cell that runs are done."""
    cell = trace.iterations[-1].cells[-1] if trace.iterations and trace.iterations[-1].cells else None
    if cell is None or cell.status != "running" or len(cell.calls) < 2:
        return ""
    done = sum(call.state != "running" for call in cell.calls)
    return f'<div><progress value="{done}" max="{len(cell.calls)}" style="width:16em;height:.6em"></progress></div>'
