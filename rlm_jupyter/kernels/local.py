"""Kernels on this machine, with the user's own rights: launch, settings, tear-down.

The supervisor is a child of this process in a session of its own, with a private 0700 folder, an environment cleaned down to an
allow-list, and a pipe on its standard input whose end is its order to end everything. It calls in on a loopback port with a
token that it got through that pipe.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import site
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from rlm_jupyter.errors import KernelStartError, SettingsError
from rlm_jupyter.kernels.borrowing import borrow
from rlm_jupyter.kernels.child import Child
from rlm_jupyter.kernels.environment import START_SECONDS, Environment, guest_caps
from rlm_jupyter.kernels.guest import processes
from rlm_jupyter.kernels.transports import Listener
from rlm_jupyter.settings import ENVIRONMENTS, did_you_mean

if TYPE_CHECKING:
    from rlm_jupyter.contexts import Payload

OPEN_SECONDS = 30.0
END_SECONDS = 3.0
LONGEST_FOLDER = 60
_GUEST = Path(__file__).parent / "guest" / "__main__.py"

_PASSED = re.compile(
    r"PATH|LANG|LANGUAGE|LC_[A-Z]+|TZ|VIRTUAL_ENV|CONDA_[A-Z_0-9]+|LD_LIBRARY_PATH|DYLD_[A-Z_]+|PYTHONPATH|PYTHONUTF8"
    r"|(?:https?|ftp|no|all)_proxy|SSL_CERT_(?:FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|USER|LOGNAME|SHELL",
    re.IGNORECASE,
)
_NEVER = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL|^JUPYTER|^JPY|^MODAL", re.IGNORECASE)


def clean_environment(source: Mapping[str, str]) -> dict[str, str]:
    """Give the variables that code in a kernel may see: how to find programs, languages, proxies and certificates."""
    kept = {name: value for name, value in source.items() if _PASSED.fullmatch(name) and not _NEVER.search(name)}
    # HOME is private, but packages that the user installed with `pip install --user` stay importable.
    kept["PYTHONUSERBASE"] = site.getuserbase()
    return kept


def check_kernel(name: str) -> None:
    """Refuse a kernelspec that is not installed, or is of another language than Python, with a SettingsError."""
    _kernelspec(name)


async def open_local(kernel: str | None = None, *, how: str = "spare", fork_seconds: float = 10.0) -> Environment:
    """Start a supervisor on this machine.

    Parameters
    ----------
    kernel
        An installed kernelspec to run instead of this process's own Python; its kernels start cold.
    how
        `spare`: kernels are forked, and one is kept ahead. `forked`: none is kept ahead. `cold`: each is started anew.
    fork_seconds
        How long a fork may take until kernels start cold.

    Raises
    ------
    SettingsError
        When the kernelspec is not installed.
    KernelStartError
        When the supervisor does not come up; nothing is left of it then.
    """
    if sys.platform == "win32":
        raise KernelStartError("the local environment needs Linux or macOS; on Windows, use WSL")
    cold = _cold(kernel)
    place = LocalPlace(_run_folder())
    listener = Listener()
    try:
        await listener.start()
        environment = Environment(place)
        child = place.launch(
            {
                "host": "127.0.0.1",
                "port": listener.port,
                "token": listener.token,
                "how": "cold" if kernel else how,
                "cold": cold,
                "fork_seconds": fork_seconds,
            }
        )
        with anyio.fail_after(OPEN_SECONDS):
            stream = await child.or_exit(listener.connection(environment.receive, environment.closed))
            await environment.connect(stream)
    except BaseException as error:
        listener.close()
        place.kill()
        reason = place.log()
        with anyio.CancelScope(shield=True):
            await place.end()
        if isinstance(error, (TimeoutError, EOFError)):
            told = reason or f"it did not call in within {OPEN_SECONDS:.0f} s"
            raise KernelStartError(f"the process that runs the kernels did not start: {told}") from None
        raise
    return environment


class LocalPlace:
    """The supervisor's process and folder."""

    name = "local"
    isolation = ENVIRONMENTS["local"]
    lends = processes.LINUX

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._child: Child | None = None
        self._log: IO[bytes] = open(os.path.join(folder, "log"), "w+b")  # noqa: SIM115
        self._files = 0
        self._stands_still = False

    def launch(self, settings: dict[str, Any]) -> Child:
        """Start the supervisor and hand it its settings."""
        settings |= {
            "folder": self.folder,
            "caps": guest_caps(),
            "start_seconds": START_SECONDS - 5,
            "host_pid": os.getpid(),
        }
        _copy_font_lists(os.path.join(self.folder, "mpl"))
        self._child = Child(
            [sys.executable, "-P", str(_GUEST)], self._log,
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=self.folder, env=clean_environment(os.environ),
        )  # fmt: skip
        stdin = self._child.process.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already: `or_exit` tells why
            stdin.write(json.dumps(settings).encode() + b"\n")
            stdin.flush()
        threading.Thread(target=_watch_stops, args=(self._child.pid, self._stopped), daemon=True).start()
        return self._child

    def _stopped(self) -> None:
        self._stands_still = True
        self.kill()

    async def lost(self) -> str:
        if self._stands_still:
            return "The process that runs the kernels was stopped by a signal, so it was killed; every variable is lost."
        return "The process that runs the kernels is gone, and every variable with it."

    async def deliver(self, payload: Payload) -> str:
        self._files += 1
        name = f"context-{self._files}"
        path = os.path.join(self.folder, name)
        await anyio.to_thread.run_sync(payload.place, path, abandon_on_cancel=True)
        return name

    def discard(self, path: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self.folder, path))

    def borrow(self, descriptor: int, size: int) -> memoryview | None:
        return borrow(self._child.pid, descriptor, size) if self._child is not None else None

    def log(self) -> str:
        """Give the last line of what the supervisor wrote on its standard error."""
        lines = self._child.said().splitlines() if self._child is not None else []
        return lines[-1][:500] if lines else ""

    def kill(self) -> None:
        if self._child is not None and self._child.status is None:
            table = processes.parents()
            processes.kill([self._child.pid, *processes.descendants([self._child.pid], table)])

    async def end(self) -> None:
        child = self._child
        if child is not None:
            assert child.process.stdin is not None
            with contextlib.suppress(OSError):
                child.process.stdin.close()
            with anyio.move_on_after(END_SECONDS):
                await child.exit()
            self.kill()
            with anyio.move_on_after(END_SECONDS):
                await child.exit()
        self._log.close()
        await anyio.to_thread.run_sync(_remove, self.folder)


