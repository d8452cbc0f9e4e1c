"""Which server a model's name means, and whose key it gets: a key goes to its own host only.

`gpt-5-mini` is OpenAI's; `provider/model` picks a row of the table; `demo` is the stand-in that needs neither key nor network.
With a `--base-url` every name is taken literally, and the key comes from the variable that `--api-key-env` names, or there is
none. `check_models` refuses, before anything is started, what cannot work. It looks nothing up on a network.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import os
import re
from dataclasses import dataclass
from urllib.parse import quote

from rlm_jupyter import network
from rlm_jupyter.errors import SettingsError
from rlm_jupyter.lm.client import LM, OpenAILM
from rlm_jupyter.lm.dialects import OPENAI, Dialect
from rlm_jupyter.lm.prices import DEMO, price_for, price_of
from rlm_jupyter.lm.table import PROVIDERS, has_host, provider_of
from rlm_jupyter.redaction import looks_like_a_key
from rlm_jupyter.settings import RunSettings, did_you_mean

AZURE_TOKEN = "AZURE_OPENAI_AD_TOKEN"
"""The variable that holds a token of Entra, taken where there is no key."""
AZURE_VERSION = "OPENAI_API_VERSION"
"""The variable that asks for Azure's dated interface; without it the v1 interface is used, which has no versions."""


_ELSEWHERE = {
    "claude": "anthropic", "gemini": "gemini", "grok": "xai", "deepseek": "deepseek", "mistral": "mistral", "llama": "ollama",
    "qwen": "ollama",
}  # fmt: skip
"""Providers whose models are often named without them."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is asked: the name that the server knows, its address, and the variable with the key."""

    model: str
    base_url: str
    key_variable: str | None
    given_key: str | None = dataclasses.field(default=None, repr=False)
    dialect: Dialect = OPENAI
    needs_key: bool = True

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
        if not has_host(settings.base_url):
            raise SettingsError(f"--base-url {settings.base_url} names no server; type one such as http://localhost:8000/v1")
        return Endpoint(model, settings.base_url, settings.api_key_env)
    name, slash, rest = model.partition("/")
    _check_bare(model)
    row = provider_of(model)
    if row is None:
        raise SettingsError(
            f"--model {model}: no provider is named {name!r}{did_you_mean(name.lower(), PROVIDERS)}"
            + "; a server of your own is named with --base-url, and the model then literally"
        )
    if slash and not rest:
        raise SettingsError(f"--model {model}: the name of the model is missing after {name}/")
    endpoint = Endpoint(rest or model, row.address(), row.key_variable, dialect=row.dialect, needs_key=row.needs_key)
    if row.name == "azure":
        endpoint = _azure(endpoint)
    # The variable that the user names holds the key to the run's own model, not to the servers of the others.
    ours = row is provider_of(settings.model)
    return dataclasses.replace(endpoint, key_variable=settings.api_key_env) if settings.api_key_env and ours else endpoint


def _check_bare(model: str) -> None:
    """Refuse a bare name, which is OpenAI's, that is plainly another provider's, a provider itself, or nearly `demo`."""
    if "/" in model:
        return
    if model in PROVIDERS:
        raise SettingsError(f"--model {model}: this is a provider; name one of its models too: --model {model}/NAME")
    owner = next((owner for start, owner in _ELSEWHERE.items() if model.lower().startswith(start)), None)
    if owner is not None:
        raise SettingsError(f"--model {model}: a name without a provider is OpenAI's; did you mean {owner}/{model}?")
    if model != DEMO and difflib.get_close_matches(model.lower(), [DEMO], cutoff=0.8):
        raise SettingsError(f"--model {model}: no model is named so; did you mean {DEMO}?")


def _azure(endpoint: Endpoint) -> Endpoint:
    """Complete an endpoint of Azure: which of its two interfaces, and key or token."""
    if not endpoint.base_url.startswith("https://"):
        raise SettingsError("AZURE_OPENAI_ENDPOINT must begin with https://: a key is not sent in the open")
    base, dialect = endpoint.base_url.removesuffix("/openai/v1").removesuffix("/openai"), endpoint.dialect
    variable = endpoint.key_variable
    if not os.environ.get(variable or "", "").strip() and os.environ.get(AZURE_TOKEN, "").strip():
        variable, dialect = AZURE_TOKEN, dataclasses.replace(dialect, key_header="Authorization")
    version = os.environ.get(AZURE_VERSION, "").strip()
    if not version:
        return dataclasses.replace(endpoint, base_url=f"{base}/openai/v1", key_variable=variable, dialect=dialect)
    path = f"/deployments/{quote(endpoint.model, safe='')}/chat/completions?api-version={quote(version, safe='')}"
    dialect = dataclasses.replace(dialect, path=path)
    return dataclasses.replace(endpoint, base_url=f"{base}/openai", key_variable=variable, dialect=dialect)


def check_models(settings: RunSettings, *, api_key: str | None = None) -> None:
    """Refuse, in one line that says what to type, models that cannot be asked: provider, key, or price for a cap in dollars.

    Fast, without a network; the openai package is not imported. `api_key` is one that Python code gave for the run's model.
    """
    if settings.base_url is not None and "@" in settings.base_url.partition("://")[2].partition("/")[0]:
        raise SettingsError(
            "--base-url holds a user or a password: leave them out, and name the key's variable with --api-key-env"
        )
    name = settings.api_key_env
    if name is not None and (looks_like_a_key(name) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)):
        raise SettingsError("--api-key-env takes the name of a variable, such as OPENAI_API_KEY, not the key itself")
    if settings.price_as is not None and price_of(settings.price_as, settings.prices) is None:
        raise SettingsError(f"--price-as {settings.price_as}: no price is known for it; name a model such as gpt-5-mini")
    for model in models_of(settings):
        if is_demo(model, settings):
            continue
        endpoint = find_endpoint(model, settings, api_key)
        named = settings.api_key_env is not None and endpoint.key_variable == settings.api_key_env
        if endpoint.key_variable and endpoint.key is None and (endpoint.needs_key or named):
            raise SettingsError(
                f"no key for {model}: the variable {endpoint.key_variable} is not set. Type "
                f"export {endpoint.key_variable}=... before Jupyter starts, or in a cell "
                f'import os; os.environ["{endpoint.key_variable}"] = "..."; --model demo needs no key'
            )
        _check_key(endpoint)
        network.check(endpoint.base_url)
        if settings.cost_is_explicit and price_for(model, settings) is None:
            raise SettingsError(
                f"--max-cost {settings.max_cost} cannot hold: no price is known for {model}; give it with "
                f"prices={{{model!r}: (dollars per million input tokens, per million output tokens)}}, "
                "or with --price-as MODEL, or leave --max-cost out: --max-calls and --timeout hold for every model"
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
    key = endpoint.key
    told = endpoint.key_variable or "" if key and not endpoint.given_key else ""
    return OpenAILM(endpoint.model, endpoint.base_url, key, settings.sampling, endpoint.dialect, key_name=told)


def warm_up(settings: RunSettings) -> None:
    """Import what the models of a run need, which takes up to a second the first time: called while a kernel starts."""
    if not all(is_demo(model, settings) for model in models_of(settings)):
        importlib.import_module("rlm_jupyter.lm.connection")
