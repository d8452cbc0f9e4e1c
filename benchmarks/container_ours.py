"""Our column in a container: runs through the public `RLM`, kernels in boxes that are opened as a run opens them.

`BENCH_IMAGE` names the base image. Everything is as users have it: no network, all limits, events, budget and trace file.
"""

from __future__ import annotations

import os
import tempfile

from bulk import HOLD, PRINT, QUICK, SIZE, peak, reset_peak, text
from measures import Answer, Server, Task, block, calls_cell, checked_gaps, gap_script, serve
from our_boxes import asked, in_box, load, run, trivial_cells
from our_boxes import ready as box_ready
from ours import rlm

from rlm_jupyter.kernels import launch
from rlm_jupyter.kernels.environment import Environment
from rlm_jupyter.kernels.kernel import Kernel
from rlm_jupyter.settings import RunSettings

PLACE = {"environment": "docker", "environment_kwargs": {"image": os.environ["BENCH_IMAGE"]}}


async def opened(context: int = 0) -> Environment:
    """Open a box as a run with a context of so many bytes does, the look at engine and image included."""
    settings = RunSettings(model="demo", environment="docker", image=os.environ["BENCH_IMAGE"])
    return await launch.prepare(settings, context, print).open(print)


def ready(task: Task) -> Answer:
    return box_ready(opened)


def gap(task: Task) -> Answer:
    server = Server(task.url)
    server.script(gap_script('FINAL_VAR("done".upper())'))
    with rlm(task.url, **PLACE) as model:
        model.completion("A text.")
    return checked_gaps(server)


def calls(task: Task) -> Answer:
    return asked(task, [block(calls_cell() + "\nFINAL_VAR(measured)")], **PLACE)


def context(task: Task) -> Answer:
    value = text()

    async def work(kernel: Kernel) -> Answer:
        return Answer([await load(kernel, value)])

    return in_box(lambda: opened(SIZE), work)


def state(task: Task) -> Answer:
    async def work(kernel: Kernel) -> Answer:
        await run(kernel, HOLD)
        return await trivial_cells(kernel, QUICK)

    return in_box(opened, work)


def printed(task: Task) -> Answer:
    async def work(kernel: Kernel) -> Answer:
        await run(kernel, "print('x' * 1000)")
        before = reset_peak()
        shown = await run(kernel, PRINT)
        return Answer(counts={"memory": peak() - before, "kept": len(shown)})

    return in_box(opened, work)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RLM_JUPYTER_TRACES"] = folder
        serve({"ready": ready, "gap": gap, "calls": calls, "context": context, "state": state, "printed": printed})
