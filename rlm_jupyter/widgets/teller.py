"""Tells a page what happens in a run: records in numbered messages, a few a second, and all of it anew when asked.

It is used from the thread that watches the run; `hear` alone may be called from any other. It knows nothing of widgets: what
sends a message is given to it, and what comes back is checked here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rlm_jupyter.events import Event, RunEnded
from rlm_jupyter.trace import Trace
from rlm_jupyter.widgets import words
from rlm_jupyter.widgets.wire import Encoder, Record, joined

INTERVAL = 0.2
"""Seconds between two messages."""
MESSAGE_CAP = 192 * 1024
"""Characters of the texts of one message, above which the next record begins another (pictures are larger)."""

Message = dict[str, Any]
"""`n`: its number. `reset`: forget what was. `now`: the clock of events. `state`: a word. `heard`: the page was heard.
`stoppable`: it may ask for a stop. `records`: see `wire`."""


class Teller:
    """The one who tells a page of one run.

    Parameters
    ----------
    send
        Takes one message to the page.
    on_stop
        What is done when the page asks for the run to be stopped; None where that is not to be offered.
    clock, now
        Seconds that only grow, and seconds since the epoch.
    """

    def __init__(
        self,
        send: Callable[[Message], None],
        on_stop: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._send = send
        self._on_stop = on_stop
        self._clock, self._now = clock, now
        self._trace = Trace()
        self._encoder = Encoder()
        self._pending: list[Record] = []
        self._number = 0
        self._sent = float("-inf")
        self._acknowledged = False
        self._wanted = threading.Event()
        self.heard = threading.Event()
        """Set once the page has said anything: it is there, and its messages arrive."""

    def start(self, trace: Trace) -> None:
        """Begin to tell of `trace`, which may be a run under way."""
        self._trace = trace
        self._wanted.clear()
        self._tell_all()

    def update(self, event: Event | None) -> None:
        """Tell of `event`, which is in the trace already; None is a tick of the clock."""
        if self._wanted.is_set():
            self._wanted.clear()
            self._tell_all()
            return
        if event is not None:
            self._pending.extend(self._encoder.records(event))
        due = self._clock() - self._sent >= INTERVAL or isinstance(event, RunEnded)
        if (due and self._pending) or self.heard.is_set() != self._acknowledged:
            self._flush(reset=False)

    def flush(self) -> None:
        """Send what waits."""
        if self._wanted.is_set():
            self.update(None)
        elif self._pending:
            self._flush(reset=False)

    def hear(self, content: Any) -> None:
        """Take a message from the page, of which nothing is believed but its kind."""
        kind = content.get("kind") if isinstance(content, dict) else None
        if kind in ("ready", "resync"):
            if kind == "resync" or content.get("has") is not True:
                self._wanted.set()
            self.heard.set()
        elif kind == "stop" and self._on_stop is not None:
            self.heard.set()
            self._on_stop()

    def _tell_all(self) -> None:
        self._encoder = Encoder()
        self._pending = list(self._encoder.all(self._trace))
        self._flush(reset=True)

    def _flush(self, reset: bool) -> None:
        pending, self._pending = self._pending, []
        heard = self._acknowledged = self.heard.is_set()
        for records in _parts(joined(pending)):
            self._number += 1
            self._send(
                {
                    "n": self._number,
                    "reset": reset,
                    "now": self._now(),
                    "state": words.state(self._trace),
                    "heard": heard,
                    "stoppable": heard and self._on_stop is not None,
                    "records": records,
                }
            )
            reset = False
        self._sent = self._clock()


def _parts(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Cut records into messages; at least one, which may be empty."""
    part: list[Record] = []
    size = 0
    for record in records:
        weight = 64 + sum(len(value) for value in record.values() if isinstance(value, str))
        if part and size + weight > MESSAGE_CAP:
            yield part
            part, size = [], 0
        part.append(record)
        size += weight
    yield part
