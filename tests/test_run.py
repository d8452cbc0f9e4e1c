"""Whole runs over HTTP with a real kernel: what the LM is told, what the code may count on, how a run ends."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from rlm_jupyter import RLM, LimitReached, LMError, RLMError, RunSettings, RunStopped, SettingsError
from rlm_jupyter.engine import Engine
from rlm_jupyter.errors import KernelDied
from rlm_jupyter.events import CallEnded, CallStarted
from rlm_jupyter.run import Run
from rlm_jupyter.testing import Reply, Request, ScriptedServer
from rlm_jupyter.trace import Trace
from tests.models import answer, code, scripted, text_of


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """One worker thread and warm environment for the runs of this module."""
    engine = Engine()
    yield engine
    engine.close()


def test_the_lm_gets_the_description_of_the_context_and_never_the_context(engine: Engine) -> None:
    context = "The beginning. " + "filler " * 5_000 + "the secret is 4711"
    with scripted([code("print(len(context))"), answer("context[-4:]")], engine=engine) as (rlm, server):
        result = rlm.completion(context, root_prompt="What is the secret?")
    assert result.value == "4711"
    told = text_of(server.requests[-1])
    assert "What is the secret?" in told
    assert f"{len(context):,} characters" in told
    assert "The beginning." in told
    assert "4711" not in told
    assert context not in told


def test_without_a_question_the_prompt_is_the_context(engine: Engine) -> None:
    with scripted([answer("context")], engine=engine) as (rlm, server):
        result = rlm.completion("What is two and two, and why is it never five?")
    assert result.value == "What is two and two, and why is it never five?"
    assert "why is it never five" not in text_of(server.requests[0])


@pytest.mark.parametrize(
    "context", ['ends in "', "nul \x00 and \r\n and \ud800 and 😀", ["a", {"b": (1, 2)}], {1: b"x", "k": None}]
)
def test_the_context_is_exact_in_the_kernel(engine: Engine, context: Any) -> None:
    with scripted([code(f"same = context == {context!r} and type(context).__name__"), answer("same")], engine=engine) as (
        rlm,
        _,
    ):
        assert rlm.completion(context, root_prompt="Same?").value == type(context).__name__


def test_history_only_grows(engine: Engine) -> None:
    turns = [code("1 + 1"), code("print('two')"), "No code here.", answer()]
    with scripted(turns, engine=engine) as (rlm, server):
        rlm.completion("x" * 50, root_prompt="q")
    histories = [request.messages for request in server.requests]
    for earlier, later in itertools.pairwise(histories):
        assert later[: len(earlier)] == earlier
        assert [message["role"] for message in later[len(earlier) :]] == ["assistant", "user"]
    assert len({history[0]["content"] for history in histories}) == 1


def test_two_blocks_run_in_order_and_stop_at_the_first_error(engine: Engine) -> None:
    turns = [code("print('one'); x = 1", "print('two', x); 1/0", "print('three')"), answer("x")]
    with scripted(turns, engine=engine) as (rlm, server):
        result = rlm.completion("c", root_prompt="q")
    told = server.requests[1].prompt
    assert told.index("one") < told.index("two 1") < told.index("ZeroDivisionError")
    assert "three" not in told
    assert "1 more block(s)" in told
    assert [cell.status for cell in result.trace.iterations[0].cells] == ["ok", "error"]


def test_an_answer_that_cannot_be_read_here_is_told_and_the_run_goes_on(engine: Engine) -> None:
    """A picture too tall to be shown, keys that look alike: what led to them is paid, so the LM may give it otherwise."""
    tall = code("from PIL import Image\nFINAL_VAR({'plot': Image.new('L', (2, 20_000))})")
    alike = code("class Key:\n    def __repr__(self): return 'key'\nFINAL_VAR({Key(): 1, Key(): 2})")
    with scripted([tall, alike, answer("'plain'")], engine=engine) as (rlm, server):
        result = rlm.completion("c", root_prompt="q")
    assert (result.status, result.value, result.iterations) == ("answered", "plain", 3)
    first, second = (request.prompt for request in server.requests[1:])
    assert "The answer was not taken: " in first
    assert "a picture of 2x20000: too large" in first
    assert "the same key twice" in second
    assert "Turn 3 of" in second


def test_state_survives_between_iterations(engine: Engine) -> None:
    first = (
        "import threading\ndef count():\n    n = 0\n    while True:\n        n += 1\n        yield n\n"
        "numbers = count(); next(numbers)\nfile = open('notes.txt', 'w+'); file.write('kept'); file.flush()\n"
        "lock = threading.Lock(); lock.acquire()\nlevel = 1\ndef read(): return level"
    )
    second = "level = 2\nfile.seek(0)\nstate = [next(numbers), file.read(), lock.locked(), read()]"
    with scripted([code(first), code(second), answer("state")], engine=engine) as (rlm, _):
        assert rlm.completion("c", root_prompt="q").value == [2, "kept", True, 2]


def test_results_and_tracebacks_reach_the_lm_as_a_notebook_shows_them(engine: Engine) -> None:
    turns = [code("print('out')\n{'a': 1}"), code("def broken():\n    return [][3]\nbroken()"), answer()]
    with scripted(turns, engine=engine) as (rlm, server):
        rlm.completion("c", root_prompt="q")
    assert "out\n{'a': 1}" in server.requests[1].prompt
    traceback = server.requests[2].prompt
    assert "IndexError: list index out of range" in traceback
    assert "----> 2     return [][3]" in traceback
    assert "\x1b" not in text_of(server.requests[2])


@pytest.mark.parametrize(
    ("last", "value"),
    [
        (code("total = 6 * 7\nFINAL_VAR(total)"), 42),
        (code('total = {"a": [1, None]}\nFINAL_VAR("total")'), {"a": [1, None]}),
        (code("other = 5\ntotal = 'other'\nFINAL_VAR(total)"), "other"),
        (code("FINAL_VAR(f'{6 * 7} things')"), "42 things"),
        (code("FINAL_VAR('')") + code("x = 1"), None),
    ],
)
def test_final_var_by_name_and_by_value(engine: Engine, last: str, value: Any) -> None:
    with scripted([last, answer("None")], engine=engine) as (rlm, _):
        assert rlm.completion("c", root_prompt="q").value == value


def test_a_final_of_a_cell_that_fails_does_not_count(engine: Engine) -> None:
    turns = [code("x = 1\nFINAL_VAR(x)\n1/0"), code("FINAL_VAR('nowhere')"), answer("2")]
    with scripted(turns, engine=engine) as (rlm, server):
        assert rlm.completion("c", root_prompt="q").value == 2
    assert "nowhere" in server.requests[2].prompt
    assert "NameError" in server.requests[2].prompt


def test_prose_is_nudged_twice_and_then_taken_as_unmarked(engine: Engine) -> None:
    with scripted(["I think it is 7.", "Still 7.", "It is 7."], engine=engine) as (rlm, server):
        result = rlm.completion("c", root_prompt="q")
    assert (result.status, result.response) == ("unmarked", "It is 7.")
    assert "fence marked repl" in server.requests[1].prompt
    assert "taken as your answer" in server.requests[2].prompt


def test_final_as_plain_text_counts_in_a_reply_without_code(engine: Engine) -> None:
    with scripted([code("v = [1, 2]"), "FINAL_VAR(v)"], engine=engine) as (rlm, _):
        assert rlm.completion("c", root_prompt="q").value == [1, 2]
    with scripted(["FINAL(seven)"], engine=engine) as (rlm, _):
        result = rlm.completion("c", root_prompt="q")
    assert (result.status, result.value) == ("answered", "seven")


def test_code_cut_by_the_token_limit_is_not_run(engine: Engine) -> None:
    turns: list[Reply | str] = [Reply(text="```repl\nprint('ran')", finish_reason="length"), answer()]
    with scripted(turns, engine=engine) as (rlm, server):
        result = rlm.completion("c", root_prompt="q")
    assert "was not run" in server.requests[1].prompt
    assert not result.trace.iterations[0].cells


def test_300_sub_calls_at_64_work_twice_in_a_row(engine: Engine) -> None:
    batch = "answers = llm_query_batched([str(n) for n in range(300)])\nassert answers == [f'got {n}' for n in range(300)]"

    def sub(request: Request) -> Reply:
        return Reply(f"got {request.prompt}", hold=True)

    with scripted([code(batch), code(batch), answer("len(answers)")], sub, engine, max_concurrency=64) as (rlm, server):
        run = rlm.start("c", "q")
        server.wait_for(1 + 64)
        server.release()
        result = run.wait(60)
    assert result.value == 300
    assert len(server.requests_to("sub")) == 600
    assert server.peak == 64
    assert result.calls == 603
    assert all(call.state == "ok" for call in result.trace.calls)


def test_concurrency_is_one_limit_for_batches_and_threads(engine: Engine) -> None:
    many = (
        "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(30) as pool:\n"
        "    lists = list(pool.map(lambda n: llm_query_batched([str(n)] * 10), range(30)))\nsizes = sum(map(len, lists))"
    )
    with scripted([code(many), answer("sizes")], lambda request: Reply("ok", delay=0.01), engine, max_concurrency=7) as (
        rlm,
        server,
    ):
        result = rlm.completion("c", root_prompt="q")
    assert result.value == 300
    assert server.peak == 7
    told = [event for event in result.trace.events if isinstance(event, CallStarted | CallEnded)]
    under_way = list(
        itertools.accumulate(1 if isinstance(event, CallStarted) else -1 for event in told)
    )  # what waits for its turn is not told as under way
    assert (len(told), max(under_way), under_way[-1]) == (600, 7, 0)


FAILURES: dict[str, Reply] = {
    "429 with Retry-After": Reply(status=429, headers={"Retry-After": "0.05"}, error={"message": "slow down"}),
    "500": Reply(status=500, error={"message": "oops"}),
    "malformed": Reply(body="{not json"),
    "empty choices": Reply(empty_choices=True),
    "dropped": Reply(drop=True),
    "html": Reply(body="<html>proxy</html>", headers={"Content-Type": "text/html"}),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_sub_call_that_fails_once_is_retried(engine: Engine, failure: Reply) -> None:
    with scripted([code("reply = llm_query('p')"), answer("reply")], [failure, "fine"], engine) as (rlm, server):
        result = rlm.completion("c", root_prompt="q")
    assert result.value == "fine"
    assert len(server.requests_to("sub")) == 2
    assert result.trace.retries == 1
    assert result.calls == 4


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_sub_call_that_fails_for_good_is_an_exception_or_a_failed_reply(engine: Engine, failure: Reply) -> None:
    turns = [
        code("try:\n    llm_query('bad')\nexcept LMError as error:\n    caught = str(error)\nprint('caught', bool(caught))"),
        code(
            "replies = llm_query_batched(['good', 'bad'])\nbad = replies[1]\nprint(type(bad).__name__, bad[:6], bad.error > '')"
        ),
        code("FINAL_VAR(bad)"),
        code("FINAL_VAR(replies)"),
        answer("replies[0]"),
    ]

    def sub(request: Request) -> Reply:
        return failure if request.prompt == "bad" else Reply("fine")

    with scripted(turns, sub, engine, max_retries=1) as (rlm, server):
        result = rlm.completion("c", root_prompt="q")
    assert "caught True" in server.requests_to("root")[1].prompt
    assert "FailedReply Error: True" in server.requests_to("root")[2].prompt
    assert "Error" in server.requests_to("root")[3].prompt
    assert "Error" in server.requests_to("root")[4].prompt
    assert result.value == "fine"
    assert [request.prompt for request in server.requests_to("sub")].count("bad") == 4


def test_a_stream_cut_in_the_middle_is_asked_again_and_told_anew(engine: Engine) -> None:
    whole = answer("1")
    with scripted([Reply(whole, cut_after=400), Reply(whole, no_end=True), whole], engine=engine) as (rlm, server):
        result = rlm.completion("c", root_prompt="q")
    assert result.value == 1
    assert len(server.requests) == 3
    assert result.trace.iterations[0].reply == whole
    assert result.trace.iterations[0].attempts == 3


def test_a_root_failure_is_an_error_that_keeps_the_trace(engine: Engine) -> None:
    turns: list[Reply | str] = [code("print('kept')"), *[Reply(status=500)] * 3]
    with scripted(turns, engine=engine, max_retries=2) as (rlm, _), pytest.raises(LMError) as caught:
        rlm.completion("c", root_prompt="q")
    result = caught.value.result
    assert result is not None
    assert (result.status, result.calls, result.error) == ("failed", 4, caught.value)
    assert "kept" in result.trace.iterations[0].cells[0].outputs[0].text


def test_a_refused_connection_is_told() -> None:
    nowhere = {"model_name": "m", "base_url": "http://127.0.0.1:1/v1"}
    with RLM(backend_kwargs=nowhere, max_retries=0) as rlm, pytest.raises(LMError, match="no server listens"):
        rlm.completion("c", root_prompt="q")


def test_max_calls_holds_against_threads_that_swallow_every_exception(engine: Engine) -> None:
    swallow = """
