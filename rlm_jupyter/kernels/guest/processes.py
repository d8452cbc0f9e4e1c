"""Processes beside the kernels: who descends from whom, killing all of a tree, dying with one's parent.

On Linux this reads /proc and makes the supervisor the reaper of what daemonises. Elsewhere only process groups are known.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Iterable

LINUX = sys.platform == "linux"
SWEEP_SECONDS = 1.0
_SET_PDEATHSIG = 1
_SET_DUMPABLE = 4
_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    if LINUX:
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """Be killed when `parent` ends, also if it has ended already. The thread that forked us must not end before."""
    _prctl(_SET_PDEATHSIG, signal.SIGKILL)
    if LINUX and os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def hide() -> None:
    """Keep other processes of the same user from tracing this one and from reading its memory and descriptors."""
    _prctl(_SET_DUMPABLE, 0)


def expose() -> None:
    """Undo `hide`, which a forked child inherits; and be the first to go when memory runs out."""
    _prctl(_SET_DUMPABLE, 1)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("900")


def parents() -> dict[int, int]:
    """Give the parent of every process, zombies left out."""
    table: dict[int, int] = {}
    if not LINUX:
        return table
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
                if fields[0] not in (b"Z", b"X"):
                    table[int(name)] = int(fields[1])
    return table


def descendants(roots: Iterable[int], table: dict[int, int] | None = None) -> list[int]:
    """Give the processes that descend from `roots`, those themselves not included."""
    children: dict[int, list[int]] = {}
    for pid, parent in (parents() if table is None else table).items():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    todo = list(roots)
    while todo:
        for pid in children.get(todo.pop(), ()):
            found.append(pid)
            todo.append(pid)
    return found


def belongs_to(pid: int, folder: str) -> bool:
    """Whether a process carries a kernel's private folder in its environment or works in it."""
    needle = os.fsencode(folder) + b"/"
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
        if needle in file.read():
            return True
    with contextlib.suppress(OSError):
        return os.fsencode(os.readlink(f"/proc/{pid}/cwd") + "/").startswith(needle)
    return False


def kill(pids: Iterable[int]) -> None:
    """Kill processes, those that are gone already left out."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def kill_group(pid: int, number: int) -> None:
    """Signal the process group that `pid` leads, or `pid` alone where it leads none."""
    with contextlib.suppress(OSError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)


def sweep(folder: str) -> bool:
    """Kill whatever still carries the folder of a run whose supervisor is gone, and wait for its end; whether there was any."""
    found = [pid for pid in parents() if pid != os.getpid() and belongs_to(pid, folder)]
    handles: list[int] = []
    for pid in found:
        with contextlib.suppress(OSError):
            handles.append(os.pidfd_open(pid))
    kill(found)
    waiting = select.poll()
    for handle in handles:
        waiting.register(handle, select.POLLIN)
    deadline = time.monotonic() + SWEEP_SECONDS
    for _ in handles:
        for handle, _ in waiting.poll(max(deadline - time.monotonic(), 0) * 1000):
            waiting.unregister(handle)
    for handle in handles:
        os.close(handle)
    return bool(found)
