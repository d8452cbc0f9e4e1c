"""llm_query, llm_query_batched, FINAL_VAR, SHOW_VARS and the context, as code in the kernel meets them."""

from __future__ import annotations

import asyncio
import datetime
import math
from collections.abc import Sequence
from typing import Any

import pytest

from rlm_jupyter.errors import KernelError
from rlm_jupyter.kernels.messages import CallOutcome, CallRequest
from rlm_jupyter.values import decode
from tests.conformance.driving import Session, payload

pytestmark = pytest.mark.anyio


async def test_a_call_gives_the_reply_and_names_its_cell(repl: Session) -> None:
    await repl.ok("pass")
    assert await repl.out("print(llm_query('one', model='small'))") == "ONE"
    (request,) = repl.requests
    assert (request.kernel, request.cell, request.batch) == (repl.kernel.number, 2, False)
    assert (request.prompts, request.model) == (("one",), "small")
    assert len(request.call) == 32


async def test_a_failed_call_is_an_exception_and_the_kernel_goes_on(repl: Session) -> None:
    ran = await repl.run("llm_query('fail this')")
    assert ran.result.error == "LMError: no reply to 'fail this'"
    assert await repl.out("try:\n    llm_query('fail')\nexcept LMError as error:\n    print(type(error).__name__)") == "LMError"


async def test_a_batch_is_one_request_in_order_with_failures_in_their_places(repl: Session) -> None:
    ran = await repl.ok(
        "replies = llm_query_batched(['a', 'fail b', 'c'])\nprint(replies, replies[1].error, isinstance(replies[1], str))"
    )
    assert ran.out == "['A', \"Error: no reply to 'fail b'\", 'C'] no reply to 'fail b' True\n"
    assert ran.text("stderr").count("\n") == 1
    assert "1 of 3 calls failed, at [1]" in ran.text("stderr")
    assert len(repl.requests) == 1
    assert await repl.out("print(llm_query_batched([]))") == "[]"
    assert len(repl.requests) == 1


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("llm_query(5)", "TypeError: prompt must be a str, not int"),
        ("llm_query_batched('abc')", "TypeError: llm_query_batched takes a list"),
        ("llm_query_batched(['a', None])", "TypeError: prompts[1] must be a str, not NoneType"),
        ("llm_query('a', model=3)", "TypeError: model must be a model's name"),
        ("llm_query('x' * (32 * 2**20 + 1))", "ValueError: prompt has 33,554,433 bytes"),
        ("llm_query_batched(['x'] * 100_001)", "ValueError: a batch of 100,001 prompts"),
    ],
)
async def test_what_cannot_be_asked_is_refused_in_the_kernel(repl: Session, code: str, error: str) -> None:
    ran = await repl.run(code)
    assert ran.result.error.startswith(error)
    assert repl.requests == []


async def test_any_text_crosses_exactly(repl: Session) -> None:
    text = "quote \" ' back \\ nul \0 emoji \U0001f600 line \r\n lone \ud800 end"
    await repl.load(text)
    code = "reply = llm_query(context)\nprint(reply == context.upper(), len(reply))"
    assert await repl.out(code) == f"True {len(text.upper())}"
    assert repl.requests[0].prompts == (text,)


async def test_a_large_prompt_and_a_large_batch_cross(repl: Session) -> None:
    assert await repl.out("print(len(llm_query('é' * 2**24)))") == str(2**24)
    assert await repl.out("r = llm_query_batched([str(n) for n in range(100_000)]); print(len(r), r[99_999])") == "100000 99999"


async def test_calls_from_threads_run_at_the_same_time(repl: Session) -> None:
    gate = asyncio.Event()
    waiting: list[str] = []

    async def answer(request: CallRequest) -> Sequence[CallOutcome]:
        waiting.extend(request.prompts)
        if len(waiting) == 50:
            gate.set()
        await gate.wait()
        return [CallOutcome(text=prompt) for prompt in request.prompts]

    kernel = await repl.environment.start_kernel(answer)
    repl.kernel, old = kernel, repl.kernel
    await old.close()
    await repl.ok("import concurrent.futures as f; pool = f.ThreadPoolExecutor(50)")
    await repl.ok("with pool: replies = list(pool.map(llm_query, map(str, range(50))))")
    code = "print(sum(map(int, replies)))"
    assert await repl.out(code) == str(sum(range(50)))


