"""The reference implementation's column in a container: `rlms` with its Docker environment, as its users run it.

Runs inside `.bench-venv`. `BENCH_IMAGE` names an image with pip, dill and requests in it, as its documentation has it built;
its own `pip install` at each start finds them there.
"""

from __future__ import annotations

import json
import os
import tempfile
from functools import partial
from typing import Any

from bulk import HOLD, PRINT, SLOW, peak, reset_peak, text
from measures import Answer, Server, Task, block, calls_cell, checked_gaps, gap_script, serve
from reference import FINAL, rlm
from reference_boxes import in_box, load, run, trivial_cells
from reference_boxes import ready as box_ready
from rlm.environments.docker_repl import DockerREPL  # type: ignore[import-not-found,unused-ignore]

IMAGE = os.environ["BENCH_IMAGE"]
PLACE = {"environment": "docker", "environment_kwargs": {"image": IMAGE}}
MAKE = partial(DockerREPL, image=IMAGE)


def ready(task: Task) -> Answer:
    return box_ready(MAKE)


def gap(task: Task) -> Answer:
    server = Server(task.url)
    server.script(gap_script('answer["content"] = "done"\nanswer["ready"] = True'))
    rlm(task.url, **PLACE).completion("A text.")
    return checked_gaps(server)


def calls(task: Task) -> Answer:
    Server(task.url).script([block(calls_cell() + FINAL)])
    numbers: list[float] = json.loads(rlm(task.url, **PLACE).completion("A text.").response)
    return Answer(numbers)


def context(task: Task) -> Answer:
    value = text()
    return in_box(MAKE, lambda environment: Answer([load(environment, value)]))


def state(task: Task) -> Answer:
    def work(environment: Any) -> Answer:
        run(environment, HOLD)
        return trivial_cells(environment, SLOW)

    return in_box(MAKE, work)


def printed(task: Task) -> Answer:
    def work(environment: Any) -> Answer:
        run(environment, "print('x' * 1000)")
        before = reset_peak()
        shown = run(environment, PRINT)
        return Answer(counts={"memory": peak() - before, "kept": len(shown)})

    return in_box(MAKE, work)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RLM_DOCKER_WORKSPACE_DIR"] = folder
        serve({"ready": ready, "gap": gap, "calls": calls, "context": context, "state": state, "printed": printed})
