"""The box of one sandbox: a process tree with its own root, pids, host name, IPC and network, made by bubblewrap.

Inside there is this machine's /usr and /etc, read-only, and the Python that runs the tests, at its own path; everything
else is an empty, writable tmpfs that goes with the box. No folder of the project, no home, no socket of this machine is
in it, and its network is a loopback of its own. Processes get the capabilities that a container usually has, never more.
Memory and CPU are not limited. Only root can make a box: its namespaces are entered again for every exec and tunnel.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from subprocess import DEVNULL

from tests.modal_local.streams import pipe

ADDRESS = "172.20.0.2"
"""The sandbox's own address, which tunnels and probes connect to: a server bound to 127.0.0.1 alone is not reached."""
CAPABILITIES = (
    "chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap", "net_bind_service", "net_raw",
    "sys_chroot", "mknod", "audit_write", "setfcap",
)  # fmt: skip
FS_TOOLS = "/__modal/.bin/modal-sandbox-fs-tools"
SEARCH = f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
HOME = "/root"
WAIT = 30.0
_CLONE_NEWNET, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x40000000, 0x8916, 0x891C


class BoxError(Exception):
    """The box did not start."""


def why_missing() -> str:
    """Tell in one line why there can be no box here; '' where there can."""
    if os.getuid() != 0:
        return "only root can make sandboxes and enter their networks"
    tools = [tool for tool in ("bwrap", "nsenter", "setpriv", "tar") if not shutil.which(tool)]
    return f"there is no `{tools[0]}` on the PATH. As root on Debian: make system-deps" if tools else ""


