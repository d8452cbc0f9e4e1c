"""Our column in a container: runs through the public `RLM`, kernels in boxes that are opened as a run opens them.

`BENCH_IMAGE` names the base image. Everything is as users have it: no network, all limits, events, budget and trace file.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable

from bulk import HOLD, PRINT, QUICK, SIZE, peak, reset_peak, text
from measures import Answer, Server, Task, block, calls_cell, checked_gaps, gap_script, serve
from ours import no_calls, rlm

from rlm_jupyter.contexts import prepare as prepare_context
from rlm_jupyter.kernels import launch
from rlm_jupyter.kernels.environment import Environment
from rlm_jupyter.kernels.kernel import Kernel, Output
from rlm_jupyter.settings import RunSettings

PLACE = {"environment": "docker", "environment_kwargs": {"image": os.environ["BENCH_IMAGE"]}}


async def opened(context: int = 0) -> Environment:
    """Open a box as a run with a context of so many bytes does, the look at engine and image included."""
    settings = RunSettings(model="demo", environment="docker", image=os.environ["BENCH_IMAGE"])
    return await launch.prepare(settings, context, print).open(print)


async def run(kernel: Kernel, code: str) -> str:
    outputs: list[Output] = []
    result = await kernel.execute(code, outputs.append)
    if result.status != "ok":
        raise RuntimeError(f"the cell ended with {result.status}: {result.error}")
    return "".join(output.text for output in outputs)


def in_box(work: Callable[[Kernel], Awaitable[Answer]], context: int = 0) -> Answer:
    """Do `work` with a kernel in a box of its own, which is not part of what is measured."""

    async def main() -> Answer:
        environment = await opened(context)
        try:
            kernel = await environment.start_kernel(no_calls)
            await run(kernel, "pass")
            return await work(kernel)
        finally:
            await environment.close()

    return asyncio.run(main())


def ready(task: Task) -> Answer:
    async def main() -> Answer:
        began = time.monotonic()
        environment = await opened()
        try:
            await run(await environment.start_kernel(no_calls), "pass")
            return Answer([time.monotonic() - began])
        finally:
            await environment.close()

    return asyncio.run(main())


def gap(task: Task) -> Answer:
    server = Server(task.url)
    server.script(gap_script('FINAL_VAR("done".upper())'))
    with rlm(task.url, **PLACE) as model:
        model.completion("A text.")
    return checked_gaps(server)


def calls(task: Task) -> Answer:
    Server(task.url).script([block(calls_cell() + "\nFINAL_VAR(measured)")])
    with rlm(task.url, **PLACE) as model:
        result = model.completion("A text.")
    if result.status != "answered":
        raise RuntimeError(f"{result.status}: {result.response} {result.error}")
    return Answer(result.value)


def context(task: Task) -> Answer:
    value = text()

    async def work(kernel: Kernel) -> Answer:
        began = time.monotonic()
        await kernel.load("context", prepare_context(value).payload)
        if int(await run(kernel, "print(len(context))")) != SIZE:
            raise RuntimeError("the context did not arrive whole")
        return Answer([time.monotonic() - began])

    return in_box(work, SIZE)


def state(task: Task) -> Answer:
    async def work(kernel: Kernel) -> Answer:
        await run(kernel, HOLD)
        samples: list[float] = []
        for _ in range(QUICK):
            began = time.monotonic()
            await run(kernel, "pass")
            samples.append(time.monotonic() - began)
        return Answer(samples)

    return in_box(work)


def printed(task: Task) -> Answer:
    async def work(kernel: Kernel) -> Answer:
        await run(kernel, "print('x' * 1000)")
        before = reset_peak()
        shown = await run(kernel, PRINT)
        return Answer(counts={"memory": peak() - before, "kept": len(shown)})

    return in_box(work)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RLM_JUPYTER_TRACES"] = folder
        serve({"ready": ready, "gap": gap, "calls": calls, "context": context, "state": state, "printed": printed})
