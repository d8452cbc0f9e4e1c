"""The kernel's `sys.stdout` and `sys.stderr`, directly on its descriptors 1 and 2, which are pipes to the supervisor.

So prints and subprocesses keep their order and nothing is dropped; what a cell closes or points elsewhere is put back.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any


class Stdio:
    """Both streams, and a spare copy of each one's descriptor."""

    def __init__(self) -> None:
        self._streams: list[Any] = []
        self._spare_fds: list[tuple[int, tuple[int, int]]] = []

    def take_over(self) -> None:
        """Put Python's streams on the descriptors."""
        for fd, name in ((1, "stdout"), (2, "stderr")):
            stream = getattr(sys, name)
            if type(stream).__module__ == "ipykernel.iostream":
                stream.close()
            copy = os.dup(fd)
            self._spare_fds.append((copy, _identity(copy)))
            self._streams.append(_text_stream(fd))
            setattr(sys, name, self._streams[-1])
            setattr(sys, f"__{name}__", self._streams[-1])

    def mend(self) -> None:
        """Put back streams and descriptors that a cell closed or pointed elsewhere."""
        for number, (fd, name) in enumerate(((1, "stdout"), (2, "stderr"))):
            copy, identity = self._spare_fds[number]
            if _identity(fd) != identity and _identity(copy) == identity:
                os.dup2(copy, fd)
            if self._streams[number].closed:
                self._streams[number] = _text_stream(fd)
            stream = getattr(sys, name, None)
            if not hasattr(stream, "write") or getattr(stream, "closed", False):
                setattr(sys, name, self._streams[number])

    def flush(self) -> None:
        """Write out what the streams hold, also where a cell has broken one."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()


def _identity(fd: int) -> tuple[int, int]:
    try:
        status = os.fstat(fd)
    except OSError:
        return (-1, -1)
    return (status.st_dev, status.st_ino)


def _text_stream(fd: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(open(fd, "wb", closefd=False), encoding="utf-8", errors="backslashreplace", line_buffering=True)
