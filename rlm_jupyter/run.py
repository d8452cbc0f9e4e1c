"""One run under way: the environment, kernel and models it takes, its events, and its end.

A run lives in the engine's worker thread and is watched and stopped from any other. Whatever happens it ends in an
`RLMResult`, with its trace; it never raises there. What can be refused is refused by `check` and `make`, in the caller's
thread, before anything is started or spent.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import html
import os
import queue
import secrets
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from typing import Any

import anyio

from rlm_jupyter import events
from rlm_jupyter.budget import Budget
from rlm_jupyter.children import Family
from rlm_jupyter.contexts import Context, Progress, prepare
from rlm_jupyter.engine import CLOSE_WITHIN, Engine
from rlm_jupyter.errors import KernelStartError, LimitReached, RLMError, RunStopped, SettingsError
from rlm_jupyter.events import Event
from rlm_jupyter.kernels import launch
from rlm_jupyter.kernels.environment import Environment
from rlm_jupyter.lm import prices, providers
from rlm_jupyter.lm.client import LM
from rlm_jupyter.lm.handler import LMHandler
from rlm_jupyter.loop import Answer, Node
from rlm_jupyter.redaction import Redactor
from rlm_jupyter.result import Limit, RLMResult
from rlm_jupyter.settings import RunSettings
from rlm_jupyter.trace import Trace
from rlm_jupyter.trace_file import FOLDER_CAP, TraceFile, purge, trace_folder
from rlm_jupyter.values import as_text

TICK = 0.25
"""Seconds after which a feed gives None, so that a clock can be drawn."""
BEST_WITHIN = 2.0
"""Seconds for fetching the best answer that there is from the kernel of a run that was stopped or failed."""
TOO_LATE = f"an answer that code gave could not be fetched within {BEST_WITHIN:g} s"
KILLED = "the kernel did not come back from the interrupt within 2 s and was killed"
STOP_WITHIN = 5.0
"""Seconds after which nobody waits any longer for a run that was told to stop (promise P9)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """What a run is about: a prepared context, the question (None: the context is it), and where the code will run."""

    context: Context
    question: str | None
    place: launch.Launch


class Feed:
    """An iterator over a run's events: every one, in order, to the end; None each `TICK` seconds in which there is none.

    It survives an interrupt (a generator would not): `rest` gives what has come since.
    """

    def __init__(self, past: list[Event], future: Future[RLMResult]) -> None:
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
        self._ended = isinstance(event, events.RunEnded)
        return event

    def rest(self) -> Iterator[Event]:
        """Give what has come and was not read yet, without waiting for more."""
        with contextlib.suppress(queue.Empty):
            while not self._ended:
                event = self._channel.get_nowait()
                self._ended = isinstance(event, events.RunEnded)
                yield event


