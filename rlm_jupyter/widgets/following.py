"""A run that is started and followed beside the notebook's own thread, for a view that may move while it goes on."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from rlm_jupyter.events import Event
from rlm_jupyter.trace import Trace
from rlm_jupyter.widgets import words
from rlm_jupyter.widgets.inline import LiveView
from rlm_jupyter.widgets.view import Face


class Refused(Exception):
    """What was asked for cannot be run; the text is the line that the magic would give."""


@dataclasses.dataclass(frozen=True, slots=True)
class Started:
    """A run that was started.

    Attributes
    ----------
    id, out
        The run's name, and the variable that will receive the result; '' for none.
    feed
        Gives an iterator over its events, from the first on to the end; None is a tick of the clock.
    stop
        Stops it.
    finish
        To be called once, when it has ended: does what the cell would have done, and gives a line that is worth saying, or '',
        and what is known of the answer beside its text.
    """

    id: str
    out: str
    feed: Callable[[], Iterator[Event | None]]
    stop: Callable[[], None]
    finish: Callable[[], tuple[str, Face]]


class Place(Protocol):
    """Where a run is shown. All are called from the run's thread, `tell` also from others."""

    def under_way(self, started: Started) -> None:
        """Show that the run can be stopped."""

    def send_part(self, bundle: dict[str, str], *, display_id: str, update: bool) -> None:
        """Show a part of the run's view, named by the last word of `display_id`."""

    def tell(self, line: str) -> None:
        """Show a line."""

    def over(self, line: str, bad: bool) -> None:
        """Show that it has ended, or was refused, and what is to be said of it."""


class Following:
    """Starts a run and follows it, in a thread that ends with it. `place` is where it is shown now; `move` changes it."""

    def __init__(self, place: Place, start: Callable[[Callable[[str], None]], Started]) -> None:
        self.place = place
        self.started: Started | None = None
        self._start = start
        self._lock = threading.Lock()
        self._over = False
        self._thread = threading.Thread(target=self._follow, name="rlm_jupyter panel", daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end; tell whether it came."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def move(self, place: Place) -> bool:
        """Show the run in another place from now on; False where it is over already."""
        with self._lock:
            if not self._over:
                self.place = place
            return not self._over

    def stop(self) -> None:
        """Stop the run, if it has begun."""
        if self.started is not None:
            self.place.tell("Stopping")
            self.started.stop()

    def _follow(self) -> None:
        line, bad = "", False
        try:
            self.started = self._start(lambda line: self.place.tell(line))
            line = self._draw(self.started)
        except Refused as refusal:
            line, bad = str(refusal), True
        except Exception as error:  # whatever it is must be seen, and the form must be usable again
            line, bad = f"internal error: {type(error).__name__}: {error}", True
        finally:
            with self._lock:
                self._over = True
            self.place.over(line, bad)

    def _draw(self, started: Started) -> str:
        """Show the run, wherever its place is now, until it ends; give what is to be said of it."""
        trace = Trace()
        place, view = self._view(trace)
        for event in started.feed():
            if event is not None:
                trace.add(event)
            if place is not self.place:
                view.finish()
                place, view = self._view(trace)
            view.update(event)
        line, face = started.finish()
        with self._lock:
            if place is not self.place:
                view.finish()
                place, view = self._view(trace)
            view.finish(face)
            self._over = True
        return "; ".join(filter(None, [words.status(trace), f"the result is in {started.out}" * bool(started.out), line]))

    def _view(self, trace: Trace) -> tuple[Place, LiveView]:
        """Begin to show the run where its place is now."""
        assert self.started is not None
        place = self.place
        place.under_way(self.started)
        view = LiveView(self.started.stop, place.send_part, beside=True)
        view.start(trace)
        return place, view
