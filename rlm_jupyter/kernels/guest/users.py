"""Users for the kernels, where this process may choose: in a sandbox it is root, and each kernel gets a user of its own.

So code in a kernel can neither signal the supervisor, the broker or a kernel beside it, nor read their memory or files, nor
change a file that they may yet import. Where that cannot be (an image with a user of its own) all are the same user, and only
hide their memory from each other.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import site
import stat
import sys
from collections.abc import Iterable

from . import processes

FIRST, COUNT = 61_000, 4_000
"""Numbers that no distribution gives to anybody."""
SOURCES = "/root"
"""Where Modal puts what `Image.add_local_python_source` adds: importable there in a function of its, and so in a kernel."""


def may_choose() -> bool:
    """Whether a kernel could run as a user of its own here: tried, with a process that does no more than that."""
    if not processes.LINUX or os.geteuid() != 0:
        return False
    _open_the_way()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            become(FIRST)
            needed = [sys.executable, *filter(os.path.isdir, sys.path)]
            code = 0 if all(os.access(path, os.R_OK | os.X_OK) for path in needed) else 1
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def of(slot: int) -> int:
    return FIRST + slot % COUNT


def become(user: int) -> None:
    """Be that user from now on, for good, and with all that this process starts."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    processes.gain_nothing()


def give(path: str, user: int) -> None:
    os.chown(path, user, user)


def share(paths: Iterable[str]) -> None:
    """Let every user write in folders, such as those where volumes are mounted; where that cannot be they stay as they are."""
    for path in paths:
        with contextlib.suppress(OSError):
            os.chmod(path, 0o1777)


def _open_the_way() -> None:
    """Let others reach what only root could: its home, where images keep files for it, and the Python that is running."""
    with contextlib.suppress(KeyError, OSError):
        os.chmod(pwd.getpwuid(0).pw_dir, 0o755)
    for path in (sys.executable, sys.prefix, sys.base_prefix, *site.getsitepackages()):
        while (path := os.path.dirname(path)) not in ("", "/"):
            with contextlib.suppress(OSError):
                mode = stat.S_IMODE(os.stat(path).st_mode)
                if not mode & 0o001:
                    os.chmod(path, mode | 0o011)
