"""Measure rlm_jupyter, the reference implementation and the floor side by side, in one run, and print one table.

    python benchmarks/run.py [--quick] [--json FILE] [--docs FILE]

The columns take turns, round by round, against one scripted server in a process of its own. The reference
implementation gets a virtual environment of its own, `.bench-venv`, made here on the first run. No figure is kept from
an earlier run and none is written by hand: `--docs` replaces the table in a page by the one just printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from columns import Turns, Worker, scripted_server
from measures import CHILD_ITERATIONS, CHILDREN, CONCURRENCY, Task
from reference_venv import reference_python
from tables import FLOOR, OURS, THEIRS, Figure, Row, machine, ms, text, write_docs

SUB_CALL = 0.05
"""Seconds of a sub-call in the batches."""
BATCHES = (256, 1000)


async def measure(rounds: int) -> Turns:
    server, url = await scripted_server()
    columns = {
        OURS: await Worker.start(sys.executable, "ours.py", OURS),
        THEIRS: await Worker.start(reference_python(), "reference.py", THEIRS),
        FLOOR: await Worker.start(sys.executable, "floor.py", FLOOR),
    }
    every = (OURS, THEIRS, FLOOR)
    plan: list[tuple[str, tuple[str, ...], Task]] = [
        ("spare", (OURS,), Task("spare", url)),
        ("forked", (OURS,), Task("forked", url)),
        ("nothing warm", (OURS,), Task("nothing_warm", url)),
        ("cold", every, Task("cold", url)),
        ("gap", every, Task("gap", url)),
        ("calls", every, Task("calls", url)),
        *((f"batch {size}", every, Task("batch", url, size, SUB_CALL)) for size in BATCHES),
        ("children", (OURS, FLOOR), Task("children", url, latency=SUB_CALL)),
        ("large", (OURS, THEIRS), Task("large", url)),
        ("interrupt", every, Task("interrupt", url)),
    ]
    turns = Turns({title: names for title, names, _ in plan}, rounds)
    tasks = {title: task for title, _, task in plan}
    try:
        for title, name in turns:
            await turns.take(title, name, partial(columns[name].ask, tasks[title]))
    finally:
        for worker in (*columns.values(), server):
            await worker.close()
    return turns


def rows(figures: dict[str, dict[str, Figure]]) -> list[Row]:
    """Set the figures side by side with the ratios and what they are to be."""
    cold = figures["cold"]
    ready = {
        "a spare kernel": (figures["spare"][OURS], 1 / 30),
        "a forked kernel": (figures["forked"][OURS], 1 / 10),
        "a cold kernel": (cold[OURS], None),
        "nothing warm": (figures["nothing warm"][OURS], None),
    }
    table = [
        _against(f"environment ready, {title}", {**cold, OURS: ours}, "floor", cold[FLOOR].median, aim)
        for title, (ours, aim) in ready.items()
    ]
    gap, calls, interrupt = figures["gap"], figures["calls"], figures["interrupt"]
    direct = calls[FLOOR].median
    table.append(_against("gap per iteration", gap, "floor", gap[FLOOR].median, 1.4))
    table.append(_against("llm_query, instant LM", calls, "floor", direct, None))
    ours, theirs = calls[OURS].median - direct, calls[THEIRS].median - direct
    table.append(Row("llm_query over a direct call", ms(ours), ms(theirs), "", "rlms", ours / theirs, 1.0, 1 / 2))
    for size in BATCHES:
        batch, ideal = figures[f"batch {size}"], math.ceil(size / CONCURRENCY) * SUB_CALL
        title = f"{size:,} sub-calls of {ms(SUB_CALL)} ms at {CONCURRENCY} (ideal {ms(ideal)})"
        table.append(_against(title, batch, "ideal", ideal, 1.2))
    children, ideal = figures["children"], (2 + CHILD_ITERATIONS) * SUB_CALL
    title = f"{CHILDREN} children of {CHILD_ITERATIONS} iterations, LM {ms(SUB_CALL)} ms (ideal {ms(ideal)})"
    ours = children[OURS].median / ideal
    table.append(Row(title, str(children[OURS]), "", str(children[FLOOR]), "ideal", children[OURS].median / ideal, None, 1.8))
    large = figures["large"]
    ours, theirs = large[OURS].median, large[THEIRS].median
    table.append(Row("FINAL_VAR of 10 MB", str(large[OURS]), str(large[THEIRS]), "", "rlms", ours / theirs, 1.0, 1 / 2))
    table.append(_against("interrupt of an endless cell", interrupt, "floor", interrupt[FLOOR].median, None))
    return table


def _against(title: str, figure: dict[str, Figure], against: str, seconds: float, aim: float | None) -> Row:
    ours, theirs, floor = (figure[name] for name in (OURS, THEIRS, FLOOR))
    ratios = ours.median / seconds, theirs.median / seconds
    return Row(title, str(ours), str(theirs), str(floor), against, *ratios, aim)


def save(path: Path, head: list[str], table: list[Row], figures: dict[str, dict[str, Figure]]) -> None:
    data: dict[str, Any] = {
        "machine": head,
        "rows": [asdict(row) for row in table],
        "figures": {title: {name: asdict(figure) for name, figure in names.items()} for title, names in figures.items()},
    }
    path.write_text(json.dumps(data, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="rlm_jupyter, the reference implementation and the floor, side by side")
    parser.add_argument("--quick", action="store_true", help="2 rounds instead of 7")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to FILE too")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table into this page (docs/benchmarks.md)")
    options = parser.parse_args()
    rounds = 2 if options.quick else 7
    reference_python()
    turns = asyncio.run(measure(rounds))
    head, table = machine(rounds, turns.busy), rows(turns.figures)
    drawn = text(table, head)
    print(drawn, end="")
    if options.json:
        save(options.json, head, table, turns.figures)
    if options.docs:
        write_docs(options.docs, drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())
