"""A process in a sandbox: the entry point, or what `Sandbox.exec` started."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from tests.modal_local.boxes import Box
from tests.modal_local.streams import Input, Output, pipe


class Process:
    """Its three streams, and how it ended: an exit code, or minus a signal."""

    def __init__(self, output: Output, errors: Output, given: Input) -> None:
        self.output, self.errors, self.given = output, errors, given
        self.code: int | None = None
        self.over = asyncio.Event()

    def ended(self, code: int) -> None:
        if not self.over.is_set():
            self.code = code
            self.given.close()
            self.over.set()


class Exec(Process):
    """A process that was started in a box that runs already."""

    def __init__(self, output: Output, errors: Output, given: Input, entering: asyncio.subprocess.Process) -> None:
        super().__init__(output, errors, given)
        self._entering = entering
        self._limit: asyncio.TimerHandle | None = None
        self._waiting = asyncio.create_task(self._wait())

    @classmethod
    async def start(cls, box: Box, argv: Sequence[str], env: dict[str, str], cwd: str, seconds: int) -> Exec:
        """Start a command; it is killed after so many seconds, if any are given."""
        stdin, stdout, stderr = pipe(), pipe(), pipe()
        try:
            entering = await asyncio.create_subprocess_exec(
                *box.entering(argv, cwd), stdin=stdin[0], stdout=stdout[1], stderr=stderr[1], env=env
            )
        except BaseException:
            for fd in (stdin[1], stdout[0], stderr[0]):
                os.close(fd)
            raise
        finally:
            for fd in (stdin[0], stdout[1], stderr[1]):
                os.close(fd)
        output, errors = Output(), Output()
        output.attach(stdout[0])
        errors.attach(stderr[0])
        process = cls(output, errors, Input(stdin[1]), entering)
        if seconds:
            process._limit = asyncio.get_running_loop().call_later(seconds, process.kill)
        return process

    def kill(self) -> None:
        """Kill the command. What it has started goes on, as with any other kill."""
        for pid in _children(self._entering.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)

    async def _wait(self) -> None:
        code = await self._entering.wait()
        if self._limit is not None:
            self._limit.cancel()
        self.ended(code)


def _children(pid: int) -> list[int]:
    """Give the children of a process: those of `nsenter` are in the box."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
