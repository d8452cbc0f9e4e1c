"""How a kernel's process comes to be: forked from the warmed parent, or the kernelspec's command started cold.

Either way it gets private folders, pipes for its descriptors 1 and 2, a connection file with ipc sockets and a key of its own,
and dies with the supervisor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from . import processes, users
from .loop import Loop


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """The private files of one kernel. `sockets` begins the paths of its sockets; all are below 103 bytes."""

    folder: str
    sockets: str
    key: str
    user: int | None = None

    @classmethod
    def make(cls, run: str, slot: int, user: int | None = None) -> Place:
        folder = os.path.join(run, f"k{slot}")
        for name in ("", "work", "home", "tmp", "final"):
            os.mkdir(os.path.join(folder, name), 0o700)
        place = cls(folder, os.path.join(run, "s", f"k{slot}"), secrets.token_hex(32), user)
        info = {"transport": "ipc", "ip": place.sockets, "key": place.key, "signature_scheme": "hmac-sha256", "kernel_name": ""}
        ports = {"shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4, "hb_port": 5}
        with open(place.connection_file, "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            json.dump({**info, **ports}, file)
        if user is not None:
            os.makedirs(place.own_packages)
            for parent, folders, files in os.walk(folder):
                for name in ("", *folders, *files):
                    users.give(os.path.join(parent, name), user)
        return place

    @property
    def own_packages(self) -> str:
        """Where pip puts what a user installs who may not write where Python's own packages are."""
        python = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return os.path.join(self.folder, "home", ".local", "lib", python, "site-packages")

    @property
    def connection_file(self) -> str:
        return os.path.join(self.folder, "connection.json")

    def close_doors(self) -> None:
        """Remove the connection file and the names of the kernel's sockets: who is connected needs neither."""
        for path in (self.connection_file, *(f"{self.sockets}-{port}" for port in range(1, 6))):
            with contextlib.suppress(OSError):
                os.unlink(path)

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def environ(self) -> dict[str, str]:
        """Give the kernel's environment: the supervisor's, which the host has cleaned, with private folders."""
        home = self.path("home")
        private = {"HOME": home, "TMPDIR": self.path("tmp"), "IPYTHONDIR": os.path.join(home, ".ipython")}
        # A list of the machine's fonts takes matplotlib seconds to make: the kernels of a run share one.
        private["MPLCONFIGDIR"] = os.path.join(os.path.dirname(self.folder), "mpl")
        if self.user is not None:
            private |= {"USER": "rlm", "LOGNAME": "rlm"}
        return {**os.environ, **private}


def start_cold(argv: list[str], place: Place, extra: dict[str, str], boxed: bool, stdout: int, stderr: int) -> int:
    """Start a kernelspec's command; give its process id."""
    supervisor = os.getpid()

    def prepare() -> None:
        if place.user is not None:
            users.become(place.user)
        processes.die_with_parent(supervisor)
        processes.adopt_orphans()
        if boxed:
            processes.stand_back()

    known = {"{connection_file}": place.connection_file}
    process = subprocess.Popen(
        [known.get(part, part) for part in argv],
        cwd=place.path("work"), env={**place.environ(), **extra}, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
        start_new_session=True, preexec_fn=prepare,
    )  # fmt: skip
    process.returncode = 0  # reaped by the supervisor's one reaper, never by Popen
    return process.pid


class Forker:
    """The supervisor's end of the kernel parent. `alive`: whether it may be asked; one that is silent may still be there."""

    def __init__(self, pid: int, sock: socket.socket, boxed: bool) -> None:
        self.pid = pid
        self._boxed = boxed
        self.alive = True
        self._sock = sock
        self._waiting: dict[int, Callable[[int], None]] = {}
        self._exited: Callable[[int, int], None] = lambda pid, status: None

    @classmethod
    def spawn(cls, boxed: bool) -> Forker:
        """Fork the parent. It warms up while the supervisor imports its own half. `boxed`: in a container."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        supervisor = os.getpid()
        pid = os.fork()
        if not pid:
            try:
                ours.close()
                from . import parent

                parent.main(supervisor, theirs)
            finally:
                os._exit(1)
        theirs.close()
        ours.setblocking(False)
        return cls(pid, ours, boxed)

    def attach(self, loop: Loop, exited: Callable[[int, int], None], lost: Callable[[], None]) -> None:
        """Read its reports: ends of kernels to `exited`; `lost` is called when the parent itself is gone."""
        self._exited = exited
        loop.watch(self._sock.fileno(), lambda: self._read(loop, lost))

    def fork(self, slot: int, place: Place, settings: dict[str, Any], fds: list[int], born: Callable[[int], None]) -> bool:
        """Ask for a kernel; `born` is called with its process id. False where it cannot be asked."""
        order = {
            "slot": slot, "connection_file": place.connection_file, "environ": place.environ(), "work": place.path("work"),
            "settings": settings, "boxed": self._boxed, "user": place.user, "packages": place.own_packages,
        }  # fmt: skip
        self.wake()
        try:
            socket.send_fds(self._sock, [json.dumps(order).encode()], fds)
        except OSError:
            self.alive = False
            return False
        self._waiting[slot] = born
        return True

    def wake(self) -> None:
        """Let it go on, should somebody have stopped it."""
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGCONT)

    def _read(self, loop: Loop, lost: Callable[[], None]) -> None:
        while True:
            try:
                data = self._sock.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.alive = False
                loop.unwatch(self._sock.fileno())
                self._sock.close()
                lost()
                return
            report = json.loads(data)
            if "slot" in report:
                self.alive = True  # where it was silent for so long that it was taken for lost
                self._waiting.pop(report["slot"])(report["pid"])
            else:
                self._exited(report["pid"], report["status"])
