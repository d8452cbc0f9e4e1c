"""Sandboxes: what was asked for, the box it runs in, and how it ended."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from modal_proto import api_pb2

from tests.modal_local import networks, snapshots
from tests.modal_local.boxes import HOME, WAIT, Box, BoxError, environment
from tests.modal_local.images import Images
from tests.modal_local.processes import Exec, Process
from tests.modal_local.routes import LOST
from tests.modal_local.streams import Input, Output
from tests.modal_local.tunnels import Tunnel, Tunnels

Result = api_pb2.GenericResult
TIMEOUT, TERMINATED = Result.GENERIC_STATUS_TIMEOUT, Result.GENERIC_STATUS_TERMINATED
_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
File = tuple[str, bytes, int]
FOREVER = ("sleep", "infinity")
"""What runs in a sandbox that was given no command."""


class Sandbox:
    """One sandbox. It is over when its entry point ends, its time is up, or somebody ends it."""

    def __init__(
        self, definition: api_pb2.Sandbox, app_id: str, tags: dict[str, str], env: dict[str, str], backend: str
    ) -> None:
        name = "".join(secrets.choice(_LETTERS) for _ in range(22))
        # The SDK takes an id of this shape for the V1 back end, every other for V2.
        self.id = f"sb-{name}" if backend == "V1" else f"sb-local-{name}"
        self.task_id = f"ta-{name}" + ("" if backend == "V1" else "V")
        self.definition, self.app_id, self.tags, self.env, self.backend = definition, app_id, tags, env, backend
        self.created_at, self.result, self.over = time.time(), Result(), asyncio.Event()
        self.execs: dict[str, Exec] = {}
        self._starting: dict[str, asyncio.Task[Exec]] = {}
        self.tunnels: dict[int, Tunnel] = {}
        self.box: Box | None = None
        self.entry: Process | None = None
        self.network: networks.Network | None = None
        self._verdict: Result | None = None
        self._calls: set[asyncio.Task[Any]] = set()
        self._lost = False
        self._timers: list[asyncio.TimerHandle] = []
        self._idle_since = time.monotonic()
        self._watching: asyncio.Task[None] | None = None

    @property
    def app_name_key(self) -> tuple[str, str]:
        return self.app_id, self.definition.name

    @property
    def cwd(self) -> str:
        return self.definition.workdir or HOME

    @property
    def ending(self) -> bool:
        """Whether it is over or about to be."""
        return self._verdict is not None or self.over.is_set()

    @property
    def variables(self) -> dict[str, str]:
        return environment(self.env)

    async def start(
        self, tools: Path, tunnels: Tunnels, hosts: networks.Hosts, image: Path | None, files: Iterable[File], user: int
    ) -> None:
        """Make the box, open the tunnels, and start the entry point as this user."""
        definition = self.definition
        argv = tuple(definition.entrypoint_args) or FOREVER
        self.network = networks.Network(definition.network_access, hosts)
        self.box = box = await Box.make(argv, self.variables, self.cwd, tools, self.network.names, user)
        try:
            self.network.open(box)
            if image is not None:
                await snapshots.unpack(box, image)
            for path, data, mode in files:
                box.add_file(path, data, mode)
            for port in definition.open_ports.ports:
                self.tunnels[port.port] = await tunnels.open(box, port.port, encrypted=not port.unencrypted)
        except BaseException:
            await box.discard()
            raise
        output, errors = Output(), Output()
        box.begin()
        output.attach(box.output[0])
        errors.attach(box.output[1])
        self.entry = Process(output, errors, Input(box.stdin))
        self._watching = asyncio.create_task(self._watch(box, self.entry))
        loop = asyncio.get_running_loop()
        self._timers.append(loop.call_later(definition.timeout_secs, self.end, Result(status=TIMEOUT)))
        if definition.idle_timeout_secs:
            self._idle(definition.idle_timeout_secs)

    def end(self, verdict: Result) -> None:
        """End everything in the sandbox, with this result unless it has one."""
        if self._verdict is None:
            self._verdict = verdict
        if self.box is not None:
            self.box.kill()

    def preempt(self, silent: bool) -> None:
        """End the sandbox as a lost machine does; if silent, nobody answers for its task any more."""
        self.end(Result(status=TERMINATED, exception="preempted"))
        if silent:
            self._lost = True
            for task in tuple(self._calls):
                task.cancel(LOST)

    def take_call(self) -> bool:
        """Note that the running task serves a call to the sandbox's worker. Tells whether there is one."""
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return not self._lost

    def touch(self) -> None:
        """Something was done with the sandbox: it is not idle."""
        self._idle_since = time.monotonic()

    async def exec(self, name: str, argv: Sequence[str], env: dict[str, str], cwd: str, seconds: int) -> None:
        """Start a command once under this name, however often it is asked for."""
        if name not in self._starting:
            assert self.box is not None
            given = environment({**self.env, **env})
            self._starting[name] = asyncio.create_task(Exec.start(self.box, argv, given, cwd or self.cwd, seconds))
        self.execs[name] = await asyncio.shield(self._starting[name])
        self.touch()

    def _idle(self, seconds: float) -> None:
        if any(not process.over.is_set() for process in self.execs.values()) or any(t.busy for t in self.tunnels.values()):
            self.touch()
        left = self._idle_since + seconds - time.monotonic()
        if left <= 0:
            self.end(Result(status=Result.GENERIC_STATUS_IDLE_TIMEOUT, exception="idle for too long"))
        else:
            self._timers.append(asyncio.get_running_loop().call_later(left, self._idle, seconds))

    async def _watch(self, box: Box, entry: Process) -> None:
        code = await box.wait()
        for timer in self._timers:
            timer.cancel()
        entry.ended(code)
        for tunnel in self.tunnels.values():
            tunnel.close()
        if self.network is not None:
            self.network.close()
        for started in await asyncio.gather(*self._starting.values(), return_exceptions=True):
            if isinstance(started, Exec):
                await started.over.wait()
        box.close()
        ok = Result.GENERIC_STATUS_SUCCESS if code == 0 else Result.GENERIC_STATUS_FAILURE
        self.result = self._verdict or Result(status=ok, exitcode=code)
        self.over.set()

    async def gone(self) -> None:
        """End the sandbox and wait until nothing of it is left."""
        self.end(Result(status=TERMINATED))
        if self._watching is not None:
            await self._watching


