"""The sandboxes at Modal that this user has running: found by their tags, told from each other, and ended on request.

A sandbox ends with its run, and by itself when its notebook is gone; what is found here is what is in use, and what a fault
left over. It looks in the apps that it is given, since Modal lists sandboxes by app, and never at what something else made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rlm_jupyter.errors import SettingsError
from rlm_jupyter.kernels.modal import in_use
from rlm_jupyter.kernels.modal_launch import explained, say_hello, token_from, within
from rlm_jupyter.kernels.modal_place import BEGUN, HOST, PROCESS, ModalPlace, load, tags

if TYPE_CHECKING:
    import modal

LIST_SECONDS = 15.0
END_SECONDS = 30.0
SHARED = (PROCESS, HOST, BEGUN)
"""Tags that differ between the sandboxes of one user."""


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """One running sandbox. `process`: who uses it, in words; '' where nobody does any more. `age` in seconds, or None."""

    id: str
    app: str
    process: str
    age: float | None


def find(apps: Sequence[str]) -> list[Found]:
    """Give the sandboxes of this user in some apps, the oldest first.

    Raises
    ------
    SettingsError
        Without the package, without a token, or when Modal cannot be asked; one line says what to do.
    """
    for app in apps:
        ModalPlace(app_name=app)
    token_from()
    say_hello()

    def look() -> list[Found]:
        return [found for app in apps for sandbox in _listed(app) if (found := _read(sandbox, app))]

    return sorted(_asked(LIST_SECONDS, look), key=lambda found: -(found.age or 0.0))


def end(ids: Sequence[str]) -> None:
    """End sandboxes, and wait until they are over."""
    modal = load()

    def terminate() -> None:
        ending = []
        for sandbox in map(modal.Sandbox.from_id, ids):
            with contextlib.suppress(modal.exception.NotFoundError):  # it has ended since it was listed
                sandbox.terminate()
                ending.append(sandbox)
        for sandbox in ending:
            sandbox.wait(raise_on_termination=False)

    _asked(END_SECONDS, terminate)


def _asked(seconds: float, work: Callable[[], Any]) -> Any:
    try:
        return within(seconds, work)
    except SettingsError:
        raise
    except Exception as error:  # whatever the SDK raises is one line
        raise explained(error, seconds) from None


def _listed(name: str) -> Iterator[modal.Sandbox]:
    modal = load()
    try:
        app = modal.App.lookup(name, create_if_missing=False)
    except modal.exception.NotFoundError:
        return
    wanted = {tag: value for tag, value in tags().items() if tag not in SHARED}
    # The plain list of SDK 1.6 leaves out the sandboxes of Modal's newer back end.
    listed = getattr(modal.Sandbox, "_experimental_list", modal.Sandbox.list)
    yield from listed(app_id=app.app_id, tags=wanted)


def _read(sandbox: modal.Sandbox, app: str) -> Found | None:
    try:
        told = sandbox.get_tags()
    except load().exception.NotFoundError:  # it has ended since it was listed
        return None
    begun, process, host = (str(told.get(tag, "")) for tag in (BEGUN, PROCESS, HOST))
    age = max(0.0, time.time() - int(begun)) if begun.isdecimal() and len(begun) < 12 else None
    return Found(sandbox.object_id, app, _user_of(sandbox.object_id, process, host), age)


def _user_of(sandbox: str, process: str, host: str) -> str:
    """Name who uses a sandbox: a process of this machine that still runs, or one of a machine that nobody here can ask."""
    if host != tags()[HOST]:
        return f"process {process[:12]} on {host[:64] or 'another machine'}, if that still runs"
    if not process.isdecimal() or len(process) > 10:
        return ""
    if int(process) == os.getpid():
        return "this notebook" if in_use(sandbox) else ""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return f"process {process}"
