"""The one process beside the kernels that the host talks to.

It starts kernels, keeps a spare one ahead, hands orders and answers between the host's stream and the kernels, and sees to it
that nothing survives it: it adopts what daemonises, and ends with everything it started when its standard input ends, its
stream breaks or its host is gone. It reads no file of the user and needs no network but the stream.

Started with one JSON line on standard input: `folder how cold{argv env} caps start_seconds`, and either `host port token
host_pid` (it calls in on that port) or `box: true` (a container's first process: the frames follow on standard input, its own
go to standard output, and a host that is silent for `lease` seconds is taken for gone). With `broker` (see there) LM calls go
by a port instead of the stream. Nothing secret is in its arguments or its environment.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import time
from typing import Any

from . import processes, users
from .desk import Desk
from .launch import Forker
from .streams import HostStream

END_SECONDS = 2.0
EVERYBODYS = ("/tmp", "/var/tmp", "/dev/shm")
"""Where every user writes on a usual machine."""


def main() -> None:
    """Run until there is nothing left to supervise."""
    settings = json.loads(_read_line())
    boxed = settings.get("box", False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # The first process of a container gets no signal that it does not ask for, and asks for none: its code could send one.
        signal.signal(number, signal.SIG_IGN if boxed or number == signal.SIGINT else lambda *_: sys.exit(0))
    processes.adopt_orphans()
    for name in ("s", "mpl"):
        os.makedirs(os.path.join(settings["folder"], name), 0o700, exist_ok=True)
    os.chmod(settings["folder"], 0o700)
    if boxed:
        processes.hide()
        settings["users"] = users.may_choose()
        if settings["users"]:
            os.chmod(settings["folder"], 0o711)
            os.chmod(os.path.join(settings["folder"], "s"), 0o1733)
            users.share([os.path.join(settings["folder"], "mpl"), *EVERYBODYS, *settings.get("shared", ())])
    forker = Forker.spawn(boxed) if settings["how"] != "cold" and processes.LINUX else None
    desk = _open_desk(settings["broker"]) if "broker" in settings else None
    _raise_file_limit()
    settings["packages"] = _packages()
    from .hub import Hub  # seconds, where nothing of it is in memory: more than the host gives a caller to say who it is

    stream = HostStream.standard() if boxed else HostStream.connect(settings["host"], settings["port"])
    hub = Hub(settings, stream, forker, desk)
    try:
        hub.run()
    finally:
        end(settings["folder"])


def _packages() -> list[str]:
    """Give those packages for whose values the kernels have a way of their own, and which are here."""
    from .shapes import PACKAGES

    return [name for name in PACKAGES if importlib.util.find_spec(name) is not None]


def _open_desk(settings: dict[str, Any]) -> Desk:
    try:
        return Desk.open(settings)
    except OSError as error:
        sys.exit(f"port {settings['port']} of the sandbox cannot be had: {error.strerror}")


def _read_line() -> bytes:
    """Read up to the first line break, no byte further: what follows on standard input is not for us."""
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
    until = time.monotonic() + END_SECONDS
    while not processes.kill_strangers((), END_SECONDS) or any(processes.strangers(())):
        if time.monotonic() > until:
            break
        os.sched_yield()
    shutil.rmtree(folder, ignore_errors=True)
