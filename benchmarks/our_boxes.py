"""What our columns do alike in containers and in sandboxes: a kernel in a box, opened as a run opens it, and its cells."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from measures import Answer, Server, Task
from ours import no_calls, rlm

from rlm_jupyter.contexts import prepare
from rlm_jupyter.kernels.cell import Output
from rlm_jupyter.kernels.environment import Environment
from rlm_jupyter.kernels.kernel import Kernel

Open = Callable[[], Awaitable[Environment]]


async def run(kernel: Kernel, code: str) -> str:
    outputs: list[Output] = []
    result = await kernel.execute(code, outputs.append)
    if result.status != "ok":
        raise RuntimeError(f"the cell ended with {result.status}: {result.error}")
    return "".join(output.text for output in outputs)


def in_box(opened: Open, work: Callable[[Kernel], Awaitable[Answer]]) -> Answer:
    """Do `work` with a kernel in a box of its own, which is not part of what is measured."""

    async def main() -> Answer:
        environment = await opened()
        try:
            kernel = await environment.start_kernel(no_calls)
            await run(kernel, "pass")
            return await work(kernel)
        finally:
            await environment.close()

    return asyncio.run(main())


def ready(opened: Open) -> Answer:
    """Time a box from nothing until its first cell has run."""

    async def main() -> Answer:
        began = time.monotonic()
        environment = await opened()
        try:
            await run(await environment.start_kernel(no_calls), "pass")
            return Answer([time.monotonic() - began])
        finally:
            await environment.close()

    return asyncio.run(main())


async def trivial_cells(kernel: Kernel, count: int) -> Answer:
    samples: list[float] = []
    for _ in range(count):
        began = time.monotonic()
        await run(kernel, "pass")
        samples.append(time.monotonic() - began)
    return Answer(samples)


async def load(kernel: Kernel, text: str) -> float:
    """Give the seconds until a cell has used `text` as its context."""
    began = time.monotonic()
    await kernel.load("context", prepare(text).payload)
    if int(await run(kernel, "print(len(context))")) != len(text):
        raise RuntimeError("the context did not arrive whole")
    return time.monotonic() - began


def asked(task: Task, script: list[str], **place: Any) -> Answer:
    """Run one scripted cell that makes LM calls, and give what it left in `measured`."""
    Server(task.url).script(script, task.latency)
    with rlm(task.url, **place) as model:
        result = model.completion("A text.")
    if result.status != "answered":
        raise RuntimeError(f"{result.status}: {result.response} {result.error}")
    return Answer(result.value)
