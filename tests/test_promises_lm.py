"""The promises that the LM side keeps, each by its number (docs/security.md): P6, P7, P20, P21, P24, P26."""

from __future__ import annotations

import contextlib
import json
import re
import time
from typing import Any

import anyio
import pytest

from rlm_jupyter.errors import LimitReached, LMError, SettingsError
from rlm_jupyter.events import CallEnded, ReplyEnded, RequestRetried, Usage
from rlm_jupyter.lm import providers
from rlm_jupyter.lm.client import Message
from rlm_jupyter.settings import RunSettings
from rlm_jupyter.testing import Reply, Request, ScriptedServer
from tests.deadlines import WAIT
from tests.lm_side import open_side, released

pytestmark = pytest.mark.anyio

ASK: list[Message] = [{"role": "user", "content": "go on"}]
KEY = "sk-proj-Can4ryCan4ryCan4ryCan4ryCan4ry"

SOON = {"Retry-After": "0"}
FAILURES: dict[str, tuple[Reply, int, str]] = {
    # what the server does, how many requests that is worth with two retries, and a word of what is told
    "429": (Reply(status=429, error={"message": "slow down"}, headers=SOON), 3, "limits the rate"),
    "500": (Reply(status=500, error={"message": "oops"}, headers=SOON), 3, "failed (500): oops"),
    "malformed JSON": (Reply(body='{"choices": ['), 3, "malformed JSON"),
    "empty choices": (Reply(empty_choices=True), 3, "no choices"),
    "no text": (Reply(null_content=True), 3, "without text"),
    "dropped": (Reply(drop=True), 3, "lost"),
    "cut": (Reply("x" * 1000, cut_after=200), 3, "lost"),
    "content filter": (Reply("x", finish_reason="content_filter"), 1, "content filter"),
    "filtered prompt": (Reply(status=400, error={"message": "no", "code": "content_filter"}), 1, "refused the content"),
    "context too long": (Reply(status=400, error={"message": "", "code": "context_length_exceeded"}), 1, "too long"),
    "quota": (Reply(status=429, error={"message": "none", "code": "insufficient_quota"}, headers=SOON), 1, "no quota left"),
    "key": (Reply(status=401, error={"message": "bad key"}), 1, "refused the key"),
    "model": (Reply(status=404, error={"message": "what?", "code": "model_not_found"}), 1, "knows no model"),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_p20_a_failure_is_an_error_and_never_an_answer(name: str) -> None:
    reply, requests, words = FAILURES[name]
    with ScriptedServer(lambda request: reply if request.prompt == "bad" else "good") as server:
        async with open_side(server.url, max_retries=2) as side:
            (alone,) = await side.call("bad")
            first, bad, last = await side.call("a", "bad", "b")
    for outcome in (alone, bad):
        assert outcome.text is None
        assert words in (outcome.error or "")
        assert "\n" not in (outcome.error or "")
    assert (first.text, last.text) == ("good", "good")
    assert len(server.requests) == side.budget.calls == 2 * requests + 2
    assert len(side.of(RequestRetried)) == 2 * (requests - 1)


@pytest.mark.parametrize("name", FAILURES)
async def test_p20_a_failure_of_the_root_is_an_lm_error(name: str) -> None:
    reply, requests, words = FAILURES[name]
    with ScriptedServer(lambda request: reply) as server:
        async with open_side(server.url, max_retries=2) as side:
            with pytest.raises(LMError) as caught:
                await side.handler.ask(ASK, 1)
    assert words in str(caught.value) or "cut" in str(caught.value)
    assert len(server.requests) == side.budget.calls == requests


async def test_p20_what_passes_within_the_retries_is_an_answer() -> None:
    for name in ("429", "500", "malformed JSON", "empty choices", "dropped", "cut"):
        bad = FAILURES[name][0]
        with ScriptedServer([bad, bad, "at last"]) as server:
            async with open_side(server.url, max_retries=2) as side:
                assert (await side.call("hi"))[0].text == "at last", name
        assert side.ended[0].attempts == 3


async def test_p20_a_server_that_does_not_answer_is_given_up_at_the_deadline() -> None:
    with ScriptedServer(lambda request: Reply(hold=True)) as server:
        async with open_side(server.url, timeout=0.6) as side:
            with anyio.fail_after(WAIT):
                (outcome,) = await side.call("hi")
    assert "--timeout" in (outcome.error or "")
    assert side.handler.limit is not None
    assert side.handler.limit.limit == "timeout"


@pytest.mark.parametrize(("retries", "calls"), [(0, 1), (1, 2), (4, 2)])
async def test_p20_where_nobody_ever_listened_one_retry_is_enough(retries: int, calls: int) -> None:
    with ScriptedServer() as server:
        url = server.url
    async with open_side(url, max_retries=retries) as side:
        (outcome,) = await side.call("hi")
    assert "connection refused" in (outcome.error or "")
    assert side.budget.calls == calls


async def test_p20_a_server_that_answered_once_is_given_all_retries() -> None:
    with ScriptedServer(["hello"]) as server:
        async with open_side(server.url, max_retries=2) as side:
            (outcome,) = await side.call("hi")
            assert outcome.text == "hello"
            server.close()
            (outcome,) = await side.call("hi again")
    assert "connection refused" in (outcome.error or "")
    assert side.budget.calls == 4


async def test_p20_retry_after_is_honoured() -> None:
    busy = Reply(status=429, error={"message": "busy"}, headers={"Retry-After": "1"})
    with ScriptedServer([busy, "yes"]) as server:
        async with open_side(server.url) as side:
            assert (await side.call("hi"))[0].text == "yes"
    first, second = server.requests
    assert second.started - first.started >= 1.0
    assert 1.0 <= side.of(RequestRetried)[0].wait < 1.2


async def test_p20_retry_after_is_honoured_up_to_the_deadline_and_no_further() -> None:
    busy = Reply(status=429, error={"message": "busy"}, headers={"Retry-After": "86400"})
    with ScriptedServer(lambda request: busy) as server:
        async with open_side(server.url, timeout=60) as side:
            with anyio.fail_after(WAIT):
                (outcome,) = await side.call("hi")
    assert "past the deadline" in (outcome.error or "")
    assert len(server.requests) == 1


PLAIN_KEY = "Can4ryCan5ryCan6ryCan7ryCan8ryCan9ry"


def echoes(key: str) -> dict[str, Reply]:
    return {
        "401": Reply(status=401, error={"message": f"Incorrect API key provided: {key}. You can find it at ..."}),
        "masked": Reply(status=401, error={"message": f"Incorrect API key provided: {key[:14]}{'*' * 20}{key[-4:]}."}),
        "500 with headers": Reply(status=500, error={"message": f"request had Authorization: Bearer {key}"}, headers=SOON),
        "text": Reply(status=400, body=f"bad header {key}"),
        "page": Reply(status=400, body=f"<pre>Authorization: Bearer {key}</pre>"),
        "in a field": Reply(status=400, error={"message": {"headers": {"authorization": key}}, "param": key}),
        "across a cut": Reply(status=400, error={"message": "x" * 290 + key}),
        "reply": Reply(f"you sent {key}, thank you"),
        "refusal": Reply(body=json.dumps({"choices": [{"message": {"content": None, "refusal": f"not with {key}"}}]})),
        "error in 200": Reply(body=json.dumps({"error": {"message": f"bad {key}"}}), headers=SOON),
    }


@pytest.mark.parametrize("key", [KEY, PLAIN_KEY])
@pytest.mark.parametrize("name", list(echoes("")))
async def test_p21_a_key_that_the_provider_repeats_is_in_no_error_event_or_reply(name: str, key: str) -> None:
    with ScriptedServer(lambda request: echoes(key)[name]) as server:
        async with open_side(server.url, api_key=key, max_retries=1) as side:
            (outcome,) = await side.call("hi")
            told = ""
            try:
                told = (await side.handler.ask(ASK, 1)).text
            except LMError as error:
                told = str(error) + repr(error.__cause__) + repr(error.__context__)
    assert server.requests[0].headers["authorization"] == f"Bearer {key}"
    everything = json.dumps([event.to_dict() for event in side.events]) + repr(outcome) + told
    for piece in (key[n : n + 8] for n in range(len(key) - 7)):
        assert piece not in everything
    assert (outcome.text or outcome.error or "").strip()


async def test_p21_a_key_that_comes_in_pieces_of_a_stream_is_in_no_piece() -> None:
    for shift in range(24):
        with ScriptedServer([f"{'.' * shift}{KEY}{KEY[:9]} end"]) as server:
            async with open_side(server.url, api_key=KEY) as side:
                pieces: list[str] = []
                reply = await side.handler.ask(ASK, 1, pieces.append)
        assert "".join(pieces) == reply.text
        assert KEY not in reply.text
        assert reply.text == f"{'.' * shift}[redacted]{KEY[:9]} end"


LINES: list[tuple[dict[str, Any], str]] = [
    ({"model": "gpt-5-mini"}, "OPENAI_API_KEY is not set"),
    ({"model": "openai/gpt-5-mini"}, "--model demo needs no key"),
    ({"model": "demo", "sub_model": "gpt-5-mini"}, "OPENAI_API_KEY is not set"),
    ({"model": "demo", "allowed_models": ("gpt-5",)}, "OPENAI_API_KEY is not set"),
    ({"model": "opnai/gpt-5-mini"}, "did you mean openai?"),
    ({"model": "antropic/claude"}, "--base-url"),
    ({"model": "x", "base_url": "http://localhost:1/v1", "api_key_env": "MY_KEY"}, "MY_KEY is not set"),
    ({"model": "x", "base_url": "http://"}, "names no server"),
    ({"model": "x", "base_url": "http://localhost:99999/v1"}, "names no server"),
    ({"model": "mystery", "base_url": "http://localhost:1/v1", "cost_is_explicit": True}, "no price is known for mystery"),
]


@pytest.mark.parametrize(("options", "words"), LINES)
async def test_p24_what_is_missing_is_one_line_that_says_what_to_do(
    options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "MY_KEY"):
        monkeypatch.delenv(name, raising=False)
    began = time.monotonic()
    with pytest.raises(SettingsError, match=re.escape(words)) as caught:
        providers.check_models(RunSettings(**options))
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < WAIT


def mixed(request: Request) -> Reply:
    """Answers of every kind, by the number of the request."""
    replies = [
        Reply("fine", usage=(1000, 100, 400)),
        Reply("not told", omit_usage=True),
        Reply(status=500, error={"message": "oops"}, headers=SOON),
        Reply("fine", usage=(10, 1)),
        Reply("filtered", finish_reason="content_filter", usage=(70, 7)),
        Reply(empty_choices=True, usage=(30, 0)),
        Reply(drop=True),
    ]
    return replies[request.number % len(replies)]


async def test_p26_what_is_shown_is_what_the_provider_told_to_the_token() -> None:
    told = [(n, 3 * n + 1, n // 2) for n in range(1, 101)]
    with ScriptedServer([Reply("yes", usage=usage) for usage in told]) as server:
        async with open_side(server.url) as side:
            await side.call(*map(str, range(99)))
            await side.handler.ask(ASK, 1)
    total = Usage(*(sum(column) for column in zip(*told, strict=True)))
    assert side.budget.usage == total
    assert not total.estimated
    dollars = sum((sent - cached) * 0.25 + cached * 0.025 + received * 2 for sent, received, cached in told) / 1e6
    assert side.budget.cost == pytest.approx(dollars)


async def test_p26_the_sums_of_the_events_are_those_of_the_budget_and_of_the_server() -> None:
    with ScriptedServer(mixed, latency=0.005) as server:
        async with open_side(server.url, max_concurrency=5, max_calls=70) as side:
            await side.call(*map(str, range(40)))
            for iteration in range(20):
                with contextlib.suppress(LMError, LimitReached):
                    await side.handler.ask(ASK, iteration)
    ends: list[Any] = side.of(CallEnded) + side.of(ReplyEnded)
    assert sum((end.usage for end in ends), Usage()) == side.budget.usage
    assert sum(end.attempts for end in ends) == side.budget.calls == len(server.requests)
    assert sum(end.cost or 0 for end in ends) == pytest.approx(side.budget.cost)
    assert side.budget.usage.estimated
    fine = [request for request in server.requests if request.number % 7 in (0, 3, 4, 5)]
    assert side.budget.usage.input_tokens >= sum((1000, 0, 0, 10, 70, 30, 0)[request.number % 7] for request in fine)


async def test_p07_max_calls_holds_against_threads_of_calls_that_ignore_errors() -> None:
    busy = Reply(status=500, error={"message": "oops"}, headers=SOON)
    with ScriptedServer(lambda request: busy if request.number % 3 else "yes") as server:
        async with open_side(server.url, max_calls=40, max_concurrency=64) as side:

            async def stubborn() -> None:
                for _ in range(30):
                    await side.call("hi")

            async with anyio.create_task_group() as group:
                for _ in range(64):
                    group.start_soon(stubborn)
    assert len(server.requests) == side.budget.calls == 40
    assert side.handler.limit is not None
    assert side.handler.limit.limit == "max_calls"


async def test_p07_max_cost_and_max_tokens_hold_whatever_is_under_way() -> None:
    for options in ({"max_cost": 0.2}, {"max_tokens": 60_000}):
        usage = (3000, 2000)
        with ScriptedServer(lambda request: Reply("yes", usage=usage), latency=0.01) as server:  # noqa: B023
            async with open_side(server.url, max_concurrency=32, max_output_tokens=2000, **options) as side:
                outcomes = await side.call(*["x" * 8000] * 200)
        assert side.handler.limit is not None
        assert side.handler.limit.limit == next(iter(options))
        assert (side.budget.cost or 0) <= 0.2
        assert side.budget.usage.total_tokens <= 60_000 or "max_tokens" not in options
        done = sum(outcome.text is not None for outcome in outcomes)
        assert done == len(server.requests)
        assert done >= (11 if "max_tokens" in options else 40)
        assert server.peak > 1


async def test_p07_a_cheap_model_reaches_concurrency_32_with_two_dollars() -> None:
    with ScriptedServer(lambda request: Reply("yes", usage=(25_000, 300), hold=True)) as server:
        async with open_side(server.url, max_cost=2.0) as side, released(server, 32):
            outcomes = await side.call(*["x" * 100_000] * 64)
    assert all(outcome.text for outcome in outcomes)
    assert server.peak == 32


async def test_p06_one_id_reaches_the_lm_once_per_attempt() -> None:
    def reply(request: Request) -> Reply:
        return Reply(status=503, error={"message": "busy"}, headers=SOON) if request.number % 2 else Reply("yes")

    with ScriptedServer(reply, latency=0.01) as server:
        async with open_side(server.url, max_retries=9) as side, anyio.create_task_group() as group:

            async def again(number: int) -> None:
                await side.call(f"prompt {number}", call=f"{number:032x}")

            for number in range(20):
                for _ in range(4):
                    group.start_soon(again, number)
    assert len(server.requests) == side.budget.calls == sum(end.attempts for end in side.ended)
    assert len(side.ended) == 20
