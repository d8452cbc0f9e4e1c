"""One run of another program: bounded output, a deadline, and an end that another thread can order.

The programs are command-line clients (Docker's, pip). They run in a session of their own, so that an interrupt typed in a
terminal reaches us and not them: we decide how they end. What they write is kept up to a cap; a flood ends them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO

from rlm_jupyter.errors import RunStopped
from rlm_jupyter.settings import MIB

OUT_CAP = 64 * MIB
ERR_CAP = 64 * 1024
_GRACE = 2.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended. `late`: its deadline ended it. `flooded`: its output did."""

    code: int
    stdout: bytes
    stderr: str
    late: bool
    flooded: bool


class Stop:
    """Ends the commands that were started with it, now and later, from whatever thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._commands: set[Command] = set()
        self.is_set = False

    def set(self) -> None:
        with self._lock:
            self.is_set = True
            commands = list(self._commands)
        for command in commands:
            command.kill()

    def add(self, command: Command) -> None:
        with self._lock:
            self._commands.add(command)
            stopped = self.is_set
        if stopped:
            command.kill()

    def remove(self, command: Command) -> None:
        with self._lock:
            self._commands.discard(command)

    def check(self) -> None:
        """Raise RunStopped when the end has been ordered."""
        if self.is_set:
            raise RunStopped("stopped while the image was being prepared")


class Command:
    """A started program. As a context manager it leaves no process behind.

    Parameters
    ----------
    argv
        The program and its arguments; no shell.
    seconds
        The deadline of the whole: then it is killed, and `wait` says that it was late.
    stdin
        A file, `subprocess.PIPE` (then `stdin` is where to write), or None for nothing.

    Raises
    ------
    OSError
        When the program cannot be started.
    """

    def __init__(
        self, argv: Sequence[str], *, seconds: float, stdin: IO[bytes] | int | None = None, cwd: str | None = None,
        env: Mapping[str, str] | None = None, stop: Stop | None = None,
    ) -> None:  # fmt: skip
        self._stop = stop
        if stop is not None:
            stop.check()
        self._process = subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL if stdin is None else stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=cwd, env=None if env is None else dict(env), start_new_session=True,
        )  # fmt: skip
        self.stdin = self._process.stdin
        self._until = time.monotonic() + seconds
        self._late = self._flooded = False
        self._out = bytearray()
        self._err = bytearray()
        self._changed = threading.Condition()
        self._open = True
        self._readers = [threading.Thread(target=self._read, args=part, daemon=True) for part in ((1,), (2,))]
        for reader in self._readers:
            reader.start()
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True
        self._timer.start()
        if stop is not None:
            stop.add(self)

    def __enter__(self) -> Command:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.running():
            self.kill()
        self._close()

    def lines(self, first: float | None = None) -> Iterator[str]:
        """Give the lines of its output as they come; kill it when the first one takes longer than `first` seconds."""
        done = 0
        started = time.monotonic()
        while True:
            with self._changed:
                while b"\n" not in self._out[done:] and self._open:
                    wait = self._until + _GRACE - time.monotonic()
                    if first is not None and done == 0:
                        wait = min(wait, started + first - time.monotonic())
                    if wait <= 0 or not self._changed.wait(wait):
                        self._expire()
                        return
                end = self._out.find(b"\n", done)
                last = end < 0
                line, done = bytes(self._out[done : None if last else end]), len(self._out) if last else end + 1
            if line:
                yield line.decode("utf-8", "replace")
            if last:
                return

    def wait(self) -> Ended:
        """Wait for its end, which the deadline bounds; RunStopped when it was ordered."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, self._until - time.monotonic()) + _GRACE)
        if self.running():
            self._expire()
            self._process.wait(_GRACE)
        for reader in self._readers:
            reader.join(_GRACE)
        self._timer.cancel()
        if self._stop is not None:
            self._stop.check()
        stderr = bytes(self._err).decode("utf-8", "replace")
        return Ended(self._process.returncode, bytes(self._out), stderr, self._late, self._flooded)

    def running(self) -> bool:
        return self._process.poll() is None

    def ends_within(self, seconds: float) -> bool:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """Kill it and what it started."""
        if self._process.returncode is not None:
            return
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()

    def _expire(self) -> None:
        if self.running():
            self._late = True
            self.kill()

    def _read(self, fd: int) -> None:
        """Read one of its streams to the end: standard output from its head, standard error its tail."""
        stream = self._process.stdout if fd == 1 else self._process.stderr
        assert stream is not None
        with contextlib.suppress(OSError, ValueError):
            while data := os.read(stream.fileno(), 65536):
                with self._changed:
                    if fd == 2:
                        self._err += data
                        del self._err[:-ERR_CAP]
                    elif len(self._out) + len(data) <= OUT_CAP:
                        self._out += data
                    else:
                        self._flooded = True
                    self._changed.notify_all()
                if self._flooded:
                    self.kill()
        with self._changed:
            self._open = self._open and fd == 2
            self._changed.notify_all()

    def _close(self) -> None:
        self._timer.cancel()
        if self._stop is not None:
            self._stop.remove(self)
        self.ends_within(_GRACE)
        for reader in self._readers:
            reader.join(_GRACE)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
