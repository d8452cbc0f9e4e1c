"""Kernels in a sandbox at Modal: launch, loss, tear-down.

The supervisor is started by one `sandbox.exec`, from sources that it reads on its standard input, and the frames of the one
protocol follow on the same streams. LM calls wait in a broker beside it, from which the host pulls them through an encrypted
tunnel (`bridge`); or they follow on the stream, too, and the sandbox needs no port. Contexts go by Modal's file system
interface. What a sandbox is asked for is in `modal_place`, the stream in `modal_stream`.

That a sandbox is over is told by Modal's control plane, which is waited for all the time: an `exec` in a sandbox that was taken
away silently is waited for by the SDK for ever. A sandbox whose host is gone ends with its supervisor, see `guest.hold`.

The supervisor is not the sandbox's first process here, and the code has root's rights in its sandbox: it cannot read the
supervisor, but it can kill it, which ends the sandbox and is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread

from rlm_jupyter.errors import KernelDied, KernelError, KernelStartError, RLMError, SettingsError
from rlm_jupyter.kernels.bridge import Bridge
from rlm_jupyter.kernels.client import cleaned
from rlm_jupyter.kernels.environment import START_SECONDS, Environment, guest_caps
from rlm_jupyter.kernels.guest import wire
from rlm_jupyter.kernels.handover import handover, program
from rlm_jupyter.kernels.modal_files import Upload
from rlm_jupyter.kernels.modal_place import FOLDER, PIPE, PORT, RECONNECT_SECONDS, ModalPlace, load, modal_image
from rlm_jupyter.kernels.modal_stream import AGAIN_SECONDS, Silence, open_exec
from rlm_jupyter.kernels.transports import FramedStream

if TYPE_CHECKING:
    import modal

    from rlm_jupyter.contexts import Payload

T = TypeVar("T")
Told = Callable[[str], None]

MACHINE_SECONDS = 600.0
"""How long a sandbox may wait for a machine; a rare GPU takes its time."""
READY_SECONDS = 60.0
PATIENCE = 6
"""How many times as long as `reconnect` a connection is made again until the sandbox is given up: half of that is survived."""
LEASE = 9
"""How many times as long the sandbox waits for its host, until it ends itself."""
AWAY = 1.25
"""After how many times its usual interval a supervisor's sign of life is missed."""
HOLD_SECONDS = 60
"""A sandbox in which no supervisor has been started for so long ends."""
END_SECONDS = 5.0
LOST_SECONDS = 1.5
LAST_WORDS_SECONDS = 0.5
"""How long what a sandbox wrote last may still be on its way when it is over."""
PROGRESS_SECONDS = 5.0
LOG_CAP = 4096
ONE_USER = (
    "all code in this sandbox runs as the user of its image, so it can end the supervisor and other kernels, and change their "
    "files (where an image's user is root, each kernel is a user of its own)"
)
LOST = "Every variable in it is lost; what was put out before is kept."


async def open_modal(place: ModalPlace, *, how: str = "spare", told: Told = lambda line: None) -> Environment:
    """Start a sandbox with a supervisor in it.

    Parameters
    ----------
    place
        What the sandbox is asked for.
    how
        As of `open_local`.
    told
        Gets a line for each step that takes longer than a moment.

    Raises
    ------
    SettingsError
        When Modal refuses what is asked for, or `modal` is not there, or this machine has no token.
    KernelStartError
        When no sandbox can be had, or the supervisor does not come up; nothing is left of it then.
    """
    running = SandboxPlace(place, told)
    silence = PATIENCE * place.reconnect + READY_SECONDS  # the stream itself is less patient
    environment = Environment(running, silence, away=AWAY * running.beat)
    try:
        await running.create()
        environment.began = time.monotonic()
        await running.connect(environment, how)
        environment.notices = () if environment.apart else (ONE_USER,)
    except BaseException as error:
        reason = running.refusal() if isinstance(error, KernelDied) else ""
        with anyio.CancelScope(shield=True):
            await running.end()
        if isinstance(error, KernelDied):
            raise KernelStartError(reason or running.unstarted(str(error).splitlines()[0])) from None
        if isinstance(error, Exception) and not isinstance(error, RLMError):
            raise running.explained(error) from None
        raise
    return environment


_OURS: set[SandboxPlace] = set()


