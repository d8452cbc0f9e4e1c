"""The settings of one run: one frozen object that round-trips through JSON, and the caps that bound memory.

Every way in (the magic's options, `%config` traits, environment variables, the arguments of `RLM`) ends here, so what is
checked here is checked once. Nothing is read from a file of the folder one happens to be in. A provider key is never a
setting: only the *name* of the variable that holds it.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlm_jupyter.errors import SettingsError

MIB = 1024 * 1024

FRAME_CAP = 16 * MIB
"""One frame of a stream."""
PROMPT_CAP = 32 * MIB
"""One prompt or one reply of a sub-LM."""
BATCH_CAP = 100_000
"""Prompts in one batch."""
OUTPUT_CAP = 256 * 1024
"""Output kept of one cell, half of it from the head and half from the tail."""
CHILDREN_CAP = 1000
"""Children that one `rlm_query_batched` asks."""
DEPTH_CAP = 16
"""Levels of a tree, the root's counted."""
WORKING_CAP = 128
"""Children that may work at once: each is a process."""
VALUE_CAP = 1024 * MIB
"""One final value."""
CONTEXT_CAP = 8 * 1024 * MIB
"""One context."""
FILES_CAP = 256 * MIB
"""All files that the code of one run wrote in its working folder."""
FILES_COUNT_CAP = 1000
"""How many of them."""
PICTURE_CAP = 8 * MIB
"""One picture."""
RETRIES_CAP = 100
"""Further attempts after a failed request."""

ENVIRONMENTS: Mapping[str, str] = {
    "local": "not isolated: the code runs with your own rights on this machine",
    "docker": "isolated: a container without network and capabilities, with a read-only root and limits",
    "modal": "isolated: a sandbox in Modal's cloud, with a file system of its own and, unless one is opened, no network",
}
"""Where the code that the LM writes can run, with the isolation told truthfully."""

MOST: Mapping[str, int] = {
    "max_iterations": 100_000,
    "max_depth": DEPTH_CAP,
    "max_calls": 100_000_000,
    "max_tokens": 10**13,
    "max_cost": 1_000_000,
    "max_output_tokens": 10_000_000,
    "max_consecutive_errors": 100_000,
    "max_concurrency": 10_000,
    "timeout": 30 * 86_400,
}
"""Caps above which a cap is a slip of the pen."""
PRICES_ARE = 'give them as {"gpt-5-mini": (0.25, 2.0)}, dollars per million tokens in and out'
PRICE_CAP = 100_000
"""Dollars per million tokens, likewise."""

