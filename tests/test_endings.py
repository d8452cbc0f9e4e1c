"""How a run ends that is not simply answered: a cap, a stop, a failure. What it still gives, and what it never does."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rlm_jupyter import LMError, RunStopped
from rlm_jupyter.budget import Budget
from rlm_jupyter.contexts import prepare
from rlm_jupyter.course import KILLED, TOO_LATE
from rlm_jupyter.engine import Engine
from rlm_jupyter.events import Event
from rlm_jupyter.kernels.local import open_local
from rlm_jupyter.lm import providers
from rlm_jupyter.lm.handler import LMHandler
from rlm_jupyter.loop import Node
from rlm_jupyter.settings import RunSettings
from rlm_jupyter.testing import Reply, Request, ScriptedServer
from tests.models import answer, code, scripted

LAST = "This is the last request"
Root = Callable[[Request], Reply | str]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


def at_the_end(last: Reply | str, turn: str) -> Root:
    """Script a root LM that plays `turn` until it is told that this is its last request."""

    def play(request: Request) -> Reply | str:
        told = last if LAST in request.prompt else turn
        return Reply(told, usage=(1000, 100)) if isinstance(told, str) else told

    return play


SPEND = "found = 'so far'\nwhile True: llm_query('again ' * 50)"
CAPS: dict[str, tuple[dict[str, Any], str]] = {
    "max_calls": ({"max_calls": 9}, SPEND),
    "max_tokens": ({"max_tokens": 200_000}, SPEND),
    "max_cost": ({"max_cost": 0.5, "prices": {"root": (1.0, 2.0), "sub": (1.0, 2.0)}}, SPEND),
    "max_iterations": ({"max_iterations": 3}, "found = 'so far'"),
    "max_consecutive_errors": ({"max_consecutive_errors": 2}, "found = 'so far'\n1/0"),
}


@pytest.mark.parametrize("cap", CAPS)
def test_p07_a_cap_ends_in_an_answer_asked_for_within_the_cap(engine: Engine, cap: str) -> None:
    arguments, turn = CAPS[cap]
    root = at_the_end(code("FINAL_VAR(found)"), code(turn))
    sub = lambda request: Reply("ok", usage=(2000, 1000))  # noqa: E731
    with scripted(root, sub, engine, **arguments) as (rlm, server):
        result = rlm.completion("c", root_prompt="q")
        requests = server.wait_for(result.calls, ended=True)
    assert (result.status, result.limit, result.value) == ("limit", cap, "so far")
    assert [number for number, request in enumerate(requests) if LAST in request.prompt] == [len(requests) - 1]
    assert result.limit is not None
    assert result.limit.cap == arguments[cap]
    assert 0 < result.limit.used <= result.limit.cap
    assert result.calls == len(requests) <= rlm.settings.max_calls
    assert result.usage.total_tokens <= arguments.get("max_tokens", 10**9)
    assert (result.cost or 0) <= arguments.get("max_cost", 1e9)
    assert result.iterations == len(server.requests_to("root")) - 1
    assert [turn.last for turn in result.trace.iterations] == [False] * result.iterations + [True]
    for request in server.requests_to("root"):
        roles = [message["role"] for message in request.messages]
        assert roles[1:] == ["user", *["assistant", "user"] * ((len(roles) - 2) // 2)]


ENDS: dict[str, tuple[Reply | str, Any]] = {
    "a variable": (code("FINAL_VAR('best')"), [1, 2]),
    "a variable, without a fence": ("FINAL_VAR(best)", [1, 2]),
    "a text": ("It was Smith, as far as I have read.", "It was Smith, as far as I have read."),
    "a marked text": ("FINAL(Smith)", "Smith"),
    "code that fails": (code("1/0"), "candidate"),
    "code that gives a better candidate, then fails": (code("FINAL_VAR(best)\n1/0"), [1, 2]),
    "code that asks again": (code("FINAL_VAR(llm_query('more'))"), "candidate"),
    "nothing": ("", "candidate"),
    "code that was cut": (Reply("```repl\nFINAL_VAR(be", finish_reason="length"), "candidate"),
    "a failure": (Reply(status=500), "candidate"),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_last_request_is_taken_at_its_word_and_else_the_last_candidate_is_the_answer(engine: Engine, end: str) -> None:
    last, value = ENDS[end]
    root = at_the_end(last, code("best = [1, 2]\nFINAL_VAR('cand' + 'idate')\nraise ValueError('not yet')"))
    with scripted(root, engine=engine, max_iterations=2) as (rlm, server):
        result = rlm.completion("c", root_prompt="q")
    assert (result.status, result.limit, result.value) == ("limit", "max_iterations", value)
    assert len(server.requests) == result.calls == 3


def test_a_cap_without_room_for_a_last_request_asks_none_and_gives_no_chat_message(engine: Engine) -> None:
    with scripted(["It may be Smith.\n" + code("1"), "Smith, surely."], engine=engine, max_calls=1) as (rlm, server):
        result = rlm.completion("c", root_prompt="q")
    assert (result.status, result.limit, result.value, result.response) == ("limit", "max_calls", None, "")
    assert len(server.requests) == result.calls == 1


def test_a_cell_that_has_to_be_killed_after_a_cap_is_a_limit_and_the_last_request_knows(engine: Engine) -> None:
    stubborn = (
        "while True:\n    try:\n        n = 0\n        while True:\n            try: llm_query('p')\n"
        "            except LMError: pass\n"
        "    except BaseException: pass"
    )
    turns = [code("FINAL_VAR(1)\n1/0"), code(stubborn), "The REPL is gone; it was Smith."]
    with scripted(turns, lambda request: "ok", engine, max_calls=5) as (rlm, server):
        result = rlm.completion("c", root_prompt="q")
    assert (result.status, result.limit, result.value) == ("limit", "max_calls", "The REPL is gone; it was Smith.")
    assert "its variables are gone" in server.requests[-1].prompt
    assert len(server.requests) == 5


@pytest.mark.anyio
async def test_the_last_request_has_time_of_its_own() -> None:
    """A run of 120 s that began 88 s ago: two seconds for its turns, and then 30 for the last request."""
    told: list[Event] = []
    root = at_the_end("As far as I know: Smith.", "")
    with ScriptedServer(lambda request: root(request) if LAST in request.prompt else Reply(hold=True)) as server:
        settings = RunSettings(model="root", base_url=server.url, timeout=120)
        budget = Budget(settings, time.monotonic() - 88)
        handler = LMHandler(settings, budget, lambda model: providers.open_lm(model, settings), told.append)
        environment = await open_local(None)
        node = Node(settings, handler, budget, told.append)
        try:
            context = prepare("c")
            await node.open(environment, context)
            result = await node.run("q", context.description)
        finally:
            await node.close()
            await environment.close()
            await handler.aclose()
    assert result.limit is not None
    assert (result.status, result.limit.limit, result.value) == ("limit", "timeout", "As far as I know: Smith.")
    assert [LAST in request.prompt for request in server.requests][-1:] == [True]
    assert budget.remaining() == 0 < budget.remaining(last=True)


def test_a_stop_gives_the_last_candidate_and_keeps_the_environment(engine: Engine) -> None:
    turns = [code("FINAL_VAR({'so': 'far'})\nllm_query('p')"), answer("1")]
    killed = False  # a machine may be so busy that the kernel does not come back in time
    with scripted(turns, [Reply("x", hold=True)], engine) as (rlm, server):
        supervisors = []
        for ending in ("stopped", "answered"):
            run = rlm.start("c", "q")
            if ending == "stopped":
                server.wait_for(2)
                run.stop()
            result = run.wait(30)
            assert result.status == ending
            supervisors.append(engine._warm[1] if engine._warm is not None else None)
            if ending == "stopped":
                killed = KILLED in result.trace.notices
                assert (
                    killed
                    or TOO_LATE in result.trace.notices
                    or (result.value, result.trace.answer_type) == ({"so": "far"}, "dict")
                )
                assert isinstance(result.error, RunStopped)
    assert (supervisors[0] is supervisors[1] is not None) is not killed


def test_a_stop_without_a_candidate_gives_no_chat_message(engine: Engine) -> None:
    turns: list[Reply | str] = ["I believe it is Smith.\n" + code("x = 1"), Reply(answer(), hold=True)]
    with scripted(turns, engine=engine) as (rlm, server):
        run = rlm.start("c", "q")
        server.wait_for(2)
        run.stop()
        result = run.wait(30)
    assert (result.status, result.value, result.response) == ("stopped", None, "")


def test_a_failure_keeps_the_last_candidate(engine: Engine) -> None:
    turns: list[Reply | str] = [code("FINAL_VAR('ke' + 'pt')\n1/0"), Reply(status=500)]
    with scripted(turns, engine=engine, max_retries=0) as (rlm, _), pytest.raises(LMError) as caught:
        rlm.completion("c", root_prompt="q")
    assert caught.value.result is not None
    assert (caught.value.result.status, caught.value.result.value) == ("failed", "kept")


def test_errors_in_a_row_are_counted_anew_after_a_cell_that_went_well(engine: Engine) -> None:
    turns = itertools.chain([code("1/0"), code("1/0", "x"), code("x = 1", "1/0"), code("1/0"), answer("x")])
    with scripted(list(turns), engine=engine, max_consecutive_errors=3) as (rlm, server):
        assert rlm.completion("c", root_prompt="q").status == "answered"
    assert len(server.requests) == 5