def _watch_stops(pid: int, stopped: Callable[[], None]) -> None:
    """Wait until a child is stopped by a signal, and tell it; its end is for others to tell."""
    with contextlib.suppress(ChildProcessError, AttributeError):  # macOS has no waitid before Python 3.13
        what = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if what is not None and what.si_code == os.CLD_STOPPED:
            stopped()


def _run_folder() -> str:
    """Make the run's private folder; its path must leave room for ipc sockets, which take 103 bytes at most."""
    base = tempfile.gettempdir()
    if len(os.fsencode(base)) > LONGEST_FOLDER and os.path.isdir("/tmp"):
        base = "/tmp"
    return tempfile.mkdtemp(prefix="rlm-", dir=base)


def _copy_font_lists(folder: str) -> None:
    """Give the kernels the user's own list of fonts, if matplotlib has made one: their HOME is empty."""
    os.mkdir(folder, 0o700)
    cache = os.environ.get("MPLCONFIGDIR") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "matplotlib")
    with contextlib.suppress(OSError):
        for path in Path(cache).expanduser().glob("fontlist-*.json"):
            shutil.copyfile(path, os.path.join(folder, path.name))


def _remove(folder: str) -> None:
    """Remove the run's folder, after killing what may still work in it; again, if something was quicker."""
    for _ in range(3):
        if not os.path.isdir(folder):
            return
        processes.sweep(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _cold(kernel: str | None) -> dict[str, Any]:
    """Give the command and the further variables of a kernel that is started cold."""
    quiet = ["--HistoryManager.enabled=False", "--log-level=50"]
    if kernel is None:
        return {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", *quiet], "env": {}}
    spec = _kernelspec(kernel)
    argv = [part.replace("{resource_dir}", spec.resource_dir) for part in spec.argv]
    if argv[0] in ("python", "python3", f"python3.{sys.version_info.minor}"):
        argv[0] = sys.executable
    if any("ipykernel" in part for part in argv):
        argv += quiet
    return {"argv": argv, "env": dict(spec.env)}


def _kernelspec(name: str) -> Any:
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    manager = KernelSpecManager()
    try:
        spec = manager.get_kernel_spec(name)
    except NoSuchKernel:
        known = manager.find_kernel_specs()
        raise SettingsError(f"no kernel is named {name!r}{did_you_mean(name, known)}") from None
    if spec.language.lower() != "python":
        raise SettingsError(f"--kernel {name}: it runs {spec.language}; the code that the LM writes needs Python")
    return spec