class Sandboxes:
    """All sandboxes of a plane, by id and by task."""

    def __init__(self, folder: Path, tunnels: Tunnels, images: Images) -> None:
        self.by_id: dict[str, Sandbox] = {}
        self.by_task: dict[str, Sandbox] = {}
        self.hosts = networks.Hosts()
        self._tools = folder / "fs-tools"
        shutil.copy(Path(__file__).with_name("fs_tools.py"), self._tools)
        self._tools.write_text(self._tools.read_text().replace("#!/usr/bin/env python3", snapshots.SHEBANG, 1))
        self._tools.chmod(0o755)
        self._tunnels, self._images = tunnels, images

    async def create(self, sandbox: Sandbox, files: Iterable[File]) -> None:
        """Start a sandbox; one whose box fails is over at once, with the reason."""
        self.by_id[sandbox.id] = self.by_task[sandbox.task_id] = sandbox
        try:
            image = sandbox.definition.image_id
            made = self._images.files(image), files, self._images.user(image)
            await sandbox.start(self._tools, self._tunnels, self.hosts, *made)
        except BoxError as error:
            sandbox.result = Result(status=Result.GENERIC_STATUS_INIT_FAILURE, exception=str(error), exitcode=1)
            sandbox.over.set()

    def named(self, app_id: str, name: str, over: bool) -> Sandbox | None:
        """Find the running sandbox of a name, or, if asked for, the last one that had it."""
        found = [box for box in self.by_id.values() if box.app_name_key == (app_id, name)]
        running = [box for box in found if not box.over.is_set()]
        return running[0] if running else found[-1] if over and found else None

    async def close(self, kept: Collection[str] = ()) -> None:
        """End all sandboxes but those that are to be kept, and let go of what their processes wrote."""
        ending = [sandbox for name, sandbox in self.by_id.items() if name not in kept]
        async with asyncio.timeout(WAIT):
            await asyncio.gather(*(sandbox.gone() for sandbox in ending))
        for sandbox in ending:
            sandbox.execs.clear()
            sandbox.entry = None
