"""A process that an environment starts beside this one, a supervisor or a container's client: awaited, never polled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Awaitable, Mapping
from typing import IO, Any, TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")

LOG_CAP = 4096


class Child:
    """A process in a session of its own, so that an interrupt typed at the terminal does not reach it.

    `log` takes its standard error. `stdin` and `stdout` are as of Popen.
    """

    def __init__(
        self,
        argv: list[str],
        log: IO[bytes],
        *,
        stdin: int,
        stdout: int,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._log = log
        self.process = subprocess.Popen(
            argv, cwd=cwd, env=env, stdin=stdin, stdout=stdout, stderr=log, start_new_session=True
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def status(self) -> int | None:
        """The exit status, as of Popen; None while it runs."""
        return self.process.poll()

    async def exit(self) -> None:
        """Wait until it has ended."""
        process = self.process
        if process.poll() is not None:
            return
        if not hasattr(os, "pidfd_open"):
            await anyio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
            return
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        fd = os.pidfd_open(process.pid)
        loop.add_reader(fd, over.set)
        try:
            await over.wait()
        finally:
            loop.remove_reader(fd)
            os.close(fd)
        process.poll()

    async def or_exit(self, wanted: Awaitable[T]) -> T:
        """Await `wanted`, or raise EOFError when the process ends first."""
        work: asyncio.Future[T] = asyncio.ensure_future(wanted)
        exit_: asyncio.Future[Any] = asyncio.ensure_future(self.exit())
        try:
            await asyncio.wait({work, exit_}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            raise EOFError
        finally:
            # Both must be over before anybody closes what they use: a descriptor's number is given out again at once.
            for left in (work, exit_):
                left.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({work, exit_})

    def said(self) -> str:
        """Give the end of what it wrote on its standard error."""
        with contextlib.suppress(OSError, ValueError):
            size = self._log.seek(0, os.SEEK_END)
            return os.pread(self._log.fileno(), LOG_CAP, max(size - LOG_CAP, 0)).decode("utf-8", "replace").strip()
        return ""
