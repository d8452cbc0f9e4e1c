"""The image that the box is started from: the user's image, and on top of it what a kernel needs, layered once.

The derived image is found again by a name made of the base's id and the requirements, so a second run makes no container. It
needs no builder and no network: a container of the base unpacks what the host has fetched, and is committed. Containers made
here have the label `rlm_jupyter.build`, end with their standard input and remove themselves, even if the host is killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rlm_jupyter.errors import KernelStartError, SettingsError
from rlm_jupyter.kernels.client import Client, ClientError, cleaned
from rlm_jupyter.kernels.inspection import BUILD_LABEL, Found, clear_away, hardened, look_up, made_container, read_answer
from rlm_jupyter.kernels.interior import Interior, probe
from rlm_jupyter.kernels.packages import DATA, Fetch, missing, pack, wanted, work_folder

RECIPE = "1"
"""Raise it when what is layered changes: derived images of before are not used any more."""
REPOSITORY = "rlm-jupyter"
KEY_LABEL = "rlm_jupyter.key"
FIRST_ANSWER_SECONDS = 10.0
"""Seconds for a registry to say anything: a slow connection is no reason to refuse an image."""
_PULL_SECONDS = 3600.0
_BUILD_SECONDS = 900.0
_PLACES = ("/opt/rlm_jupyter", "/usr/local/rlm_jupyter", "/rlm_jupyter")

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(
    rf"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{{1,5}})?/)?{_PART}(?:/{_PART})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?|sha256:[0-9a-f]{64}"
)


@dataclass(frozen=True, slots=True)
class Image:
    """What to run.

    Attributes
    ----------
    reference
        The derived image's name.
    base
        The user's image, as it was named.
    python, interpreter
        The version of the Python inside, such as 3.11.2, and its path.
    volumes
        Folders that the image declares as volumes: a box must not let the engine make any for them.
    """

    reference: str
    base: str
    python: str
    volumes: tuple[str, ...]
    interpreter: str


def default_image(client: Client) -> str:
    """Give the name of the image that is used when none is named: the host's own minor version of Python."""
    name = f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"
    return f"docker.io/library/{name}" if client.name == "podman" else name


def check_name(image: str) -> None:
    """Refuse what cannot be an image's name with a SettingsError."""
    if len(image) > 512 or not _NAME.fullmatch(image):
        raise SettingsError(f"--image {image[:100]!r}: not an image's name; type one such as python:3.11-slim")


def prepare(client: Client, image: str | None, told: Callable[[str], None]) -> Image:
    """Give an image in which a kernel can run, making it when there is none yet.

    Parameters
    ----------
    client
        Of an engine that answers. Its `stop`, when set from another thread, ends this with RunStopped.
    image
        A name or id; None: `python:X.Y-slim` of the host's own minor version. It is pulled when it is not here.
    told
        Gets one line per step that takes time.

    Raises
    ------
    SettingsError
        When the image does not exist, or no kernel can run in it: no Python, too old, another kind of processor.
    KernelStartError
        When the packages cannot be fetched, or the engine fails.
    """
    base = image or default_image(client)
    check_name(base)
    found = look_up(client, base)
    if found is None:
        _pull(client, base, named=image is not None, told=told)
        found = look_up(client, base)
        if found is None:
            raise SettingsError(f"--image {base}: `{client.name} pull` ended well, and yet it is not here: name it by its id")
    needs = wanted()
    reference = _reference(found, needs)
    derived = look_up(client, reference)
    if derived is None or not derived.python:
        clear_away(client)
        _make(client, base, found, needs, reference, told)
        _tidy(client, reference.partition(":")[2])
        derived = look_up(client, reference)
        if derived is None:
            raise KernelStartError(f"the image {reference} was made and is gone again: run once more")
    return Image(reference, base, derived.python, found.volumes, derived.interpreter)


def _tidy(client: Client, key: str) -> None:
    """Remove images of the same content whose name went to another: two processes made them at once."""
    with contextlib.suppress(ClientError):
        out = client.run("images", "--quiet", "--filter=dangling=true", f"--filter=label={KEY_LABEL}={key}")
        for found in set(out.decode("ascii", "replace").split()):
            client.run("rmi", found)


def ready(client: Client, image: str | None) -> Image | None:
    """Give the image that `prepare` would give if it has nothing to make; None else. It pulls and starts nothing."""
    base = image or default_image(client)
    check_name(base)
    found = look_up(client, base)
    reference = _reference(found, wanted()) if found is not None else ""
    derived = look_up(client, reference) if reference else None
    if found is None or derived is None or not derived.python:
        return None
    return Image(reference, base, derived.python, found.volumes, derived.interpreter)


def _reference(found: Found, needs: dict[str, str]) -> str:
    """Name the image that is derived from a base: other packages or another base, another name."""
    return f"{REPOSITORY}:{hashlib.sha256(chr(10).join([found.id, RECIPE, *needs.values()]).encode()).hexdigest()[:12]}"


