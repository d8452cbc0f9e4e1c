"""The columns' processes, which take turns on a quiet machine: every measure of a round, one column after the other."""

from __future__ import annotations

import asyncio
import json
import platform
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from measures import DEADLINE, Answer, Task
from tables import Figure

HERE = Path(__file__).resolve().parent
PATIENCE, LOOK, IDLE = 5.0, 0.25, 0.9
"""Seconds to wait for a quiet machine before each turn, seconds of one look, and the idle part that counts as quiet."""
PROC_STAT = Path("/proc/stat")


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


class Turns:
    """The turns of some rounds, and what they gave.

    Parameters
    ----------
    plan
        Measure -> its columns, in the order of their turns.

    Attributes
    ----------
    figures
        Measure -> column -> figure.
    busy
        How many turns began although something else kept the machine busy.
    """

    def __init__(self, plan: Mapping[str, tuple[str, ...]], rounds: int) -> None:
        self._plan, self._rounds = plan, rounds
        self.figures = {title: {name: Figure() for name in names} for title, names in plan.items()}
        self.busy = 0

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Give measure and column of each turn, and say on stderr which it is."""
        for number in range(self._rounds):
            for title, names in self._plan.items():
                for name in names:
                    line = f"round {number + 1} of {self._rounds}: {title}, {name}"
                    print(f"\r{line}".ljust(60), end="", file=sys.stderr, flush=True)
                    yield title, name
        print("\r".ljust(61) + "\r", end="", file=sys.stderr, flush=True)

    async def take(self, title: str, name: str, ask: Callable[[], Awaitable[Answer]]) -> None:
        """Take a turn, when the machine is quiet."""
        self.busy += not await quiet()
        answer = await ask()
        self.figures[title][name].samples += answer.samples
        self.figures[title][name].counts.append(answer.counts)


async def scripted_server() -> tuple[Worker, str]:
    """Start the server that stands for the LM; its process, and its address."""
    server = await Worker.start(sys.executable, "server.py", "the scripted server")
    return server, f"http://127.0.0.1:{int(await server.line())}"


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
