"""Behind a firm's proxy with a CA of its own: OpenAI through it, servers of this machine around it; keys to their host only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rlm_jupyter import RLM, LMError, SettingsError
from rlm_jupyter.engine import Engine
from rlm_jupyter.lm.dialects import OLLAMA_WINDOW
from rlm_jupyter.lm.providers import check_models, find_endpoint
from rlm_jupyter.lm.table import PROVIDERS
from rlm_jupyter.settings import RunSettings
from rlm_jupyter.testing import Reply, ScriptedServer
from rlm_jupyter.testing.dialects import DATED_AZURE
from tests.lm_side import open_side
from tests.models import answer, code
from tests.proxy import behind_a_proxy

KEY = "sk-test-Can4ry0123456789abcdef"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


@pytest.mark.parametrize("certificates", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_openai_goes_through_the_proxy_and_ollama_on_loopback_around_it(
    certificates: str, engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    root = [code("r = llm_query('p')"), answer("r")]
    with (
        ScriptedServer(root, dialect="openai", key=KEY) as openai,
        ScriptedServer(["from here"], dialect="ollama") as ollama,
        behind_a_proxy(monkeypatch, tmp_path, {"api.openai.com": openai.port}, certificates) as proxy,
    ):
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{ollama.port}")
        result = RLM(backend_kwargs={"model_name": "gpt-5-mini"}, sub_model="ollama/qwen3", engine=engine).completion("c", "q")
    assert result.value == "from here"
    assert set(proxy.asked) == {"api.openai.com:443"}
    assert [request.status for request in openai.requests] == [200, 200]
    assert openai.requests[0].headers["authorization"] == f"Bearer {KEY}"
    (alone,) = ollama.requests
    assert "authorization" not in alone.headers
    assert KEY not in repr(alone)


@pytest.mark.anyio
async def test_a_proxy_whose_certificates_are_not_known_is_told_with_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with (
        ScriptedServer(["no"], dialect="openai") as openai,
        behind_a_proxy(monkeypatch, tmp_path, {"api.openai.com": openai.port}, None),
    ):
        async with open_side(None, model="gpt-5-mini", max_retries=0) as side:
            (outcome,) = await side.call("hi")
    assert "certificate of api.openai.com was not accepted" in (outcome.error or "")
    assert "SSL_CERT_FILE" in (outcome.error or "")
    assert openai.requests == []


@pytest.mark.anyio
async def test_a_proxy_that_refuses_a_host_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GROQ_API_KEY", KEY)
    with behind_a_proxy(monkeypatch, tmp_path, {}) as proxy:
        async with open_side(None, model="groq/x", max_retries=0) as side:
            (outcome,) = await side.call("hi")
    assert proxy.asked == ["api.groq.com:443"]
    assert "api.groq.com" in (outcome.error or "")


@pytest.mark.anyio
@pytest.mark.parametrize("row", ["groq", "azure"])
async def test_p03_a_key_follows_no_redirect_to_another_host(row: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host = {"groq": "api.groq.com", "azure": "mine.openai.azure.com"}[row]
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://mine.openai.azure.com")
    monkeypatch.setenv(PROVIDERS[row].key_variable or "", KEY)
    away = Reply(status=307, headers={"Location": "https://elsewhere.example/v1/chat/completions"})
    with (
        ScriptedServer([away], dialect=row) as there,
        ScriptedServer(["stolen"]) as elsewhere,
        behind_a_proxy(monkeypatch, tmp_path, {host: there.port, "elsewhere.example": elsewhere.port}) as proxy,
    ):
        async with open_side(None, model=f"{row}/m", max_retries=0) as side:
            (outcome,) = await side.call("hi")
    assert "redirects elsewhere" in (outcome.error or "")
    assert set(proxy.asked) == {f"{host}:443"}
    assert elsewhere.requests == []


@pytest.mark.anyio
async def test_p03_models_of_two_providers_get_each_their_own_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = {"groq": "gsk-Canary-000000000001", "mistral": "Canary-mistral-0000002", "openai": "sk-Canary-00000000003"}
    for row, key in keys.items():
        monkeypatch.setenv(PROVIDERS[row].key_variable or "", key)
    monkeypatch.setenv("OPENAI_BASE_URL", "https://api.groq.com/openai/v1")
    with (
        ScriptedServer(["g"], dialect="groq", key=keys["groq"]) as groq,
        ScriptedServer(["m"], dialect="mistral", key=keys["mistral"]) as mistral,
        ScriptedServer(["o"], dialect="openai", key=keys["openai"]) as openai,
        behind_a_proxy(
            monkeypatch,
            tmp_path,
            {"api.groq.com": groq.port, "api.mistral.ai": mistral.port, "api.openai.com": openai.port},
        ),
    ):
        models = ("groq/a", "mistral/b", "gpt-5-mini")
        async with open_side(None, model=models[0], allowed_models=models, max_retries=0) as side:
            texts = [(await side.call("hi", model=model))[0].text for model in models]
    assert texts == ["g", "m", "o"]
    for server in (groq, mistral, openai):
        assert len(server.requests) == 1
        assert sum(key in repr(server.requests[0].headers) for key in keys.values()) == 1


def test_p03_a_key_variable_that_is_named_is_for_the_runs_own_model_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "mine-0000000001")
    monkeypatch.setenv("MISTRAL_API_KEY", "theirs-0000000002")
    settings = RunSettings(model="groq/a", sub_model="mistral/b", api_key_env="MY_KEY")
    assert find_endpoint("groq/a", settings).key == "mine-0000000001"
    assert find_endpoint("mistral/b", settings).key == "theirs-0000000002"


def azure(**options: str) -> RunSettings:
    return RunSettings(model="azure/my gpt", **options)  # type: ignore[arg-type]


@pytest.fixture
def azure_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://mine.openai.azure.com/")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "azure-key-0001")
    for name in ("AZURE_OPENAI_AD_TOKEN", "OPENAI_API_VERSION"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("azure_place")
@pytest.mark.parametrize(
    ("variables", "url", "header", "key"),
    [
        ({}, "https://mine.openai.azure.com/openai/v1/chat/completions", "api-key", "azure-key-0001"),
        (
            {"OPENAI_API_VERSION": "2024-10-21"},
            "https://mine.openai.azure.com/openai/deployments/my%20gpt/chat/completions?api-version=2024-10-21",
            "api-key",
            "azure-key-0001",
        ),
        (
            {"AZURE_OPENAI_API_KEY": "", "AZURE_OPENAI_AD_TOKEN": "eyJ0-token"},
            "https://mine.openai.azure.com/openai/v1/chat/completions",
            "Authorization",
            "eyJ0-token",
        ),
        (
            {"AZURE_OPENAI_ENDPOINT": "https://mine.openai.azure.com/openai/v1/"},
            "https://mine.openai.azure.com/openai/v1/chat/completions",
            "api-key",
            "azure-key-0001",
        ),
    ],
)
def test_azure_has_two_interfaces_and_a_key_or_a_token(
    variables: dict[str, str], url: str, header: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check_models(azure())
    endpoint = find_endpoint("azure/my gpt", azure())
    assert endpoint.base_url + endpoint.dialect.path == url
    assert (endpoint.dialect.key_header, endpoint.key) == (header, key)


@pytest.mark.usefixtures("azure_place")
def test_azure_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="--price-as no-such-model"):
        check_models(azure(price_as="no-such-model"))
    with pytest.raises(SettingsError, match=r"no price is known for azure/my gpt.*--price-as"):
        check_models(RunSettings(model="azure/my gpt", max_cost=1.0, cost_is_explicit=True))
    check_models(RunSettings(model="azure/my gpt", max_cost=1.0, cost_is_explicit=True, price_as="gpt-5-mini"))
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "http://mine.openai.azure.com")
    with pytest.raises(SettingsError, match="must begin with https://"):
        check_models(azure())
    monkeypatch.delenv("AZURE_OPENAI_ENDPOINT")
    with pytest.raises(SettingsError, match="AZURE_OPENAI_ENDPOINT is not set"):
        check_models(azure())


@pytest.mark.anyio
@pytest.mark.usefixtures("azure_place")
async def test_azures_dated_interface_over_http(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_VERSION", "2024-10-21")
    with (
        ScriptedServer(["yes"], dialect=DATED_AZURE, key="azure-key-0001") as there,
        behind_a_proxy(monkeypatch, tmp_path, {"mine.openai.azure.com": there.port}),
    ):
        async with open_side(None, model="azure/my gpt", price_as="gpt-5-mini") as side:
            (outcome,) = await side.call("hi")
            reply = side.of(type(side.ended[0]))[0]
    assert outcome.text == "yes"
    assert reply.cost > 0
    assert there.requests[0].path == "/openai/deployments/my%20gpt/chat/completions?api-version=2024-10-21"


@pytest.mark.parametrize(
    ("told", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:4000", "http://127.0.0.1:4000"),
        (":4000", "http://127.0.0.1:4000"),
        ("box", "http://box:11434"),
        ("box:4000", "http://box:4000"),
        ("http://box", "http://box:80"),
        ("https://box/", "https://box:443"),
        ("http://box:4000/", "http://box:4000"),
        ("[::1]", "http://[::1]:11434"),
        ("[::]:4000", "http://127.0.0.1:4000"),
    ],
)
def test_ollama_is_where_its_own_variable_says(told: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", told)
    assert PROVIDERS["ollama"].address() == url


def test_an_address_that_is_none_is_told_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for row, bad in (
        ("ollama", "a b"),
        ("ollama", "ftp://box"),
        ("vllm", "localhost:8000"),
        ("lmstudio", "http://"),
        ("ollama", "http://me:pw@box"),
    ):
        monkeypatch.setenv(PROVIDERS[row].address_variable or "", bad)
        with pytest.raises(SettingsError, match=PROVIDERS[row].address_variable):
            check_models(RunSettings(model=f"{row}/m"))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("variable", "sampling", "window"),
    [(None, {}, OLLAMA_WINDOW), ("65536", {}, 65536), ("many", {}, OLLAMA_WINDOW), ("65536", {"num_ctx": 8192}, 8192)],
)
async def test_ollama_is_told_the_window_and_never_to_cut_a_prompt_silently(
    variable: str | None, sampling: dict[str, int], window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OLLAMA_CONTEXT_LENGTH", raising=False)
    if variable is not None:
        monkeypatch.setenv("OLLAMA_CONTEXT_LENGTH", variable)
    with ScriptedServer([Reply("yes", usage=(7, 3))] * 2, dialect="ollama") as server:
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.port}")
        sampling = {"temperature": 0, **sampling}
        async with open_side(None, model="ollama/qwen3", sampling=sampling, max_output_tokens=500) as side:
            assert (await side.call("hi"))[0].text == "yes"
            reply = await side.handler.ask([{"role": "user", "content": "go on"}], 1)
    assert reply.text == "yes"
    assert (reply.usage.input_tokens, reply.usage.output_tokens, reply.cost) == (7, 3, 0)
    for request in server.requests:
        assert request.body["options"] == {"num_ctx": window, "temperature": 0, "num_predict": 500}
        assert request.body["truncate"] is False
    assert [request.stream for request in server.requests] == [False, True]


@pytest.mark.anyio
async def test_ollama_that_does_not_run_is_told_with_how_to_start_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer() as server:
        port = server.port
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{port}")
    async with open_side(None, model="ollama/qwen3", max_retries=0) as side:
        (outcome,) = await side.call("hi")
    assert "no server listens" in (outcome.error or "")
    assert "ollama serve" in (outcome.error or "")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "body", ['{"message": 5, "done": true}', '{"done": true}', "[]", '{"message": {"content": "half"}}\n{"mess']
)
async def test_what_ollama_sends_is_read_with_suspicion(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = {"Content-Type": "application/x-ndjson"}
    with ScriptedServer([Reply(body=body, headers=kind)] * 2, dialect="ollama") as server:
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.port}")
        async with open_side(None, model="ollama/qwen3", max_retries=0) as side:
            (outcome,) = await side.call("hi")
            assert outcome.text is None
            with pytest.raises(LMError, match=r"sent no reply|cut the reply"):
                await side.handler.ask([{"role": "user", "content": "go on"}], 1)


@pytest.mark.anyio
async def test_a_server_of_ones_own_gets_a_key_only_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with ScriptedServer(["yes"], dialect="vllm", key=KEY) as server:
        monkeypatch.setenv("VLLM_BASE_URL", server.url)
        async with open_side(None, model="vllm/m", max_retries=0) as side:
            (outcome,) = await side.call("hi")
            assert "refused the key (401; none was sent)" in (outcome.error or "")
        monkeypatch.setenv("VLLM_API_KEY", KEY)
        async with open_side(None, model="vllm/m", max_retries=0) as side:
            (outcome,) = await side.call("hi")
    assert outcome.text == "yes"
    assert ["authorization" in request.headers for request in server.requests] == [False, True]


def test_a_key_in_place_of_its_variables_name_is_refused_and_not_repeated() -> None:
    with pytest.raises(SettingsError, match="the name of a variable") as caught:
        check_models(RunSettings(model="gpt-5-mini", api_key_env=KEY))
    assert KEY not in str(caught.value)