import threading
def work():
    while True:
        try:
            llm_query('again')
        except BaseException:
            pass
threads = [threading.Thread(target=work, daemon=True) for _ in range(64)]
for thread in threads: thread.start()
for thread in threads: thread.join()"""
    with scripted([code(swallow)] * 50, lambda request: "ok", engine, max_calls=40) as (rlm, server):
        result = rlm.completion("c", root_prompt="q")
    assert (result.status, result.limit) == ("limit", "max_calls")
    assert len(server.requests) <= 40
    assert result.calls <= 40


def test_max_cost_holds_and_names_itself(engine: Engine) -> None:
    price = {"root": (1.0, 1.0), "sub": (1000.0, 1000.0)}
    spend = "replies = llm_query_batched(['x' * 1000] * 200)"
    sub = lambda request: Reply("y", usage=(1000, 100))  # noqa: E731
    with scripted([code(spend)] * 20, sub, engine, max_cost=20.0, max_output_tokens=1000, prices=price) as (rlm, server):
        result = rlm.completion("c", root_prompt="q")
    assert (result.status, result.limit) == ("limit", "max_cost")
    spent = sum(1.1 for _ in server.requests_to("sub"))
    assert spent <= 20.0
    assert result.cost is not None
    assert result.cost == pytest.approx(spent, rel=0.01)


def test_a_cheap_model_reaches_concurrency_32_with_two_dollars(engine: Engine) -> None:
    price = {"root": (0.25, 2.0), "sub": (0.25, 2.0)}
    batch = "replies = llm_query_batched(['word ' * 4000] * 96)"
    sub = lambda request: Reply("ok", delay=0.5, usage=(4000, 100))  # noqa: E731
    with scripted([code(batch), answer("len(replies)")], sub, engine, prices=price) as (rlm, server):
        result = rlm.completion("c", root_prompt="q")
    assert result.value == 96
    assert server.peak == 32


def test_an_answer_within_the_grace_after_a_limit_is_kept(engine: Engine) -> None:
    last = (
        "got = []\ntry:\n    while True: got.append(llm_query('p'))\nexcept LMError as error:\n    print(error)\nFINAL_VAR(got)"
    )
    with scripted([code(last)], lambda request: "ok", engine, max_calls=5) as (rlm, _):
        result = rlm.completion("c", root_prompt="q")
    assert (result.status, result.value) == ("answered", ["ok"] * 3)


def test_max_iterations_is_told_and_ends_the_run(engine: Engine) -> None:
    with scripted([code("1")] * 3, engine=engine, max_iterations=3) as (rlm, server):
        result = rlm.completion("c", root_prompt="q")
    assert (result.status, result.limit, result.iterations) == ("limit", "max_iterations", 3)
    assert "This is the last turn" in server.requests[2].prompt
    assert "Turn 2 of 3" in server.requests[1].prompt


def test_the_timeout_ends_a_cell_that_never_would(engine: Engine) -> None:
    with scripted([code("while True: pass")], engine=engine, timeout=2) as (rlm, _):
        result = rlm.completion("c", root_prompt="q")
    assert (result.status, result.limit) == ("limit", "timeout")


def test_setup_code_runs_first_and_its_failure_costs_nothing(engine: Engine) -> None:
    with scripted([answer("ready")], engine=engine, environment_kwargs={"setup_code": "ready = len(context)"}) as (rlm, _):
        assert rlm.completion("four", root_prompt="q").value == 4
    for setup_code, told in (
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
    ):
        with scripted([], engine=engine, environment_kwargs={"setup_code": setup_code}) as (rlm, server):
            with pytest.raises(RLMError) as failed:
                rlm.completion("c", root_prompt="q")
            assert str(failed.value) == f"the set-up code failed, so nothing was asked: {told}"
            assert server.requests == []


def test_p11_a_kernel_that_dies_while_the_lm_writes_is_told_at_once(engine: Engine) -> None:
    def root(request: Request) -> str | Reply:
        found = re.findall(r"pid (\d+)", request.messages[-1]["content"])
        if not found:
            return code("import os; print('pid', os.getpid())")
        os.kill(int(found[-1]), signal.SIGKILL)
        return Reply(answer(), hold=True)  # nobody ever lets it go

    with (
        scripted(root, engine=engine) as (rlm, server),
        pytest.raises(KernelDied, match=r"SIGKILL .* between two cells") as lost,
    ):
        rlm.completion("c", root_prompt="q")
    assert len(server.requests) == 2
    assert lost.value.result is not None
    first, second = lost.value.result.trace.iterations
    assert ([cell.status for cell in first.cells], second.cells) == (["ok"], [])


def test_a_dead_kernel_fails_the_run_and_says_what_was_lost(engine: Engine) -> None:
    turns = [code("x = 1"), code("import os; os._exit(3)")]
    with scripted(turns, engine=engine) as (rlm, _), pytest.raises(RLMError, match="exit status 3") as caught:
        rlm.completion("c", root_prompt="q")
    assert caught.value.result is not None
    assert caught.value.result.status == "failed"
    with scripted([code("raise SystemExit(3)"), answer()], engine=engine) as (rlm, server):
        assert rlm.completion("c", root_prompt="q").status == "answered"
    assert "SystemExit" in server.requests[1].prompt


def test_stop_from_another_thread_keeps_what_there_is(engine: Engine) -> None:
    with scripted(
        [code("print('before')"), code("llm_query_batched(['p'] * 300)")], lambda r: Reply("x", hold=True), engine
    ) as (rlm, server):
        run = rlm.start("c", "q")
        server.wait_for(2 + 32)
        run.stop()
        result = run.wait(10)
    assert result.status == "stopped"
    assert isinstance(result.error, RunStopped)
    assert result.trace.iterations[0].cells[0].outputs[0].text == "before\n"
    assert all(request.ended for request in server.requests)
    assert result.usage.estimated


@pytest.mark.anyio
async def test_acompletion_works_within_a_running_loop_and_cancels(engine: Engine) -> None:
    with scripted([answer("1"), Reply(hold=True)], engine=engine) as (rlm, server):
        assert (await rlm.acompletion("c", root_prompt="q")).value == 1
        assert rlm.settings.model == "root"
        task = asyncio.ensure_future(rlm.acompletion("c", root_prompt="q"))
        await asyncio.to_thread(server.wait_for, 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(server.wait_for, 2, ended=True)


class Slow:
    """A context that takes its time: it is pickled only once `go` is set."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def __reduce__(self) -> tuple[Any, ...]:
        self.begun.set()
        assert self.go.wait(30)
        return int, ()


