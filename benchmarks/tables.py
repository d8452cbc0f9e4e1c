"""Figures, the rows that set them side by side, and the table that is printed and put into docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
import statistics
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from reference_venv import REFERENCE

OURS, THEIRS, FLOOR = "ours", f"rlms {REFERENCE}", "floor"
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
        return f"{ms(self.median)} ({ms(low)}-{ms(high)}){note}"


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


def ms(seconds: float) -> str:
    """Write milliseconds, with as many digits as one reads."""
    value = seconds * 1000
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


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
