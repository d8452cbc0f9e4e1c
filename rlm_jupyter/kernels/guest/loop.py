"""One thread that waits for everything: zmq sockets, file descriptors and timers.

Plain descriptors live in an epoll (or kqueue) of their own, whose descriptor stands beside the zmq sockets in one zmq.Poller;
so a thousand blocked callers cost nothing per turn.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import selectors
import time
from collections.abc import Callable
from typing import Any

import zmq

Callback = Callable[[], None]
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
        self._poller = zmq.Poller()
        self._poller.register(self._selector.fileno(), zmq.POLLIN)
        self._sockets: dict[Any, Callback] = {}
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

    def watch_socket(self, socket: Any, callback: Callback) -> None:
        self._sockets[socket] = callback
        self._poller.register(socket, zmq.POLLIN)

    def unwatch_socket(self, socket: Any) -> None:
        if self._sockets.pop(socket, None) is not None:
            self._poller.unregister(socket)

    def later(self, seconds: float, callback: Callback) -> Timer:
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), timer))
        return timer

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        while self._running:
            ready = dict(self._poller.poll(self._patience()))
            if self._selector.fileno() in ready:
                for key, _ in self._selector.select(0):
                    if self._selector.get_map().get(key.fd) is key:
                        key.data()
            for socket in [socket for socket in ready if socket in self._sockets]:
                if socket in self._sockets:
                    self._sockets[socket]()
            self._fire()

    def _patience(self) -> int | None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return None
        return max(int((self._timers[0][0] - time.monotonic()) * 1000) + 1, 0)

    def _fire(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                callback()