@pytest.mark.anyio
async def test_acompletion_prepares_the_context_beside_the_loop(engine: Engine) -> None:
    with scripted([answer("type(context).__name__")], engine=engine) as (rlm, server):
        slow = Slow()
        task = asyncio.ensure_future(rlm.acompletion(slow, root_prompt="q"))
        assert await asyncio.to_thread(slow.begun.wait, 30)
        assert not task.done()
        slow.go.set()
        assert (await task).value == "int"
        assert len(server.requests) == 1


class Kept(RLM):
    """Gives the run that was started last as `kept`."""

    kept: Future[Run]

    def start(self, prompt: Any, root_prompt: str | None = None) -> Run:
        self.kept.set_result(super().start(prompt, root_prompt))
        return self.kept.result()


@pytest.mark.anyio
async def test_acompletion_cancelled_while_it_prepares_is_stopped(engine: Engine) -> None:
    with ScriptedServer([Reply(hold=True)]) as server:
        rlm = Kept(backend_kwargs={"model_name": "root", "base_url": server.url}, engine=engine)
        rlm.kept = Future()
        slow = Slow()
        task = asyncio.ensure_future(rlm.acompletion(slow, root_prompt="q"))
        assert await asyncio.to_thread(slow.begun.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        slow.go.set()
        run = await asyncio.to_thread(rlm.kept.result, 30)
        assert (await asyncio.to_thread(run.wait, 30)).status == "stopped"


@pytest.mark.anyio
async def test_completion_works_within_a_running_loop(engine: Engine) -> None:
    with scripted([answer("1")], engine=engine) as (rlm, _):
        assert rlm.completion("c", root_prompt="q").value == 1


def test_runs_side_by_side_see_only_their_own(engine: Engine) -> None:
    """P22"""

    def root(request: Request) -> str:
        told = text_of(request)
        name = next(name for name in names if f"question {name}." in told)
        return (
            code(f"import os\nowner = {name!r}; print(owner, context)")
            if len(request.messages) == 2
            else answer("[owner, context]")
        )

    names = [f"r{n}" for n in range(6)]
    results: dict[str, Any] = {}
    with scripted(root, engine=engine) as (rlm, server):
        threads = [
            threading.Thread(
                target=lambda n=name: results.update({n: rlm.completion(f"context of {n}", root_prompt=f"question {n}.")})
            )
            for name in names
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert {name: result.value for name, result in results.items()} == {name: [name, f"context of {name}"] for name in names}
    for request in server.requests:
        assert sum(f"context of {name}" in text_of(request) or f"question {name}." in text_of(request) for name in names) == 1


def test_the_trace_file_is_private_and_holds_no_context(engine: Engine, own_traces: Path) -> None:
    context = "public head " + "x" * 10_000 + " hidden tail"
    with scripted([code("print(1)"), answer("1")], engine=engine) as (rlm, _):
        result = rlm.completion(context, root_prompt="q")
    file = own_traces / f"{result.trace.run}.jsonl"
    assert file.stat().st_mode & 0o777 == 0o600
    assert own_traces.stat().st_mode & 0o777 == 0o700
    text = file.read_text()
    assert "hidden tail" not in text
    assert result.trace.context_digest in text
    assert Trace.from_jsonl(text).to_dict() == result.trace.to_dict()
    assert [json.loads(line)["number"] for line in text.splitlines()] == sorted(
        {json.loads(line)["number"] for line in text.splitlines()}
    )


def test_no_trace_writes_no_file(engine: Engine, own_traces: Path) -> None:
    with scripted([answer("1")], engine=engine, keep_trace=False) as (rlm, _):
        rlm.completion("c", root_prompt="q")
    assert list(own_traces.iterdir()) == []


def test_totals_equal_the_servers_log(engine: Engine) -> None:
    sub: list[Reply | str] = [Reply("a", usage=(10, 5)), Reply(status=500), Reply("b", usage=(20, 7))]
    root: list[Reply | str] = [
        Reply(code("x = llm_query('1'), llm_query('2')"), usage=(100, 50)),
        Reply(answer("x"), usage=(200, 60)),
    ]
    with scripted(root, sub, engine, prices={"root": (1.0, 2.0), "sub": (3.0, 4.0)}) as (rlm, server):
        result = rlm.completion("c", root_prompt="q")
    assert result.calls == len(server.requests) == 5
    assert (result.usage.input_tokens, result.usage.output_tokens) == (330, 122)
    assert result.cost == pytest.approx((300 * 1 + 110 * 2 + 30 * 3 + 12 * 4) / 1e6)


def test_the_newest_and_older_servers_both_work(engine: Engine) -> None:
    for profile in ({"strict": True}, {"old": True}, {"omit_usage": True}):
        with scripted([code("r = llm_query('p')"), answer("r")], ["fine"], engine, **profile) as (rlm, _):
            result = rlm.completion("c", root_prompt="q")
        assert result.value == "fine"
        assert result.usage.estimated == ("strict" not in profile)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"backend": "opneai"}, "did you mean openai"),
        ({"backend_kwargs": {}}, "no model chosen"),
        ({"environment": "dokcer"}, "no environment is named"),
        ({"environment_kwargs": {"kernle": "x"}}, "did you mean kernel"),
        ({"environment_kwargs": {"context_payload": "x"}}, "set by RLM"),
        ({"environment_kwargs": {"lm_handler_address": "x"}}, "set by RLM"),
        ({"backend_kwargs": {"model_name": "m", "max_tokens": 3}}, "max_output_tokens"),
        ({"max_calls": 0}, "max-calls"),
        ({"max_cost": 2.0}, "--max-cost 2.0 cannot hold: no price is known for m; give it with prices={'m': (dollars"),
        ({"backend_kwargs": {"model_name": "gpt-5-mini", "api_key": "k" * 20}, "sub_model": "mine", "max_cost": 1}, "for mine"),
        ({"backend": None}, "no backend is named None; known: anthropic"),
        (
            {"backend_kwargs": "gpt-5-mini"},
            'backend_kwargs must be a dict, such as {"model_name": "gpt-5-mini"}, not of type str',
        ),
        ({"backend_kwargs": {"model_name": 5}}, 'model_name must be a text, such as "gpt-5-mini", not 5'),
        ({"backend_kwargs": {"model_name": "m", "api_key": 12345}}, "api_key must be a text, not of type int"),
        ({"backend_kwargs": {"model_name": "m", "base_url": 5}}, "base_url must be a text, not of type int"),
        ({"environment_kwargs": ["image"]}, "environment_kwargs must be a dict"),
        ({"allowed_models": "gpt-5"}, "allowed_models must be a list of names, such as ['gpt-5'], not one text"),
        ({"prices": 5}, "prices must be a dict"),
        ({"timeout": None}, "--timeout must be a number above 0, not None"),
    ],
)
def test_bad_arguments_are_refused_at_construction(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(told)) as error:
        RLM(**{"backend_kwargs": {"model_name": "m", "base_url": "http://localhost:1/v1"}, **arguments})
    assert "\n" not in str(error.value)
    assert "12345" not in str(error.value)


