"""The public API: `RLM` answers questions about a long input.

The same engine serves the notebook's magic and plain Python: async inside, sync outside, so `completion` works in a script,
in a notebook cell (where an event loop is already running) and from any thread.
"""

from __future__ import annotations

import asyncio
import dataclasses
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from rlm_jupyter.engine import Engine
from rlm_jupyter.errors import SettingsError
from rlm_jupyter.lm.table import PROVIDERS
from rlm_jupyter.result import RLMResult
from rlm_jupyter.run import Run, check, make
from rlm_jupyter.settings import ENVIRONMENTS, MODAL_NAMES, PLACES, RunSettings, did_you_mean


class DefaultCost(float):
    """A cap on dollars that nobody asked for, told apart from one of the same size that somebody did."""


DEFAULT_COST = DefaultCost(2.0)


class RLM:
    """A recursive language model: asks questions about inputs far beyond a context window.

    Parameters
    ----------
    backend
        `openai` (also any OpenAI-compatible server, with `base_url`), another provider (`anthropic`, `ollama`, ...) or
        `demo` (no key, no LM: a stand-in).
    backend_kwargs
        `model_name` (also `provider/model`), `base_url`, `api_key` or `api_key_env`; anything else is sent with each
        request (`temperature`, ...).
    environment, environment_kwargs
        Where the code runs: `local` (`kernel`, a kernelspec's name) or `docker` (`image`, `docker_network`, `memory`, `cpus`,
        `gpus`) or `modal` (`app_name`, `timeout`, `image`, `gpu`, `cpu`, `memory`, `secrets`, `volumes`, `region`,
        `idle_timeout`, `reconnect`, `network`, `bridge`); all take `setup_code`.
    sub_model
        The model of the sub-calls; None: the same.
    allowed_models
        Further models that code in the REPL may name.
    max_iterations, max_depth, max_calls, max_tokens, max_cost, max_output_tokens, timeout, max_consecutive_errors
    max_concurrency, max_concurrent_children, max_retries
        Caps, see `RunSettings`; None means no cap where that is allowed. A `max_cost` that is passed is held: a model whose
        price is not known is refused with it. The default of 2 dollars holds where prices are known.
    prices
        Model to (dollars per million input tokens, dollars per million output tokens).
    price_as
        The model whose price holds for names of your own: deployments of Azure, models behind `base_url`.
    keep_trace
        Whether a trace file is written.
    show_pictures_to_model
        Whether the root LM is sent the pictures that the code makes; else it is told their sizes.

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
        max_cost: float | None = DEFAULT_COST,
        max_output_tokens: int = 8192,
        prices: Mapping[str, tuple[float, float]] | None = None,
        price_as: str | None = None,
        timeout: float = 1800.0,
        max_consecutive_errors: int | None = None,
        max_concurrency: int = 32,
        max_concurrent_children: int = 8,
        max_retries: int = 4,
        keep_trace: bool = True,
        show_pictures_to_model: bool = False,
        engine: Engine | None = None,
    ) -> None:
        model = _Backend.read(backend, _mapping("backend_kwargs", backend_kwargs, '{"model_name": "gpt-5-mini"}'))
        place = _environment_arguments(
            environment, _mapping("environment_kwargs", environment_kwargs, '{"image": "python:3.12-slim"}')
        )
        if isinstance(allowed_models, str):
            raise SettingsError(f"allowed_models must be a list of names, such as [{allowed_models!r}], not one text")
        self._api_key = model.api_key
        self.settings = RunSettings(
            model=model.name,
            sub_model=sub_model,
            base_url=model.base_url,
            api_key_env=model.api_key_env,
            environment=environment,
            **place,
            allowed_models=tuple(allowed_models),
            max_iterations=max_iterations,
            max_depth=max_depth,
            max_calls=max_calls,
            max_tokens=max_tokens,
            max_cost=max_cost,
            cost_is_explicit=max_cost is not None and not isinstance(max_cost, DefaultCost),
            timeout=timeout,
            max_consecutive_errors=max_consecutive_errors,
            max_output_tokens=max_output_tokens,
            max_concurrency=max_concurrency,
            max_concurrent_children=max_concurrent_children,
            max_retries=max_retries,
            prices=dict(prices) if isinstance(prices, Mapping) else prices or {},
            price_as=price_as,
            sampling=model.sampling,
            keep_trace=keep_trace,
            show_pictures=show_pictures_to_model,
        )
        check(self.settings, api_key=self._api_key)
        self._engine = engine or Engine()
        if engine is None:
            weakref.finalize(self, self._engine.close, wait=False).atexit = False  # at exit the engine closes itself

    def __repr__(self) -> str:
        return f"RLM({self.settings.model!r}, environment={self.settings.environment!r})"

    def start(self, prompt: Any, root_prompt: str | None = None) -> Run:
        """Start a run and give it back at once: `wait()` for it or `await` it, `stop()` it, look at `status` and `result`.

        See `completion` for the arguments.
        """
        run = self._made(prompt, root_prompt)
        try:
            run.begin()
        except BaseException:
            run.stop()
            raise
        return run

    def _made(self, prompt: Any, root_prompt: str | None) -> Run:
        return make(self.settings, prompt, root_prompt, self._engine, api_key=self._api_key)

    def completion(self, prompt: Any, root_prompt: str | None = None) -> RLMResult:
        """Answer the question `root_prompt` about `prompt`, which becomes the variable `context` with its type.

        `prompt` can be any object that a kernel can be given: text, bytes, numbers, lists, dicts, data frames, arrays.

        Without `root_prompt`, `prompt` is both the context and the question.

        Raises
        ------
        RLMError
            The run failed or was stopped; its `.result` holds the trace, the usage and what else there is.
        """
        return _successful(self._made(prompt, root_prompt).wait())

    async def acompletion(self, prompt: Any, root_prompt: str | None = None) -> RLMResult:
        """Do as `completion` does, awaitable from any event loop. Cancelling it stops the run."""
        # Preparing a large context takes seconds: in a thread, so that the caller's loop goes on meanwhile.
        starting = asyncio.get_running_loop().run_in_executor(None, self.start, prompt, root_prompt)
        try:
            run = await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_stop_started)
            raise
        try:
            return _successful(await asyncio.wrap_future(run.future))
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


def _stop_started(starting: asyncio.Future[Run]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        starting.result().stop()


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
        known = (*PROVIDERS, "demo")
        if backend not in known:
            raise SettingsError(f"no backend is named {backend!r}{did_you_mean(str(backend), known)}")
        sampling = dict(arguments)
        name = sampling.pop("model_name", None) or ("demo" if backend == "demo" else "")
        if not name:
            raise SettingsError('no model chosen: pass backend_kwargs={"model_name": "gpt-5-mini"}, or backend="demo"')
        for text in ("base_url", "api_key", "api_key_env"):
            if not isinstance(sampling.get(text) or "", str):
                raise SettingsError(f"backend_kwargs: {text} must be a text, not of type {type(sampling[text]).__name__}")
        if not isinstance(name, str):
            raise SettingsError(f'backend_kwargs: model_name must be a text, such as "gpt-5-mini", not {name!r}')
        if backend not in ("openai", "demo") and not name.startswith(f"{backend}/") and not sampling.get("base_url"):
            name = f"{backend}/{name}"
        read = cls(
            name, sampling.pop("base_url", None), sampling.pop("api_key", None), sampling.pop("api_key_env", None), sampling
        )
        for reserved in ("model", "messages", "stream", "n", "max_tokens", "max_completion_tokens"):
            if reserved in sampling:
                raise SettingsError(
                    f"backend_kwargs: {reserved!r} is set by RLM (the model is model_name, the cap max_output_tokens)"
                )
        return read


def _mapping(name: str, value: Any, example: str) -> Mapping[str, Any]:
    """Give an argument that is a dict, or the line that says how it is written."""
    if value is not None and not isinstance(value, Mapping):
        raise SettingsError(f"{name} must be a dict, such as {example}, not of type {type(value).__name__}")
    return value or {}


def _environment_arguments(environment: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    if environment not in ENVIRONMENTS:
        return {}  # RunSettings refuses it by name
    if not isinstance(arguments, Mapping):
        raise SettingsError(f"environment_kwargs: give a dict of arguments by name, not a {type(arguments).__name__}")
    if not isinstance(code := arguments.get("setup_code"), (str, type(None))):
        raise SettingsError(f"environment_kwargs: setup_code is Python as a str, not a {type(code).__name__}")
    names = {name: name for name in ("setup_code", *(name for name, places in PLACES.items() if environment in places))}
    if environment == "modal":
        from rlm_jupyter.kernels.modal_place import ModalPlace

        names = {MODAL_NAMES.get(name, name): name for name in names}
        ModalPlace.of({name: value for name, value in arguments.items() if name != "setup_code"})
    for name in arguments:
        if name in ("context_payload", "lm_handler_address"):
            raise SettingsError(f"environment_kwargs: {name!r} is set by RLM; pass the context to completion()")
        if name not in names:
            raise SettingsError(f"environment_kwargs: {environment} has no argument {name!r}{did_you_mean(str(name), names)}")
    if environment != "modal":
        return arguments
    objects: dict[str, Any] = {}
    named = {names[name]: _named(value, name.removesuffix("s"), objects) for name, value in arguments.items()}
    return {**named, "objects": objects}


def _named(value: Any, kind: str, objects: dict[str, Any]) -> Any:
    """Give an argument as settings hold it: an object of Modal's is named, and put among `objects` under that name."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(path): _named(item, kind, objects) for path, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(_named(item, kind, objects) for item in value)
    name = f"<{kind}>" if f"<{kind}>" not in objects else f"<{kind} {len(objects) + 1}>"
    objects[name] = value
    return name
