"""Secrets of the environment are in no event, trace, view or error (P21), and taking them out costs next to nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_jupyter import RLM, LMError
from rlm_jupyter.engine import Engine
from rlm_jupyter.events import CellEnded, CellOutput, Event, IterationStarted, ReplyPart, RunEnded, Usage
from rlm_jupyter.redaction import REDACTED, Redactor, redact_keys, secrets_of
from rlm_jupyter.testing import Reply, ScriptedServer
from rlm_jupyter.widgets import html, text
from tests.models import answer, code, scripted

SECRET = "hunter2-Can4ry/secret+value"
PEM = "-----BEGIN KEY-----\nCan4ryCan4ry\n-----END KEY-----"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_PASSWORD", SECRET)
    monkeypatch.setenv("DEPLOY_KEY", PEM)


def shown(result: Any, folder: Path) -> str:
    """Give everything that is kept or shown of a run: trace file, trace, events, both views, the result as text."""
    files = "".join(path.read_text(encoding="utf-8") for path in folder.iterdir())
    events = "".join(event.to_json() for event in result.trace.events)
    return files + events + json.dumps(result.trace.to_dict()) + html.render(result.trace) + text.render(result.trace)


PRINTS = {
    "whole": "print('password is', found)",
    "in pieces": "import sys\nfor char in found:\n    print(char, end='', flush=True)",
    "in two halves": "import time\nprint(found[:9], end='', flush=True)\ntime.sleep(0.4)\nprint(found[9:])",
    "as a result": "found",
    "on stderr": "import sys\nprint(found, file=sys.stderr)",
    "in a traceback": "raise RuntimeError(found)",
    "quoted": "import json\nprint(json.dumps({'password': found}))",
    "in a URL": "from urllib.parse import quote\nprint('postgres://db/x?pw=' + quote(found, safe=''))",
    "in a prompt": "print(llm_query('say ' + found))",
}


@pytest.mark.parametrize("how", PRINTS)
@pytest.mark.parametrize("secret", [SECRET, PEM], ids=["password", "pem"])
def test_p21_a_secret_that_code_finds_is_in_no_event_trace_or_view(
    how: str, secret: str, engine: Engine, tmp_path: Path, own_traces: Path
) -> None:
    file = tmp_path / "credentials.txt"
    file.write_text(secret, encoding="utf-8")
    turns = [code(f"found = open({str(file)!r}).read()\n{PRINTS[how]}"), answer("found")]
    with scripted(turns, [f"you said {secret}"], engine) as (rlm, _):
        result = rlm.completion("c", root_prompt=f"What is {secret}?")
    everything = shown(result, own_traces)
    for form in (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], secret.split("\n")[-1][-12:]):
        if how != "in a prompt" or form == secret:
            assert form not in everything.replace("-----END KEY-----", "" if secret == SECRET else "-----END KEY-----")
    assert REDACTED in everything
    assert result.value == secret, "the answer is the user's own data"


def test_p21_a_secret_in_a_reply_that_streams_in_pieces_is_in_no_piece(engine: Engine, own_traces: Path) -> None:
    with scripted([f"I found it: {SECRET}. " * 3 + answer()], (), engine) as (rlm, _):
        run = rlm.start("c", "q")
        pieces = [event.text for event in run.feed() if isinstance(event, ReplyPart)]
        result = run.wait()
    assert SECRET not in "".join(pieces)
    assert SECRET[:12] not in "".join(pieces)
    assert len(pieces) > 1
    assert SECRET not in shown(result, own_traces)


def test_p21_a_providers_error_that_tells_a_secret_is_redacted(engine: Engine, own_traces: Path) -> None:
    with ScriptedServer(
        [Reply(status=403, error={"message": f"{SECRET} may not do that; nor may sk-live-abcdefghijkl0123"})]
    ) as server:
        rlm = RLM(backend_kwargs={"model_name": "m", "base_url": server.url}, engine=engine)
        with pytest.raises(LMError, match="refused the key") as caught:
            rlm.completion("c", root_prompt="q")
    error = caught.value
    assert error.result is not None
    told = str(error) + repr(error.args) + "".join(error._render_traceback_()) + repr(error.__cause__) + repr(error.__context__)
    for secret in (SECRET, "sk-live-abcdefghijkl0123"):
        assert secret not in told + shown(error.result, own_traces)


def test_p21_a_key_given_by_code_is_a_secret_too(engine: Engine, own_traces: Path) -> None:
    key = "plain words that are a key"
    with ScriptedServer([code(f"print({key!r})"), answer()]) as server:
        rlm = RLM(backend_kwargs={"model_name": "m", "base_url": server.url, "api_key": key}, engine=engine)
        result = rlm.completion("c", root_prompt="q")
    assert key not in shown(result, own_traces)


def test_what_is_a_secret_is_told_by_the_variables_name_and_length(tmp_path: Path) -> None:
    file = tmp_path / "service.json"
    file.touch()
    environment = {
        "A_TOKEN": "long-enough-1",
        "MY_SECRET": "seven77",
        "TOKENIZERS_PARALLELISM": "false",
        "GOOGLE_APPLICATION_CREDENTIALS": str(file),
        "HOME": "/home/somebody",
        "db_password": "  padded-and-long  ",
    }
    assert secrets_of(environment) == ["padded-and-long", "long-enough-1"]


def test_keys_are_known_by_their_looks_and_other_words_stay() -> None:
    for key in ("sk-proj-abcdef123456789", "gsk_abcdef1234567890", "AIzaSyA1234567890abc", "xai-abcdefghijk12345"):
        assert redact_keys(f"key={key}, so") == f"key={REDACTED}, so"
    assert redact_keys("https://user:pw@host/x?y") == f"https://{REDACTED}@host/x?y"
    assert redact_keys("{'Authorization': 'Basic dXNlcjpwYXNz'}") == f"{{'Authorization': 'Basic {REDACTED}'}}"
    assert redact_keys("GET http://h/v1?api_key=0123456789&page=2") == f"GET http://h/v1?api_key={REDACTED}&page=2"
    for words in (
        "task-oriented-dialogue-systems-2024",
        "sk-ill",
        "https://example.com/a/very/long/path1",
        "a@b.c ://",
        "/?key=name&token=x",
    ):
        assert redact_keys(words) == words


@given(st.lists(st.integers(1, 12), max_size=12), st.text("abSecrtv4 ", max_size=40), st.text("abSecrtv4 ", max_size=40))
def test_however_a_text_is_cut_into_pieces_nothing_is_lost_but_the_secret(cuts: list[int], before: str, after: str) -> None:
    redactor = Redactor({"A_KEY": "Secrets4everSec", "B_KEY": "Secret4tea"})
    whole = before + "Secrets4everSec" + after
    pieces: list[str] = []
    rest = whole
    for cut in [*cuts, len(whole)]:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    told: list[Event] = []
    for piece in filter(None, pieces):
        told += redactor.events(CellOutput(cell=1, stream="stdout", text=piece))
    told += redactor.events(CellEnded(cell=1, status="ok", error="", omitted=0, seconds=0.0))
    text = "".join(event.text for event in told if isinstance(event, CellOutput))
    assert text == whole.replace("Secrets4everSec", REDACTED).replace("Secret4tea", REDACTED)
    assert isinstance(told[-1], CellEnded)


def test_what_was_held_back_comes_before_whatever_follows() -> None:
    redactor = Redactor({"A_KEY": "Secrets4ever"})
    first = list(redactor.events(CellOutput(cell=1, stream="stdout", text="so Secr")))
    assert [event.text for event in first if isinstance(event, CellOutput)] == ["so "]
    second = list(redactor.events(CellOutput(cell=1, stream="stderr", text="no")))
    assert [(event.stream, event.text) for event in second if isinstance(event, CellOutput)] == [
        ("stdout", "Secr"),
        ("stderr", "no"),
    ]
    list(redactor.events(ReplyPart(iteration=1, text="Sec")))
    assert [type(event) for event in redactor.events(IterationStarted(iteration=2, of=3))] == [IterationStarted]


def test_an_event_without_secrets_is_passed_on_as_it_is() -> None:
    redactor = Redactor({"A_KEY": "Secrets4ever"})
    event = RunEnded(
        status="answered", limit="", answer="a", answer_type="str", error="", calls=1, usage=Usage(), cost=None, seconds=1.0
    )
    assert list(redactor.events(event)) == [event]
    assert next(redactor.events(event)) is event
