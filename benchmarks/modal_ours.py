"""Our column in sandboxes at Modal: runs through the public `RLM`, sandboxes that are opened as a run opens them.

Everything is as users have it: the default image, a closed network, the tunnel, events, budget and trace file.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable

from measures import Answer, Server, Task, serve
from modal_cells import CELLS, IDLE, OF_ALL, SIZES, TIMES, Usage, script_of, text
from ours import no_calls, rlm

from rlm_jupyter.contexts import prepare as prepare_context
from rlm_jupyter.kernels import launch
from rlm_jupyter.kernels.environment import Environment
from rlm_jupyter.kernels.kernel import Kernel, Output
from rlm_jupyter.settings import RunSettings


async def opened() -> Environment:
    """Open a sandbox as a run does."""
    return await launch.prepare(RunSettings(model="demo", environment="modal"), 0, print).open(print)


async def run(kernel: Kernel, code: str) -> str:
    outputs: list[Output] = []
    result = await kernel.execute(code, outputs.append)
    if result.status != "ok":
        raise RuntimeError(f"the cell ended with {result.status}: {result.error}")
    return "".join(output.text for output in outputs)


def in_sandbox(work: Callable[[Kernel], Awaitable[Answer]]) -> Answer:
    """Do `work` with a kernel in a sandbox of its own, which is not part of what is measured."""

    async def main() -> Answer:
        environment = await opened()
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


def cells(task: Task) -> Answer:
    async def work(kernel: Kernel) -> Answer:
        samples: list[float] = []
        for _ in range(CELLS):
            began = time.monotonic()
            await run(kernel, "pass")
            samples.append(time.monotonic() - began)
        return Answer(samples)

    return in_sandbox(work)


def asked(task: Task) -> Answer:
    """Run one scripted cell that makes LM calls, and give what it left in `measured`."""
    Server(task.url).script(script_of(task, "\nFINAL_VAR(measured)"), task.latency)
    with rlm(task.url, environment="modal") as model:
        result = model.completion("A text.")
    if result.status != "answered":
        raise RuntimeError(f"{result.status}: {result.response} {result.error}")
    return Answer(result.value)


def context(size: str) -> Callable[[Task], Answer]:
    def measure(task: Task) -> Answer:
        value = text(SIZES[size])

        async def work(kernel: Kernel) -> Answer:
            samples: list[float] = []
            for _ in range(TIMES[size]):
                began = time.monotonic()
                await kernel.load("context", prepare_context(value).payload)
                if int(await run(kernel, "print(len(context))")) != SIZES[size]:
                    raise RuntimeError("the context did not arrive whole")
                samples.append(time.monotonic() - began)
            return Answer(samples)

        return in_sandbox(work)

    return measure


def idle(task: Task) -> Answer:
    async def work(kernel: Kernel) -> Answer:
        await asyncio.sleep(1)
        usage = Usage(float(await run(kernel, OF_ALL)))
        await asyncio.sleep(IDLE)
        return Answer(list(usage.parts(float(await run(kernel, OF_ALL)))))

    return in_sandbox(work)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RLM_JUPYTER_TRACES"] = folder
        contexts = {f"context {size}": context(size) for size in SIZES}
        serve({"ready": ready, "cells": cells, "idle": idle, **dict.fromkeys(("calls", "threads", "batch"), asked), **contexts})
