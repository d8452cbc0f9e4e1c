"""What an engine has: images by name, and containers that are made for a moment and are gone afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rlm_jupyter.errors import KernelStartError, SettingsError
from rlm_jupyter.kernels.client import NO_PROXIES, Client, ClientError, cleaned
from rlm_jupyter.kernels.commands import Command
from rlm_jupyter.settings import MIB

BUILD_LABEL = "rlm_jupyter.build"
"""On every container that is made here. Its value is the id of the process that made it; empty in images."""
PATH = re.compile(r"/[A-Za-z0-9._+@/-]{1,250}")
_ANSWER_CAP = 4 * MIB
_MARK = "rlm_jupyter:"
_REMOVE_SECONDS = 10.0
_SAFE = ("--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--no-healthcheck", "--pull=never")


@dataclass(frozen=True, slots=True)
class Found:
    """An image that is here. `python` and `interpreter` are of derived ones."""

    id: str
    architecture: str
    user: str
    volumes: tuple[str, ...]
    proxies: tuple[str, ...]
    python: str
    interpreter: str


def look_up(client: Client, name: str) -> Found | None:
    """Look an image up; None when it is not here."""
    try:
        out = client.run("image", "inspect", name)
    except ClientError as error:
        if re.search(r"no such image|no such object|image not known|failed to find image", error.said, re.IGNORECASE):
            return None
        raise
    try:
        entry: Any = json.loads(out)[0]
        config = entry.get("Config") or {}
        labels = config.get("Labels") or {}
        volumes = tuple(sorted(str(path) for path in config.get("Volumes") or ()))
        names = {flag.removeprefix("--env=").rstrip("=") for flag in NO_PROXIES}
        own = tuple(line for line in config.get("Env") or () if line.partition("=")[0] in names)
        found = Found(
            str(entry["Id"]).removeprefix("sha256:"), cleaned(str(entry.get("Architecture") or "?"))[:50],
            str(config.get("User") or ""), volumes, own,
            str(labels.get("rlm_jupyter.python") or ""), str(labels.get("rlm_jupyter.interpreter") or ""),
        )  # fmt: skip
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise KernelStartError(f"`{client.name} image inspect {name}` gave no answer that can be read") from None
    if not re.fullmatch(r"[0-9a-f]{12,64}", found.id) or not all(PATH.fullmatch(path) for path in volumes):
        raise SettingsError(f"--image {name}: it declares volumes or an id that are not plain; choose another image")
    return found


@contextlib.contextmanager
def made_container(client: Client, *arguments: str) -> Iterator[str]:
    """Create a container and give its name; it is gone afterwards, whatever happens."""
    name = f"rlm-jupyter-build-{secrets.token_hex(6)}"
    # A creation that is cut in the middle may still come to pass: nothing but its own end stops it.
    own = Client(client.program, client.name)
    try:
        own.run("create", "--name", name, f"--label={BUILD_LABEL}={os.getpid()}", *arguments, seconds=60, grace=10)
        yield name
    finally:
        _remove(own, name)


def clear_away(client: Client) -> None:
    """Remove containers that a process which was killed had created and never started."""
    with contextlib.suppress(ClientError):
        client.run("container", "prune", "--force", f"--filter=label={BUILD_LABEL}", "--filter=until=10m")


def _remove(client: Client, name: str) -> None:
    """Remove a container if it is still there."""
    until = time.monotonic() + _REMOVE_SECONDS
    while time.monotonic() < until:
        try:
            client.run("rm", "--force", "--volumes", name, grace=5)
        except ClientError as error:
            if "in progress" in error.said:
                continue
        return


def read_answer(command: Command) -> dict[str, Any] | None:
    """Read a container's output up to the line that is for us; None when it ends without one."""
    for line in command.lines():
        if line.startswith(_MARK) and len(line) < _ANSWER_CAP:
            with contextlib.suppress(ValueError):
                said = json.loads(line[len(_MARK) :])
                return said if isinstance(said, dict) else None
    return None


def hardened(found: Found) -> tuple[str, ...]:
    """Give what holds for every container that is made here; what the image itself says of proxies stays."""
    return (*_SAFE, *NO_PROXIES, *(f"--env={line}" for line in found.proxies))
