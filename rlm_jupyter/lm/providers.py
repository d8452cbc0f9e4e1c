"""Which server a model's name means, and whose key it gets. One small table; a key goes to its own host only.

`gpt-5-mini` is OpenAI's; `provider/model` picks a row; `demo` is the stand-in that needs neither key nor network. With a
`--base-url` every name is taken literally, and the key comes from the variable that `--api-key-env` names, or there is none.
`check_models` refuses, before anything is started, what cannot work. It looks nothing up on a network.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from rlm_jupyter.errors import SettingsError
from rlm_jupyter.lm.client import LM, OpenAILM
from rlm_jupyter.lm.prices import DEMO, price_of
from rlm_jupyter.settings import RunSettings, did_you_mean


@dataclass(frozen=True, slots=True)
class Provider:
    """A row of the table: an OpenAI-compatible server, and the variable that holds the key to it (None: it takes none)."""

    name: str
    base_url: str
    key_variable: str | None


PROVIDERS: Mapping[str, Provider] = {
    row.name: row
    for row in (Provider("openai", "https://api.openai.com/v1", "OPENAI_API_KEY"),)
}  # fmt: skip

DEFAULT_PROVIDER = "openai"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is asked: the name that the server knows, its address, and the variable with the key."""

    model: str
    base_url: str
    key_variable: str | None
    given_key: str | None = dataclasses.field(default=None, repr=False)

    @property
    def key(self) -> str | None:
        """Give the key: the one given in so many words, else what is in the environment now; None where there is none."""
        value = self.given_key or (os.environ.get(self.key_variable, "") if self.key_variable else "")
        return value.strip() or None


def models_of(settings: RunSettings) -> tuple[str, ...]:
    """Give every model that a run may ask: the root's, the sub-calls', then what code may name besides."""
    return tuple(dict.fromkeys((settings.model, settings.sub(), *settings.allowed_models)))


def is_demo(model: str, settings: RunSettings) -> bool:
    """Tell whether `model` is the stand-in, and not what a server of the user's calls `demo`."""
    return model == DEMO and settings.base_url is None


def find_endpoint(model: str, settings: RunSettings, api_key: str | None = None) -> Endpoint:
    """Find where `model` is asked. A SettingsError says which provider is not known, and what to type.

    `api_key`, given in so many words for the run's `model`, goes to that model's server only.
    """
    endpoint = _find(model, settings)
    ours = api_key is not None and (model == settings.model or endpoint.base_url == _find(settings.model, settings).base_url)
    return dataclasses.replace(endpoint, given_key=api_key) if ours else endpoint


def _find(model: str, settings: RunSettings) -> Endpoint:
    if settings.base_url is not None:
        if not _has_host(settings.base_url):
            raise SettingsError(f"--base-url {settings.base_url} names no server; type one such as http://localhost:8000/v1")
        return Endpoint(model, settings.base_url, settings.api_key_env)
    name, slash, rest = model.partition("/")
    provider = PROVIDERS.get(name if slash else DEFAULT_PROVIDER)
    if provider is None or (slash and not rest):
        hint = did_you_mean(name, PROVIDERS)
        raise SettingsError(
            f"--model {model}: no provider is named {name!r}{hint}"
            + "; a server of your own is named with --base-url, and the model then literally"
        )
    return Endpoint(rest or model, provider.base_url, settings.api_key_env or provider.key_variable)


def _has_host(base_url: str) -> bool:
    try:
        parts = urlsplit(base_url)
        return (
            bool(parts.hostname) and (parts.port is None or parts.port > 0) and base_url.isprintable() and " " not in base_url
        )
    except ValueError:
        return False


def check_models(settings: RunSettings, *, api_key: str | None = None) -> None:
    """Refuse, in one line that says what to type, models that cannot be asked: provider, key, or price for a cap in dollars.

    Fast, without a network; the openai package is not imported. `api_key` is one that Python code gave for the run's model.
    """
    for model in models_of(settings):
        if is_demo(model, settings):
            continue
        endpoint = find_endpoint(model, settings, api_key)
        if endpoint.key_variable and endpoint.key is None:
            raise SettingsError(
                f"no key for {model}: the variable {endpoint.key_variable} is not set. Type "
                f"export {endpoint.key_variable}=... before Jupyter starts, or in a cell "
                f'import os; os.environ["{endpoint.key_variable}"] = "..."; --model demo needs no key'
            )
        _check_key(endpoint)
        if settings.cost_is_explicit and price_of(model, settings.prices, settings.base_url) is None:
            raise SettingsError(
                f"--max-cost {settings.max_cost} cannot hold: no price is known for {model}; give it with "
                f"prices={{{model!r}: (dollars per million input tokens, per million output tokens)}}, "
                "or leave --max-cost out: --max-calls and --timeout hold for every model"
            )


def _check_key(endpoint: Endpoint) -> None:
    """Refuse a key that no HTTP header can carry: a pasted line end, an ellipsis, quotes of a word processor."""
    key = endpoint.key
    where = "that was given" if endpoint.given_key else f"in {endpoint.key_variable}"
    if key is not None and not (key.isascii() and key.isprintable()):
        raise SettingsError(f"the key {where} holds characters that no key has: copy it again")


def open_lm(model: str, settings: RunSettings, *, api_key: str | None = None) -> LM:
    """Give a client of `model`, which connects when it is first used. A given `api_key` goes before the environment's."""
    if is_demo(model, settings):
        from rlm_jupyter.lm.demo import DemoLM  # a late import: nobody else needs it

        return DemoLM()
    endpoint = find_endpoint(model, settings, api_key)
    return OpenAILM(endpoint.model, endpoint.base_url, endpoint.key, settings.sampling)


def warm_up(settings: RunSettings) -> None:
    """Import what the models of a run need, which takes up to a second the first time: called while a kernel starts."""
    if not all(is_demo(model, settings) for model in models_of(settings)):
        importlib.import_module("rlm_jupyter.lm.connection")
