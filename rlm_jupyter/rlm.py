"""The public API: `RLM` answers questions about a long input, `Run` is one such run under way.

The same engine serves the notebook's magic and plain Python: async inside, sync outside, so `completion` works in a script,
in a notebook cell (where an event loop is already running) and from any thread. Everything that can be refused is refused
before anything is started or spent.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import queue
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import anyio

from rlm_jupyter import events
from rlm_jupyter.budget import Budget
from rlm_jupyter.contexts import Context, prepare
from rlm_jupyter.engine import CLOSE_WITHIN, Engine
from rlm_jupyter.errors import KernelStartError, LimitReached, RLMError, RunStopped, SettingsError
from rlm_jupyter.events import Event
from rlm_jupyter.kernels.environment import Environment
from rlm_jupyter.kernels.kernel import Kernel
from rlm_jupyter.kernels.local import check_kernel
from rlm_jupyter.lm import prices, providers
from rlm_jupyter.lm.handler import LMHandler
from rlm_jupyter.loop import Answer, Node
from rlm_jupyter.result import RLMResult
from rlm_jupyter.settings import ENVIRONMENTS, RunSettings, did_you_mean
from rlm_jupyter.trace import FOLDER_CAP, Trace, TraceFile, purge, trace_folder
from rlm_jupyter.values import as_text

STOP_WITHIN = 5.0
"""Seconds after which nobody waits any longer for a run that was told to stop (promise P9)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """What a run is about: a prepared context, and the question (None: the context is the question)."""

    context: Context
    question: str | None


