"""Measure rlm_jupyter in sandboxes at Modal beside the reference implementation there, in one run, and print one table.

    python benchmarks/modal_run.py [--quick] [--docs FILE]

All columns use the unmodified `modal` package against the local control plane of the tests (tests/modal_local), in a process
of its own: no figure here was measured at the real service, whose machines, images and network take longer. Delays are put on
the bytes of all connections to it. Columns take turns as in run.py; where there can be no sandbox it says so.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path

from columns import HERE, Turns, Worker, scripted_server
from measures import Answer, Task
from modal_cells import BATCH, IDLE, SIZES, THREADS
from reference_venv import reference_python
from tables import FLOOR, OURS, THEIRS, Figure, Row, machine, ms, text, write_docs

sys.path.insert(0, str(HERE.parent))
from tests.modal_local import boxes
from tests.modal_local.plane import LocalModal

SLOW = 0.025
"""Seconds that every byte takes each way in the measures that are named after it."""
BOTH, ALL = (OURS, THEIRS), (OURS, THEIRS, FLOOR)
PLAN: tuple[tuple[str, tuple[str, ...], str, float, float], ...] = (
    ("ready", BOTH, "ready", 0.0, 0.0),
    ("cells", BOTH, "cells", 0.0, 0.0),
    ("calls", ALL, "calls", 0.0, 0.0),
    ("slow calls", ALL, "calls", 0.0, SLOW),
    ("threads", BOTH, "threads", 1.0, 0.0),
    ("batch", BOTH, "batch", 0.1, 0.0),
    *((f"context {size}", ALL, f"context {size}", 0.0, 0.0) for size in SIZES),
    ("idle", BOTH, "idle", 0.0, 0.0),
)
"""Title, columns, measure, seconds of a sub-call, seconds of a byte's way."""


def with_modal(python: Path) -> Path:
    """Put our version of the package modal, and what `rlms` needs beside it, into its virtual environment."""
    look = "import importlib.metadata as m, requests; print(m.version('modal'))"
    found = subprocess.run([python, "-c", look], capture_output=True, text=True, check=False).stdout.strip()
    if found != version("modal"):
        packages = [f"modal=={version('modal')}", "requests", "dill"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], check=True)
    return python


async def measure(plane: LocalModal, theirs: Path, rounds: int) -> Turns:
    server, url = await scripted_server()
    columns = {
        OURS: await Worker.start(sys.executable, "modal_ours.py", OURS),
        THEIRS: await Worker.start(theirs, "modal_reference.py", THEIRS),
        FLOOR: await Worker.start(sys.executable, "modal_floor.py", FLOOR),
    }
    turns = Turns({title: names for title, names, *_ in PLAN}, rounds)
    tasks = {title: (way, Task(task, url, latency=latency)) for title, _, task, latency, way in PLAN}
    try:
        for name in ALL:  # the first use of the package and of a connection is not part of what is measured
            await columns[name].ask(Task("ready" if name in BOTH else "calls", url))
        for title, name in turns:
            way, task = tasks[title]
            await turns.take(title, name, partial(_at, plane, way, columns[name], task))
    finally:
        for worker in (*columns.values(), server):
            await worker.close()
    return turns


async def _at(plane: LocalModal, way: float, column: Worker, task: Task) -> Answer:
    with ExitStack() as stack:
        if way:
            for faults in (plane.sdk, plane.tunnels):
                stack.enter_context(faults.delayed(way))
        return await column.ask(task)


def rows(figures: dict[str, dict[str, Figure]]) -> list[Row]:
    """Set the figures side by side with the ratios and what they are to be."""
    slow = f"{ms(SLOW)} ms each way"
    table = [
        _beside("sandbox ready, image there", figures["ready"], "rlms", 0.5),
        _beside("trivial cell", figures["cells"], "rlms", 1 / 15),
        _beside("llm_query, instant LM", figures["calls"], "rlms", 1 / 40),
        _beside(f"llm_query, instant LM, {slow}", figures["slow calls"], "floor", 1.1),
        _ideal(f"{THREADS} threads, a sub-call of 1 s each", figures["threads"], 1.0, 1.2),
        _ideal(f"batch of {BATCH} sub-calls of 100 ms", figures["batch"], 0.1, None),
        *(_beside(f"context of {size} usable", figures[f"context {size}"], "floor", 2.0) for size in SIZES),
    ]
    for place, title in enumerate(("host", "sandbox")):
        ours, theirs = (statistics.median(figures["idle"][name].samples[place::2]) for name in BOTH)
        shown = f"{ours * 100:.2f} %", f"{theirs * 100:.2f} %"
        # A clock that ticks 100 times a second may have seen nothing.
        ratio, other = (max(part / 0.01, 0.01) for part in (ours, theirs))
        table.append(Row(f"idle for {IDLE:.0f} s, processor of the {title}", *shown, "", "1 %", ratio, other, 1.0))
    return table


def _beside(title: str, figure: dict[str, Figure], against: str, aim: float | None) -> Row:
    ours, theirs, floor = figure[OURS], figure[THEIRS], figure.get(FLOOR)
    seconds = floor.median if against == "floor" and floor is not None else theirs.median
    failed = not theirs.samples
    other = None if failed else theirs.median / seconds
    shown = "fails" if failed else str(theirs)
    return Row(title, str(ours), shown, "" if floor is None else str(floor), against, ours.median / seconds, other, aim)


def _ideal(title: str, figure: dict[str, Figure], seconds: float, aim: float | None) -> Row:
    ours, theirs = figure[OURS], figure[THEIRS]
    return Row(title, str(ours), str(theirs), "", "ideal", ours.median / seconds, theirs.median / seconds, aim)


def main() -> int:
    parser = argparse.ArgumentParser(description="rlm_jupyter and the reference implementation, each in sandboxes at Modal")
    parser.add_argument("--quick", action="store_true", help="1 round instead of 3")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table into this page (docs/benchmarks.md)")
    options = parser.parse_args()
    if why := boxes.why_missing():
        print(f"nothing was measured in sandboxes: {why}")
        return 0
    rounds = 1 if options.quick else 3
    theirs = with_modal(reference_python())  # before the plane's certificates are those of this process
    with LocalModal() as plane:
        os.environ.update(plane.environment)
        turns = asyncio.run(measure(plane, theirs, rounds))
    place = f"modal {version('modal')} in all columns, against the local control plane of tests/modal_local"
    drawn = text(rows(turns.figures), [*machine(rounds, turns.busy), place])
    print(drawn, end="")
    if options.docs:
        write_docs(options.docs, drawn, "sandboxes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
