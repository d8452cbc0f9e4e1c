"""One run, as whoever began it holds it: its events, its trace, its end; waited for, watched and stopped.

A run lives in the engine's worker thread, where it takes its `course`, and is watched and stopped from any other. Whatever
happens it ends in an `RLMResult`, with its trace; it never raises there. What can be refused is refused by `check` and `make`,
in the caller's thread, before anything is started or spent.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import os
import secrets
import time
from collections.abc import Generator
from concurrent.futures import Future
from typing import Any

import anyio

from rlm_jupyter import events
from rlm_jupyter.contexts import Progress, prepare
from rlm_jupyter.course import Course, Task
from rlm_jupyter.engine import Engine
from rlm_jupyter.errors import RLMError, RunStopped, SettingsError
from rlm_jupyter.feed import Feed
from rlm_jupyter.kernels import launch
from rlm_jupyter.lm import providers
from rlm_jupyter.loop import Answer
from rlm_jupyter.record import Record
from rlm_jupyter.redaction import Redactor
from rlm_jupyter.result import Limit, RLMResult
from rlm_jupyter.settings import RunSettings
from rlm_jupyter.trace import Trace
from rlm_jupyter.values import as_text

STOP_WITHIN = 5.0
"""Seconds after which nobody waits any longer for a run that was told to stop (promise P9)."""


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
        self._task = task
        self._engine = engine
        self._redactor = Redactor(os.environ, () if api_key is None else (api_key,))
        self._record = Record(self.id, self._redactor)
        self.trace = self._record.trace
        self._scope: anyio.CancelScope | None = None
        self._stopping = False
        self._course = Course(settings, task, engine, self._record.emit, self.trace, api_key)
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

        so_far = Trace.from_events(self._record.events())
        shown = bundle(so_far)  # which alone cannot tell a run that goes on from one whose end is missing
        return {
            "text/html": f"<div>{html.escape(repr(self))}</div>{shown['text/html']}",
            "text/plain": f"{self!r}\n\n{shown['text/plain']}",
        }

    def feed(self) -> Feed:
        """Give an iterator over the run's events, from its first on to its end."""
        return self._record.feed(self.future)

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
        settings, context = self.settings, self._task.context
        if settings.keep_trace:
            self._record.open_file()
        self._record.emit(
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
            self._record.emit(events.Notice(text=warning))
        answer: Answer = Answer("stopped")
        error: RLMError | None = None
        # Cancelled from within (stop) the scope takes it; from without (the engine is closed) it is taken here: nothing
        # below awaits, so the run still ends in a result.
        with contextlib.suppress(anyio.get_cancelled_exc_class()), anyio.CancelScope() as self._scope:
            if self._stopping:
                self._scope.cancel()
            answer, error = await self._course.outcome()
        if answer.status == "stopped":
            error = RunStopped("stopped by the user")
        return self._end(self._course.completed(answer), error)

    def _end(self, answer: Answer, error: RLMError | None) -> RLMResult:
        if error is not None:
            self._redactor.error(error)
        message = str(error if error is not None else answer.limit or "")
        budget = self._course.budget
        self._record.emit(
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
        self._record.close()
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
            files=self._course.files,
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
