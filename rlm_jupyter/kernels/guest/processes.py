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
from collections.abc import Collection, Iterable

LINUX = sys.platform == "linux"
SWEEP_SECONDS = 1.0
_SET_PDEATHSIG = 1
_SET_DUMPABLE = 4
_SET_CHILD_SUBREAPER = 36
_SET_NO_NEW_PRIVS = 38


def _prctl(option: int, value: int) -> None:
    if LINUX:
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """Be killed when `parent` ends, also if it has ended already. The thread that forked us must not end before."""
    _prctl(_SET_PDEATHSIG, signal.SIGKILL)
    if LINUX and os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends.

    The supervisor and each kernel do so. What daemonises in a kernel stays below it as long as it lives; so a child of the
    supervisor that this did not start itself belongs to a kernel that is gone (or has given up its part) and may be killed.
    """
    _prctl(_SET_CHILD_SUBREAPER, 1)


def hide() -> None:
    """Keep other processes of the same user from tracing this one and from reading its memory and descriptors."""
    _prctl(_SET_DUMPABLE, 0)


def gain_nothing() -> None:
    """Never become another user by a program that makes one so."""
    _prctl(_SET_NO_NEW_PRIVS, 1)


def stand_back() -> None:
    """Be the first to go when memory runs out, and the last when processors are short, with all that we start; and hide.

    For kernels in a container: there, only the supervisor competes with them, which must stay quick beside a fork bomb.
    """
    os.nice(19)
    _prctl(_SET_DUMPABLE, 1)  # a process that hides cannot write its own file in /proc
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("900")
    hide()


def parents(known: Collection[int] = ()) -> dict[int, int]:
    """Give the parent of every process that is not `known` already, zombies left out."""
    table: dict[int, int] = {}
    if not LINUX:
        return table
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in known:
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
                if fields[0] not in (b"Z", b"X"):
                    table[int(name)] = int(fields[1])
    return table


def strangers(own: Collection[int]) -> tuple[list[int], bool]:
    """Give the children of this process's main thread that are not `own`, and whether others had ended, which it reaps.

    Where one has ended there may be more than was seen: this list is no snapshot (proc_pid_children(5)).
    """
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as file:
            found = [int(pid) for pid in file.read().split()]
    except OSError:
        found = [pid for pid, parent in parents().items() if parent == os.getpid()]
    found = [pid for pid in found if pid not in own]
    living = [pid for pid in found if not _reaped(pid)]
    return living, len(living) < len(found)


def has_children(pid: int) -> bool:
    """Tell whether a process seems to have children: where that cannot be seen, it may. Far cheaper than looking at all."""
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                if file.read(1):
                    return True
    except OSError:
        return True
    return False


def stop_all(roots: Collection[int], own: Collection[int], seconds: float) -> tuple[set[int], bool]:
    """Stop all that descends from `roots`, or is a stranger to `own`; give them and the roots, and whether these are all.

    As long as they keep their places a fork bomb cannot grow where processes are limited, and elsewhere no faster than it is
    looked through; so this comes to an end, or is given up after so many seconds.
    """
    stopped = set(roots)
    others = {os.getpid(), *own} - stopped
    until = time.monotonic() + seconds
    while True:
        fresh, more = strangers({*own, *stopped})
        if not (fresh or more or stopped):
            return stopped, True
        table = parents(others | stopped)
        members = {*fresh, *descendants({*fresh, *stopped}, table)}
        _signal(members, signal.SIGSTOP)
        stopped |= members
        others |= table.keys() - members
        if not members and not more:
            return stopped, True
        if time.monotonic() > until:
            return stopped, False


def kill_strangers(own: Collection[int], seconds: float) -> bool:
    """Kill every child of ours that is not `own`, with all that descends from it; whether that was all."""
    stopped, complete = stop_all((), own, seconds)
    _signal(stopped, signal.SIGKILL)
    return complete


def _reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


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
    _signal(pids, signal.SIGKILL)


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def kill_group(leader: int, number: int) -> None:
    """Signal the process group that `leader` has led, and itself where it leads none."""
    with contextlib.suppress(OSError):
        if leader in (1, os.getpgid(0)):
            return
        try:
            os.killpg(leader, number)
        except ProcessLookupError:
            os.kill(leader, number)


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
