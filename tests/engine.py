"""A real container engine for the tests: whether one answers, its base image, and a second one that a test may stop.

`make test` starts the engine and makes the image as root on Debian (scripts/docker-engine, scripts/base-image); nothing here
starts the machine's own engine, stops it, or takes a stand-in for it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
CLIENT_SECONDS = 60.0
IMAGE_SECONDS = 100.0
"""Seconds to have the base image; making it anew can take longer, which is why `make test` does it before pytest."""
COPY_SECONDS = 240.0
"""Seconds to put 700 MB into an engine that may have no better driver than vfs, which copies each layer whole."""


class EngineError(Exception):
    """The engine, or a command that its client was given, failed; the text is its last line."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A container engine and how to reach it; `host` is '' for the machine's own."""

    host: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """Give the variables with which a process talks to this engine."""
        return {**os.environ, "DOCKER_HOST": self.host} if self.host else dict(os.environ)

    def run(self, *arguments: str, data: bytes | None = None, seconds: float = CLIENT_SECONDS) -> str:
        """Run the client to its end and give what it printed.

        Raises
        ------
        EngineError
            When it fails, or takes longer than `seconds`.
        """
        try:
            done = subprocess.run(
                ["docker", *arguments], input=data, capture_output=True, env=self.environment, timeout=seconds, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EngineError(str(error)) from None
        if done.returncode:
            raise EngineError(_last_line(done.stderr))
        return done.stdout.decode("utf-8", "replace").strip()

    def inspect(self, name: str) -> dict[str, Any]:
        """Give all that the engine knows of one container or image."""
        found: list[dict[str, Any]] = json.loads(self.run("inspect", name))
        return found[0]

    def containers(self, *filters: str) -> set[str]:
        """Give the ids of all containers, also of stopped ones, that meet the filters (`label=x`, `ancestor=y`)."""
        chosen = [part for each in filters for part in ("--filter", each)]
        return set(self.run("ps", "--all", "--quiet", "--no-trunc", *chosen).split())


@cache
def why_missing() -> str:
    """Give '' where an engine answers, else one line that says why not."""
    if shutil.which("docker") is None:
        return "there is no docker client"
    try:
        Engine().run("version")
    except EngineError as error:
        return str(error)
    return ""


def base_image() -> str:
    """Give the name of an image with a Python and nothing of ours in it, made or pulled if it is not there."""
    command = [str(SCRIPTS / "base-image")]
    environment = {**os.environ, "PYTHON": sys.executable}
    try:
        done = subprocess.run(command, capture_output=True, env=environment, timeout=IMAGE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise EngineError("the base image was not there in time; `make engine` has it made") from None
    if done.returncode:
        raise EngineError(_last_line(done.stderr))
    return done.stdout.decode().strip()


@contextmanager
def second_engine() -> Iterator[tuple[Engine, int]]:
    """Run an engine that a test may stop, with its process id. Root only; it holds no images and has no network."""
    folder = Path(tempfile.mkdtemp(prefix="rlm-engine-"))
    pid = 0
    try:
        started = subprocess.run(
            [str(SCRIPTS / "docker-engine"), str(folder)], capture_output=True, timeout=CLIENT_SECONDS, check=False
        )
        if started.returncode:
            raise EngineError(_last_line(started.stderr))
        pid = int((folder / "pid").read_text())
        yield Engine(f"unix://{folder / 'socket'}"), pid
    finally:
        _end(folder, pid)


def copy_image(name: str, engine: Engine) -> None:
    """Put an image of the machine's own engine into another one, layers shared by none."""
    with subprocess.Popen(["docker", "save", name], stdout=subprocess.PIPE) as saved:
        subprocess.run(
            ["docker", "load", "--quiet"], stdin=saved.stdout, env=engine.environment, timeout=COPY_SECONDS, check=True
        )


def _end(folder: Path, pid: int) -> None:
    """End an engine of our own and whatever is left of it, also after it was killed; remove its folder."""
    if pid and psutil.pid_exists(pid):
        engine = psutil.Process(pid)
        for stop in (engine.resume, engine.terminate):
            stop()
        psutil.wait_procs([engine], timeout=15)
    # A killed dockerd leaves its containerd, shims and containers: all that were started with a path in this folder.
    left = [process for process in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(process.info["cmdline"] or ())]
    left += [child for process in left for child in process.children(recursive=True)]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=10)
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in reversed([mount for mount in mounts if mount.startswith(f"{folder}/")]):
        subprocess.run(["umount", "--lazy", mount], capture_output=True, timeout=10, check=False)
    shutil.rmtree(folder, ignore_errors=True)


def _last_line(text: bytes) -> str:
    lines = text.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:500] if lines else "no reason was given"
