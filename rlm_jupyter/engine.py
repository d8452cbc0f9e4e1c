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
from anyio.from_thread import BlockingPortal

from rlm_jupyter.kernels.environment import Environment
from rlm_jupyter.kernels.launch import Launch, Told

T = TypeVar("T")

IDLE = 600.0
CLOSE_WITHIN = 5.0
START_WITHIN = 60.0
"""Seconds after which a thread that should give its event loop is given up: it cannot be had on this machine."""


class Worker:
    """A thread with an event loop, begun by the first call of `portal`.

    An interrupt may reach the caller's thread anywhere, also in the midst of beginning the thread. So beginning it again is
    harmless, since of several threads the first serves and the others end at once, and none is lost from sight.
    """

    def __init__(self) -> None:
        self._opened: Future[BlockingPortal] = Future()
        self._claim = threading.Lock()
        self._thread: threading.Thread | None = None

    def portal(self) -> BlockingPortal:
        """Give the way into the thread's event loop."""
        if not self._claim.locked():
            threading.Thread(target=self._run, name="rlm_jupyter", daemon=True).start()
        return self._opened.result(START_WITHIN)

    def opened(self) -> BlockingPortal | None:
        """Give the way into the event loop, or None if there is no thread, and then there will never be one."""
        return None if self._claim.acquire(blocking=False) else self._opened.result(START_WITHIN)

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        if not self._claim.acquire(blocking=False):
            return
        self._thread = threading.current_thread()
        try:
            anyio.run(self._serve)
        except BaseException as error:
            if self._opened.done():
                raise
            self._opened.set_exception(error)

    async def _serve(self) -> None:
        async with BlockingPortal() as portal:
            self._opened.set_result(portal)
            await portal.sleep_until_stopped()


class Engine:
    """A worker thread with an event loop. `close` ends it and what it keeps; so does the end of the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: Worker | None = None
        self._warm: tuple[str, Environment] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._at_exit = _close_at_exit(self)

    def start(self, function: Callable[..., Awaitable[T]], *args: Any) -> Future[T]:
        """Start `function(*args)` in the worker thread; its outcome is the future's."""
        with self._lock:
            if self._worker is None:
                self._worker = Worker()
            worker = self._worker
        return worker.portal().start_task_soon(function, *args)

    def soon(self, function: Callable[[], object]) -> None:
        """Call `function` in the worker thread, without waiting for it. Nothing happens when the engine was closed."""

        async def call() -> None:
            function()

        worker = self._worker
        if worker is not None:
            with contextlib.suppress(RuntimeError):
                worker.portal().start_task_soon(call)

    async def lease(self, launch: Launch, told: Told = lambda line: None) -> Environment:
        """Give an environment for one run: the warm one where it fits, else a new one, whose longer steps are told."""
        if self._warm is not None and self._warm[0] == launch.warm:
            (_, environment), self._warm = self._warm, None
            self._cancel_timer()
            if environment.alive:
                return environment
            await environment.close()
        try:
            return await launch.open(told)
        finally:
            # At exit the latest registered comes first: ours must come before that of Modal's SDK, which ends the loop by
            # which a sandbox is terminated, and which registers itself when that loop is first used.
            atexit.unregister(self._at_exit)
            atexit.register(self._at_exit)

    async def give_back(self, launch: Launch, environment: Environment, *, healthy: bool) -> None:
        """Take an environment back after a run: kept warm when healthy and of a kind that is kept; else closed."""
        if launch.warm is not None and healthy and environment.alive and self._warm is None and self._worker is not None:
            self._warm = (launch.warm, environment)
            self._timer = asyncio.get_running_loop().call_later(IDLE, self._close_warm_soon)
            return
        with anyio.move_on_after(CLOSE_WITHIN, shield=True):
            await environment.close()

    def _close_warm_soon(self) -> None:
        if self._worker is not None:
            self._worker.portal().start_task_soon(self._close_warm)

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

    def close(self, *, wait: bool = True) -> None:
        """End the warm environment and the thread; runs under way are stopped. Calling it twice is fine.

        Without `wait` it returns at once: that is for the collection of garbage, which may happen in any thread.
        """
        atexit.unregister(self._at_exit)
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is None or (portal := worker.opened()) is None:
            return
        with contextlib.suppress(RuntimeError):
            portal.start_task_soon(self._end, portal)
        if wait:
            worker.join(CLOSE_WITHIN + 1)

    async def _end(self, portal: BlockingPortal) -> None:
        await self._close_warm()
        await portal.stop(cancel_remaining=True)


def _close_at_exit(engine: Engine) -> Callable[[], None]:
    reference = weakref.ref(engine)

    def close() -> None:
        living = reference()
        if living is not None:
            living.close()

    atexit.register(close)
    return close