def in_use(sandbox: str) -> bool:
    """Whether this process uses a sandbox, in whichever notebook cell, thread or `RLM`; for any thread to ask."""
    return any(place.uses(sandbox) for place in tuple(_OURS))


def apps_in_use() -> list[str]:
    """Give the apps of the sandboxes that this process uses."""
    return [place.app for place in tuple(_OURS)]


class SandboxPlace:
    """One sandbox, its supervisor's stream, and the watch over both."""

    name = "modal"
    lends = False

    def __init__(self, place: ModalPlace, told: Told) -> None:
        self.isolation, self.app = place.isolation, place.app_name
        self.code: int | None = None
        self._place, self._told = place, told
        self._reconnect, self._lease = place.reconnect, place.reconnect * LEASE
        self._making: asyncio.Future[modal.Sandbox] | None = None
        self._sandbox: modal.Sandbox | None = None
        self._stream: FramedStream | None = None
        self._over: asyncio.Future[Any] | None = None
        self._reason: Exception | None = None
        self._log = bytearray()
        self._tasks: list[asyncio.Future[None]] = []
        self._bridging: asyncio.Future[None] | None = None
        self._ending: asyncio.Future[None] | None = None
        self._files = 0
        self._token = secrets.token_hex(32)
        self.beat = min(2.0, place.reconnect / 4)

    # Coming up

    async def create(self) -> None:
        """Ask Modal for the sandbox; from here on `end` must be called."""
        _OURS.add(self)
        modal = await anyio.to_thread.run_sync(load, abandon_on_cancel=True)
        app = await modal.App.lookup.aio(self._place.app_name, create_if_missing=True)
        image = self._place.layered()
        try:
            self._sandbox = await self._made(app, image)
        except modal.exception.InvalidError as error:
            if not isinstance(self._place.image, modal.Image) or "add_local_" not in str(error):
                raise
            # It ends with local files, on which nothing can be layered: then it must have what the kernel needs.
            self._sandbox = await self._made(app, self._place.image)
        self._over = asyncio.ensure_future(self._watch(self._sandbox))

    async def _made(self, app: modal.App, image: modal.Image) -> modal.Sandbox:
        arguments = self._place.arguments(app, image)
        command = ("python", "-P", "-c", program("hold"), "keep", PIPE, str(HOLD_SECONDS))
        making: asyncio.Future[modal.Sandbox]
        making = self._making = asyncio.ensure_future(load().Sandbox.create.aio(*command, **arguments))
        waited = 0.0
        while not (await asyncio.wait({making}, timeout=PROGRESS_SECONDS))[0]:
            waited += PROGRESS_SECONDS
            self._told(f"Modal builds the image (once), or looks for a machine: {waited:.0f} s")
        return making.result()

    async def connect(self, environment: Environment, how: str) -> None:
        """Start the supervisor, hand it its sources and settings, and wait until it is ready."""
        assert self._sandbox is not None
        assert self._over is not None
        command = ("python", "-P", "-c", program("hold"), "run", PIPE, program())
        known = load().exception
        try:
            with anyio.fail_after(MACHINE_SECONDS):
                process = await self._or_over(self._sandbox.exec.aio(*command, text=False))
            self._tasks.append(asyncio.ensure_future(self._listen(process)))

            def closed(reason: Exception | None) -> None:
                self._reason = reason
                environment.closed(reason)

            self._stream = stream = open_exec(
                process,
                environment.receive,
                closed,
                silence=self._reconnect,
                patience=PATIENCE * self._reconnect,
                told=self._told,
            )
            self._over.add_done_callback(lambda _: self._close_soon(stream))
            stream.write(handover(self._settings(how)))
            with anyio.fail_after(READY_SECONDS):
                await environment.connect(stream)
                if self._place.bridge == "tunnel":
                    self._build_bridge(environment, await self._or_over(self._found(self._sandbox)))
        except (known.NotFoundError, known.ConflictError):
            raise KernelDied(await self.lost()) from None
        except TimeoutError:
            raise KernelStartError("the sandbox was not ready in time: no machine, or a very slow one; try again") from None

    async def _found(self, sandbox: modal.Sandbox) -> str:
        """Wait until Modal has seen the broker's port, and give the tunnel's address."""
        await sandbox.wait_until_ready.aio(timeout=int(READY_SECONDS))
        return str((await sandbox.tunnels.aio())[PORT].url)

    def _build_bridge(self, environment: Environment, url: str) -> None:
        """Pull LM calls from now on; what goes wrong with that ends the environment."""
        bridge = Bridge(
            url, self._token, environment.called, self._told, deadline=PATIENCE * self._reconnect, silence=self._reconnect
        )
        environment.answer_by(bridge.reply)

        async def serve() -> None:
            try:
                await bridge.run()
            except KernelError as error:
                lost = f"The way of LM calls out of the sandbox is lost: {error}. It was given up."
                environment.kill(KernelDied(f"{lost}\n{LOST}"))
            except Exception as error:
                environment.kill(error)

        assert self._over is not None
        self._bridging = bridging = asyncio.ensure_future(serve())
        self._over.add_done_callback(lambda _: bridging.cancel())

    def _settings(self, how: str) -> dict[str, Any]:
        broker = {
            "token": self._token, "host": "0.0.0.0", "port": PORT, "lease": self._lease, "caps": guest_caps(),
            "heartbeat": min(10.0, self._reconnect / 3),
        }  # fmt: skip
        return ({"broker": broker} if self._place.bridge == "tunnel" else {}) | {
            "box": True,
            "folder": FOLDER,
            "how": how,
            "cold": {
                "argv": [
                    "python", "-m", "ipykernel_launcher", "-f", "{connection_file}",
                    "--HistoryManager.enabled=False", "--log-level=50",
                ],
                "env": {},
            },
            "shared": list(self._place.volumes),
            "caps": guest_caps(),
            "start_seconds": START_SECONDS - 5,
            "lease": self._lease,
            "beat": self.beat,
        }  # fmt: skip

    async def _watch(self, sandbox: modal.Sandbox) -> None:
        """Wait until Modal says that the sandbox is over."""
        known = load().exception
        while self.code is None:
            try:
                await sandbox.wait.aio(raise_on_termination=False)
                self.code = sandbox.returncode or 0
            except known.SandboxTimeoutError:
                self.code = 124
            except known.NotFoundError:
                self.code = 137
            except Exception:
                await asyncio.sleep(AGAIN_SECONDS)

    def _close_soon(self, stream: FramedStream) -> None:
        """Close the stream of a sandbox that is over; what it wrote last has a moment to arrive."""
        over = ConnectionAbortedError("the sandbox is over")
        asyncio.get_running_loop().call_later(LAST_WORDS_SECONDS, stream.close, over)

    async def _listen(self, process: Any) -> None:
        """Keep the end of what the supervisor writes on its standard error."""
        with contextlib.suppress(Exception):
            async for piece in process.stderr:
                self._log += piece
                del self._log[:-LOG_CAP]

    async def _or_over(self, wanted: Awaitable[T]) -> T:
        """Await `wanted`; KernelDied when the sandbox is over first."""
        assert self._over is not None
        work: asyncio.Future[T] = asyncio.ensure_future(wanted)
        try:
            await asyncio.wait({work, self._over}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            raise KernelDied(await self.lost())
        finally:
            work.cancel()

    def refusal(self) -> str:
        """Say why the supervisor has ended before it was ready; '' where it did not say so itself."""
        lines = cleaned(bytes(self._log).decode("utf-8", "replace")).splitlines()
        return f"the supervisor did not start in the sandbox: {lines[-1][:300]}" if lines else ""

    def unstarted(self, how: str) -> str:
        image = "" if self._place.image is None else "; has the image Python 3.11 or newer, as python?"
        return f"the kernels' sandbox did not come up: {how[0].lower()}{how[1:].rstrip('.')}{image}"

    def explained(self, error: Exception) -> RLMError:
        """Give the error of ours for one of the SDK's."""
        known = load().exception
        lines = [line.strip() for line in cleaned(str(error)).splitlines() if line.strip()] or [type(error).__name__]
        line = lines[0][:300]
        if isinstance(error, known.AuthError):
            return SettingsError(f"Modal does not accept this machine's token: type modal setup ({line})")
        if isinstance(error, known.AlreadyExistsError):
            return SettingsError(f"name={self._place.name!r}: a running sandbox has this name; choose another, or end that one")
        image = self._place.image
        if isinstance(image, str) and image.isidentifier() and (image in line or isinstance(error, known.RemoteError)):
            line += f" (is {image!r} meant as a variable? None with a modal.Image has this name)"
        if isinstance(error, (known.NotFoundError, known.InvalidError, known.PermissionDeniedError)):
            return SettingsError(f"Modal refuses this sandbox: {line}")
        if isinstance(error, known.RemoteError):
            return KernelStartError(f"Modal could not build the image: {line}")
        what = line if isinstance(error, known.Error) else f"{type(error).__name__}: {line}"
        return KernelStartError(f"no sandbox could be had at Modal: {what}")

    # What the environment asks for

    async def deliver(self, payload: Payload) -> str:
        assert self._sandbox is not None
        self._files += 1
        name = f"context-{self._files}"
        upload = Upload(self._sandbox, f"{FOLDER}/{name}", payload, PATIENCE * self._reconnect)
        try:
            await self._or_over(upload.run(self._told, lambda file: self._append(name, file.rpartition("/")[2])))
        except BaseException:
            for path in upload.files:
                self.discard(path.rpartition("/")[2])
            raise
        return name

    def _append(self, name: str, part: str) -> None:
        if self._stream is not None:
            self._stream.send(wire.Append(name, part))

    def borrow(self, descriptor: int, size: int) -> memoryview | None:
        return None

    def discard(self, path: str) -> None:
        if self._stream is not None:
            self._stream.send(wire.Discard(path))

    async def lost(self) -> str:
        if self._over is not None:
            await asyncio.wait({self._over}, timeout=LOST_SECONDS)
        return f"{self._how_it_ended()}\n{LOST}"

    def _how_it_ended(self) -> str:
        if self.code == 124:
            return f"The sandbox has reached its time-out of {self._place.timeout:,} s and was ended (--sandbox-timeout)."
        if self.code == 137:
            return "The sandbox was terminated: by Modal, which may take a machine away, or by somebody else with this account."
        if isinstance(self._reason, Silence):
            return (
                f"The connection to the sandbox is lost: {self._reason}. It was given up, and ends within {self._lease:.0f} s."
            )
        lines = cleaned(bytes(self._log).decode("utf-8", "replace")).splitlines()
        last = f" ({lines[-1][:300]})" if lines else ""
        idle = self._place.idle_timeout
        perhaps = f" (or Modal has found it idle for {idle:,} s)" if idle is not None and not lines else ""
        return f"The process that runs the kernels is gone{last}, and the sandbox with it{perhaps}."

    # Going down

    def kill(self) -> None:
        if self._sandbox is not None and self._ending is None:
            self._ending = asyncio.ensure_future(self._terminate(self._sandbox))

    async def _terminate(self, sandbox: modal.Sandbox) -> None:
        while self.code is None:
            try:
                await sandbox.terminate.aio()
                return
            except Exception:
                await asyncio.sleep(AGAIN_SECONDS)

    def uses(self, sandbox: str) -> bool:
        """Whether it is this sandbox, or may be, since Modal has not told yet which one it is."""
        return self._sandbox is None or self._sandbox.object_id == sandbox

    async def end(self) -> None:
        try:
            await self._end()
        finally:
            _OURS.discard(self)

    async def _end(self) -> None:
        if self._bridging is not None:
            self._bridging.cancel()
        with anyio.move_on_after(END_SECONDS):
            if self._sandbox is None and self._making is not None:
                # It was asked for, and may come to pass: its own first program ends it if this does not.
                with contextlib.suppress(Exception):
                    self._sandbox = await asyncio.shield(self._making)
        self.kill()
        with anyio.move_on_after(END_SECONDS):
            await asyncio.gather(*(step for step in (self._ending, self._over) if step is not None), return_exceptions=True)
        if self._stream is not None:
            self._stream.close()
        for task in (self._making, self._ending, self._over, self._bridging, *self._tasks):
            if task is not None:
                task.cancel()
        if self._sandbox is not None:
            with contextlib.suppress(Exception), anyio.move_on_after(END_SECONDS):
                await self._sandbox.detach.aio()  # type: ignore[no-untyped-call]


__all__ = ["RECONNECT_SECONDS", "ModalPlace", "SandboxPlace", "modal_image", "open_modal"]
