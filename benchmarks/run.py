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
import os
import platform
import statistics
import subprocess
import sys
import venv
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from measures import CHILD_ITERATIONS, CHILDREN, CONCURRENCY, DEADLINE, Answer, Task

HERE = Path(__file__).resolve().parent
BENCH_VENV = HERE.parent / ".bench-venv"
REFERENCE = "0.1.3"
SUB_CALL = 0.05
"""Seconds of a sub-call in the batches."""
BATCHES = (256, 1000)
OURS, THEIRS, FLOOR = "ours", f"rlms {REFERENCE}", "floor"
PATIENCE, LOOK, IDLE = 5.0, 0.25, 0.9
"""Seconds to wait for a quiet machine before each turn, seconds of one look, and the idle part that counts as quiet."""
PROC_STAT = Path("/proc/stat")
PACKAGES = ("openai", "aiohttp", "ipykernel", "jupyter_client", "pyzmq", "IPython")


@dataclass(slots=True)
class Figure:
    """What one column took for one measure, over all rounds, in seconds."""

    samples: list[float] = field(default_factory=list)
    counts: list[dict[str, int]] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def __str__(self) -> str:
        """Give the median and the quartiles in milliseconds, and what failed."""
        if len(self.samples) < 2:
            return f"{self.median * 1000:.2f}"
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        failed = sum(count.get("failed", 0) for count in self.counts)
        note = f", {failed} failed" if failed else ""
        return f"{_ms(self.median)} ({_ms(low)}-{_ms(high)}){note}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: `ratio` is ours to what `against` names, `aim` the most it should be (None: no aim is set)."""

    title: str
    ours: str
    theirs: str
    floor: str
    against: str
    ratio: float
    their_ratio: float | None
    aim: float | None

    @property
    def met(self) -> str:
        return "" if self.aim is None else ("yes" if self.ratio <= self.aim else "NO")


def _ms(seconds: float) -> str:
    value = seconds * 1000
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


