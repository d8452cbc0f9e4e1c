"""Kernels that are forked before they are asked for.

One at rest. When children are started there are soon as many as were at work together, and one, up to `MOST`, so that the next
batch finds its kernels ready; when none was started for `KEEP_SECONDS` all but one end, and their memory is free. They are
forked one after another, and only when no kernel was started, has ended or was given a cell in the last moment, those beyond
the first in the last `CALM_SECONDS`: what runs comes first, and a batch that is soon over is not made slower by kernels for the
next one. After `LATEST_SECONDS` they are made all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from . import wire
from .loop import Loop, Timer

AFTER_SECONDS, CALM_SECONDS, LATEST_SECONDS = 0.2, 0.5, 2.0
KEEP_SECONDS = 30.0
MOST = 16
FAILURES = 3
"""Spares that may end by themselves until no more are made."""


class Spare(Protocol):
    """What this needs of a kernel."""

    ready: bool

    def kill(self, note: str) -> None: ...


S = TypeVar("S", bound=Spare)


class Spares(Generic[S]):
    """The spares of one supervisor; `fork` makes one, or gives None where none can be made."""

    def __init__(self, loop: Loop, fork: Callable[[], S | None]) -> None:
        self._loop = loop
        self._fork = fork
        self._held: list[S] = []
        self._wanted = 1
        self._failures = 0
        self._timers: list[Timer] = []
        self._latest: Timer | None = None
        self._calm = True
        self._keep: Timer | None = None

    def take(self, *, ready: bool = False) -> S | None:
        """Give one, a ready one first (`ready`: or none that is not); None where there is none."""
        self._held.sort(key=lambda kernel: not kernel.ready)
        return self._held.pop(0) if self._held and (self._held[0].ready or not ready) else None

    def asked(self, order: wire.Start, at_work: int) -> None:
        """Take note that a kernel was asked for; `at_work`: how many children there are with it."""
        if order.parent:
            self._wanted = max(self._wanted, min(at_work + 1, MOST))
            if self._keep is not None:
                self._keep.cancel()
            self._keep = self._loop.later(KEEP_SECONDS, self._let_go)

    def soon(self) -> None:
        """Make what is missing, in a moment; later, if this is called again before."""
        self._calm = False
        self._wait()

    def busy(self) -> None:
        """Put that off: there is something to do for those that are at work."""
        if self._latest is not None:
            self._wait()

    def _wait(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers = [self._loop.later(AFTER_SECONDS, self.refill), self._loop.later(CALM_SECONDS, self._fill)]
        if self._latest is None:
            self._latest = self._loop.later(LATEST_SECONDS, self._fill)

    def _fill(self) -> None:
        for timer in [*self._timers, self._latest]:
            if timer is not None:
                timer.cancel()
        self._timers, self._latest, self._calm = [], None, True
        self.refill()

    def refill(self) -> None:
        """Make one if one is missing; the next when that has come up."""
        wanted = self._wanted if self._calm else 1
        if len(self._held) < wanted and self._failures < FAILURES and all(kernel.ready for kernel in self._held):
            try:
                kernel = self._fork()
            except OSError:  # code has filled the folder; where the next kernel is asked for, that is told
                self._failures += 1
                return
            if kernel is not None:
                self._held.append(kernel)

    def came_up(self) -> None:
        self._loop.later(0, self.refill)

    def gone(self, kernel: S) -> None:
        """Take note that a kernel has ended, maybe a spare."""
        if kernel in self._held:
            self._held.remove(kernel)
            self._failures += 1
        self.soon()

    def _let_go(self) -> None:
        self._wanted = 1
        for kernel in [held for held in self._held if held.ready][1:]:
            self._held.remove(kernel)
            kernel.kill("")