async def test_calls_work_in_forked_children(repl: Session) -> None:
    code = """
import multiprocessing, os
with multiprocessing.get_context("fork").Pool(3) as pool:
    print(pool.map(llm_query, ["a", "b", "c", "d"]))
pid = os.fork()
if not pid:
    os.write(1, llm_query("child").encode() + b"\\n")
    os._exit(0)
os.waitpid(pid, 0)
print(llm_query("parent"))
"""
    assert (await repl.out(code)).splitlines() == ["['A', 'B', 'C', 'D']", "CHILD", "PARENT"]


async def test_a_cell_ends_when_its_calls_have_settled_and_later_ones_are_refused(repl: Session) -> None:
    code = """
import threading
heard = []
def ask():
    heard.append(llm_query("slow"))
    try:
        llm_query("too late")
    except LMError as error:
        heard.append(str(error))
thread = threading.Thread(target=ask); thread.start()
llm_query("has it asked?")
"""
    asked, release = asyncio.Event(), asyncio.Event()

    async def answer(request: CallRequest) -> Sequence[CallOutcome]:
        repl.requests.append(request)
        if request.prompts == ("has it asked?",):
            await asked.wait()
            return [CallOutcome(text="yes")]
        asked.set()
        await release.wait()
        return [CallOutcome(text="done")]

    kernel = await repl.environment.start_kernel(answer)
    repl.kernel, old = kernel, repl.kernel
    await old.close()
    cell = asyncio.ensure_future(repl.run(code))
    done, _ = await asyncio.wait({cell}, timeout=0.8)
    assert not done
    release.set()
    assert (await cell).result.status == "ok"
    await repl.kernel.execute("import time; time.sleep(0)", lambda output: None)
    out = await repl.out("thread.join(); print(heard)")
    assert out.startswith("['done'")
    assert len([request for request in repl.requests if request.prompts == ("slow",)]) == 1


async def test_an_answer_that_fails_on_the_host_is_an_error_in_the_cell(repl: Session) -> None:
    async def answer(request: CallRequest) -> Sequence[CallOutcome]:
        raise ZeroDivisionError("a secret of the host")

    kernel = await repl.environment.start_kernel(answer)
    repl.kernel, old = kernel, repl.kernel
    await old.close()
    ran = await repl.run("llm_query('x')")
    assert ran.result.error == "LMError: the call failed on the host (ZeroDivisionError)"


@pytest.mark.parametrize(
    "value",
    [
        "text", "", "a\0b\ud800", 5, -1.5, True, None, [], {}, [1, [2, {"a": None}]], {"__type__": "tuple", "": "x"}, 10**30,
        "x" * 3_000_000,
    ],
    ids=lambda value: repr(value)[:20].encode("ascii", "replace").decode(),
)  # fmt: skip
async def test_final_values_cross_exactly(repl: Session, value: Any) -> None:
    await repl.load(value)
    got = await repl.final("FINAL_VAR(context)")
    assert got == value
    assert type(got) is type(value)
    assert await repl.final("answer = context\nFINAL_VAR('answer')") == value


async def test_floats_that_are_no_numbers_cross(repl: Session) -> None:
    nan, infinity = await repl.final("FINAL_VAR([float('nan'), float('-inf')])")
    assert math.isnan(nan)
    assert infinity == -math.inf


async def test_a_value_that_is_a_variables_name_is_a_value(repl: Session) -> None:
    await repl.ok("other = 'wrong'; answer = 'other'")
    assert await repl.final("FINAL_VAR(answer)") == "other"
    assert await repl.final("FINAL_VAR('answer')") == "other"
    assert await repl.final("FINAL_VAR(var='other')") == "wrong"
    assert await repl.final("FINAL_VAR(f'other')") == "other"
    assert await repl.final("FINAL_VAR('ot' + 'her')") == "other"


