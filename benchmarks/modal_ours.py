"""Our column in sandboxes at Modal: runs through the public `RLM`, sandboxes that are opened as a run opens them.

Everything is as users have it: the default image, a closed network, the tunnel, events, budget and trace file.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable

from measures import Answer, Task, serve
from modal_cells import CELLS, IDLE, OF_ALL, SIZES, TIMES, Usage, script_of, text
from our_boxes import asked, in_box, load, run, trivial_cells
from our_boxes import ready as box_ready

from rlm_jupyter.kernels import launch
from rlm_jupyter.kernels.environment import Environment
from rlm_jupyter.kernels.kernel import Kernel
from rlm_jupyter.settings import RunSettings


async def opened() -> Environment:
    """Open a sandbox as a run does."""
    return await launch.prepare(RunSettings(model="demo", environment="modal"), 0, print).open(print)


def ready(task: Task) -> Answer:
    return box_ready(opened)


def cells(task: Task) -> Answer:
    async def work(kernel: Kernel) -> Answer:
        return await trivial_cells(kernel, CELLS)

    return in_box(opened, work)


def calls(task: Task) -> Answer:
    return asked(task, script_of(task, "\nFINAL_VAR(measured)"), environment="modal")


def context(size: str) -> Callable[[Task], Answer]:
    def measure(task: Task) -> Answer:
        value = text(SIZES[size])

        async def work(kernel: Kernel) -> Answer:
            return Answer([await load(kernel, value) for _ in range(TIMES[size])])

        return in_box(opened, work)

    return measure


def idle(task: Task) -> Answer:
    async def work(kernel: Kernel) -> Answer:
        await asyncio.sleep(1)
        usage = Usage(float(await run(kernel, OF_ALL)))
        await asyncio.sleep(IDLE)
        return Answer(list(usage.parts(float(await run(kernel, OF_ALL)))))

    return in_box(opened, work)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RLM_JUPYTER_TRACES"] = folder
        contexts = {f"context {size}": context(size) for size in SIZES}
        serve({"ready": ready, "cells": cells, "idle": idle, **dict.fromkeys(("calls", "threads", "batch"), calls), **contexts})
