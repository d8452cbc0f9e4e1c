"""Our column: runs through the public `RLM`, kernel starts through the environment that a run would open.

Everything is as users have it: events, budget and the trace file (in a temporary folder here). Only the caps that the
measure itself would reach are raised.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from measures import (
    CHILD,
    CHILDREN,
    CONCURRENCY,
    LARGE_CELL,
    ROOT,
    SUB,
    Answer,
    Server,
    Task,
    batch_answer,
    batch_cell,
    block,
    calls_cell,
    checked_gaps,
    gap_script,
    handed_over,
    interrupted,
    serve,
)

from rlm_jupyter import RLM
from rlm_jupyter.kernels.environment import Environment
from rlm_jupyter.kernels.local import open_local
from rlm_jupyter.kernels.messages import CallOutcome, CallRequest
from rlm_jupyter.values import decode

FINAL = "\nFINAL_VAR(measured)"
TIMES = 3
"""Kernels started in one turn."""
REFILL = 0.5
"""Seconds for the supervisor to fork the next spare: ten times what it takes."""


def rlm(url: str, **place: Any) -> RLM:
    return RLM(
        **place,
        backend="openai",
        backend_kwargs={"model_name": ROOT, "base_url": url + "/v1", "api_key": "none"},
        sub_model=SUB,
        max_calls=100_000,
        max_concurrency=CONCURRENCY,
    )


def measured(task: Task, cell: str) -> tuple[Server, list[float]]:
    """Run one scripted cell and give what it left in `measured`."""
    server = Server(task.url)
    server.script([block(cell + FINAL)], task.latency)
    with rlm(task.url) as model:
        result = model.completion("A text.")
    if result.status != "answered":
        raise RuntimeError(f"{result.status}: {result.response} {result.error}")
    return server, result.value


async def no_calls(request: CallRequest) -> Sequence[CallOutcome]:
    return []


async def first_cell(environment: Environment) -> tuple[str, float]:
    """Give how a kernel started, and the seconds from asking for it to the end of its first cell."""
    began = time.monotonic()
    kernel = await environment.start_kernel(no_calls)
    result = await kernel.execute("pass", lambda output: None)
    seconds = time.monotonic() - began
    if result.status != "ok":
        raise RuntimeError(f"the cell ended with {result.status}: {result.error}")
    await kernel.close()
    return kernel.how, seconds


def started(how: str, pause: float) -> Answer:
    """Start kernels in one environment until `TIMES` of them started as `how` says; the environment's first does not count."""

    async def main() -> Answer:
        environment = await open_local(how=how)
        await first_cell(environment)
        samples: list[float] = []
        for _ in range(5 * TIMES):
            await asyncio.sleep(pause)
            way, seconds = await first_cell(environment)
            samples += [seconds] if way == how else []
            if len(samples) == TIMES:
                break
        await environment.close()
        if len(samples) < TIMES:
            raise RuntimeError(f"only {len(samples)} of {5 * TIMES} kernels were {how}")
        return Answer(samples)

    return asyncio.run(main())


def spare(task: Task) -> Answer:
    return started("spare", REFILL)


def forked(task: Task) -> Answer:
    return started("forked", 0)


def cold(task: Task) -> Answer:
    async def main() -> Answer:
        environment = await open_local("python3")
        way, seconds = await first_cell(environment)
        await environment.close()
        assert way == "cold"
        return Answer([seconds])

    return asyncio.run(main())


def nothing_warm(task: Task) -> Answer:
    async def main() -> Answer:
        began = time.monotonic()
        environment = await open_local()
        opened = time.monotonic() - began
        _, seconds = await first_cell(environment)
        await environment.close()
        return Answer([opened + seconds])

    return asyncio.run(main())


def gap(task: Task) -> Answer:
    server = Server(task.url)
    server.script(gap_script('FINAL_VAR("done".upper())'))
    with rlm(task.url) as model:
        model.completion("A text.")
    return checked_gaps(server)


def calls(task: Task) -> Answer:
    return Answer(measured(task, calls_cell())[1])


def batch(task: Task) -> Answer:
    return batch_answer(*measured(task, batch_cell(task.size)))


def children(task: Task) -> Answer:
    """Time whole runs whose root starts children in one batch; the first run, after which there are spares, does not count."""
    cell = f"got = rlm_query_batched(['Go on.'] * {CHILDREN}, list(range({CHILDREN})), model={CHILD!r})"
    samples, server = [], Server(task.url)
    with rlm(task.url, max_depth=2, allowed_models=(CHILD,)) as model:
        for _ in range(TIMES + 1):
            server.script([block(cell), block("FINAL_VAR(got)")], task.latency, task.latency)
            began = time.monotonic()
            value = model.completion("A text.").value
            samples.append(time.monotonic() - began)
            if value != [[number, 1] for number in range(CHILDREN)]:
                raise RuntimeError(f"the children answered {value!r:.300}")
            time.sleep(3 * REFILL)
    return Answer(samples[1:])


def large(task: Task) -> Answer:
    with asyncio.Runner() as runner:
        environment = runner.run(open_local())
        kernel = runner.run(environment.start_kernel(no_calls))
        runner.run(kernel.execute(LARGE_CELL, lambda output: None))

        async def answer() -> str:
            result = await kernel.execute("FINAL_VAR(made)", lambda output: None)
            assert result.final is not None, result.error
            text: str = decode(await kernel.value(result.final))
            return text

        try:
            return handed_over(lambda: runner.run(answer()))
        finally:
            runner.run(environment.close())


def interrupt(task: Task) -> Answer:
    with rlm(task.url) as model:

        def run(cell: str) -> None:
            Server(task.url).script([block(cell)])
            model.completion("A text.")

        return interrupted(run)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RLM_JUPYTER_TRACES"] = folder
        serve(
            {
                "spare": spare,
                "forked": forked,
                "nothing_warm": nothing_warm,
                "cold": cold,
                "gap": gap,
                "calls": calls,
                "batch": batch,
                "children": children,
                "large": large,
                "interrupt": interrupt,
            }
        )
