"""Boxes of one test module among those of others on the same engine: an image with a mark of its own, and what has it."""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from rlm_jupyter.kernels.docker import LABEL, Box, open_docker
from tests.conformance.driving import Open, make_test_box
from tests.engine import Engine, EngineError

MARK = "rlm_jupyter.test"


@dataclass(frozen=True, slots=True)
class Marked:
    """An image of our own whose label every container of it inherits."""

    name: str
    engine: Engine = field(default_factory=Engine)

    @property
    def label(self) -> str:
        return f"label={MARK}={self.name}"

    def boxes(self) -> set[str]:
        """Give the ids of the boxes of this image, also of those that have ended."""
        return self.engine.containers(self.label, f"label={LABEL}")

    def containers(self) -> set[str]:
        """Give the ids of all its containers, also of those in which images are made."""
        return self.engine.containers(self.label)

    def box(self) -> str:
        """Give the id of its only box."""
        (found,) = self.boxes()
        return found

    def wait(self, event: str, until: Callable[[], bool], seconds: float) -> bool:
        """Wait until something is so, looking again at each event of one of its containers."""
        end = time.time() + seconds
        command = ["docker", "events", "--since", f"{time.time() - 1:.3f}", "--until", f"{end:.3f}", "--filter", self.label,
                   "--filter", f"event={event}", "--format", "{{.ID}}"]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=self.engine.environment) as events:
            assert events.stdout is not None
            try:
                if until():
                    return True
                for _ in events.stdout:
                    if until():
                        return True
                return until()
            finally:
                events.kill()

    def gone(self, seconds: float = 10) -> bool:
        """Whether none of its containers is left, at the latest after so many seconds."""
        return self.wait("destroy", lambda: not self.containers(), seconds)

    def started(self, seconds: float = 30) -> str:
        """Wait for a box and give its id."""
        assert self.wait("start", lambda: bool(self.boxes()), seconds)
        return self.box()


@contextmanager
def marked_image(base: str, *changes: str, script: str = "", engine: Engine | None = None) -> Iterator[Marked]:
    """Make an image with a mark from another one, with changes as of `docker commit`, after a script that root runs in it."""
    engine = engine or Engine()
    name = f"rlm-test:{secrets.token_hex(6)}"
    container = f"rlm-test-{secrets.token_hex(6)}"
    marked = Marked(name, engine)
    options = [part for change in (f"LABEL {MARK}={name}", *changes) for part in ("--change", change)]
    try:
        engine.run("run", "--name", container, "--network=none", "--entrypoint=/bin/sh", "--user=0", base, "-c", script or ":")
        engine.run("commit", *options, container, name)
        engine.run("rm", "--force", container)
        yield marked
    finally:
        for left in marked.containers() | engine.containers(f"name={container}"):
            engine.run("rm", "--force", "--volumes", left)
        made = engine.run("images", "--quiet", "--filter", marked.label).split()
        for image in made:
            with suppress(EngineError):  # another one that was made from it is still there
                engine.run("rmi", "--force", image)


def derived_image() -> str:
    """Give an image that has all that a kernel needs, so that one made from it needs nothing more."""
    return make_test_box(0).image.reference


def boxes_of(marked: Marked, context: int = 0, **settings: object) -> Open:
    """Give what opens a box of this image, as `--env docker` would with these settings."""
    return partial(open_docker, box_of(marked, context, **settings))


def box_of(marked: Marked, context: int = 0, **settings: object) -> Box:
    return make_test_box(context, marked.name, **settings)


def environment_of(info: dict[str, object]) -> dict[str, str]:
    """Read a container's environment from what `docker inspect` says."""
    config = json.loads(json.dumps(info["Config"]))
    return dict(line.partition("=")[::2] for line in config["Env"])


__all__ = ["Marked", "box_of", "boxes_of", "derived_image", "environment_of", "marked_image"]