def _pull(client: Client, image: str, *, named: bool, told: Callable[[str], None]) -> None:
    """Fetch an image from its registry; a SettingsError when it cannot be had."""
    told(f"pulling {image} (once)")
    layers: dict[str, bool] = {}
    with client.start("pull", image, seconds=_PULL_SECONDS) as command:
        for line in command.lines(first=FIRST_ANSWER_SECONDS):
            if step := re.match(r"([0-9a-f]{12}): (.+)", line):
                layers[step[1]] = step[2].startswith(("Pull complete", "Already exists"))
                if layers[step[1]]:
                    told(f"pulling {image}: {sum(layers.values())} of {len(layers)} layers")
        ended = command.wait()
    try:
        client.check("pull", ended, FIRST_ANSWER_SECONDS if not layers else _PULL_SECONDS)
    except ClientError as error:
        what = f"no image is named {image} here" if named else f"the default image {image} is not here"
        raise SettingsError(f"{what}, and {error}") from None


def _make(client: Client, base: str, found: Found, needs: dict[str, str], reference: str, told: Callable[[str], None]) -> None:
    """Layer what the image lacks, and name the result."""
    interior = probe(client, base, found)
    lacking = missing(needs, interior.installed, base)
    labels = {
        BUILD_LABEL: "",
        KEY_LABEL: reference.partition(":")[2],
        "rlm_jupyter.python": interior.python,
        "rlm_jupyter.interpreter": interior.interpreter,
    }
    changes = [f"ENTRYPOINT {json.dumps([interior.interpreter])}", 'CMD ["--version"]', f"USER {found.user or '0'}"]
    changes += [f'LABEL {name}="{value}"' for name, value in labels.items()]
    options = [part for change in changes for part in ("--change", change)]
    if not lacking:
        with made_container(client, *hardened(found), found.id, interior.interpreter) as name:
            client.run("commit", *options, name, reference, seconds=_BUILD_SECONDS)
        return
    told(f"making an image with {', '.join(lacking)} on top of {base} (once)")
    try:
        with work_folder() as folder:
            packages = Fetch(interior, base, folder, told, client.stop).fill(lacking)
            _layer(client, found, interior, packages, [*options, reference], told)
    except OSError as error:
        raise KernelStartError(f"no image could be made: {error.strerror or error}") from None


def _layer(
    client: Client, found: Found, interior: Interior, packages: Path, commit: list[str], told: Callable[[str], None]
) -> None:
    """Unpack the packages in a container of the base, and commit it while it waits for the end of its input."""
    target = next((place for place in _PLACES if not _below(place, found.volumes)), None)
    if target is None or _below(interior.site, found.volumes):
        raise SettingsError(f"--image {found.id[:12]}: its Python lies in a volume, where nothing can be added; choose another")
    told("unpacking")
    # Root without capabilities may not write where another user owns the folder, as conda's images have it.
    rights = ("--user=0", "--cap-add=DAC_OVERRIDE", "--workdir=/", f"--entrypoint={interior.interpreter}", "--interactive")
    script = ("-P", "-c", UNPACK, target, interior.site, ",".join(sorted((*_IMPORTED, *DATA))))
    with (
        made_container(client, "--rm", *hardened(found), *rights, found.id, *script) as name,
        client.start("start", "--attach", "--interactive", name, stdin=subprocess.PIPE, seconds=_BUILD_SECONDS) as command,
    ):
        assert command.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            pack(packages, command.stdin)
            command.stdin.flush()
        answer = read_answer(command)
        if answer is None:
            client.check("start", command.wait(), _BUILD_SECONDS)
            raise KernelStartError("the container in which the image is made ended too soon")
        if problem := answer.get("problem"):
            raise KernelStartError(f"the packages do not work in this image: {cleaned(str(problem))[-300:]}")
        told("storing the image")
        client.run("commit", "--pause=false", *commit[:-1], name, commit[-1], seconds=_BUILD_SECONDS)
        command.stdin.close()
        command.wait()


_IMPORTED = ("IPython", "ipykernel.kernelapp", "jupyter_client.session", "zmq", "dill")

UNPACK = """
import compileall, json, os, re, subprocess, sys, sysconfig, tarfile
target, site, modules = sys.argv[1:4]
os.umask(0o022)
with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as tar:
    tar.extractall(target, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
os.makedirs(site, exist_ok=True)
with open(os.path.join(site, "zz_rlm_jupyter.pth"), "w") as file:
    file.write(target + "\\n")
skipped = re.compile(r"/(tests?|site-packages|dist-packages|idlelib|lib2to3|tkinter|turtledemo|ensurepip)/")
for folder in (target, sysconfig.get_path("stdlib")):
    compileall.compile_dir(folder, quiet=2, rx=skipped, workers=os.cpu_count() or 1)
env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
code = "import " + modules
done = subprocess.run([sys.executable, "-P", "-c", code], env={**env, "HOME": "/tmp"}, capture_output=True, text=True)
problem = (done.stderr.strip().splitlines() or ["exit code %d" % done.returncode])[-1] if done.returncode else ""
print("rlm_jupyter:" + json.dumps({"problem": problem}), flush=True)
sys.stdin.buffer.read()
"""
"""Run in the container, by the image's own Python. It compiles, also the standard library: Docker's own images of Python come
without compiled files, and in a box with a read-only root none can be written. Importing once shows that all of it works."""


def _below(path: str, volumes: tuple[str, ...]) -> bool:
    return any(f"{path}/".startswith(f"{volume.rstrip('/')}/") for volume in volumes)


__all__ = ["Image", "check_name", "default_image", "prepare", "ready"]