class Box:
    """One running box. `first` is its pid 1, as this machine numbers it."""

    def __init__(self, monitor: asyncio.subprocess.Process, first: int, output: tuple[int, int], stdin: int, user: int) -> None:
        self.first, self.output, self.stdin, self.user = first, output, stdin, user
        self._monitor = monitor
        self._handle = os.pidfd_open(first)
        self._network = os.open(f"/proc/{first}/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    @classmethod
    async def make(cls, argv: Sequence[str], env: dict[str, str], cwd: str, tools: Path, hosts: str, user: int = 0) -> Box:
        """Make a box in which `argv` waits for `begin`. `hosts` is its /etc/hosts, `user` who everything in it runs as."""
        stdin, stdout, stderr, info = pipe(), pipe(), pipe(), pipe()
        names = os.memfd_create("hosts")
        os.write(names, hosts.encode())
        os.lseek(names, 0, os.SEEK_SET)
        waiting = ["/bin/sh", "-c", 'printf . && read -r _ && exec "$@"', "sh", *_as(user), *argv]
        try:
            monitor = await asyncio.create_subprocess_exec(
                "bwrap", *_settings(cwd, tools), "--ro-bind-data", str(names), "/etc/hosts",
                "--info-fd", str(info[1]), "--", *waiting,
                stdin=stdin[0], stdout=stdout[1], stderr=stderr[1], pass_fds=(info[1], names), env=env,
            )  # fmt: skip
        finally:
            for fd in (stdin[0], stdout[1], stderr[1], info[1], names):
                os.close(fd)
        loop = asyncio.get_running_loop()
        try:
            told = await asyncio.wait_for(loop.run_in_executor(None, _all, info[0]), WAIT)
            first = await asyncio.wait_for(loop.run_in_executor(None, os.read, stdout[0], 1), WAIT)
        finally:
            os.close(info[0])
        if not told or first != b".":
            raise BoxError(os.read(stderr[0], 4096).decode(errors="replace").strip() or "bwrap gave no reason")
        box = cls(monitor, json.loads(told)["child-pid"], (stdout[0], stderr[0]), stdin[1], user)
        box.add_address(ADDRESS)
        return box

    def begin(self) -> None:
        """Let the waiting command go."""
        os.write(self.stdin, b"\n")

    async def wait(self) -> int:
        """Wait for the end of the first command, and with it of everything in the box. Gives its exit code."""
        code = await self._monitor.wait()
        return code if code >= 0 else 128 - code

    def kill(self) -> None:
        """End everything in the box."""
        if self._handle >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    async def discard(self) -> None:
        """End a box whose first command has not begun."""
        self.kill()
        await self.wait()
        self.close()
        for fd in (*self.output, self.stdin):
            os.close(fd)

    def close(self) -> None:
        """Give back what this process holds of a box that has ended."""
        if self._handle >= 0:
            os.close(self._network)
            os.close(self._handle)
            self._network = self._handle = -1

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self.first}/root")

    def add_file(self, path: str, data: bytes, mode: int) -> None:
        """Put a file into the box before its first command begins: what runs in it could lead the path elsewhere."""
        at = self.root / path.lstrip("/")
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_bytes(data)
        at.chmod(mode)

    def mounts(self) -> list[PurePosixPath]:
        """Give what is mounted in the box, its root among it."""
        lines = Path(f"/proc/{self.first}/mountinfo").read_text().splitlines()
        return [PurePosixPath(line.split()[4]) for line in lines]

    def entering(self, argv: Sequence[str], cwd: str) -> list[str]:
        """Give the command line that runs a command in the box."""
        kept = ",".join(f"+{name}" for name in CAPABILITIES)
        return [
            "nsenter", f"--target={self.first}", "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--",
            "/usr/bin/setpriv", "--no-new-privs", "--inh-caps=-all", f"--bounding-set=-all,{kept}", "--",
            *_as(self.user), "/usr/bin/env", "-C", cwd, "--", *argv,
        ]  # fmt: skip

    def socket(self) -> socket.socket:
        """Give a TCP socket that lives in the box's network."""
        with self._inside():
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM)

    def add_address(self, address: str) -> None:
        """Give the box's loopback one more address."""
        name = f"lo:{address.rsplit('.', 1)[1]}".encode()
        with self.socket() as made:
            for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, "255.255.255.255")):
                told = struct.pack("16sH2x4s8x", name, socket.AF_INET, socket.inet_aton(value))
                fcntl.ioctl(made, request, told)

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """Put this thread into the box's network for a moment. A socket stays in the network in which it was made."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(self._network)
            try:
                yield
            finally:
                _enter(own)
        finally:
            os.close(own)


def _as(user: int) -> list[str]:
    """Give what begins the command line of a process that is to be that user."""
    return ["/usr/bin/setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--"] if user else []


def _enter(network: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(network, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "cannot enter the network of a sandbox")


def _all(fd: int) -> bytes:
    found = b""
    while piece := os.read(fd, 4096):
        found += piece
    return found


def _settings(cwd: str, tools: Path) -> list[str]:
    settings = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--hostname", "modal", "--die-with-parent"]
    settings += ["--cap-drop", "ALL"] + [part for name in CAPABILITIES for part in ("--cap-add", f"cap_{name}")]
    settings += ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib64"):
        at = Path("/", name)
        settings += ["--symlink", os.readlink(at), str(at)] if at.is_symlink() else ["--ro-bind-try", str(at), str(at)]
    settings += ["--ro-bind", "/etc", "/etc", "--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--dir", "/tmp"]
    made = {Path("/"), Path("/usr"), Path("/etc"), Path("/tmp")}
    python = [Path(sys.prefix), *({Path(sys.base_prefix)} - {Path(sys.prefix)})]
    for folder in ("/root", "/home", "/run", "/var/tmp", "/mnt", "/opt", "/srv", cwd, str(Path(FS_TOOLS).parent)):
        settings += _folder(Path(folder), made)
    for prefix in python:
        if not prefix.is_relative_to("/usr"):
            settings += [*_folder(prefix.parent, made), "--ro-bind", str(prefix), str(prefix)]
    return [*settings, "--ro-bind", str(tools), FS_TOOLS, "--chdir", cwd]


def _folder(path: Path, made: set[Path]) -> list[str]:
    """Give the settings that make a folder and its parents for everybody to enter; bwrap alone makes parents for root only."""
    settings: list[str] = []
    for part in [*reversed(path.parents), path]:
        if part not in made and not part.is_relative_to("/usr"):
            made.add(part)
            settings += ["--dir", str(part)]
    return settings


def environment(extra: dict[str, str]) -> dict[str, str]:
    """Give the environment variables of a process in a sandbox."""
    return {"PATH": SEARCH, "HOME": HOME, "LANG": "C.UTF-8", "TERM": "xterm-256color", **extra}


async def run(argv: Sequence[str], given: bytes | None = None) -> bytes:
    """Run a command of this machine and give its output."""
    process = await asyncio.create_subprocess_exec(*argv, stdin=DEVNULL if given is None else -1, stdout=-1, stderr=-1)
    output, errors = await process.communicate(given)
    if process.returncode:
        raise BoxError(errors.decode(errors="replace").strip())
    return output
