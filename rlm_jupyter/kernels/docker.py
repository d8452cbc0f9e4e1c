"""Kernels in a container, of Docker or Podman: launch, settings, tear-down.

The container's first process is the supervisor, started from sources that it reads on its standard input. The frames of the
one protocol go over the client's attached standard input and output, so a box needs no port and no network, and nothing of the
host is mounted into it: the end of its standard input is its order to end. `Box.arguments` is everything that a box is
started with; the docs repeat it and a test compares it with what the engine says of a running box.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import secrets
import socket
import subprocess
import tempfile
from typing import IO, TYPE_CHECKING, Any

import anyio

from rlm_jupyter.errors import KernelDied, KernelStartError, SettingsError
from rlm_jupyter.kernels.child import Child
from rlm_jupyter.kernels.client import NO_PROXIES, Client, ClientError, Engine, cleaned, explain
from rlm_jupyter.kernels.environment import START_SECONDS, Environment, guest_caps
from rlm_jupyter.kernels.guest import wire
from rlm_jupyter.kernels.handover import handover, program
from rlm_jupyter.kernels.images import Image
from rlm_jupyter.kernels.transports import FramedStream, open_stream
from rlm_jupyter.settings import MIB, RunSettings, did_you_mean, size_text

if TYPE_CHECKING:
    from rlm_jupyter.contexts import Payload

OPEN_SECONDS = 30.0
END_SECONDS = 5.0
REMOVE_SECONDS = 10.0
LOST_SECONDS = 1.5
LEASE_SECONDS = 60
"""A box whose host is silent for so long ends itself; the host answers a sign of life every 2 s."""
FILE_PIECE = 128 * 1024
"""Bytes of a context in one message: few enough that both ends use the same memory again and again."""
REFUSED = (125, 126, 127)
"""Exit codes of the client that are its own: the engine refused, or the image's program cannot be run."""
LABEL = "rlm_jupyter.box"
FOLDER = "/tmp/rlm"
NOBODY = 65534

MEMORY = 4096 * MIB
"""What a box may use by default, besides three times its context."""
LEAST_MEMORY = 256 * MIB
"""What a box needs at least, besides twice its context: once as a file, once as an object."""
SCRATCH = 512 * MIB
"""What its files may take besides its context; they count as memory."""
PROCESSORS = 2
PROCESSES = 1024
"""Processes and threads: a kernel alone has eleven."""


@dataclasses.dataclass(frozen=True, slots=True)
class Box:
    """What one container is started with.

    Attributes
    ----------
    memory, scratch
        Bytes that it may use in all, and that its files may take of them.
    cpus
        Processors.
    network
        A network of the engine's, or `none`.
    gpus
        What `docker run --gpus` takes, or None.
    """

    client: Client
    image: Image
    memory: int
    scratch: int
    cpus: float
    network: str = "none"
    gpus: str | None = None

    @property
    def isolation(self) -> str:
        """What separates the code from the user's machine, for the banner."""
        network = "no network" if self.network == "none" else f"network {self.network}: code can send what it reads"
        if self.network == "host":
            network = "this machine's own network: code can reach what this machine reaches"
        gpus = f", GPUs {self.gpus}" if self.gpus else ""
        return (
            f"isolated: a container of {self.image.base}, {network}; {size_text(self.memory)}, {self.cpus:g} CPUs{gpus}; "
            f"not root, no capabilities, a read-only root, nothing mounted, {PROCESSES:,} processes"
        )

    def arguments(self, name: str) -> list[str]:
        """Give the client's command for a box of that name."""
        podman = self.client.name == "podman"
        # Docker gives a tmpfs the mode of the image's own folder: as its owner the box can still open it for itself.
        owner = "" if podman else f",uid={NOBODY},gid={NOBODY}"
        tmpfs = f"rw,nosuid,nodev,noexec{owner},mode=1777,size="
        limits = [
            f"--memory={self.memory}", f"--memory-swap={self.memory}", f"--cpus={self.cpus:g}", f"--pids-limit={PROCESSES}",
            "--ulimit=core=0", f"--shm-size={64 * MIB}",
            f"--tmpfs=/tmp:{tmpfs}{self.scratch}", *(f"--tmpfs={path}:{tmpfs}{MIB}" for path in self.image.volumes),
        ]  # fmt: skip
        gpus = [f"--gpus={self.gpus}"] if self.gpus else []
        return [
            self.client.program, "run", "--interactive", "--rm", f"--name={name}", f"--label={LABEL}", "--pull=never",
            "--log-driver=none", f"--network={self.network}", "--read-only",
            *(["--read-only-tmpfs=false"] if podman else []), "--cap-drop=ALL",
            "--security-opt=no-new-privileges", f"--user={NOBODY}:{NOBODY}", "--ipc=private", "--hostname=rlm",
            "--stop-signal=SIGKILL", "--no-healthcheck", *limits, *gpus,
            "--workdir=/tmp", f"--entrypoint={self.image.interpreter}",
            "--env=LANG=C.UTF-8", "--env=USER=rlm", "--env=LOGNAME=rlm", f"--env=HOME={FOLDER}", *NO_PROXIES,
            self.image.reference, "-P", "-c", program(),
        ]  # fmt: skip


