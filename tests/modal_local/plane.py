"""A local Modal control plane for tests: start it, point the SDK at it, make its connections bad, read what was asked.

    with LocalModal() as plane:
        os.environ.update(plane.environment)
        sandbox = modal.Sandbox.create("cat", app=modal.App.lookup("tests", create_if_missing=True))
        plane.sdk.cut()

The plane is a process of its own, so it neither takes the tests' time nor dies with their event loops; it ends with them.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.modal_local.boxes import WAIT

ROOT = Path(__file__).parents[2]
ENVIRONMENT = "main"


class PlaneError(Exception):
    """The control plane did not do what it was asked."""


@dataclass(frozen=True, slots=True)
class Created:
    """A request to create a sandbox: the back end that the SDK chose, and the fields by their names in the protocol."""

    sandbox: str
    backend: str
    app: str
    request: dict[str, Any]

    @property
    def definition(self) -> dict[str, Any]:
        found: dict[str, Any] = self.request["definition"]
        return found


@dataclass(frozen=True, slots=True)
class State:
    """How a sandbox is: `status` is '' while it runs, then TERMINATED, TIMEOUT, SUCCESS, FAILURE, IDLE_TIMEOUT ..."""

    id: str
    running: bool
    status: str
    reason: str
    tags: dict[str, str]
    execs: int


@dataclass(frozen=True, slots=True)
class Told:
    """What a plane has seen: procedures called, how often; bytes and connections by kind; sandboxes in the order they came."""

    requests: Counter[str]
    unknown: list[str]
    created: list[Created]
    sandboxes: list[State]
    bytes: dict[str, int]
    connections: dict[str, int]


class Faults:
    """The conditions of some kinds of connection: 'control' and 'router' are the SDK's own, 'tunnels' are the sandboxes'."""

    def __init__(self, plane: LocalModal, *kinds: str) -> None:
        self._plane, self._kinds = plane, kinds

    def _all(self, what: str, **given: Any) -> list[Any]:
        return [self._plane.command("conditions", kind=kind, what=what, **given) for kind in self._kinds]

    def delay(self, seconds: float) -> None:
        """Let every byte take so long each way; a new connection waits a round trip more, as a handshake does."""
        self._all("delay", seconds=seconds)

    def cut(self) -> int:
        """End every open connection now; new ones are welcome. Gives how many there were."""
        return sum(self._all("cut"))

    def down(self, seconds: float | None = None) -> None:
        """End every open connection and refuse new ones, until `restore` or for a time."""
        self._all("down", seconds=seconds)

    def black_hole(self, seconds: float | None = None) -> None:
        """Let nothing through in either direction, until `restore` or for a time; then what was sent arrives, as with TCP."""
        self._all("black hole", seconds=seconds)

    def bad_gateway(self, seconds: float | None = None) -> None:
        """End every open connection and answer 502 on new ones (tunnels only; the SDK's own connections close), as above."""
        self._all("502", seconds=seconds)

    def after(self, count: int, state: str = "cut", seconds: float | None = None) -> None:
        """Once so many more bytes have passed, 'cut', or enter the state 'down', 'black hole' or '502' for a time."""
        self._all("after", count=count, state=state, seconds=seconds)

    def buffer(self, on: bool = True) -> None:
        """Have tunnels that are opened from now on hold each answer of HTTP back until it is whole, as some proxies do."""
        self._all("buffer", on=on)

    def restore(self) -> None:
        """End all faults; delays stay."""
        self._all("open")

    @contextmanager
    def delayed(self, seconds: float) -> Iterator[None]:
        self.delay(seconds)
        try:
            yield
        finally:
            self.delay(0)


class LocalModal:
    """A running control plane. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="modal-local-"))
        self._lock = threading.Lock()
        ours, its = socket.socketpair()
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.modal_local.server", str(its.fileno()), str(self._folder)],
                cwd=ROOT, start_new_session=True, pass_fds=(its.fileno(),), stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": str(ROOT), "MODAL_CONFIG_PATH": str(self._folder / "none.toml")},
            )  # fmt: skip
        self._line = ours
        self._file = ours.makefile("rb")
        ours.settimeout(2 * WAIT)
        known = self._answer()
        self.authority = self._folder / "authority.pem"
        self.environment: Mapping[str, str] = {
            "MODAL_SERVER_URL": known["url"],
            "MODAL_TOKEN_ID": known["token_id"],
            "MODAL_TOKEN_SECRET": known["token_secret"],
            "MODAL_ENVIRONMENT": ENVIRONMENT,
            "MODAL_CONFIG_PATH": str(self._folder / "none.toml"),
            "REQUESTS_CA_BUNDLE": str(self.authority),
            "SSL_CERT_FILE": str(self.authority),
        }
        self.control, self.router = Faults(self, "control"), Faults(self, "router")
        self.sdk, self.tunnels = Faults(self, "control", "router"), Faults(self, "tunnels")

    def _answer(self) -> dict[str, Any]:
        line = self._file.readline()
        if not line:
            raise PlaneError(f"the control plane has ended with code {self._process.wait(WAIT)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def command(self, name: str, /, **given: Any) -> Any:
        """Have the plane do something; see `server.Plane.command`."""
        with self._lock:
            self._line.sendall(json.dumps({"name": name, "given": given}).encode() + b"\n")
            answer = self._answer()
        if "error" in answer:
            raise PlaneError(answer["error"])
        return answer["done"]

    def told(self) -> Told:
        """Give what the plane has seen so far."""
        told = self.command("told")
        return Told(
            Counter(told["requests"]),
            told["unknown"],
            [Created(**asked) for asked in told["created"]],
            [State(**state) for state in told["sandboxes"]],
            told["bytes"],
            told["connections"],
        )

    def created(self, sandbox: str) -> Created:
        """Give the request that created a sandbox."""
        return next(asked for asked in self.told().created if asked.sandbox == sandbox)

    def running(self) -> list[State]:
        return [state for state in self.told().sandboxes if state.running]

    def image(self, image: str) -> list[dict[str, Any]]:
        """Give the layers of an image as they were asked for, its base first."""
        found: list[dict[str, Any]] = self.command("image", image=image)
        return found

    def host(self, name: str, ports: Mapping[int, int]) -> str:
        """Put a host on the Internet of sandboxes made from now on: which port of it is which port of this machine."""
        return str(self.command("host", name=name, ports=dict(ports)))

    def fail(self, procedure: str, status: str, message: str, times: int = 1) -> None:
        """Answer the next calls of a procedure with a status of gRPC ('UNAVAILABLE', 'RESOURCE_EXHAUSTED' ...)."""
        self.command("fail", procedure=procedure, status=status, message=message, times=times)

    def preempt(self, sandbox: str, *, silent: bool = True) -> None:
        """Take the machine away from under a sandbox; if silent, its command router is never available again."""
        self.command("preempt", sandbox=sandbox, silent=silent)

    def tidy(self, kept: Collection[str] = ()) -> None:
        """Mend all faults and delays, and end all sandboxes but these."""
        for faults in (self.sdk, self.tunnels):
            faults.delay(0)
            faults.buffer(False)
            faults.restore()
        self.command("tidy", kept=list(kept))

    def close(self) -> None:
        """End the plane and everything in it, and wait until it is gone."""
        self._line.shutdown(socket.SHUT_WR)
        try:
            self._process.wait(WAIT)
        finally:
            self._process.kill()
            self._process.wait()
            self._file.close()
            self._line.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> LocalModal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
