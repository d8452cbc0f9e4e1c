"""The reference implementation's column in sandboxes at Modal: `rlms` with its Modal environment, as its users run it.

Runs inside `.bench-venv`, with the same version of the `modal` package as ours.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from measures import Answer, Server, Task, serve
from modal_cells import CELLS, IDLE, OF_ALL, SIZES, TIMES, Usage, script_of, text
from reference import FINAL, rlm
from rlm.environments.modal_repl import ModalREPL  # type: ignore[import-not-found,unused-ignore]


def in_sandbox(work: Callable[[Any], Answer]) -> Answer:
    """Do `work` with a sandbox of its own, whose calls somebody would answer; it is not part of what is measured."""
    environment = ModalREPL(lm_handler_address=("127.0.0.1", 9))
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
    environment = ModalREPL(lm_handler_address=("127.0.0.1", 9))
    run(environment, "pass")
    seconds = time.monotonic() - began
    environment.cleanup()
    return Answer([seconds])


def cells(task: Task) -> Answer:
    def work(environment: Any) -> Answer:
        samples = []
        for _ in range(CELLS):
            began = time.monotonic()
            run(environment, "pass")
            samples.append(time.monotonic() - began)
        return Answer(samples)

    return in_sandbox(work)


def asked(task: Task) -> Answer:
    Server(task.url).script(script_of(task, FINAL), task.latency)
    answer = rlm(task.url, environment="modal", environment_kwargs={}).completion("A text.")
    numbers: list[float] = json.loads(answer.response)
    return Answer(numbers)


def context(size: str) -> Callable[[Task], Answer]:
    def measure(task: Task) -> Answer:
        """Time the loading alone, after which the next cell has it; a context that does not arrive is counted as failed."""
        value = text(SIZES[size])

        def work(environment: Any) -> Answer:
            samples = []
            for _ in range(TIMES[size]):
                began = time.monotonic()
                try:
                    environment.load_context(value)
                    seconds = time.monotonic() - began
                    if int(run(environment, "print(len(context))")) != SIZES[size]:
                        raise RuntimeError("the context did not arrive whole")
                except Exception:
                    return Answer([], {"failed": 1})
                samples.append(seconds)
            return Answer(samples)

        return in_sandbox(work)

    return measure


def idle(task: Task) -> Answer:
    def work(environment: Any) -> Answer:
        time.sleep(1)
        usage = Usage(float(run(environment, OF_ALL)))
        time.sleep(IDLE)
        return Answer(list(usage.parts(float(run(environment, OF_ALL)))))

    return in_sandbox(work)


if __name__ == "__main__":
    contexts = {f"context {size}": context(size) for size in SIZES}
    serve({"ready": ready, "cells": cells, "idle": idle, **dict.fromkeys(("calls", "threads", "batch"), asked), **contexts})