def check_box(settings: RunSettings, client: Client, engine: Engine, context: int) -> None:
    """Refuse what this engine cannot give to a box for a context of so many bytes, before an image is made for it.

    Raises
    ------
    SettingsError
        When the context needs more memory than `--memory` gives, or more is asked for than the engine has.
    """
    least = LEAST_MEMORY + 2 * context
    if least > engine.memory:
        raise SettingsError(
            f"a context of {size_text(context)} needs {size_text(least)} of memory in a container; this engine has "
            f"{size_text(engine.memory)}: use --env local, or a smaller context"
        )
    memory = settings.memory_bytes
    if memory is not None and memory < least:
        raise SettingsError(
            f"--memory {settings.memory} is too small for a context of {size_text(context)}: "
            f"type --memory {math.ceil(least / MIB)}m or more"
        )
    if memory is not None and memory > engine.memory:
        raise SettingsError(f"--memory {settings.memory}: this engine has {size_text(engine.memory)} in all")
    if settings.cpus is not None and settings.cpus > engine.cpus:
        raise SettingsError(f"--cpus {settings.cpus:g}: this engine has {engine.cpus}")
    if settings.docker_network not in (None, "none"):
        _check_network(client, settings.docker_network)


def make_box(settings: RunSettings, client: Client, engine: Engine, image: Image, context: int) -> Box:
    """Size a box for a context of so many bytes; `check_box` has found nothing against it."""
    memory = settings.memory_bytes or min(MEMORY + 3 * context, engine.memory)
    return Box(
        client=client,
        image=image,
        memory=memory,
        scratch=min(SCRATCH, memory // 2) + context,
        cpus=settings.cpus or float(min(PROCESSORS, engine.cpus)),
        network=settings.docker_network or "none",
        gpus=settings.gpus,
    )


def _check_network(client: Client, name: str) -> None:
    try:
        client.run("network", "inspect", "--", name)
    except ClientError as error:
        known = client.run("network", "ls", "--format", "{{.Name}}").decode("utf-8", "replace").split()
        hint = did_you_mean(name, known) if error.code == 1 else f": {error}"
        raise SettingsError(f"--docker-network {name}: this engine has no such network{hint}") from None


async def open_docker(box: Box, *, how: str = "spare") -> Environment:
    """Start a box with a supervisor in it; `how` as of `open_local`.

    Raises
    ------
    KernelStartError
        When the engine refuses, or the supervisor does not come up; nothing is left of it then.
    """
    place = DockerPlace(box)
    environment = Environment(place)
    try:
        with anyio.fail_after(OPEN_SECONDS):
            child = place.launch()
            await child.or_exit(place.connect(environment, how))
    except BaseException as error:
        reason = await place.refusal() if isinstance(error, (EOFError, KernelDied)) else ""
        place.kill()
        with anyio.CancelScope(shield=True):
            await place.end()
        if reason:
            raise KernelStartError(reason) from None
        if isinstance(error, TimeoutError):
            raise KernelStartError(f"the container did not answer within {OPEN_SECONDS:.0f} s") from None
        raise
    return environment


class DockerPlace:
    """One container and the client that is attached to it."""

    name = "docker"
    lends = False

    def __init__(self, box: Box) -> None:
        self.isolation = box.isolation
        self.container = f"rlm-{secrets.token_hex(6)}"
        self._box = box
        self._child: Child | None = None
        self._socket: socket.socket | None = None
        self._stream: FramedStream | None = None
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._removing: Child | None = None
        self._files = 0

    def launch(self) -> Child:
        """Start the client; our end of its standard input and output is a socket."""
        self._socket, theirs = socket.socketpair()
        try:
            self._child = Child(
                self._box.arguments(self.container), self._log, stdin=theirs.fileno(), stdout=theirs.fileno()
            )  # fmt: skip
        except OSError as error:
            raise KernelStartError(f"{self._box.client.program} cannot be run: {error.strerror}") from None
        finally:
            theirs.close()
        return self._child

    async def connect(self, environment: Environment, how: str) -> None:
        """Hand the supervisor its sources and settings, and wait until it is ready."""
        assert self._socket is not None
        settings: dict[str, Any] = {
            "box": True,
            "folder": FOLDER,
            "how": how,
            "cold": {
                "argv": [
                    self._box.image.interpreter, "-m", "ipykernel_launcher", "-f", "{connection_file}",
                    "--HistoryManager.enabled=False", "--log-level=50",
                ],
                "env": {},
            },
            "caps": guest_caps(),
            "start_seconds": START_SECONDS - 5,
            "lease": LEASE_SECONDS,
        }  # fmt: skip
        self._stream = stream = await open_stream(self._socket, environment.receive, environment.closed)
        stream.write(handover(settings))
        await environment.connect(stream)

    async def refusal(self) -> str:
        """Say why the box has ended before it was ready."""
        child = self._child
        if child is None:
            return ""
        with anyio.move_on_after(END_SECONDS, shield=True):
            await child.exit()
        said, status = child.said(), child.status
        if status in REFUSED or status is None:
            return f"the container did not start: {explain(said, status, self._box.client.name)}"
        if status == 137:
            memory = size_text(self._box.memory)
            return f"the container was killed before it was ready: {memory} may be too little; --memory gives more"
        last = (cleaned(said).splitlines() or ["it did not say why"])[-1][:300]
        return f"the container ended with exit code {status} before it was ready: {last}"

    async def deliver(self, payload: Payload) -> str:
        stream = self._stream
        assert stream is not None
        self._files += 1
        name = f"context-{self._files}"
        offset = 0
        for piece in payload.pieces(FILE_PIECE) if payload.size else (b"",):
            stream.send(wire.FilePart(name, offset, piece))
            offset += len(piece)
            await stream.drain()
        return name

    def borrow(self, descriptor: int, size: int) -> memoryview | None:
        return None

    def discard(self, path: str) -> None:
        if self._stream is not None:
            self._stream.send(wire.Discard(path))

    async def lost(self) -> str:
        child = self._child
        if child is not None:
            with anyio.move_on_after(LOST_SECONDS):
                await child.exit()
        status, said = (child.status, cleaned(child.said())) if child is not None else (None, "")
        how = _ending(status, said, self._box)
        return f"The container {how}.\nEvery variable in it is lost; what was put out before is kept."

    def kill(self) -> None:
        if self._child is not None and self._removing is None:
            with contextlib.suppress(OSError):
                self._removing = Child(
                    [self._box.client.program, "rm", "--force", self.container], self._log,
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                )  # fmt: skip

    async def end(self) -> None:
        if self._stream is not None:
            self._stream.close()
        elif self._socket is not None:
            self._socket.close()
        child = self._child
        if child is not None:
            with anyio.move_on_after(END_SECONDS):
                await child.exit()
            if child.status is None:
                self.kill()
            with anyio.move_on_after(REMOVE_SECONDS):
                if self._removing is not None:
                    await self._removing.exit()
                await child.exit()
            for left in (child, self._removing):
                if left is not None and left.status is None:
                    left.process.kill()
                    await left.exit()
        self._log.close()


def _ending(status: int | None, said: str, box: Box) -> str:
    """Say how a box has ended, from the exit status of its client and what that wrote last."""
    name = box.client.name
    if status == 137:
        memory = f"used up its memory ({size_text(box.memory)}; --memory gives more)"
        return f"was killed: from outside, because its engine was stopped, or because it {memory}"
    if status is not None and status < 0:
        return f"is gone: its client, {name}, was killed by signal {-status}"
    last = said.splitlines()[-1][:300] if said else ""
    if logged := re.search(r'\bmsg="([^"]+)"', last):
        last = logged[1]
    return f"is gone, or its engine is ({name}: {last})" if last else "is gone"
