"""Which server a name means, whose key goes there, and what is refused before anything is started."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from rlm_jupyter import RLM
from rlm_jupyter.errors import SettingsError
from rlm_jupyter.lm.client import OpenAILM
from rlm_jupyter.lm.failures import Failure, Told
from rlm_jupyter.lm.providers import check_models, find_endpoint, models_of, open_lm
from rlm_jupyter.lm.table import PROVIDERS
from rlm_jupyter.settings import RunSettings

OWN = "http://localhost:8000/v1"


def settings_of(**options: Any) -> RunSettings:
    return RunSettings(**{"model": "gpt-5-mini", **options})


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OPENAI_API_KEY", " sk-the-openai-key-000\n")
    monkeypatch.setenv("MY_KEY", "my-key-000")
    return "sk-the-openai-key-000"


@pytest.mark.parametrize("name", ["gpt-5-mini", "openai/gpt-5-mini"])
def test_a_plain_name_is_openais(name: str, key: str) -> None:
    lm = open_lm(name, settings_of())
    assert isinstance(lm, OpenAILM)
    assert (lm.model, lm.base_url, lm.key) == ("gpt-5-mini", "https://api.openai.com/v1", key)


def test_a_model_with_more_slashes_keeps_them() -> None:
    assert find_endpoint("openai/ft:gpt-5/mine", settings_of()).model == "ft:gpt-5/mine"


@pytest.mark.parametrize("name", ["gpt-5-mini", "openai/gpt-5-mini", "meta/llama", "demo"])
def test_behind_a_base_url_names_are_literal_and_the_openai_key_stays_home(name: str) -> None:
    lm = open_lm(name, settings_of(base_url=OWN))
    assert isinstance(lm, OpenAILM)
    assert (lm.model, lm.base_url, lm.key) == (name, OWN, None)
    check_models(settings_of(model=name, base_url=OWN))


def test_behind_a_base_url_the_key_comes_from_the_variable_that_was_named() -> None:
    lm = open_lm("x", settings_of(base_url=OWN, api_key_env="MY_KEY"))
    assert isinstance(lm, OpenAILM)
    assert lm.key == "my-key-000"
    assert find_endpoint("gpt-5", settings_of(api_key_env="MY_KEY")).key == "my-key-000"


def test_a_key_given_by_code_goes_first_and_is_in_no_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    check_models(settings_of(), api_key="given-000")
    endpoint = find_endpoint("gpt-5-mini", settings_of(), "given-000")
    assert endpoint.key == "given-000"
    assert "given-000" not in repr(endpoint)


def test_the_stand_in_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    check_models(settings_of(model="demo"))
    assert not isinstance(open_lm("demo", settings_of(model="demo")), OpenAILM)


def test_every_model_of_a_run_is_checked() -> None:
    settings = settings_of(model="a", sub_model="b", allowed_models=("c", "a"))
    assert models_of(settings) == ("a", "b", "c")
    with pytest.raises(SettingsError, match="nowhere"):
        check_models(settings_of(allowed_models=("nowhere/x",)))


@pytest.mark.parametrize("bad", ["key with\nline", "schlüssel", "k\x00ey", "\u201ckey\u201d"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_told(bad: str) -> None:
    with pytest.raises(SettingsError, match="copy it again") as caught:
        check_models(settings_of(), api_key=bad)
    assert bad not in str(caught.value)


def test_an_unknown_price_matters_only_to_a_cap_that_was_asked_for() -> None:
    check_models(settings_of(model="mystery", base_url=OWN))
    with pytest.raises(SettingsError, match=r"no price is known for mystery; give it with prices="):
        check_models(settings_of(model="mystery", base_url=OWN, max_cost=1.0, cost_is_explicit=True))
    check_models(settings_of(model="mystery", base_url=OWN, max_cost=1.0, cost_is_explicit=True, prices={"mystery": (1, 2)}))


@pytest.mark.parametrize(
    "url", ["http://", "https:///v1", "http://host:0/v1", "http://host:70000", "http://[::1", "http://a b/v1"]
)
def test_an_address_without_a_server_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="--base-url"):
        check_models(settings_of(base_url=url))


def test_a_backend_may_be_any_row_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISTRAL_API_KEY", "m-key-0000001")
    for name in ("mistral-large-latest", "mistral/mistral-large-latest"):
        with RLM(backend="mistral", backend_kwargs={"model_name": name}) as rlm:
            assert rlm.settings.model == "mistral/mistral-large-latest"
    with pytest.raises(SettingsError, match="did you mean mistral"):
        RLM(backend="mistrall", backend_kwargs={"model_name": "x"})


def test_a_request_too_large_for_a_minute_is_told_as_that_and_not_as_too_long() -> None:
    body = b'{"error": {"message": "Request too large for model m on TPM: Limit 6000", "code": "rate_limit_exceeded"}}'
    error = Failure(413, {}, body).to_error(Told("m", "api.groq.com"))
    assert "more than api.groq.com lets this account send in a minute" in str(error)


def test_the_rows_of_the_table_are_whole() -> None:
    for name, row in PROVIDERS.items():
        assert row.name == name
        assert row.base_url.startswith("https://") or row.address_variable
        assert row.key_variable is None or row.key_variable.isupper()
        assert row.free or (row.needs_key and row.prices)


def test_checking_imports_neither_openai_nor_aiohttp() -> None:
    code = (
        "import sys; from rlm_jupyter.lm import providers; from rlm_jupyter.settings import RunSettings;"
        "settings = RunSettings(model='gpt-5-mini'); providers.check_models(settings, api_key='k');"
        "providers.open_lm('gpt-5-mini', settings);"
        "print([name for name in ('openai', 'aiohttp', 'httpx2', 'genai_prices') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("claude-sonnet-4-5", "did you mean anthropic/claude-sonnet-4-5?"),
        ("Gemini-2.5-pro", "did you mean gemini/Gemini-2.5-pro?"),
        ("llama3", "did you mean ollama/llama3?"),
        ("ollama", "this is a provider; name one of its models too: --model ollama/NAME"),
        ("dem", "did you mean demo?"),
        ("Demo", "did you mean demo?"),
        ("OpenAI/gpt-5", "did you mean openai?"),
    ],
)
def test_a_bare_name_that_is_not_openais_is_refused_with_what_to_type(
    monkeypatch: pytest.MonkeyPatch, model: str, told: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai-000000000")
    with pytest.raises(SettingsError) as error:
        check_models(RunSettings(model=model))
    assert told in str(error.value)
    check_models(RunSettings(model=model, base_url="http://localhost:8000/v1"))


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        (
            "HTTPS_PROXY",
            "nonsense://me:swordfish@proxy",
            "HTTPS_PROXY (nonsense://proxy) is no address of a proxy; type one such as",
        ),
        ("HTTPS_PROXY", "http://me:swordfish@proxy:port", "HTTPS_PROXY (http://proxy:port) is no address of a proxy"),
        ("HTTPS_PROXY", "me:swordfish@", "HTTPS_PROXY (http://) is no address of a proxy"),
        ("HTTP_PROXY", "http://", "HTTP_PROXY (http://) is no address"),
        (
            "ALL_PROXY",
            "socks5h://me:swordfish@127.0.0.1:1",
            "the proxy socks5h://127.0.0.1:1 speaks SOCKS, which is not supported",
        ),
        ("SSL_CERT_FILE", "/none.pem", "SSL_CERT_FILE names /none.pem, which holds no certificates"),
        ("SSL_CERT_FILE", __file__, "which holds no certificates"),
        ("SSL_CERT_DIR", "/none/at:/all", "SSL_CERT_DIR names /none/at:/all, which is no folder"),
    ],
)
def test_a_proxy_or_certificates_that_cannot_be_used_are_refused_before_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    for known in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(known, raising=False)
        monkeypatch.delenv(known.lower(), raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai-000000000")
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as error:
        check_models(RunSettings(model="gpt-5-mini"))
    assert told in str(error.value)
    assert "swordfish" not in str(error.value)
    check_models(RunSettings(model="m", base_url="http://localhost:8000/v1"))
