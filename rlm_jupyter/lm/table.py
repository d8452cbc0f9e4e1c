"""The table of providers: name, address, the variable that holds its key, its dialect, its name in the table of prices.

One row is one server. A key goes to the address of its own row and nowhere else: `OPENAI_BASE_URL` and the like are not read.
Rows whose server is the user's own (`ollama`, `vllm`, `lmstudio`, `azure`) take their address from a variable.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from rlm_jupyter.errors import SettingsError
from rlm_jupyter.lm.dialects import OLD, OLD_CAP, OPENAI, Dialect


@dataclass(frozen=True, slots=True)
class Provider:
    """A row of the table.

    Attributes
    ----------
    base_url
        Its address; '' where only `address_variable` tells it.
    key_variable
        The variable that holds its key; None: it takes none.
    dialect
        How its requests differ from OpenAI's.
    prices
        Its names in the table of genai-prices, tried in order.
    address_variable
        The variable that tells another address.
    free
        A server of the user's own: nobody is paid, and a key is sent only if there is one.
    """

    name: str
    base_url: str
    key_variable: str | None
    dialect: Dialect = OPENAI
    prices: tuple[str, ...] = ()
    address_variable: str | None = None
    free: bool = False

    @property
    def needs_key(self) -> bool:
        return self.key_variable is not None and not self.free

    def address(self) -> str:
        """Give where the server is now. A SettingsError says which variable to set, or what is wrong with it."""
        told = os.environ.get(self.address_variable, "").strip() if self.address_variable else ""
        if not told:
            if not self.base_url:
                raise SettingsError(
                    f"{self.name}: the variable {self.address_variable} is not set. Type in a cell "
                    f'import os; os.environ["{self.address_variable}"] = "https://NAME.openai.azure.com"'
                )
            return self.base_url
        url = _ollama_address(told) if self.name == "ollama" else told
        if not has_host(url) or not url.startswith(("http://", "https://")):
            example = self.base_url or "https://NAME.openai.azure.com"
            raise SettingsError(f"{self.address_variable} names no server; it should be such as {example}")
        if "@" in urlsplit(url).netloc:
            raise SettingsError(
                f"{self.address_variable} holds a user or a password, which no request to {self.name} can carry"
            )
        return url.rstrip("/")


def _ollama_address(told: str) -> str:
    """Read `OLLAMA_HOST` as Ollama does: a host, a port or a URL; what it listens on everywhere is asked on loopback."""
    scheme, separator, rest = told.partition("://")
    if not separator:
        scheme, rest = "http", told
    host, colon, port = rest.rstrip("/").rpartition(":")
    if not colon or port.endswith("]"):
        host, port = (
            rest.rstrip("/"),
            {"https": "443", "http": "80"}[scheme] if separator and scheme in ("http", "https") else "11434",
        )
    if host in ("", "0.0.0.0", "[::]", "::"):
        host = "127.0.0.1"
    return f"{scheme}://{host}:{port}"


def has_host(base_url: str) -> bool:
    """Tell whether a URL names a server that can be asked."""
    try:
        parts = urlsplit(base_url)
        return (
            bool(parts.hostname) and (parts.port is None or parts.port > 0) and base_url.isprintable() and " " not in base_url
        )
    except ValueError:
        return False


PROVIDERS: Mapping[str, Provider] = {
    row.name: row
    for row in (
        Provider("openai", "https://api.openai.com/v1", "OPENAI_API_KEY", prices=("openai",)),
        Provider("anthropic", "https://api.anthropic.com/v1", "ANTHROPIC_API_KEY", prices=("anthropic",)),
        Provider(
            "gemini", "https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY", prices=("google",)
        ),
        Provider("groq", "https://api.groq.com/openai/v1", "GROQ_API_KEY", prices=("groq",)),
        Provider("together", "https://api.together.ai/v1", "TOGETHER_API_KEY", OLD, prices=("together",)),
        Provider("deepseek", "https://api.deepseek.com", "DEEPSEEK_API_KEY", OLD, prices=("deepseek",)),
        Provider(
            "mistral", "https://api.mistral.ai/v1", "MISTRAL_API_KEY", Dialect(OLD_CAP, stream_usage=False),
            prices=("mistral",),
        ),
        Provider("xai", "https://api.x.ai/v1", "XAI_API_KEY", prices=("x-ai",)),
        Provider(
            "fireworks", "https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY",
            Dialect(
                OLD_CAP, stream_usage=False, stream_above=4096,
                missing_model="its models are named such as fireworks/accounts/fireworks/models/NAME",
            ),
            prices=("fireworks",),
        ),
        Provider("openrouter", "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY", OLD, prices=("openrouter",)),
        Provider("cerebras", "https://api.cerebras.ai/v1", "CEREBRAS_API_KEY", prices=("cerebras",)),
        Provider(
            "azure", "", "AZURE_OPENAI_API_KEY",
            Dialect(key_header="api-key", missing_model="--model azure/NAME is the name of your deployment"),
            prices=("azure", "openai"), address_variable="AZURE_OPENAI_ENDPOINT",
        ),
        Provider(
            "ollama", "http://127.0.0.1:11434", None,
            Dialect(
                path="/api/chat", native=True, missing_model="type ollama pull {model}",
                not_running="start it with ollama serve, or say where it is with OLLAMA_HOST",
            ),
            address_variable="OLLAMA_HOST", free=True,
        ),
        Provider(
            "vllm", "http://localhost:8000/v1", "VLLM_API_KEY",
            Dialect(
                missing_model="it serves the model that vllm serve was started with",
                not_running="start it with vllm serve MODEL, or say where it is with VLLM_BASE_URL",
            ),
            address_variable="VLLM_BASE_URL", free=True,
        ),
        Provider(
            "lmstudio", "http://localhost:1234/v1", None,
            Dialect(
                OLD_CAP, missing_model="type lms load {model}",
                not_running="start it with lms server start, or say where it is with LMSTUDIO_BASE_URL",
            ),
            address_variable="LMSTUDIO_BASE_URL", free=True,
        ),
    )
}  # fmt: skip

DEFAULT_PROVIDER = "openai"


def provider_of(model: str) -> Provider | None:
    """Give the row that a model's name means; None where there is no such row."""
    name, slash, _ = model.partition("/")
    return PROVIDERS.get(name if slash else DEFAULT_PROVIDER)
