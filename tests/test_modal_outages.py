"""Outages of three times the time within which a connection should be back, in the middle of everything at once.

Three kernels of one sandbox work while it lasts: one asks by itself and from threads, one waits for a batch, one floods its
output. The replies that they wait for are given while the connection is away. All come to the right results, and the provider
has been asked exactly what the ledger says: each thing once.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from rlm_jupyter.kernels.cell import OnOutput, Output
from rlm_jupyter.kernels.environment import Environment
from rlm_jupyter.kernels.messages import OnCall
from rlm_jupyter.kernels.modal import ModalPlace, open_modal
from rlm_jupyter.testing import Reply, Request, ScriptedServer
from rlm_jupyter.values import decode
from tests.lm_side import open_side
from tests.modal_local.plane import Faults, LocalModal

pytestmark = [pytest.mark.anyio, pytest.mark.needs("bwrap")]

RECONNECT = 1.5
OUTAGE = 3 * RECONNECT
WAIT = 90
THREADS, SINGLE, BATCH, LINES = 8, 10, 40, 150_000
FAULTS: dict[str, Callable[[LocalModal], Any]] = {
    "tunnel refused": lambda plane: plane.tunnels.down(seconds=OUTAGE),
    "tunnel answers 502": lambda plane: plane.tunnels.bad_gateway(seconds=OUTAGE),
    "tunnel a black hole": lambda plane: plane.tunnels.black_hole(seconds=OUTAGE),
    "Modal refused": lambda plane: plane.sdk.down(seconds=OUTAGE),
    "Modal a black hole": lambda plane: plane.sdk.black_hole(seconds=OUTAGE),
    "nothing reached": lambda plane: Faults(plane, "control", "router", "tunnels").down(seconds=OUTAGE),
}
CORE = ("tunnel answers 502", "tunnel a black hole", "Modal refused")
CASES = [("tunnel", name) for name in FAULTS] + [("exec", name) for name in FAULTS if name.startswith("Modal")]
ASKS = f"""
import concurrent.futures as f
with f.ThreadPoolExecutor({THREADS}) as pool:
    answers = list(pool.map(llm_query, [f"thread {{n}} " + "x" * 2000 for n in range({THREADS})]))
answers += [llm_query(f"single {{n}}") for n in range({SINGLE})]
FINAL_VAR([answer.split()[0] for answer in answers])
"""
BATCHES = f"""
answers = llm_query_batched([f"batch {{n}} " + "y" * 20_000 for n in range({BATCH})])
FINAL_VAR([answer.split()[0] for answer in answers])
"""
FLOODS = f"""
total = 0
for n in range({LINES}):
    print(f"line {{n:09d}}")
    total += n
FINAL_VAR([total, llm_query("flood over").split()[0]])
"""


def key_of(request: Request) -> str:
    return "-".join(request.prompt.split()[:2])


def reply_to(request: Request) -> Reply:
    return Reply(f"{key_of(request)} {'z' * 3000}", usage=(10, 5), hold=True)


async def work(environment: Environment, answer: OnCall, code: str, on_output: OnOutput) -> Any:
    kernel = await environment.start_kernel(answer)
    result = await kernel.execute(code, on_output)
    assert (result.status, result.error) == ("ok", "")
    assert result.final is not None
    return decode(await kernel.value(result.final))


@pytest.mark.parametrize(
    ("bridge", "name"),
    [pytest.param(*case, marks=() if case[0] == "tunnel" and case[1] in CORE else pytest.mark.matrix) for case in CASES],
)
async def test_p06_an_outage_of_three_times_the_deadline_costs_time_and_nothing_else(
    local_modal: LocalModal, bridge: str, name: str
) -> None:
    told: list[str] = []
    flood: list[Output] = []
    flooding = asyncio.Event()

    def flooded(output: Output) -> None:
        flooding.set()
        flood.append(output)

    with ScriptedServer(reply_to) as server:
        async with open_side(server.url, max_concurrency=64) as side:
            environment = await open_modal(ModalPlace(bridge=bridge, reconnect=RECONNECT), told=told.append)
            try:
                answer = side.handler.answer
                works = [
                    asyncio.ensure_future(work(environment, answer, code, on_output))
                    for code, on_output in ((ASKS, print), (BATCHES, print), (FLOODS, flooded))
                ]
                # All calls of the threads and of the batch are with the provider, and the flood has begun.
                await asyncio.to_thread(server.wait_for, THREADS + BATCH)
                await asyncio.wait_for(flooding.wait(), WAIT)
                FAULTS[name](local_modal)
                server.release()
                asked, batch, last = await asyncio.wait_for(asyncio.gather(*works), WAIT)
                assert await work(environment, answer, "FINAL_VAR(llm_query('after all').split()[0])", print) == "after-all"
            finally:
                await environment.close()
    threads, singles, batches = (
        [f"{word}-{n}" for n in range(count)] for word, count in (("thread", THREADS), ("single", SINGLE), ("batch", BATCH))
    )
    assert (asked, batch) == (threads + singles, batches)
    assert last == [sum(range(LINES)), "flood-over"]
    text = "".join(output.text for output in flood)
    assert text.startswith("line 000000000\nline 000000001\n")
    assert text.endswith(f"line {LINES - 2:09d}\nline {LINES - 1:09d}\n")
    assert "bytes of output left out" in text
    wanted = [*threads, *singles, *batches, "flood-over", "after-all"]
    assert Counter(map(key_of, server.requests)) == Counter(wanted), "the provider was asked each thing once"
    assert len(side.ended) == side.budget.calls == len(server.requests) == len(wanted)
    assert (side.budget.usage.input_tokens, side.budget.usage.output_tokens) == (10 * len(wanted), 5 * len(wanted))
    ways = [word for word in ("tunnel", "supervisor") if any(f"the {word}" in line for line in told)]
    gone = ["tunnel"] if name.startswith("tunnel") else ["supervisor"] if name.startswith("Modal") else ["tunnel", "supervisor"]
    assert ways == gone, told
    assert sum("again, after" in line for line in told) >= len(gone)