async def test_a_final_tells_name_and_type(repl: Session) -> None:
    ran = await repl.ok("answer = {'a': 1}\nFINAL_VAR('answer')")
    final = ran.result.final
    assert final is not None
    assert (final.name, final.type_name, final.size) == ("answer", "dict", 7)
    ran = await repl.ok("import datetime; FINAL_VAR(datetime.date(2024, 2, 29))")
    assert ran.result.final is not None
    assert (ran.result.final.name, ran.result.final.type_name) == ("", "datetime.date")
    value = await repl.kernel.value(ran.result.final)
    assert (value.form, decode(value)) == ("typed", datetime.date(2024, 2, 29))


@pytest.mark.parametrize("code", ["(1, 2)", "{1: 'a'}", "[{1}]", "b'bytes'"])
async def test_what_json_would_change_crosses_with_its_type(repl: Session, code: str) -> None:
    value = await repl.final(f"FINAL_VAR({code})")
    assert repr(value) == code


@pytest.mark.parametrize(
    ("code", "text"), [("x", "[[...]]"), ("type('S', (str,), {})('sub')", "sub"), ("print", "<built-in function print>")]
)
async def test_what_cannot_cross_is_text(repl: Session, code: str, text: str) -> None:
    await repl.ok("x = []; x.append(x)")
    assert await repl.final(f"FINAL_VAR({code})") == text


async def test_a_name_that_does_not_exist_is_an_error_that_helps(repl: Session) -> None:
    await repl.ok("summary = 1")
    ran = await repl.run("FINAL_VAR('sumary')")
    assert ran.result.error.startswith("NameError: no variable is named 'sumary'. Did you mean 'summary'?")
    assert ran.result.final is None


async def test_a_final_counts_only_when_its_cell_ends_well_and_the_last_one_wins(repl: Session) -> None:
    assert (await repl.run("FINAL_VAR(1)\n1/0")).result.final is None
    assert await repl.final("FINAL_VAR(1)\nFINAL_VAR(2)") == 2
    assert (await repl.ok("pass")).result.final is None


async def test_a_local_variable_can_be_named(repl: Session) -> None:
    assert await repl.final("def finish():\n    inner = 3\n    FINAL_VAR('inner')\nfinish()") == 3


@pytest.mark.parametrize("holder", ["{}", "[1, {{'a': ({},)}}]"])
async def test_a_failed_reply_is_no_answer(repl: Session, holder: str) -> None:
    ran = await repl.run(f"r = llm_query_batched(['fail'])[0]\nFINAL_VAR({holder.format('r')})")
    assert ran.result.error.startswith("ValueError: this answer holds the place of a failed call")
    assert ran.result.final is None


async def test_the_context_arrives_and_only_once(repl: Session) -> None:
    value = {"a.txt": "x" * 1_000_000, "numbers": [1, 2.5, None], "odd": b"\0", "pair": (1, 2)}
    await repl.load(value)
    assert await repl.out("print(type(context).__name__, list(context), context['pair'])") == (
        "dict ['a.txt', 'numbers', 'odd', 'pair'] (1, 2)"
    )


async def test_a_context_with_another_digest_is_refused(repl: Session) -> None:
    true = payload("text")
    wrong = type(true)(true.form, b"tXxt", true.digest)
    with pytest.raises(KernelError, match="another digest"):
        await repl.kernel.load("context", wrong)
    await repl.load("text")
    assert await repl.out("print(context)") == "text"


async def test_show_vars_lists_what_code_made(repl: Session) -> None:
    await repl.load("abc")
    await repl.ok("numbers = [1, 2, 3]; import numpy; grid = numpy.zeros((2, 3))")
    out = await repl.out("SHOW_VARS()")
    rows = [line.split() for line in out.splitlines()]
    assert ["context", "str", "3", "characters"] in rows
    assert ["numbers", "list", "3", "items"] in rows
    assert ["grid", "ndarray", "2", "x", "3"] in rows
    assert not {"llm_query", "FINAL_VAR", "In", "get_ipython"} & {row[0] for row in rows}
