"""What the columns in sandboxes at Modal measure: cells and sizes that all of them share. Standard library only."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from measures import Task, block, calls_cell

CALLS, WARM_UP = 40, 5
CELLS = 20
"""Trivial cells timed in one turn."""
THREADS = 16
BATCH = 64
SIZES = {"40 KB": 40_000, "1 MB": 1_000_000, "100 MB": 100_000_000}
TIMES = {"40 KB": 5, "1 MB": 5, "100 MB": 1}
"""Contexts by name, and how often each is handed over in one turn."""
IDLE = 20.0
"""Seconds of one look at an idle sandbox."""
OF_ALL = """import os
total = 0
for name in os.listdir("/proc"):
    if name.isdecimal() and int(name) != os.getpid():
        with open(f"/proc/{name}/stat") as file:
            total += sum(map(int, file.read().rpartition(")")[2].split()[11:13]))
print(total / os.sysconf("SC_CLK_TCK"))"""
"""Prints the processor seconds that all processes of the sandbox but the asking one have taken."""


def threads_cell() -> str:
    return f"""import time
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor({THREADS}) as pool:
    assert list(pool.map(llm_query, ["Warm up."] * {THREADS})) == ["ok"] * {THREADS}
    began = time.perf_counter()
    replies = list(pool.map(llm_query, [f"How is piece {{n}}?" for n in range({THREADS})]))
    measured = [time.perf_counter() - began]
assert replies == ["ok"] * {THREADS}, replies"""


def batch_cell() -> str:
    return f"""import time
began = time.perf_counter()
replies = llm_query_batched([f"How is the weather in piece {{n}}?" for n in range({BATCH})])
measured = [time.perf_counter() - began]
assert list(replies) == ["ok"] * {BATCH}, replies"""


CELL: dict[str, Callable[[], str]] = {
    "calls": partial(calls_cell, CALLS, WARM_UP),
    "threads": threads_cell,
    "batch": batch_cell,
}


def script_of(task: Task, final: str) -> list[str]:
    return [block(CELL[task.measure]() + final)]


def text(size: int) -> str:
    """Give a context of so many bytes whose lines differ, in ASCII."""
    return "".join(f"{number:09d}\n" for number in range(size // 10))


class Usage:
    """Processor seconds of this process and of a sandbox, from now on."""

    def __init__(self, sandbox: float) -> None:
        self.began, self.host, self.sandbox = time.monotonic(), time.process_time(), sandbox

    def parts(self, sandbox: float) -> tuple[float, float]:
        """Give what both took since then, each as a part of one processor."""
        seconds = time.monotonic() - self.began
        return (time.process_time() - self.host) / seconds, (sandbox - self.sandbox) / seconds
