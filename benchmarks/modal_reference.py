"""The reference implementation's column in sandboxes at Modal: `rlms` with its Modal environment, as its users run it.

Runs inside `.bench-venv`, with the same version of the `modal` package as ours.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from measures import Answer, Server, Task, serve
from modal_cells import CELLS, IDLE, OF_ALL, SIZES, TIMES, Usage, script_of, text
from reference import FINAL, rlm
from reference_boxes import in_box, load, run, trivial_cells
from reference_boxes import ready as box_ready
from rlm.environments.modal_repl import ModalREPL  # type: ignore[import-not-found,unused-ignore]

MAKE = partial(ModalREPL, lm_handler_address=("127.0.0.1", 9))
"""Its calls somebody would answer."""


def ready(task: Task) -> Answer:
    return box_ready(MAKE)


def cells(task: Task) -> Answer:
    return in_box(MAKE, lambda environment: trivial_cells(environment, CELLS))


def calls(task: Task) -> Answer:
    Server(task.url).script(script_of(task, FINAL), task.latency)
    answer = rlm(task.url, environment="modal", environment_kwargs={}).completion("A text.")
    numbers: list[float] = json.loads(answer.response)
    return Answer(numbers)


def context(size: str) -> Callable[[Task], Answer]:
    def measure(task: Task) -> Answer:
        """Time the loading; a context that does not arrive is counted as failed."""
        value = text(SIZES[size])

        def work(environment: Any) -> Answer:
            samples = []
            for _ in range(TIMES[size]):
                try:
                    samples.append(load(environment, value))
                except Exception:
                    return Answer([], {"failed": 1})
            return Answer(samples)

        return in_box(MAKE, work)

    return measure


def idle(task: Task) -> Answer:
    def work(environment: Any) -> Answer:
        time.sleep(1)
        usage = Usage(float(run(environment, OF_ALL)))
        time.sleep(IDLE)
        return Answer(list(usage.parts(float(run(environment, OF_ALL)))))

    return in_box(MAKE, work)


if __name__ == "__main__":
    contexts = {f"context {size}": context(size) for size in SIZES}
    serve({"ready": ready, "cells": cells, "idle": idle, **dict.fromkeys(("calls", "threads", "batch"), calls), **contexts})