class Run:
    """One run under way. Iterate over `events()`, `wait()` for the result, `stop()` it.

    Attributes
    ----------
    id
        Names the run in `%rlm list`, in events and as its trace file.
    trace
        What has happened so far, as a tree; belongs to the worker thread until the run has ended.
    """

    def __init__(self, settings: RunSettings, task: Task, engine: Engine, *, api_key: str | None = None) -> None:
        self.id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        self.settings = settings
        self.trace = Trace(run=self.id)
        self._task = task
        self._engine = engine
        self._api_key = api_key
        self._lock = threading.Lock()
        self._queues: list[queue.SimpleQueue[Event]] = []
        self._scope: anyio.CancelScope | None = None
        self._stopping = False
        self._file: TraceFile | None = None
        self._future: Future[RLMResult] = engine.start(self._main)

    @property
    def status(self) -> str:
        """`running`, or how it ended: see `RLMResult.status`."""
        return self.trace.status

    def events(self, tick: float | None = None) -> Iterator[Event | None]:
        """Give the run's events from its first on, to its end.

        Parameters
        ----------
        tick
            Seconds after which None is given when nothing has happened, so that a clock can be drawn.
        """
        channel: queue.SimpleQueue[Event] = queue.SimpleQueue()
        with self._lock:
            past = list(self.trace.events)
            self._queues.append(channel)
        return self._follow(past, channel, tick)

    def _follow(self, past: list[Event], channel: queue.SimpleQueue[Event], tick: float | None) -> Iterator[Event | None]:
        for event in past:
            yield event
        if past and isinstance(past[-1], events.RunEnded):
            return
        while True:
            try:
                event = channel.get(timeout=tick)
            except queue.Empty:
                yield None
                continue
            yield event
            if isinstance(event, events.RunEnded):
                return

    def stop(self) -> None:
        """Stop the run: LM requests are cancelled, the cell is interrupted. Returns at once; `wait` gives the result."""
        self._stopping = True
        self._engine.soon(self._cancel)

    def _cancel(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    def wait(self, timeout: float | None = None) -> RLMResult:
        """Wait for the end and give the result, whatever the status; TimeoutError after `timeout` seconds.

        An interrupt (Ctrl-C) stops the run and raises `RunStopped` with the partial result.
        """
        try:
            return self._future.result(timeout)
        except KeyboardInterrupt:
            raise self.interrupted() from None

    def interrupted(self) -> RunStopped:
        """Stop the run, give it `STOP_WITHIN` seconds, and give the error to raise, with what there is."""
        self.stop()
        error = RunStopped(f"stopped by the user after {len(self.trace.iterations)} iterations")
        with contextlib.suppress(TimeoutError, KeyboardInterrupt):
            error.result = self._future.result(STOP_WITHIN)
        if error.result is None:
            error = RunStopped("stopped by the user; the kernel did not end in time and is being killed")
            error.result = self._result(Answer("stopped"), error)
        return error

    def _emit(self, event: Event) -> None:
        with self._lock:
            numbered = dataclasses.replace(event, run=self.id, number=len(self.trace.events), at=time.time())
            self.trace.add(numbered)
            for channel in self._queues:
                channel.put(numbered)
        if self._file is not None:
            self._file.write(numbered)

    async def _main(self) -> RLMResult:
        """The whole run, in the worker thread. Never raises: what went wrong is in the result."""
        self._open_trace()
        settings, context = self.settings, self._task.context
        self._emit(
            events.RunStarted(
                question=events.clip(self._task.question or ""),
                settings=settings.to_dict(),
                context_type=context.type_name,
                context_size=context.size,
                context_digest=context.payload.digest,
                context_description=context.description,
                isolation=ENVIRONMENTS[settings.environment],
            )
        )
        error: RLMError | None = None
        answer = Answer("stopped")
        with anyio.CancelScope() as self._scope:
            if self._stopping:
                self._scope.cancel()
            try:
                answer = await self._within_time()
            except LimitReached as reached:
                answer = Answer("limit", limit=reached.limit, message=str(reached))
            except RLMError as failure:
                answer, error = Answer("failed"), failure
            except Exception as failure:  # a bug of ours must end the run as a result too, or its trace would be lost
                answer, error = Answer("failed"), RLMError(f"internal error: {type(failure).__name__}: {failure}")
                error.__cause__ = failure
        if self._scope.cancelled_caught:
            answer, error = Answer("stopped"), RunStopped("stopped by the user")
        return self._end(answer, error)

    async def _within_time(self) -> Answer:
        with anyio.move_on_after(self.settings.timeout) as clock:
            return await self._in_environment()
        assert clock.cancelled_caught
        seconds = self.settings.timeout
        return Answer("limit", limit="timeout", message=f"no answer within {seconds:g} s (--timeout {seconds:g})")

    async def _in_environment(self) -> Answer:
        settings = self.settings
        environment = await self._engine.lease(settings.kernel)
        healthy = False
        try:
            answer = await self._with_models(environment)
            healthy = True
            return answer
        finally:
            with anyio.CancelScope(shield=True):
                await self._engine.give_back(settings.kernel, environment, healthy=healthy)

    async def _with_models(self, environment: Environment) -> Answer:
        settings = self.settings
        budget = Budget(settings)
        lms: dict[str, Any] = {}

        def open_lm(model: str) -> Any:
            if model not in lms:
                lms[model] = providers.open_lm(model, settings, api_key=self._api_key)
            return lms[model]

        handler = LMHandler(settings, budget, open_lm, self._emit)
        node: Node | None = None

        async def answer_calls(request: Any) -> Any:
            assert node is not None
            return await node.answer_calls(request)

        try:
            started = time.monotonic()
            kernel = await environment.start_kernel(answer_calls)
            self._emit(events.KernelStarted(kernel=kernel.number, how=kernel.how, seconds=time.monotonic() - started))
            try:
                node = Node(settings, kernel, handler, budget, self._emit)
                return await self._work(node, kernel)
            finally:
                with anyio.move_on_after(CLOSE_WITHIN, shield=True):
                    await kernel.close()
        finally:
            with anyio.move_on_after(CLOSE_WITHIN, shield=True):
                for lm in lms.values():
                    await lm.aclose()

    async def _work(self, node: Node, kernel: Kernel) -> Answer:
        context = self._task.context
        self._tell_unknown_prices()
        await kernel.load("context", context.payload)
        if self.settings.setup_code:
            try:
                await node.set_up(self.settings.setup_code)
            except ValueError as failure:
                raise KernelStartError(f"the set-up code failed, so nothing was asked: {failure}") from None
        return await node.run(self._task.question, context.description)

    def _tell_unknown_prices(self) -> None:
        settings = self.settings
        unknown = [m for m in dict.fromkeys((settings.model, settings.sub())) if prices.price_of(m, settings.prices) is None]
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
        message = str(error) if error is not None else answer.message
        text = "" if answer.value is None and not answer.type_name else as_text(answer.value)
        self._emit(
            events.RunEnded(
                status=answer.status,
                limit=answer.limit,
                answer=events.clip(text),
                answer_type=answer.type_name,
                error=message,
                calls=self.trace.requests,
                usage=self.trace.usage,
                cost=self.trace.cost,
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
        trace = self.trace
        return RLMResult(
            response="" if answer.value is None and not answer.type_name else as_text(answer.value),
            value=answer.value,
            status=answer.status,
            limit=answer.limit or None,
            iterations=len([turn for turn in trace.iterations if turn.iteration > 0]),
            calls=trace.requests,
            usage=trace.usage,
            cost=trace.cost,
            seconds=trace.seconds,
            trace=trace,
            error=error,
        )


class RLM:
    """A recursive language model: asks questions about inputs far beyond a context window.

    Parameters
    ----------
    backend
        `openai` (also any OpenAI-compatible server, with `base_url`) or `demo` (no key, no LM: a stand-in).
    backend_kwargs
        `model_name`, `base_url`, `api_key` or `api_key_env`; anything else is sent with each request (`temperature`, ...).
    environment, environment_kwargs
        Where the code runs; for `local`: `kernel` (a kernelspec's name) and `setup_code`.
    sub_model
        The model of the sub-calls; None: the same.
    allowed_models
        Further models that code in the REPL may name.
    max_iterations, max_depth, max_calls, max_tokens, max_cost, max_output_tokens, timeout, max_concurrency, max_retries
        Caps, see `RunSettings`; None means no cap where that is allowed.
    prices
        Model to (dollars per million input tokens, dollars per million output tokens).
    keep_trace
        Whether a trace file is written.

    Raises
    ------
    SettingsError
        Something cannot be used; the message says what to type.

    Examples
    --------
    >>> rlm = RLM(backend="demo")                                               # doctest: +SKIP
    >>> rlm.completion(report, root_prompt="Which line holds the total?").response  # doctest: +SKIP
    """

    def __init__(
        self,
        backend: str = "openai",
        backend_kwargs: Mapping[str, Any] | None = None,
        environment: str = "local",
        environment_kwargs: Mapping[str, Any] | None = None,
        *,
        sub_model: str | None = None,
        allowed_models: Sequence[str] = (),
        max_iterations: int = 30,
        max_depth: int = 1,
        max_calls: int = 1000,
        max_tokens: int | None = None,
        max_cost: float | None = 2.0,
        max_output_tokens: int = 8192,
        prices: Mapping[str, tuple[float, float]] | None = None,
        timeout: float = 1800.0,
        max_concurrency: int = 32,
        max_retries: int = 4,
        keep_trace: bool = True,
        engine: Engine | None = None,
    ) -> None:
        model = _Backend.read(backend, backend_kwargs or {})
        place = _environment_arguments(environment, environment_kwargs or {})
        self._api_key = model.api_key
        self.settings = RunSettings(
            model=model.name,
            sub_model=sub_model,
            base_url=model.base_url,
            api_key_env=model.api_key_env,
            environment=environment,
            kernel=place.get("kernel"),
            setup_code=place.get("setup_code"),
            allowed_models=tuple(allowed_models),
            max_iterations=max_iterations,
            max_depth=max_depth,
            max_calls=max_calls,
            max_tokens=max_tokens,
            max_cost=max_cost,
            timeout=timeout,
            max_output_tokens=max_output_tokens,
            max_concurrency=max_concurrency,
            max_retries=max_retries,
            prices=dict(prices or {}),
            sampling=model.sampling,
            keep_trace=keep_trace,
        )
        check(self.settings, api_key=self._api_key)
        self._engine = engine or Engine()

    def start(self, prompt: Any, root_prompt: str | None = None) -> Run:
        """Start a run and give it back at once; see `completion` for the arguments."""
        return start(self.settings, prompt, root_prompt, self._engine, api_key=self._api_key)

    def completion(self, prompt: Any, root_prompt: str | None = None) -> RLMResult:
        """Answer the question `root_prompt` about `prompt`, which becomes the variable `context` (str, list or dict).

        Without `root_prompt`, `prompt` is both the context and the question.

        Raises
        ------
        RLMError
            The run failed or was stopped; its `.result` holds the trace, the usage and what else there is.
        """
        return _successful(self.start(prompt, root_prompt).wait())

    async def acompletion(self, prompt: Any, root_prompt: str | None = None) -> RLMResult:
        """Do as `completion` does, awaitable from any event loop. Cancelling it stops the run."""
        run = self.start(prompt, root_prompt)
        try:
            return _successful(await asyncio.wrap_future(run._future))
        except asyncio.CancelledError:
            run.stop()
            raise

    def close(self) -> None:
        """End the worker thread and the environment that is kept warm."""
        self._engine.close()

    def __enter__(self) -> RLM:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def check(settings: RunSettings, *, api_key: str | None = None) -> None:
    """Refuse, before anything is started, what would fail later: an unknown provider, no key, a kernel that is not there."""
    if settings.kernel is not None:
        check_kernel(settings.kernel)
    providers.check_models(settings, api_key=api_key)


def start(settings: RunSettings, prompt: Any, question: str | None, engine: Engine, *, api_key: str | None = None) -> Run:
    """Start a run with checked settings."""
    if question is not None and not question.strip():
        raise SettingsError("the question is empty")
    return Run(settings, Task(prepare(prompt), question), engine, api_key=api_key)


def _successful(result: RLMResult) -> RLMResult:
    if result.error is not None:
        raise result.error
    return result


@dataclasses.dataclass(frozen=True, slots=True)
class _Backend:
    """`backend` and `backend_kwargs`, read."""

    name: str
    base_url: str | None
    api_key: str | None
    api_key_env: str | None
    sampling: Mapping[str, Any]

    @classmethod
    def read(cls, backend: str, arguments: Mapping[str, Any]) -> _Backend:
        if backend not in ("openai", "demo"):
            raise SettingsError(f"no backend is named {backend!r}{did_you_mean(backend, ('openai', 'demo'))}")
        sampling = dict(arguments)
        name = sampling.pop("model_name", None) or ("demo" if backend == "demo" else "")
        if not name:
            raise SettingsError('no model chosen: pass backend_kwargs={"model_name": "gpt-5-mini"}, or backend="demo"')
        read = cls(
            name, sampling.pop("base_url", None), sampling.pop("api_key", None), sampling.pop("api_key_env", None), sampling
        )
        for reserved in ("model", "messages", "stream", "n", "max_tokens", "max_completion_tokens"):
            if reserved in sampling:
                raise SettingsError(
                    f"backend_kwargs: {reserved!r} is set by RLM (the model is model_name, the cap max_output_tokens)"
                )
        return read


def _environment_arguments(environment: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    known = ("kernel", "setup_code")
    for name in arguments:
        if name in ("context_payload", "lm_handler_address"):
            raise SettingsError(f"environment_kwargs: {name!r} is set by RLM; pass the context to completion()")
        if name not in known:
            raise SettingsError(f"environment_kwargs: {environment} has no argument {name!r}{did_you_mean(name, known)}")
    return arguments