_TEXTS = (
    "model",
    "sub_model",
    "base_url",
    "api_key_env",
    "environment",
    "kernel",
    "docker_network",
    "gpus",
    "price_as",
    "setup_code",
)
Price = tuple[float, float]
"""Dollars per million input tokens, dollars per million output tokens."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Give `; did you mean X?` where something known is close to `name`, else the list of what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(names) or 'none'}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """Everything that decides how a run goes. Construction checks it; a `SettingsError` names the option to change.

    Attributes
    ----------
    model, sub_model
        The root LM and the LM of the sub-calls (None: the root's).
    base_url, api_key_env
        Of an OpenAI-compatible server, and the name of the environment variable that holds its key.
    environment, kernel, setup_code
        Where the code runs, the kernelspec it runs in (None: the notebook's own interpreter), code to run first.
    image, docker_network, memory, cpus, gpus
        Of a container: the image to start from (None: python:X.Y-slim), a network of the engine's (None: no network), memory
        ("4g"), processors, and what `docker run --gpus` takes.
    image, memory, app_name, sandbox_timeout, idle_timeout, reconnect, gpu, cpu, secrets, volumes, region, network, bridge
        Of a sandbox at Modal: see `kernels.modal_place.ModalPlace`, where the third is `timeout`. None: not given. Memory is
        in MiB, or as of a container.
    objects
        What some of these settings only name: `<image>` stands for the `modal.Image` that is kept here under that name. They
        are no part of the JSON, and whoever reads settings back from it gives the objects again.
    allowed_models
        What code in the REPL may name besides the run's models.
    max_depth, max_concurrent_children
        Levels of the tree: with 1 all sub-calls are plain, with 2 code may start child RLMs (`rlm_query`), with 3 these, too.
        How many children of the whole tree may work at once; one that waits for its own does not count.
    max_iterations, max_calls, max_tokens, max_cost, timeout
        Caps: turns of each RLM; requests of every kind, retries included; tokens in and out; dollars; seconds.
    max_consecutive_errors
        Cells that end in an error one after the other, after which a run ends; None: no such cap.
    max_output_tokens, max_concurrency, max_retries
        Of one reply; requests under way at once; further attempts after a failed one.
    cost_is_explicit
        Whether the user asked for `max_cost`: then a model without a known price is refused.
    prices
        Model to (dollars per million input tokens, dollars per million output tokens), over the built-in table.
    price_as
        The model whose price holds for models with names of the user's own: deployments of Azure, those behind `base_url`.
    show_pictures
        Whether pictures that the code makes are sent to the root LM, which must take pictures.
    sampling
        Further arguments of a chat completion (`temperature`, `reasoning_effort`, ...), sent as they are.
    """

    model: str = ""
    sub_model: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    environment: str = "local"
    kernel: str | None = None
    image: str | None = None
    docker_network: str | None = None
    memory: str | int | tuple[int, int] | None = None
    cpus: float | None = None
    gpus: str | None = None
    app_name: str | None = None
    sandbox_timeout: int | None = None
    idle_timeout: int | None = None
    reconnect: float | None = None
    gpu: str | None = None
    cpu: float | tuple[float, float] | None = None
    secrets: tuple[str, ...] | None = None
    volumes: Mapping[str, str] | None = None
    region: str | tuple[str, ...] | None = None
    network: str | tuple[str, ...] | None = None
    bridge: str | None = None
    setup_code: str | None = None
    allowed_models: tuple[str, ...] = ()
    max_iterations: int = 30
    max_depth: int = 1
    max_calls: int = 1000
    max_tokens: int | None = None
    max_cost: float | None = 2.0
    cost_is_explicit: bool = False
    timeout: float = 1800.0
    max_consecutive_errors: int | None = None
    max_output_tokens: int = 8192
    max_concurrency: int = 32
    max_concurrent_children: int = 8
    max_retries: int = 4
    prices: Mapping[str, Price] = dataclasses.field(default_factory=dict)
    price_as: str | None = None
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    keep_trace: bool = True
    show_pictures: bool = False
    objects: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        self._check_texts()
        if not self.model:
            raise SettingsError(
                "no model chosen: add --model gpt-5-mini (or --model demo, which needs no key), "
                'or set a default with %config RLMMagics.model = "gpt-5-mini"'
            )
        if self.environment not in ENVIRONMENTS:
            raise SettingsError(f"no environment is named {self.environment!r}{did_you_mean(self.environment, ENVIRONMENTS)}")
        for name in (
            "max_iterations",
            "max_calls",
            "max_output_tokens",
            "max_concurrency",
            "max_depth",
            "max_concurrent_children",
        ):
            _check_positive(name, getattr(self, name), whole=True)
        if self.max_concurrent_children > WORKING_CAP:
            told = _shown(self.max_concurrent_children)
            raise SettingsError(f"--max-concurrent-children must be at most {WORKING_CAP}, not {told}")
        for name in ("timeout", "max_cost", "max_tokens", "max_consecutive_errors", "cpus"):
            if getattr(self, name) is not None or name == "timeout":
                _check_positive(name, getattr(self, name), whole=name in ("max_tokens", "max_consecutive_errors"))
        self._check_prices()
        self._check_place()
        if type(self.max_retries) is not int or not 0 <= self.max_retries <= RETRIES_CAP:
            raise SettingsError(f"max_retries must be a whole number from 0 to {RETRIES_CAP}, not {self.max_retries!r}")
        if self.show_pictures and self.model == "demo":
            raise SettingsError("--show-pictures-to-model: demo sees no pictures; choose a model that does, or leave it out")
        if self.base_url is not None and not self.base_url.startswith(("http://", "https://")):
            raise SettingsError(f"--base-url must begin with http:// or https://, not {self.base_url!r}")

    def _check_texts(self) -> None:
        """Refuse a name that is no text: it would fail where nobody can tell any more what was passed."""
        for name in _TEXTS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise SettingsError(f"{name} must be a text, not {_shown(value)}")
        for model in self.allowed_models:
            if not isinstance(model, str) or not model:
                raise SettingsError(f'allowed_models must be names of models, such as ["gpt-5-mini"], not {_shown(model)}')

    def _check_prices(self) -> None:
        if not isinstance(self.prices, Mapping):
            raise SettingsError(f"prices must be a dict, not {_shown(self.prices)}; {PRICES_ARE}")
        for model, price in self.prices.items():
            pair = isinstance(price, (tuple, list)) and len(price) == 2
            if not isinstance(model, str) or not model:
                raise SettingsError(f"prices: {_shown(model)} is no model's name; {PRICES_ARE}")
            if not pair or not all(_is_number(part) and 0 <= part <= PRICE_CAP for part in price):
                told = "two numbers, dollars per million tokens in and out"
                raise SettingsError(f"prices: that of {model} must be {told}, such as (0.25, 2.0), not {reprlib.repr(price)}")

    def _check_place(self) -> None:
        """Refuse settings of one environment for another: they would be without effect."""
        for name, environments in PLACES.items():
            if getattr(self, name) is not None and self.environment not in environments:
                twin = next(
                    (twins[self.environment] for twins in TWINS if name in twins.values() and self.environment in twins), ""
                )
                here = f"--env {self.environment}"
                advice = f"with {here} type {option(twin)}" if twin else f"this run is {here}: leave it out"
                raise SettingsError(f"{option(name)} is for --env {' or '.join(environments)}; {advice}")
        if self.environment == "docker" and self.memory is not None:
            size_of(self.memory)

    @property
    def memory_bytes(self) -> int | None:
        return None if self.memory is None else size_of(self.memory)

    def to_dict(self) -> dict[str, Any]:
        """Give plain JSON values, from which `from_dict` makes an equal object."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self) if field.name != "objects"}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], objects: Mapping[str, Any] | None = None) -> RunSettings:
        """Read settings back. `objects`: what they name without holding it."""
        known = {field.name for field in dataclasses.fields(cls)} - {"objects"}
        for name in data:
            if name not in known:
                raise SettingsError(f"no setting is named {name!r}{did_you_mean(name, known)}")
        fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
        if "prices" in fields:
            fields["prices"] = {model: (float(price[0]), float(price[1])) for model, price in fields["prices"].items()}
        return cls(**fields, objects=objects or {})

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> RunSettings:
        return cls.from_dict(json.loads(text))

    def sub(self) -> str:
        """Give the LM of the sub-calls."""
        return self.sub_model or self.model


MODAL_ONLY = (
    "app_name", "sandbox_timeout", "idle_timeout", "reconnect", "gpu", "cpu", "secrets", "volumes", "region", "network",
    "bridge",
)  # fmt: skip
MODAL_NAMES = {"sandbox_timeout": "timeout"}
"""What a sandbox's own arguments are called where that is another name."""
PLACES: Mapping[str, tuple[str, ...]] = {
    "kernel": ("local",),
    **dict.fromkeys(("image", "memory"), ("docker", "modal")),
    **dict.fromkeys(("docker_network", "cpus", "gpus"), ("docker",)),
    **dict.fromkeys(MODAL_ONLY, ("modal",)),
}
"""Settings that are of some environments only, and which."""
TWINS: Sequence[Mapping[str, str]] = (
    {"docker": "cpus", "modal": "cpu"},
    {"docker": "gpus", "modal": "gpu"},
    {"docker": "docker_network", "modal": "network"},
)
"""Settings that mean much the same and take other values, by environment: each has the name that its own place gives it."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)


def option(name: str) -> str:
    """Give the option of the magic that sets a setting."""
    return "--" + name.replace("_", "-")


def _plain(value: Any) -> Any:
    """Give a copy of a setting's value as JSON has it."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def size_of(text: object) -> int:
    """Give the bytes that a size such as `4g` means; a SettingsError where it is none, or less than 16 MiB."""
    match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    size = int(float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " ")) if match else 0
    if size < 16 * MIB:
        raise SettingsError(f"--memory must be a size, such as 4g or 512m, not {text!r}")
    return size


def size_text(size: int) -> str:
    """Give a number of bytes as one reads it: `4 GiB`, `1.5 GiB`, `300 MiB`, `12 bytes`."""
    for unit, name in ((1024 * MIB, "GiB"), (MIB, "MiB"), (1024, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{size} bytes"


def _check_positive(name: str, value: Any, *, whole: bool) -> None:
    if not _is_number(value) or not value > 0 or (whole and not isinstance(value, int)):
        kind = "a whole number above 0" if whole else "a number above 0"
        raise SettingsError(f"{option(name)} must be {kind}, not {_shown(value)}")
    if value > MOST.get(name, math.inf):
        told = f"{value:,}" if value < 10**15 else "of so many digits"
        raise SettingsError(f"{option(name)} {told} makes no sense: at most {MOST[name]:,}")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, int) or math.isfinite(value)


def _shown(value: Any) -> str:
    """Give a value as it was typed, cut; an int of very many digits has no text at all."""
    return reprlib.repr(value) if not isinstance(value, int) or abs(value) < 10**15 else "a number of so many digits"


def many(number: int, noun: str) -> str:
    """Give `1 file`, `2 files`, `1,234 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
