"""The reference implementation's column in a container: `rlms` with its Docker environment, as its users run it.

Runs inside `.bench-venv`. `BENCH_IMAGE` names an image with pip, dill and requests in it, as its documentation has it built;
its own `pip install` at each start finds them there.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

from bulk import HOLD, PRINT, SIZE, SLOW, peak, reset_peak, text
from measures import Answer, Server, Task, block, calls_cell, checked_gaps, gap_script, serve
from reference import FINAL, rlm
from rlm.environments.docker_repl import DockerREPL  # type: ignore[import-not-found,unused-ignore]

IMAGE = os.environ["BENCH_IMAGE"]
PLACE = {"environment": "docker", "environment_kwargs": {"image": IMAGE}}


def in_container(work: Callable[[Any], Answer]) -> Answer:
    """Do `work` with a container of its own, which is not part of what is measured."""
    environment = DockerREPL(image=IMAGE)
    try:
        run(environment, "pass")
        return work(environment)
    finally:
        environment.cleanup()


def run(environment: Any, code: str) -> str:
    result = environment.execute_code(code)
    if result.stderr:
        raise RuntimeError(result.stderr)
    return str(result.stdout)


def ready(task: Task) -> Answer:
    began = time.monotonic()
    environment = DockerREPL(image=IMAGE)
    run(environment, "pass")
    seconds = time.monotonic() - began
    environment.cleanup()
    return Answer([seconds])


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
    """Time the loading alone, after which the next cell has it: the cell that ours is timed with would cost as much again."""
    value = text()

    def work(environment: Any) -> Answer:
        began = time.monotonic()
        environment.load_context(value)
        seconds = time.monotonic() - began
        if int(run(environment, "print(len(context))")) != SIZE:
            raise RuntimeError("the context did not arrive whole")
        return Answer([seconds])

    return in_container(work)


def state(task: Task) -> Answer:
    def work(environment: Any) -> Answer:
        run(environment, HOLD)
        samples = []
        for _ in range(SLOW):
            began = time.monotonic()
            run(environment, "pass")
            samples.append(time.monotonic() - began)
        return Answer(samples)

    return in_container(work)


def printed(task: Task) -> Answer:
    def work(environment: Any) -> Answer:
        run(environment, "print('x' * 1000)")
        before = reset_peak()
        shown = run(environment, PRINT)
        return Answer(counts={"memory": peak() - before, "kept": len(shown)})

    return in_container(work)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RLM_DOCKER_WORKSPACE_DIR"] = folder
        serve({"ready": ready, "gap": gap, "calls": calls, "context": context, "state": state, "printed": printed})
