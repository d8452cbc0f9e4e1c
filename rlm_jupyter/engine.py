"""The worker thread in which runs happen, and the one local environment that is kept warm for the next run.

A notebook's main thread must stay free to be interrupted, and a kernel of Jupyter already runs an event loop in it: so the
engine has a thread and a loop of its own, started at the first run. A local environment that a run ended with in good order
is kept, idle, for `IDLE` seconds: the next run starts in milliseconds. One that saw trouble is closed, never reused.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from rlm_jupyter.kernels.environment import Environment
from rlm_jupyter.kernels.local import open_local

T = TypeVar("T")

IDLE = 600.0
CLOSE_WITHIN = 5.0


class Engine:
    """A worker thread with an event loop. `close` ends it and what it keeps; so does the end of the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stack = contextlib.ExitStack()
        self._portal: BlockingPortal | None = None
        self._warm: tuple[str | None, Environment] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._at_exit = _close_at_exit(self)

    def start(self, function: Callable[..., Awaitable[T]], *args: Any) -> Future[T]:
        """Start `function(*args)` in the worker thread; its outcome is the future's."""
        return self._started().start_task_soon(function, *args)

    def soon(self, function: Callable[[], object]) -> None:
        """Call `function` in the worker thread, without waiting for it. Nothing happens when the engine was closed."""

        async def call() -> None:
            function()

        with contextlib.suppress(RuntimeError):
            self._started().start_task_soon(call)

    async def lease(self, kernel: str | None) -> Environment:
        """Give a local environment for one run: the warm one where it fits, else a new one."""
        if self._warm is not None and self._warm[0] == kernel:
            (_, environment), self._warm = self._warm, None
            self._cancel_timer()
            if environment.alive:
                return environment
            await environment.close()
        return await open_local(kernel)

    async def give_back(self, kernel: str | None, environment: Environment, *, healthy: bool) -> None:
        """Take an environment back after a run: kept warm when healthy and none is kept, else closed."""
        if healthy and environment.alive and self._warm is None and self._portal is not None:
            self._warm = (kernel, environment)
            self._timer = asyncio.get_running_loop().call_later(IDLE, lambda: self.soon_close_warm())
            return
        with anyio.move_on_after(CLOSE_WITHIN, shield=True):
            await environment.close()

    def soon_close_warm(self) -> None:
        """Close the warm environment without waiting for it."""
        if self._portal is not None:
            with contextlib.suppress(RuntimeError):
                self._portal.start_task_soon(self._close_warm)

    async def _close_warm(self) -> None:
        self._cancel_timer()
        warm, self._warm = self._warm, None
        if warm is not None:
            with anyio.move_on_after(CLOSE_WITHIN, shield=True):
                await warm[1].close()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _started(self) -> BlockingPortal:
        with self._lock:
            if self._portal is None:
                self._portal = self._stack.enter_context(start_blocking_portal("asyncio", name="rlm_jupyter"))
            return self._portal

    def close(self) -> None:
        """End the warm environment and the thread. Runs under way are stopped. Calling it twice is fine."""
        atexit.unregister(self._at_exit)
        with self._lock:
            portal, self._portal = self._portal, None
        if portal is not None:
            with contextlib.suppress(RuntimeError):
                portal.start_task_soon(self._close_warm).result(CLOSE_WITHIN + 1)
            self._stack.close()


def _close_at_exit(engine: Engine) -> Callable[[], None]:
    reference = weakref.ref(engine)

    def close() -> None:
        living = reference()
        if living is not None:
            living.close()

    atexit.register(close)
    return close
