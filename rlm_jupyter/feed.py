"""A run's events for somebody who watches it from another thread: all of them, in order, from the first on.

A feed never holds the run up, and whoever stops reading it loses nothing of the run.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from rlm_jupyter.events import Event, RunEnded

TICK = 0.25
"""Seconds after which a feed gives None, so that a clock can be drawn."""


class Feed:
    """An iterator over a run's events: every one, in order, to the end; None each `TICK` seconds in which there is none.

    It survives an interrupt (a generator would not): `rest` gives what has come since. `future`: done when the run has ended.
    """

    def __init__(self, past: list[Event], future: Future[Any]) -> None:
        self._future = future
        self._channel: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._ended = False
        for event in past:
            self.put(event)

    def put(self, event: Event) -> None:
        self._channel.put(event)

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Event | None:
        if self._ended:
            raise StopIteration
        try:
            event = self._channel.get(timeout=TICK)
        except queue.Empty:
            if not self._future.done():
                return None
            try:  # a bug of ours may end a run without its last event, and nobody may wait for that
                event = self._channel.get_nowait()
            except queue.Empty:
                raise StopIteration from None
        self._ended = isinstance(event, RunEnded)
        return event

    def rest(self) -> Iterator[Event]:
        """Give what has come and was not read yet, without waiting for more."""
        with contextlib.suppress(queue.Empty):
            while not self._ended:
                event = self._channel.get_nowait()
                self._ended = isinstance(event, RunEnded)
                yield event
