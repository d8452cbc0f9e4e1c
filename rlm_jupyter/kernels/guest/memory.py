"""Whether the system has killed a process for want of memory: what it says of itself, not a guess from a SIGKILL.

In a container, the count of its control group (version 2 or 1), in which nothing but the kernels and the supervisor live.
Elsewhere the count of the whole machine, which may speak of another process, and the text says so.
"""

from __future__ import annotations

import contextlib

_GROUP = (("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory.max"),
          ("/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # fmt: skip
_MACHINE = "/proc/vmstat"
_MIB = 1024 * 1024


class Memory:
    """Compare the count of kills with what it was when last looked at."""

    def __init__(self, boxed: bool) -> None:
        self._boxed = boxed
        self._source = self._limit = ""
        for source, limit in _GROUP if boxed else ((_MACHINE, ""),):
            if _count(source) is not None:
                self._source, self._limit = source, limit
                break
        self._before = self._last = _count(self._source)

    def look(self) -> None:
        """Forget kills up to the look before this one: they were not of a kernel, or have been told.

        A large process takes a while to end: a kill that is counted by now may be told only after this look.
        """
        self._before, self._last = self._last, _count(self._source)

    def ran_out(self) -> str:
        """Say that memory ran out, if it did lately; that it did not, where that is certain; else nothing."""
        before, now = self._before, _count(self._source)
        if before is None or now is None:
            return ""
        if not self._boxed:
            return "out of memory: this machine has just killed a process for want of it" if now > before else ""
        if now <= before:
            return "not for want of memory: something in the container, or outside it, has sent the signal"
        return f"out of memory: the limit is {limit}" if (limit := self._limit_text()) else "out of memory"

    def _limit_text(self) -> str:
        with contextlib.suppress(OSError, ValueError), open(self._limit, encoding="ascii") as file:
            return f"{int(file.read()) // _MIB:,} MiB"
        return ""


def _count(source: str) -> int | None:
    with contextlib.suppress(OSError, ValueError), open(source, encoding="ascii") as file:
        for line in file:
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return None
