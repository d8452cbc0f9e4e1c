"""The handler over real HTTP: retries, the ledger, batches, caps and stops, and the events that tell of them."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import anyio
import anyio.to_thread
import pytest

from rlm_jupyter.errors import LimitReached, LMReplyError, LMUnavailable
from rlm_jupyter.events import (
    CallEnded,
    CallStarted,
    Event,
    Notice,
    ReplyEnded,
    ReplyPart,
    ReplyRestarted,
    RequestRetried,
    Usage,
)
from rlm_jupyter.kernels.messages import CallOutcome
from rlm_jupyter.lm.client import Message
from rlm_jupyter.testing import Reply, Request, ScriptedServer
from tests.deadlines import WAIT
from tests.lm_side import open_side

pytestmark = pytest.mark.anyio

HELLO: list[Message] = [{"role": "system", "content": "you are"}, {"role": "user", "content": "hello"}]
BUSY = Reply(status=503, error={"message": "overloaded"}, headers={"Retry-After": "0"})


def echo(request: Request) -> Reply:
    return Reply(f"reply to {request.prompt}", usage=(10, 5))


async def test_the_root_is_streamed_and_told() -> None:
    with ScriptedServer([Reply("x" * 96, usage=(100, 50, 40), pause=0.06)], strict=True) as server:
        async with open_side(server.url) as side:
            reply = await side.handler.ask(HELLO, 3)
    assert (reply.text, reply.finish_reason, reply.usage, reply.attempts) == ("x" * 96, "stop", Usage(100, 50, 40), 1)
    assert reply.cost == pytest.approx((60 * 0.25 + 40 * 0.025 + 50 * 2) / 1e6)
    parts = side.of(ReplyPart)
    assert "".join(part.text for part in parts) == "x" * 96
    assert len(parts) > 1
    (ended,) = side.of(ReplyEnded)
    assert (ended.iteration, ended.text, ended.usage, ended.cost) == (3, reply.text, reply.usage, reply.cost)
    assert side.events[-1] is ended
    assert server.requests[0].messages == HELLO


async def test_pieces_go_to_the_caller_if_it_wants_them() -> None:
    pieces: list[str] = []
    with ScriptedServer(["some text"]) as server:
        async with open_side(server.url) as side:
            await side.handler.ask(HELLO, 1, pieces.append)
    assert "".join(pieces) == "some text"
    assert side.of(ReplyPart) == []


async def test_a_root_stream_that_is_cut_is_asked_again_and_what_came_is_void() -> None:
    with ScriptedServer([Reply("first half", no_end=True), "whole"]) as server:
        async with open_side(server.url) as side:
            reply = await side.handler.ask(HELLO, 1)
    assert (reply.text, reply.attempts) == ("whole", 2)
    kinds = [type(event) for event in side.events]
    assert kinds.index(ReplyRestarted) > kinds.index(ReplyPart)
    (retried,) = side.of(RequestRetried)
    assert (retried.call, retried.attempt) == ("", 1)
    assert "cut" in retried.error
    assert side.budget.calls == 2
    assert side.of(ReplyEnded)[0].usage == side.budget.usage
    assert side.budget.usage.estimated


async def test_a_root_that_fails_for_good_tells_what_it_took() -> None:
    with ScriptedServer(lambda request: BUSY) as server:
        async with open_side(server.url, max_retries=2) as side:
            with pytest.raises(LMUnavailable, match=r"overloaded \(3 attempts\)"):
                await side.handler.ask(HELLO, 1)
    assert (len(server.requests), side.budget.calls) == (3, 3)
    (ended,) = side.of(ReplyEnded)
    assert (ended.finish_reason, ended.attempts) == ("failed", 3)


async def test_a_parameter_that_is_refused_is_adapted_without_using_up_a_retry() -> None:
    with ScriptedServer(["yes"], old=True) as server:
        async with open_side(server.url, max_retries=0) as side:
            reply = await side.handler.ask(HELLO, 1)
    assert (reply.text, reply.attempts) == ("yes", 3)
    assert side.budget.calls == len(server.requests) == 3


async def test_a_sub_call_does_not_stream_and_is_told() -> None:
    with ScriptedServer(echo) as server:
        async with open_side(server.url) as side:
            assert await side.call("hi") == [CallOutcome(text="reply to hi")]
    assert "stream" not in server.requests[0].body
    assert server.requests[0].messages == [{"role": "user", "content": "hi"}]
    started, ended = side.events
    assert isinstance(started, CallStarted)
    assert isinstance(ended, CallEnded)
    assert (started.call, started.batch, started.prompt, started.model) == (f"{1:032x}", "", "hi", "gpt-5-mini")
    assert (ended.call, ended.reply, ended.error, ended.usage, ended.attempts) == (
        started.call,
        "reply to hi",
        "",
        Usage(10, 5),
        1,
    )


async def test_300_sub_calls_at_64_twice_in_a_row() -> None:
    """The first 64 are answered when all of them are there: so many are under way at once, and never more."""
    with ScriptedServer(lambda request: Reply(f"reply to {request.prompt}", usage=(10, 5), hold=True)) as server:
        async with open_side(server.url, max_concurrency=64, max_calls=10_000) as side, anyio.create_task_group() as group:

            async def let_go() -> None:
                await anyio.to_thread.run_sync(server.wait_for, 64)
                server.release()

            group.start_soon(let_go)
            for turn in range(2):
                prompts = [f"{turn} {number}" for number in range(300)]
                outcomes = await side.call(*prompts)
                assert outcomes == [CallOutcome(text=f"reply to {prompt}") for prompt in prompts]
    assert server.peak == 64
    assert len(server.requests) == side.budget.calls == 600
    assert {event.call for event in side.of(CallStarted) if event.batch == f"{1:032x}"} == {
        f"{1:032x}.{number}" for number in range(300)
    }
    assert len(side.ended) == 600


@pytest.mark.parametrize("setting", [1, 3, 17])
async def test_the_server_never_sees_more_at_once_than_the_setting(setting: int) -> None:
    def reply(request: Request) -> Reply:
        return BUSY if request.number % 5 == 0 else Reply("yes")

    with ScriptedServer(reply, latency=0.05) as server:
        async with open_side(server.url, max_concurrency=setting, max_retries=9) as side, anyio.create_task_group() as group:
            group.start_soon(lambda: side.call(*map(str, range(60))))
            group.start_soon(side.handler.ask, HELLO, 1)
            for number in range(10):
                group.start_soon(side.call, f"single {number}")
    assert server.peak == setting


async def test_a_failed_item_of_a_batch_is_an_error_of_its_own() -> None:
    def reply(request: Request) -> Reply:
        return Reply(status=400, error={"message": "no such thing"}) if request.prompt == "bad" else echo(request)

    with ScriptedServer(reply) as server:
        async with open_side(server.url) as side:
            good, bad, last = await side.call("a", "bad", "b")
    assert (good.text, last.text) == ("reply to a", "reply to b")
    assert bad.text is None
    assert "no such thing" in (bad.error or "")
    assert [event.error != "" for event in sorted(side.ended, key=lambda e: e.call)] == [False, True, False]


async def test_the_same_id_gives_the_same_outcome_and_is_asked_once() -> None:
    with ScriptedServer(lambda request: f"number {request.number}", latency=0.05) as server:
        async with open_side(server.url) as side:
            results: list[Any] = []

            async def again() -> None:
                results.append(await side.call("hi", call="a" * 32))

            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(again)
            await again()
    assert results == [[CallOutcome(text="number 0")]] * 6
    assert len(server.requests) == 1
    assert len(side.of(CallStarted)) == 1


@pytest.mark.parametrize("change", [{"model": "gpt-5-mini"}, {"batch": True}, {"prompt": "other"}])
async def test_the_same_id_with_another_body_is_refused(change: dict[str, Any]) -> None:
    with ScriptedServer(echo) as server:
        async with open_side(server.url) as side:
            await side.call("hi", call="a" * 32)
            (outcome,) = await side.call(change.pop("prompt", "hi"), call="a" * 32, **change)
    assert outcome.text is None
    assert "used before" in (outcome.error or "")
    assert len(server.requests) == 1


async def test_ids_of_two_kernels_are_two() -> None:
    with ScriptedServer(lambda request: f"number {request.number}") as server:
        async with open_side(server.url) as side:
            request = side.request("hi")
            first = await side.handler.answer(request)
            second = await side.handler.answer(type(request)(2, 1, request.call, False, ("hi",), None))
    assert (first[0].text, second[0].text) == ("number 0", "number 1")


async def test_old_replies_are_dropped_and_never_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    big = "x" * (24 * 1024 * 1024)
    with ScriptedServer(lambda request: Reply(big, usage=(10, 10))) as server:
        async with open_side(server.url) as side:
            for number in range(3):
                await side.call("hi", call=f"{number:032x}")
            (dropped,) = await side.call("hi", call=f"{0:032x}")
            (kept,) = await side.call("hi", call=f"{2:032x}")
    assert "no longer kept" in (dropped.error or "")
    assert kept.text == big
    assert len(server.requests) == 3


async def test_code_may_name_the_runs_models_only() -> None:
    with ScriptedServer(models={"gpt-5": ["root"], "gpt-5-mini": ["sub"], "gpt-5-nano": ["allowed"]}) as server:
        async with open_side(server.url, model="gpt-5", sub_model="gpt-5-mini", allowed_models=("gpt-5-nano",)) as side:
            for name, text in ((None, "sub"), ("gpt-5", "root"), ("gpt-5-nano", "allowed")):
                assert (await side.call("hi", model=name))[0].text == text
            before = len(side.events)
            (refused,) = await side.call("hi", model="gpt-5-nono")
    assert "gpt-5-nono" in (refused.error or "")
    assert "it may use gpt-5, gpt-5-mini, gpt-5-nano" in (refused.error or "")
    assert (len(server.requests), len(side.events)) == (3, before)


async def test_a_prompt_that_could_cost_more_than_the_cap_is_refused_and_ends_nothing() -> None:
    with ScriptedServer(echo) as server:
        async with open_side(server.url, max_cost=0.05) as side:
            for _ in range(3):
                (outcome,) = await side.call("x" * 1_000_000)
                assert "this request alone may cost" in (outcome.error or "")
            assert side.handler.limit is None
            assert side.events == []
            assert (await side.call("hi"))[0].text == "reply to hi"
    assert len(server.requests) == 1


async def test_a_root_request_larger_than_the_cap_is_the_limit() -> None:
    with ScriptedServer(echo) as server:
        async with open_side(server.url, max_cost=0.001) as side:
            with pytest.raises(LimitReached) as caught:
                await side.handler.ask(HELLO, 1)
    assert caught.value.limit == "max_cost"
    assert side.handler.limit is caught.value
    assert server.requests == []


async def test_after_a_limit_every_call_is_refused_without_an_event_or_a_byte_kept() -> None:
    with ScriptedServer(echo) as server:
        async with open_side(server.url, max_calls=5) as side:
            outcomes = await side.call(*map(str, range(20)))
            assert sum(outcome.text is not None for outcome in outcomes) == 5
            assert side.handler.limit is not None
            before = len(side.events)
            tracemalloc.start()
            try:
                for number in range(2000):
                    (outcome,) = await side.call("again", call=f"{number + 100:032d}")
                    assert "--max-calls" in (outcome.error or "")
                grown = tracemalloc.get_traced_memory()[0]
            finally:
                tracemalloc.stop()
    assert len(side.events) == before
    assert grown < 100_000
    assert len(side.of(Notice)) == 1
    assert len(server.requests) == side.budget.calls == 5


async def test_a_batch_of_a_hundred_thousand_prompts_makes_few_tasks_and_stops_at_the_limit() -> None:
    with ScriptedServer(echo) as server:
        async with open_side(server.url, max_calls=50, max_concurrency=8) as side:
            outcomes = await side.call(*(["same"] * 100_000))
            too_many = await side.call(*(["same"] * 100_001))
    assert sum(outcome.text is not None for outcome in outcomes) == len(server.requests) == 50
    assert len(side.events) <= 2 * (50 + 8) + 1
    assert "at most 100,000 prompts" in (too_many[0].error or "")


async def test_a_reply_cut_by_the_token_limit_is_text_and_an_empty_one_an_error() -> None:
    script = [Reply("half a sent", finish_reason="length"), Reply(null_content=True, finish_reason="length"), Reply("")]
    with ScriptedServer(script) as server:
        async with open_side(server.url) as side:
            assert (await side.call("a"))[0].text == "half a sent"
            assert "max_output_tokens" in ((await side.call("b"))[0].error or "")
            assert (await side.call("c"))[0] == CallOutcome(text="")


async def test_a_stop_aborts_requests_and_counts_them_as_estimated() -> None:
    with ScriptedServer(lambda request: Reply(hold=True)) as server:
        async with open_side(server.url, max_concurrency=8) as side:
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: side.call(*["x" * 1000] * 20))
                await anyio.to_thread.run_sync(lambda: server.wait_for(8))
                group.cancel_scope.cancel()
            await anyio.to_thread.run_sync(lambda: server.wait_for(8, ended=True))
    assert all(request.aborted for request in server.requests)
    assert side.budget.calls == len(server.requests) == 8
    assert side.budget.in_flight == 0
    assert [event.error for event in side.ended] == ["stopped"] * 8
    assert all(event.usage.estimated and event.usage.output_tokens == 8192 for event in side.ended)
    assert len(side.of(CallStarted)) == 8


async def test_a_stopped_root_keeps_what_came() -> None:
    with ScriptedServer([Reply("y" * 10_000, pause=0.05)]) as server:
        async with open_side(server.url) as side, anyio.create_task_group() as group:
            came = anyio.Event()
            group.start_soon(side.handler.ask, HELLO, 1, lambda text: came.set())
            with anyio.fail_after(WAIT):
                await came.wait()
            group.cancel_scope.cancel()
    (ended,) = side.of(ReplyEnded)
    assert ended.finish_reason == "stopped"
    assert set(ended.text) == {"y"}
    assert ended.usage.estimated
    assert 0 < ended.usage.output_tokens < 8192


async def test_a_stop_while_waiting_to_retry_or_for_a_turn_ends_at_once() -> None:
    slow = Reply(status=429, error={"message": "slow down"}, headers={"Retry-After": "600"})
    with ScriptedServer(lambda request: slow) as server:
        async with open_side(server.url, max_concurrency=1) as side, anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(side.call, "hi")
            await anyio.to_thread.run_sync(lambda: server.wait_for(3, ended=True))
            group.cancel_scope.cancel()
            asked = time.monotonic()
        assert time.monotonic() - asked < WAIT
    assert side.budget.calls == 3


async def test_waiting_to_retry_holds_nobody_up() -> None:
    slow = Reply(status=429, error={"message": "slow down"}, headers={"Retry-After": "600"})
    with ScriptedServer(lambda request: slow if request.prompt == "slow" else echo(request)) as server:
        async with open_side(server.url, max_concurrency=1) as side, anyio.create_task_group() as group:
            group.start_soon(side.call, "slow")
            await anyio.to_thread.run_sync(lambda: server.wait_for(1, ended=True))
            with anyio.fail_after(WAIT):
                assert (await side.call("quick"))[0].text == "reply to quick"
            group.cancel_scope.cancel()


async def test_no_events_hold_more_of_a_text_than_they_may() -> None:
    with ScriptedServer([Reply("r" * 300_000), Reply("r" * 300_000)]) as server:
        async with open_side(server.url) as side:
            assert len((await side.call("p" * 300_000))[0].text or "") == 300_000
            assert len((await side.handler.ask(HELLO, 1)).text) == 300_000
    texts = [
        getattr(event, name, "") for event in side.events for name in ("text", "prompt", "reply") if type(event) is not Event
    ]
    assert max(map(len, texts)) < 70_000


async def test_an_empty_batch_is_answered_with_nothing() -> None:
    async with open_side("http://127.0.0.1:1/v1") as side:
        assert await side.call(batch=True) == []
        assert "one prompt" in (await side.call("a", "b", batch=False))[0].error  # type: ignore[operator]


async def test_a_root_that_only_sends_nonsense_is_an_error_with_the_count() -> None:
    with ScriptedServer(lambda request: Reply(body="{")) as server:
        async with open_side(server.url, max_retries=0) as side:
            with pytest.raises(LMReplyError, match="malformed JSON"):
                await side.handler.ask(HELLO, 1)
    assert len(server.requests) == 1
