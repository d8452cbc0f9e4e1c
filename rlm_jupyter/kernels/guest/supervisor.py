"""The one process beside the kernels that the host talks to.

It starts kernels, keeps a spare one ahead, hands orders and answers between the host's stream and the kernels, and sees to it
that nothing survives it: it adopts what daemonises, and ends with everything it started when its standard input ends, its
stream breaks or its host is gone. It reads no file of the user and needs no network but the stream.

Started with one JSON line on standard input: `host port token folder how cold{argv env} caps start_seconds host_pid`.
Nothing secret is in its arguments or its environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import sys

from . import processes
from .launch import Forker

CONNECT_SECONDS = 10.0
END_SECONDS = 2


def main() -> None:
    """Run until there is nothing left to supervise."""
    settings = json.loads(_read_line())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else lambda *_: sys.exit(0))
    processes.adopt_orphans()
    for name in ("s", "mpl"):
        os.makedirs(os.path.join(settings["folder"], name), 0o700, exist_ok=True)
    forker = Forker.spawn() if settings["how"] != "cold" and processes.LINUX else None
    _raise_file_limit()
    stream = socket.create_connection((settings["host"], settings["port"]), CONNECT_SECONDS)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    from .hub import Hub

    hub = Hub(settings, stream, forker)
    try:
        hub.run()
    finally:
        end(settings["folder"])


def _read_line() -> bytes:
    """Read up to the first line break, no byte further: what follows on standard input is only its end."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            sys.exit(0)
        line += byte
    return bytes(line)


def _raise_file_limit() -> None:
    """Allow many connections here; the kernel parent, started before, keeps the user's own limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard if 0 < hard < 65536 else 65536, hard))


def end(folder: str) -> None:
    """Kill every descendant, wait for it, remove the run's folder. What cannot be killed does not keep us for long."""
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(END_SECONDS)
    with contextlib.suppress(ChildProcessError, TimeoutError):
        while True:
            processes.kill(processes.descendants([os.getpid()]))
            os.waitpid(-1, 0)
    signal.alarm(0)
    shutil.rmtree(folder, ignore_errors=True)


def _give_up(*_: object) -> None:
    raise TimeoutError
