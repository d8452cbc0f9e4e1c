"""Each environment tried for real: one cell is run in it, where that needs nothing to be made or downloaded first.

This is the doctor's part that starts something. Whatever it starts is ended before it answers, and every step has a deadline.
It makes no image and pulls none: that is left to the first run, which shows its progress.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import threading
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from rlm_jupyter.errors import RLMError, SettingsError
from rlm_jupyter.settings import ENVIRONMENTS, PLACES, RunSettings, size_text

if TYPE_CHECKING:
    from rlm_jupyter.kernels.client import Client
    from rlm_jupyter.kernels.environment import Environment

OK, NOTE, PROBLEM = "ok", "note", "problem"
TRY_SECONDS = 60.0
"""How long an environment may take to run one cell."""
VERSION_SECONDS = 1.0
PLACE_VARIABLES = ("DOCKER_HOST", "CONTAINER_HOST", "DOCKER_CONTEXT")
FIRST_USE = (
    "the first run with --env docker makes it ready, once: it downloads 100 to 180 MB of Python packages, "
    "and the image itself where that is not here"
)
"""Measured with CPython 3.11 on x86-64: 98 MB of wheels, 178 with matplotlib and polars, mostly pyarrow and polars."""


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """What came of it: in words, whether that is ok, a note (nothing is wrong) or a problem, what to type, and what runs it."""

    value: str
    state: str = OK
    advice: str = ""
    engine: str = ""


def _local(defaults: Mapping[str, Any]) -> Trial:
    from rlm_jupyter.kernels.local import open_local

    try:
        seconds = ran_a_cell(partial(open_local, how="forked"))
    except RLMError as error:
        advice = "%pip install --upgrade rlm-jupyter ipykernel, then restart this notebook's kernel"
        return Trial(f"not ready: {error}", PROBLEM, advice)
    return Trial(f"ready: ran a cell, {seconds:.1f} s with its start ({ENVIRONMENTS['local']})")


def _docker(defaults: Mapping[str, Any]) -> Trial:
    """Look for client and engine, which one may well do without; with both and a ready image, run a cell in a box."""
    from rlm_jupyter.kernels import client, docker, images

    wanted = defaults.get("env") == "docker"
    try:
        found = client.find()
        engine = client.check_engine(found)
    except SettingsError as error:
        return Trial(
            "not ready" if wanted else "not ready, and not needed for --env local", PROBLEM if wanted else NOTE, str(error)
        )
    try:
        given: dict[str, Any] = {name: defaults.get(name) or None for name, places in PLACES.items() if "docker" in places}
        settings = RunSettings(model="demo", environment="docker", **given)
        docker.check_box(settings, found, engine, 0)
        image = images.ready(found, settings.image)
        what = (
            f"{_client(found)}; engine {engine.version} on {engine.architecture}, {engine.cpus} CPUs, "
            f"{size_text(engine.memory)} of memory"
        )
        if image is None:
            name = settings.image or images.default_image(found)
            return Trial(f"no image is ready for {name} yet", NOTE, FIRST_USE, what)
        box = docker.make_box(settings, found, engine, image, 0)
        seconds = ran_a_cell(partial(docker.open_docker, box, how="forked"))
    except RLMError as error:
        return Trial("not ready", PROBLEM, str(error))
    where = f"a container of {image.base} (Python {image.python})"
    return Trial(f"ready: ran a cell in {where}, {seconds:.1f} s with its start ({ENVIRONMENTS['docker']})", engine=what)


def _modal(defaults: Mapping[str, Any]) -> Trial:
    """Look for package and token, which one may well do without. A sandbox would be billed, so none is started."""
    from rlm_jupyter.kernels import modal_launch

    chosen = defaults.get("env") == "modal"
    try:
        given: dict[str, Any] = {name: defaults.get(name) or None for name, places in PLACES.items() if "modal" in places}
        place = modal_launch.place_of(RunSettings(model="demo", environment="modal", **given))
        where = modal_launch.token_from()
    except SettingsError as error:
        return Trial(
            "not ready" if chosen else "not ready, and not needed for --env local", PROBLEM if chosen else NOTE, str(error)
        )
    told = f"a token is there ({where}); not tried, as Modal bills each second of a sandbox ({place.isolation})"
    return Trial(told, OK if chosen else NOTE, "", f"modal {modal_launch.version()}")


def _client(client: Client) -> str:
    """Name the client, its version, and where the user's own settings point it."""
    said = ""
    with contextlib.suppress(RLMError):
        said = client.run("--version", seconds=VERSION_SECONDS).decode("utf-8", "replace")
    version = re.search(r"version (\d[\w.+~-]{0,40})", said)
    places = [f"{name}={os.environ[name]}" for name in PLACE_VARIABLES if os.environ.get(name)]
    return f"{client.name} {version[1] if version else 'of a version that it does not tell'}" + "".join(
        f", {one}" for one in places
    )


def ran_a_cell(open_environment: Callable[[], Awaitable[Environment]]) -> float:
    """Open an environment, run one cell and end it, in a thread of its own; give the seconds.

    Raises
    ------
    RLMError
        What failed.
    """
    outcome: list[float | BaseException] = []

    def work() -> None:
        import anyio  # a late import: nobody else here needs it

        try:
            outcome.append(anyio.run(_run_a_cell, open_environment))
        except BaseException as error:  # whatever it is, the doctor's table tells it
            outcome.append(error)

    thread = threading.Thread(target=work, name="rlm_jupyter doctor", daemon=True)
    thread.start()
    thread.join(TRY_SECONDS + 10)
    result = outcome[0] if outcome else TimeoutError()
    if isinstance(result, RLMError):
        raise result
    if isinstance(result, BaseException):
        raise RLMError(f"no cell ran within {TRY_SECONDS:.0f} s" if isinstance(result, TimeoutError) else repr(result)[:200])
    return result


async def _run_a_cell(open_environment: Callable[[], Awaitable[Environment]]) -> float:
    import anyio

    started = anyio.current_time()
    texts: list[str] = []
    with anyio.fail_after(TRY_SECONDS):
        environment = await open_environment()
        try:
            kernel = await environment.start_kernel(_no_calls)
            result = await kernel.execute("print(6 * 7)", lambda output: texts.append(output.text))
            seconds = anyio.current_time() - started
        finally:
            with anyio.CancelScope(shield=True):
                await environment.close()
    if result.status != "ok" or "".join(texts).strip() != "42":
        raise RLMError(f"a cell that prints 42 ended {result.status}: {''.join(texts)[:200]}")
    return seconds


async def _no_calls(request: object) -> list[Any]:
    return []


TRIES: Mapping[str, Callable[[Mapping[str, Any]], Trial]] = {"local": _local, "docker": _docker, "modal": _modal}
"""How each environment is tried, given the magic's defaults; a test holds that none is missing."""
