"""Every row of the table, run against a server that behaves as that provider does, at the provider's own address.

The rows are used as they are: `https://api.mistral.ai/...` goes through a proxy that takes TLS apart, to a scripted server in
Mistral's dialect. Rows of the user's own servers are told their address by their variable. So URLs, headers, parameters and
failures are those that the provider would see and send.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from rlm_jupyter import RLM, SettingsError
from rlm_jupyter.engine import Engine
from rlm_jupyter.events import RequestRetried
from rlm_jupyter.lm.providers import check_models
from rlm_jupyter.lm.table import PROVIDERS, Provider
from rlm_jupyter.settings import RunSettings
from rlm_jupyter.testing import Reply, Script, ScriptedServer
from rlm_jupyter.testing.dialects import PROFILES
from tests.lm_side import Side, open_side
from tests.models import answer, code
from tests.proxy import InterceptingProxy, behind_a_proxy

KEY = "sk-test-Can4ry0123456789abcdef"
MODELS = {
    "openai": "gpt-5-mini",
    "anthropic": "claude-sonnet-4-5",
    "gemini": "gemini-2.5-flash",
    "groq": "openai/gpt-oss-120b",
    "together": "openai/gpt-oss-20b",
    "deepseek": "deepseek-chat",
    "mistral": "mistral-large-latest",
    "xai": "grok-4-fast",
    "fireworks": "accounts/fireworks/models/gpt-oss-120b",
    "openrouter": "openai/gpt-5-mini",
    "cerebras": "gpt-oss-120b",
    "azure": "my-deployment",
    "ollama": "qwen3:8b",
    "vllm": "Qwen/Qwen3-8B",
    "lmstudio": "qwen3-8b",
}
OWN = {"azure": "https://myplace.openai.azure.com", "ollama": "http://127.0.0.1:{port}", "vllm": "http://127.0.0.1:{port}/v1"}
OWN["lmstudio"] = OWN["vllm"]
ROWS = list(PROVIDERS.values())


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


@dataclass(frozen=True)
class Place:
    """A provider's server, and the proxy through which it is reached."""

    model: str
    server: ScriptedServer
    proxy: InterceptingProxy


@contextlib.contextmanager
def place(row: Provider, script: Script, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Place]:
    """Stand in for a provider at its own address, with its key in its variable."""
    if row.key_variable is not None:
        monkeypatch.setenv(row.key_variable, KEY)
    for name in ("AZURE_OPENAI_AD_TOKEN", "OPENAI_API_VERSION", "OPENAI_BASE_URL", "OLLAMA_CONTEXT_LENGTH"):
        monkeypatch.delenv(name, raising=False)
    with ScriptedServer(script, dialect=row.name, key=KEY) as server:
        if row.address_variable is not None:
            monkeypatch.setenv(row.address_variable, OWN[row.name].format(port=server.port))
        host = urlsplit(row.address()).hostname or ""
        with behind_a_proxy(monkeypatch, folder, {} if row.free else {host: server.port}) as proxy:
            yield Place(f"{row.name}/{MODELS[row.name]}", server, proxy)


@contextlib.asynccontextmanager
async def side(
    row: Provider, script: Script, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> AsyncIterator[tuple[Side, Place]]:
    with place(row, script, monkeypatch, folder) as there:
        async with open_side(None, model=there.model, max_retries=1, price_as="gpt-5-mini") as one:
            yield one, there


def test_every_row_has_a_dialect_to_be_tried_in_and_a_model() -> None:
    assert set(PROVIDERS) == set(PROFILES) == set(MODELS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_run_on_each_row(row: Provider, engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    turns: list[Reply | str] = [
        Reply(code("one = llm_query('a question')"), usage=(1000, 20)),
        Reply("a reply", usage=(50, 5)),
        Reply(answer("one"), usage=(1200, 30)),
    ]
    with place(row, turns, monkeypatch, tmp_path) as there:
        rlm = RLM(backend_kwargs={"model_name": there.model}, price_as="gpt-5-mini", engine=engine)
        result = rlm.completion("a context", root_prompt="What?")
    assert result.value == "a reply"
    assert [request.status for request in there.server.requests] == [200, 200, 200], "a parameter had to be sent otherwise"
    assert (result.usage.input_tokens, result.usage.output_tokens, result.usage.estimated) == (2250, 55, False)
    assert result.cost == 0 if row.free else (result.cost or 0) > 0
    profile = PROFILES[row.name]
    for request in there.server.requests:
        assert request.model == MODELS[row.name]
        assert request.path == profile.path
        assert request.headers["host"] == urlsplit(row.address()).netloc
        sent = request.headers.get("authorization")
        assert sent == (f"Bearer {KEY}" if row.key_variable and row.name != "azure" else None)
        assert request.headers.get("api-key") == (KEY if row.name == "azure" else None)
    assert set(there.proxy.asked) == (set() if row.free else {f"{urlsplit(row.address()).hostname}:443"})


@pytest.mark.parametrize("row", [row for row in ROWS if row.needs_key], ids=lambda row: row.name)
def test_a_missing_key_is_one_line_that_names_the_variable(row: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    assert row.key_variable is not None
    monkeypatch.delenv(row.key_variable, raising=False)
    monkeypatch.delenv("AZURE_OPENAI_AD_TOKEN", raising=False)
    if row.name == "azure":
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", OWN["azure"])
    with pytest.raises(SettingsError, match=f"the variable {row.key_variable} is not set") as caught:
        check_models(RunSettings(model=f"{row.name}/{MODELS[row.name]}"))
    assert "\n" not in str(caught.value)


WORDS = {
    "model": "knows no model",
    "quota": "has no quota left",
    "context": "the prompt is too long for",
    "rate": "limits the rate",
}
MEND = {
    "ollama": "type ollama pull qwen3:8b",
    "azure": "the name of your deployment",
    "lmstudio": "type lms load qwen3-8b",
    "vllm": "vllm serve was started with",
    "fireworks": "fireworks/accounts/fireworks/models/NAME",
}


@pytest.mark.anyio
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_each_failure_is_told_as_what_it_is(row: Provider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    soon, retries = {"Retry-After": "0"}, 0
    async with side(row, lambda request: Reply(fails=request.prompt, headers=soon), monkeypatch, tmp_path) as (one, there):
        for kind, words in WORDS.items():
            if kind not in PROFILES[row.name].failures:
                assert row.free
                continue
            before = len(there.server.requests)
            (outcome,) = await one.call(kind)
            busy = row.name == "ollama" and kind == "rate"
            assert ("failed (503)" if busy else words) in (outcome.error or ""), kind
            assert "\n" not in (outcome.error or "")
            again = kind == "rate" or (row.name, kind) == ("gemini", "quota")  # which Gemini tells in the same words
            assert len(there.server.requests) - before == (2 if again else 1), kind
            retries += again
            if kind == "model":
                assert MEND.get(row.name, "") in (outcome.error or "")
    assert len(one.of(RequestRetried)) == retries


@pytest.mark.anyio
@pytest.mark.parametrize("row", [row for row in ROWS if row.needs_key], ids=lambda row: row.name)
async def test_a_wrong_key_is_told_with_its_variable_and_never_repeated(
    row: Provider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with side(row, ["no"], monkeypatch, tmp_path) as (one, there):
        wrong = KEY[::-1] + "sk-9"
        monkeypatch.setenv(row.key_variable or "", wrong)
        (outcome,) = await one.call("hi")
    assert f"refused the key in {row.key_variable}" in (outcome.error or "")
    assert wrong not in (outcome.error or "")
    assert len(there.server.requests) == 1