def test_a_cap_on_dollars_that_nobody_asked_for_is_held_where_prices_are_known() -> None:
    here = {"model_name": "m", "base_url": "http://localhost:1/v1"}
    for arguments, cap, asked in (
        ({}, 2.0, False),
        ({"max_cost": None}, None, False),
        ({"price_as": "gpt-5-mini"}, 2.0, False),
    ):
        settings = RLM(backend_kwargs=here, **arguments).settings
        assert (settings.max_cost, settings.cost_is_explicit) == (cap, asked)
        assert RunSettings.from_json(settings.to_json()) == settings
    assert RLM(backend_kwargs=here, price_as="gpt-5-mini", max_cost=2.0).settings.cost_is_explicit


def test_a_question_that_is_no_text_is_refused_before_anything_is_started(engine: Engine) -> None:
    with RLM(backend="demo", engine=engine) as rlm:
        for question, told in ((5, "root_prompt is the question, a text, not of type int"), (" \n", "the question is empty")):
            with pytest.raises(SettingsError, match=told):
                rlm.start("context", root_prompt=question)  # type: ignore[arg-type]


def test_code_may_name_only_the_runs_models(engine: Engine) -> None:
    turns = [
        code("try:\n    llm_query('p', model='gpt-expensive')\nexcept LMError as error:\n    print(error)"),
        answer("llm_query('p', 'sub')"),
    ]
    with scripted(turns, ["fine"], engine) as (rlm, server):
        assert rlm.completion("c", root_prompt="q").value == "fine"
    assert "gpt-expensive" in server.requests[1].prompt
    assert {request.model for request in server.requests} == {"root", "sub"}


def test_an_api_key_goes_to_its_server_and_nowhere_else(engine: Engine, own_traces: Path) -> None:
    with ScriptedServer([answer("1")]) as server:
        key = "sk-canary-0123456789abcdef"
        rlm = RLM(backend_kwargs={"model_name": "m", "base_url": server.url, "api_key": key}, engine=engine)
        result = rlm.completion("c", root_prompt="q")
    assert server.requests[0].headers["authorization"] == f"Bearer {key}"
    assert key not in next(own_traces.iterdir()).read_text()
    assert key not in repr(result.trace.to_dict())
    assert isinstance(LimitReached("x", "y"), RLMError)