class Run:
    """One run: `begin()` it, iterate over its `feed()`, `wait()` for the result (or `await` it), `stop()` it.

    It is made before it begins, so that whoever begins it holds it already when an interrupt comes, and can stop it.

    Attributes
    ----------
    id
        Names the run in `%rlm list`, in events and as its trace file.
    trace
        What has happened so far, as a tree; belongs to the worker thread until the run has ended.
    future
        The result, for those who wait in ways of their own.
    shown
        Whether the cell that began it shows it: displayed as that cell's own result it is a line, and then no more.
    """

    def __init__(self, settings: RunSettings, task: Task, engine: Engine, *, api_key: str | None = None) -> None:
        self.id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        self.settings = settings
        self.trace = Trace(run=self.id)
        self._task = task
        self._engine = engine
        self._api_key = api_key
        self._lock = threading.Lock()
        self._feeds: list[Feed] = []
        self._number = 0
        self._redactor = Redactor(os.environ, () if api_key is None else (api_key,))
        self._scope: anyio.CancelScope | None = None
        self._stopping = False
        self._file: TraceFile | None = None
        self._budget: Budget | None = None
        self._best: Answer | None = None
        self._healthy = False
        self._files: dict[str, bytes] = {}
        self._begun = False
        self.shown = False
        self.future: Future[RLMResult] = Future()
        self.future.set_running_or_notify_cancel()

    @property
    def status(self) -> str:
        """`running`, or how it ended: see `RLMResult.status`."""
        return self.trace.status

    @property
    def result(self) -> RLMResult | None:
        """What the run gave, whatever its status; None while it is running."""
        return self.future.result() if self.future.done() else None

    def __await__(self) -> Generator[Any, None, RLMResult]:
        """Give the result as `wait` does, in any event loop of asyncio. Who gives up waiting does not stop the run."""
        self.begin()
        return asyncio.shield(asyncio.wrap_future(self.future)).__await__()

    def __repr__(self) -> str:
        if self.status != "running":
            return f"Run({self.id!r}): {self.status}; .result has what it gave"
        return (
            f"Run({self.id!r}): running; .status, .wait(), await, .stop() (or %rlm stop {self.id}), .result when it has ended"
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """Show the run as it stands; one that has ended as its result."""
        if self.future.done():
            return self.future.result()._repr_mimebundle_()
        if self.shown:
            self.shown = False
            return {}
        from rlm_jupyter.widgets.html import bundle

        with self._lock:
            so_far = list(self.trace.events)
        shown = bundle(Trace.from_events(so_far))  # which alone cannot tell a run that goes on from one whose end is missing
        return {
            "text/html": f"<div>{html.escape(repr(self))}</div>{shown['text/html']}",
            "text/plain": f"{self!r}\n\n{shown['text/plain']}",
        }

    def feed(self) -> Feed:
        """Give an iterator over the run's events, from its first on to its end."""
        with self._lock:
            feed = Feed(list(self.trace.events), self.future)
            self._feeds.append(feed)
        return feed

    def begin(self) -> None:
        """Begin the run, in the worker thread. Calling it again, also after an interrupt in the midst of it, is fine."""
        if not self._begun:
            self._engine.start(self._main)

    def stop(self) -> None:
        """Stop the run: LM requests are cancelled, the cell is interrupted. Returns at once; `wait` gives the result."""
        self._stopping = True
        self._engine.soon(self._cancel)

    def _cancel(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    def wait(self, timeout: float | None = None) -> RLMResult:
        """Wait for the end and give the result, whatever the status; TimeoutError after `timeout` seconds.

        A run that did not begin yet begins. An interrupt (Ctrl-C) stops it and raises `RunStopped` with the partial result.
        """
        try:
            self.begin()
            return self.future.result(timeout)
        except TimeoutError:
            if timeout is None:
                raise
            raise TimeoutError(f"{self.id} has not ended within {timeout:g} s and goes on; .stop() stops it") from None
        except KeyboardInterrupt:
            raise self.interrupted() from None

    def interrupted(self) -> RunStopped:
        """Stop the run, give it `STOP_WITHIN` seconds, and give the error to raise, with what there is."""
        self.stop()
        error = RunStopped(f"stopped by the user after {len(self.trace.iterations)} iterations")
        with contextlib.suppress(TimeoutError, KeyboardInterrupt):
            self.begin()  # where the interrupt came first it ends at once, and its result tells so
            error.result = self.future.result(STOP_WITHIN)
        if error.result is None:
            error = RunStopped("stopped by the user; what has not ended yet is being ended")
            error.result = self._result(Answer("stopped"), error)
        return error

    def _emit(self, event: Event) -> None:
        """Tell an event, and what was held back before it: without secrets, numbered, to the trace, the feeds and the file."""
        for clean in self._redactor.events(event):
            with self._lock:
                numbered = dataclasses.replace(clean, run=self.id, number=self._number, at=time.time())
                self._number += 1
                self.trace.add(numbered)
                for feed in self._feeds:
                    feed.put(numbered)
            if self._file is not None:
                self._file.write(numbered)

    async def _main(self) -> None:
        """Do the whole run, in the worker thread, the first time that this is called."""
        if self._begun:
            return
        self._begun = True
        try:
            self.future.set_result(await self._whole())
        except BaseException as error:
            self.future.set_exception(error)
            raise

    async def _whole(self) -> RLMResult:
        """Never raises: what went wrong is in the result."""
        self._open_trace()
        settings, context = self.settings, self._task.context
        self._emit(
            events.RunStarted(
                question=events.clip(self._task.question or ""),
                settings=settings.to_dict(),
                context_type=context.type_name,
                context_size=context.payload.size,
                context_digest=context.payload.digest,
                context_description=context.description,
                isolation=self._task.place.isolation,
            )
        )
        for warning in self._task.place.warnings:
            self._emit(events.Notice(text=warning))
        answer: Answer = Answer("stopped")
        error: RLMError | None = None
        # Cancelled from within (stop) the scope takes it; from without (the engine is closed) it is taken here: nothing
        # below awaits, so the run still ends in a result.
        with contextlib.suppress(anyio.get_cancelled_exc_class()), anyio.CancelScope() as self._scope:
            if self._stopping:
                self._scope.cancel()
            answer, error = await self._outcome()
        if answer.status == "stopped":
            error = RunStopped("stopped by the user")
        if self._best is not None and answer.status in ("stopped", "failed", "limit") and not answer.type_name:
            answer = dataclasses.replace(answer, value=self._best.value, type_name=self._best.type_name)
        return self._end(answer, error)

    async def _outcome(self) -> tuple[Answer, RLMError | None]:
        try:
            return await self._within_time(), None
        except LimitReached as reached:
            return Answer("limit", limit=reached), None
        except RLMError as failure:
            return Answer("failed"), failure
        except Exception as failure:  # a bug of ours must end the run as a result too, or its trace would be lost
            error = RLMError(f"internal error: {type(failure).__name__}: {failure}")
            error.__cause__ = failure
            return Answer("failed"), error

    async def _within_time(self) -> Answer:
        with anyio.move_on_after(self.settings.timeout) as clock:
            return await self._in_environment()
        assert clock.cancelled_caught
        if self._best is not None and self._best.status != "candidate":
            return self._best  # it came in time, only the files did not
        seconds = self.settings.timeout
        text = f"no answer within {seconds:g} s (--timeout {seconds:g})"
        return Answer("limit", limit=LimitReached("timeout", text, used=seconds, cap=seconds))

    async def _in_environment(self) -> Answer:
        settings = self.settings
        asyncio.get_running_loop().run_in_executor(None, providers.warm_up, settings)
        environment = await self._engine.lease(self._task.place, lambda line: self._emit(events.StepTold(text=line)))
        if machine := self._task.place.machine:
            self._emit(events.SandboxStarted(machine=machine, seconds=time.monotonic() - environment.began))
        for notice in environment.notices:
            self._emit(events.Notice(text=notice))
        try:
            return await self._with_models(environment)
        except RLMError:
            self._healthy = False
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await self._engine.give_back(self._task.place, environment, healthy=self._healthy)
            if machine:
                self._emit(events.SandboxEnded(seconds=time.monotonic() - environment.began))

    async def _with_models(self, environment: Environment) -> Answer:
        settings = self.settings
        budget = self._budget = Budget(settings)
        lms: dict[str, LM] = {}

        def open_lm(model: str) -> LM:
            if model not in lms:
                lms[model] = providers.open_lm(model, settings, api_key=self._api_key)
            return lms[model]

        family = Family(settings, budget, self._emit)
        node = family.root(LMHandler(settings, budget, open_lm, self._emit))
        self._tell_unknown_prices()
        try:
            await node.open(environment, self._task.context)
            return await self._work(node)
        except BaseException as error:
            with anyio.move_on_after(BEST_WITHIN, shield=True) as clock:
                self._best = self._best or await node.best()
            if clock.cancelled_caught:
                self._emit(events.Notice(text=TOO_LATE))
            if node.killed and isinstance(error, anyio.get_cancelled_exc_class()):
                self._emit(events.Notice(text=KILLED))
            raise
        finally:
            self._healthy = node.alive
            with anyio.move_on_after(CLOSE_WITHIN, shield=True):
                await family.aclose()
            with anyio.move_on_after(CLOSE_WITHIN, shield=True):
                for lm in lms.values():
                    await lm.aclose()

    async def _work(self, node: Node) -> Answer:
        if self.settings.setup_code:
            try:
                await node.set_up(self.settings.setup_code)
            except ValueError as failure:
                advice = self._task.place.advice(str(failure))
                told = f"the set-up code failed, so nothing was asked: {failure}" + (f"\n{advice}" if advice else "")
                raise KernelStartError(told) from None
            if advice := self._task.place.advice(self._set_up_output()):
                self._emit(events.Notice(text=f"the set-up code seems to have missed something: {advice}"))
        self._best = await node.run(self._task.question, self._task.context.description, self._task.place.limits)
        self._files = await node.files()
        return self._best

    def _set_up_output(self) -> str:
        """Give what the set-up code put out: a shell command that fails raises nothing."""
        cells = [cell for turn in self.trace.iterations if turn.iteration == 0 for cell in turn.cells]
        return "".join(output.text for cell in cells for output in cell.outputs)

    def _tell_unknown_prices(self) -> None:
        settings = self.settings
        unknown = [m for m in dict.fromkeys((settings.model, settings.sub())) if prices.price_for(m, settings) is None]
        if unknown:
            self._emit(
                events.Notice(text=f"no price known for {' and '.join(unknown)}: dollars are not counted, the other caps hold")
            )

    def _open_trace(self) -> None:
        if not self.settings.keep_trace:
            return
        try:
            folder = trace_folder()
            purge(folder, FOLDER_CAP)
            self._file = TraceFile(folder, self.id)
        except OSError as error:
            self._emit(events.Notice(text=f"no trace file is kept: {error.strerror or error}"))

    def _end(self, answer: Answer, error: RLMError | None) -> RLMResult:
        if error is not None:
            self._redactor.error(error)
        message = str(error if error is not None else answer.limit or "")
        budget = self._budget
        self._emit(
            events.RunEnded(
                status=answer.status,
                limit=answer.limit.limit if answer.limit is not None else "",
                answer=events.clip(_text(answer)),
                answer_type=answer.type_name,
                error=message,
                calls=budget.calls if budget else 0,
                usage=budget.usage if budget else events.Usage(),
                cost=budget.cost if budget else None,
                seconds=time.time() - self.trace.started,
            )
        )
        if self._file is not None:
            self._file.close()
        result = self._result(answer, error)
        if error is not None:
            error.result = result
        return result

    def _result(self, answer: Answer, error: RLMError | None) -> RLMResult:
        trace, limit = self.trace, answer.limit
        return RLMResult(
            response=_text(answer),
            value=answer.value,
            status=answer.status,
            limit=Limit.of(limit.limit, limit.used, limit.cap, str(limit)) if limit is not None else None,
            iterations=len([turn for turn in trace.iterations if turn.iteration > 0 and not turn.last]),
            calls=trace.requests,
            usage=trace.usage,
            cost=trace.cost,
            seconds=trace.seconds,
            trace=trace,
            error=error,
            files=self._files,
            sandbox_seconds=trace.machine_seconds,
        )


def _text(answer: Answer) -> str:
    return as_text(answer.value) if answer.type_name else ""


def check(settings: RunSettings, *, api_key: str | None = None) -> None:
    """Refuse, before anything is started, what would fail later: an unknown provider, no key, no engine for a container."""
    launch.check(settings)
    providers.check_models(settings, api_key=api_key)


def make(
    settings: RunSettings,
    prompt: Any,
    question: str | None,
    engine: Engine,
    *,
    progress: Progress | None = None,
    told: launch.Told = lambda text: None,
    api_key: str | None = None,
) -> Run:
    """Give a run with checked settings and a prepared context, ready to begin.

    `progress` is told how far the preparing of a large context is, `told` what is made ready for the environment.
    """
    if question is not None and not isinstance(question, str):
        raise SettingsError(f"root_prompt is the question, a text, not of type {type(question).__name__}")
    if question is not None and not question.strip():
        raise SettingsError("the question is empty")
    context = prepare(prompt, progress=progress)
    place = launch.prepare(settings, context.payload.size, told)
    return Run(settings, Task(context, question, place), engine, api_key=api_key)
