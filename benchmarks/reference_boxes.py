"""What the reference implementation's columns do alike in containers and in sandboxes: an environment, and its cells.

Runs inside `.bench-venv`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from measures import Answer

Make = Callable[[], Any]


def run(environment: Any, code: str) -> str:
    result = environment.execute_code(code)
    if result.stderr:
        raise RuntimeError(result.stderr)
    return str(result.stdout)


def in_box(make: Make, work: Callable[[Any], Answer]) -> Answer:
    """Do `work` with an environment of its own, which is not part of what is measured."""
    environment = make()
    try:
        run(environment, "pass")
        return work(environment)
    finally:
        environment.cleanup()


def ready(make: Make) -> Answer:
    """Time an environment from nothing until its first cell has run."""
    began = time.monotonic()
    environment = make()
    run(environment, "pass")
    seconds = time.monotonic() - began
    environment.cleanup()
    return Answer([seconds])


def trivial_cells(environment: Any, count: int) -> Answer:
    samples = []
    for _ in range(count):
        began = time.monotonic()
        run(environment, "pass")
        samples.append(time.monotonic() - began)
    return Answer(samples)


def load(environment: Any, text: str) -> float:
    """Time the loading alone, after which the next cell has it: the cell that ours is timed with would cost as much again."""
    began = time.monotonic()
    environment.load_context(text)
    seconds = time.monotonic() - began
    if int(run(environment, "print(len(context))")) != len(text):
        raise RuntimeError("the context did not arrive whole")
    return seconds