class Worker:
    """A column's process, and one task at a time for it."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self.process, self.name = process, name

    @classmethod
    async def start(cls, python: Path | str, script: str, name: str) -> Worker:
        process = await asyncio.create_subprocess_exec(
            str(python),
            str(HERE / script),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            limit=2**26,
        )
        worker = cls(process, name)
        worker.errors = asyncio.create_task(worker._drain())
        return worker

    errors: asyncio.Task[bytes]

    async def _drain(self) -> bytes:
        """Read stderr to its end and keep the last of it, for when the worker dies."""
        assert self.process.stderr is not None
        kept = b""
        while data := await self.process.stderr.read(65536):
            kept = (kept + data)[-4000:]
        return kept

    async def line(self) -> bytes:
        assert self.process.stdout is not None
        text = await asyncio.wait_for(self.process.stdout.readline(), DEADLINE + 10)
        if not text:
            raise SystemExit(f"{self.name} ended: {(await self.errors).decode(errors='replace')}")
        return text

    async def ask(self, task: Task) -> Answer:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asdict(task)).encode() + b"\n")
        answer = Answer(**json.loads(await self.line()))
        if answer.error:
            raise SystemExit(f"{self.name}, {task.measure}: {answer.error}")
        return answer

    async def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), 20)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


def idle_part(before: list[int], after: list[int]) -> float:
    """Give the part of the time between two readings of `/proc/stat` in which the processors had nothing to do."""
    passed = [late - early for early, late in zip(before, after, strict=True)]
    return (passed[3] + passed[4]) / max(1, sum(passed))


async def quiet() -> bool:
    """Wait until nothing else keeps the machine busy, for `PATIENCE` at most; tell whether it is so (where /proc tells)."""

    def read() -> list[int]:
        return [int(number) for number in PROC_STAT.read_text().split("\n")[0].split()[1:9]]

    if platform.system() != "Linux":
        return True
    for _ in range(round(PATIENCE / LOOK)):
        before = read()
        await asyncio.sleep(LOOK)
        if idle_part(before, read()) >= IDLE:
            return True
    return False


def reference_python() -> Path:
    """Make `.bench-venv` if it is not there, and give its interpreter."""
    python = BENCH_VENV / ("Scripts" if os.name == "nt" else "bin") / "python"
    look = "import importlib.metadata as m; print(m.version('rlms'))"
    if python.exists():
        found = subprocess.run([python, "-c", look], capture_output=True, text=True, check=False).stdout.strip()
        if found == REFERENCE:
            return python
    print(f"installing rlms {REFERENCE} into {BENCH_VENV.name}", file=sys.stderr)
    venv.create(BENCH_VENV, with_pip=True, clear=True)
    packages = [
        f"rlms[ipython]=={REFERENCE}",
        *(f"{name}=={version(name)}" for name in ("openai", "ipykernel", "jupyter_client")),
    ]
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], check=True)
    return python


async def measure(rounds: int) -> tuple[dict[str, dict[str, Figure]], int]:
    """Give measure -> column -> figure, and how many turns began although something else kept the machine busy."""
    busy = 0
    server = await Worker.start(sys.executable, "server.py", "the scripted server")
    url = f"http://127.0.0.1:{int(await server.line())}"
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
    figures: dict[str, dict[str, Figure]] = {title: {name: Figure() for name in names} for title, names, _ in plan}
    try:
        for number in range(rounds):
            for title, names, task in plan:
                for name in names:
                    print(f"\rround {number + 1} of {rounds}: {title}, {name}".ljust(60), end="", file=sys.stderr, flush=True)
                    busy += not await quiet()
                    answer = await columns[name].ask(task)
                    figures[title][name].samples += answer.samples
                    figures[title][name].counts.append(answer.counts)
        print("\r".ljust(61) + "\r", end="", file=sys.stderr, flush=True)
    finally:
        for worker in (*columns.values(), server):
            await worker.close()
    return figures, busy


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
    table.append(Row("llm_query over a direct call", _ms(ours), _ms(theirs), "", "rlms", ours / theirs, 1.0, 1 / 2))
    for size in BATCHES:
        batch, ideal = figures[f"batch {size}"], math.ceil(size / CONCURRENCY) * SUB_CALL
        title = f"{size:,} sub-calls of {_ms(SUB_CALL)} ms at {CONCURRENCY} (ideal {_ms(ideal)})"
        table.append(_against(title, batch, "ideal", ideal, 1.2))
    children, ideal = figures["children"], (2 + CHILD_ITERATIONS) * SUB_CALL
    title = f"{CHILDREN} children of {CHILD_ITERATIONS} iterations, LM {_ms(SUB_CALL)} ms (ideal {_ms(ideal)})"
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


def _ratio(value: float | None) -> str:
    if value is None:
        return ""
    return f"1/{1 / value:.0f}" if value <= 1 / 3 else f"{value:.2f}"


def machine(rounds: int, busy: int) -> list[str]:
    """Say what this was measured on."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    head = [f"rlm-jupyter {version('rlm-jupyter')}; {system}; {rounds} rounds", packages]
    return head + ([f"{busy} turns ran while something else kept the machine busy"] if busy else [])


def text(table: list[Row], head: list[str]) -> str:
    """Draw the table."""
    columns = ["milliseconds: median (quartiles)", OURS, THEIRS, FLOOR, "ours", "rlms", "of", "aim", "met"]
    lines = [columns]
    for row in table:
        ratios = [
            _ratio(row.ratio),
            _ratio(row.their_ratio),
            row.against,
            "" if row.aim is None else f"<= {_ratio(row.aim)}",
            row.met,
        ]
        lines.append([row.title, row.ours, row.theirs, row.floor, *ratios])
    widths = [max(len(line[n]) for line in lines) for n in range(len(columns))]
    drawn = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    drawn.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*head, "", *drawn]) + "\n"


def write_docs(page: Path, table: str, name: str = "table") -> None:
    """Put `table` into the page's fenced block between the two comments of that name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = page.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{page} holds no {begin} ... {end}")
    page.write_text(f"{before}{begin}\n```\n{table}```\n{end}{after}")


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
    figures, busy = asyncio.run(measure(rounds))
    head, table = machine(rounds, busy), rows(figures)
    drawn = text(table, head)
    print(drawn, end="")
    if options.json:
        save(options.json, head, table, figures)
    if options.docs:
        write_docs(options.docs, drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())
