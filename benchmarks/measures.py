"""What is measured, in words that all columns share: the cells, the talk with the scripted server, the worker's loop.

A column is a worker: a process that reads one JSON task per line on stdin and writes one JSON answer per line. The
columns take turns, so that a slow minute of the machine falls on all of them. Standard library only: the
reference implementation's worker runs it in another virtual environment.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT, SUB, CHILD = "root", "sub", "child"
"""Models of the scripted server: `root` follows the script, `sub` replies `ok`, `child` has three turns to its answer."""
CHILDREN, CHILD_ITERATIONS = 8, 3
ITERATIONS = 12
"""Trivial cells of one run of the gap, each followed by a next request."""
CALLS, WARM_UP = 200, 10
"""Calls of `llm_query` in one cell, and how many of the first ones do not count."""
CONCURRENCY = 64
"""Sub-calls under way at once, where that can be set."""
TRIVIAL = "One step further.\n\n```repl\npass\n```"
LARGE = 10_000_000
"""Characters of the large answer."""
LARGE_CELL = f"made = 'x' * {LARGE}"
LARGE_TIMES = 6
"""Large answers handed over in one turn; the first does not count."""
DEADLINE = 120.0
"""Seconds that anything here may take."""


@dataclass(frozen=True, slots=True)
class Task:
    """One turn of a column: what to measure, against the server at `url`; `size` is the number of sub-calls."""

    measure: str
    url: str
    size: int = 0
    latency: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """Seconds measured, and counts that belong to them (`failed`, `peak`)."""

    samples: list[float] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    error: str = ""


def block(code: str) -> str:
    """Give a model's reply that holds `code`."""
    return f"```repl\n{code}\n```"


def calls_cell(calls: int = CALLS, warm_up: int = WARM_UP) -> str:
    """Give a cell that leaves the seconds of each `llm_query` in `measured`."""
    return f"""import time
measured = []
for _ in range({calls + warm_up}):
    began = time.perf_counter()
    reply = llm_query("How is the weather in the text?")
    measured.append(time.perf_counter() - began)
    assert reply == "ok", reply
measured = measured[{warm_up}:]"""


def batch_cell(size: int) -> str:
    """Give a cell that leaves the seconds of one batch and its failed items in `measured`."""
    return f"""import time
prompts = [f"How is the weather in piece {{n}}?" for n in range({size})]
began = time.perf_counter()
replies = llm_query_batched(prompts)
seconds = time.perf_counter() - began
measured = [seconds, sum(reply != "ok" for reply in replies) + {size} - len(replies)]"""


def endless_cell(stamp: Path) -> str:
    """Give a cell that never ends, and sends SIGINT to this process from a timer, leaving the moment in the file `stamp`."""
    return f"""import os, threading, time
def press():
    with open({str(stamp)!r}, "w") as file:
        file.write(str(time.monotonic()))
    os.kill({os.getpid()}, {int(signal.SIGINT)})
threading.Timer(0.3, press).start()
while True:
    pass"""


def interrupted(run: Callable[[str], object]) -> Answer:
    """Run the endless cell by `run`, which comes back by an exception or a return; give the seconds since the SIGINT."""
    with tempfile.TemporaryDirectory() as folder:
        stamp = Path(folder) / "stamp"
        back = 0.0
        try:
            run(endless_cell(stamp))
        except BaseException:
            back = time.monotonic()
            if not stamp.exists():
                raise
        back = back or time.monotonic()
        return Answer([back - float(stamp.read_text())])


class Server:
    """The scripted server as its clients steer it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def script(self, replies: list[str], latency: float = 0.0, root_latency: float = 0.0) -> None:
        body = json.dumps({"replies": replies, "latency": latency, "root_latency": root_latency}).encode()
        urllib.request.urlopen(urllib.request.Request(self.url + "/script", data=body), timeout=DEADLINE).close()

    def log(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(self.url + "/log", timeout=DEADLINE) as reply:
            entries: list[dict[str, Any]] = json.load(reply)
        return entries

    def gaps(self) -> list[float]:
        """Give the seconds between each reply of the root model and the next request to it."""
        root = [entry for entry in self.log() if entry["model"] == ROOT]
        return [after["arrived"] - before["replied"] for before, after in itertools.pairwise(root)]

    def peak(self) -> int:
        """Give how many sub-calls were under way at once, at most."""
        calls = [entry for entry in self.log() if entry["model"] != ROOT]
        moments = sorted([(entry["arrived"], 1) for entry in calls] + [(entry["replied"], -1) for entry in calls])
        under_way = peak = 0
        for _, change in moments:
            under_way += change
            peak = max(peak, under_way)
        return peak


def handed_over(answer: Callable[[], str | None]) -> Answer:
    """Time how long `answer` takes to run the cell that gives the large answer, and to have all of it on the host."""
    samples = []
    for _ in range(LARGE_TIMES):
        began = time.perf_counter()
        text = answer()
        samples.append(time.perf_counter() - began)
        if text is None or len(text) != LARGE:
            raise RuntimeError("the large answer did not arrive whole")
    return Answer(samples[1:])


def gap_script(final: str) -> list[str]:
    return [TRIVIAL] * ITERATIONS + [block(final)]


def checked_gaps(server: Server) -> Answer:
    gaps = server.gaps()
    if len(gaps) != ITERATIONS:
        raise RuntimeError(f"{len(gaps)} gaps at the server instead of {ITERATIONS}")
    return Answer(gaps)


def batch_answer(server: Server, measured: list[float]) -> Answer:
    return Answer(measured[:1], {"failed": int(measured[1]), "peak": server.peak()})


def serve(measures: Mapping[str, Callable[[Task], Answer]]) -> None:
    """Answer tasks until stdin ends. What the measured code prints goes to stderr.

    SIGINT interrupts, also where a shell started the benchmarks in the background and had it ignored.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        task = Task(**json.loads(line))
        timer = threading.Timer(DEADLINE, _overdue, (task,))
        timer.daemon = True
        timer.start()
        try:
            answer = measures[task.measure](task)
        except Exception:
            answer = Answer(error=traceback.format_exc())
        timer.cancel()
        out.write(json.dumps(asdict(answer)) + "\n")
        out.flush()


def _overdue(task: Task) -> None:
    print(f"{task.measure}: no end after {DEADLINE:.0f} s", file=sys.stderr, flush=True)
    os._exit(1)
