"""One thread that waits for everything: file descriptors and timers, in one epoll (or kqueue).

A zmq socket is watched by its descriptor, too; that is edge-triggered, so whoever owns the socket reads it dry after each
operation of his own (see `shell.ShellChannel`). A thousand blocked callers cost nothing per turn.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import selectors
import time
from collections.abc import Callable

Callback = Callable[[], object]
READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE


class Timer:
    """A call that is due later, unless it is cancelled."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callback) -> None:
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        self.callback = None


class Loop:
    """Run callbacks until `stop`. Nothing here blocks but the one wait."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._running = True

    def watch(self, fd: int, callback: Callback, events: int = READ) -> None:
        """Call `callback` whenever `fd` is ready; a second watch of the same one replaces the first."""
        try:
            self._selector.modify(fd, events, callback)
        except KeyError:
            self._selector.register(fd, events, callback)

    def unwatch(self, fd: int) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fd)

    def later(self, seconds: float, callback: Callback) -> Timer:
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), timer))
        return timer

    def stop(self) -> bool:
        """Have `run` return; whether it had not been told so before."""
        running, self._running = self._running, False
        return running

    def run(self) -> None:
        select, watched = self._selector.select, self._selector.get_map()
        while self._running:
            for key, _ in select(self._patience()):
                if watched.get(key.fd) is key:
                    key.data()
            if self._timers:
                self._fire()

    def _patience(self) -> float | None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return max(self._timers[0][0] - time.monotonic(), 0) if self._timers else None

    def _fire(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                callback()
