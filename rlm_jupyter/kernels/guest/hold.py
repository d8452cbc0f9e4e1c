"""Keep a sandbox up as long as its supervisor lives, and no longer: a script, run by its text, that imports nothing of ours.

`hold.py keep PATH SECONDS` is the sandbox's first program. It waits for somebody to open the pipe PATH and write to it, and
ends when nobody has it open any more: when the supervisor has ended, however it did; or after SECONDS without a supervisor.
`hold.py run PATH TEXT` opens the pipe and becomes the program TEXT. So a sandbox whose host is gone ends with the supervisor's
lease, though nobody is left who could terminate it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys


def make(path: str) -> None:
    """Make the pipe, which both sides need: whoever comes first."""
    with contextlib.suppress(FileExistsError):
        os.mkfifo(path, 0o600)


def keep(path: str, seconds: float) -> None:
    """Return when everybody who held the pipe has let go; end this process when nobody has come in time."""
    make(path)
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(0))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    pipe = os.open(path, os.O_RDONLY)  # waits for somebody to hold it
    signal.setitimer(signal.ITIMER_REAL, 0)
    while os.read(pipe, 4096):
        pass


def hold(path: str) -> None:
    """Hold the pipe with a descriptor of this process that no program which it starts inherits."""
    make(path)
    os.write(os.open(path, os.O_RDWR), b".")


if __name__ == "__main__":
    if sys.argv[1] == "keep":
        keep(sys.argv[2], float(sys.argv[3]))
    else:
        hold(sys.argv[2])
        exec(compile(sys.argv[3], "<rlm>", "exec"))
