"""The image that the box is started from: the user's image, and on top of it what a kernel needs, layered once.

The derived image is found again by a name made of the base's id and the requirements, so a second run makes no container. It
needs no builder and no network: a container of the base unpacks what the host has fetched, and is committed. Containers made
here have the label `rlm_jupyter.build`, end with their standard input and remove themselves, even if the host is killed.
What an image says of itself is checked before it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from rlm_jupyter.errors import KernelStartError, SettingsError
from rlm_jupyter.kernels.client import NO_PROXIES, Client, ClientError, cleaned
from rlm_jupyter.kernels.commands import Command
from rlm_jupyter.kernels.packages import DATA, LEAST, Fetch, Interior, missing, pack, wanted
from rlm_jupyter.settings import MIB

RECIPE = "1"
"""Raise it when what is layered changes: derived images of before are not used any more."""
REPOSITORY = "rlm-jupyter"
BUILD_LABEL = "rlm_jupyter.build"
"""Its value is the id of the process that makes the image; empty in images."""
KEY_LABEL = "rlm_jupyter.key"
FIRST_ANSWER_SECONDS = 4.0
_PULL_SECONDS = 3600.0
_PROBE_SECONDS = 60.0
_REMOVE_SECONDS = 10.0
_ANSWER_CAP = 4 * MIB
_BUILD_SECONDS = 900.0
_LEAST_PYTHON = (3, 11)
_PLACES = ("/opt/rlm_jupyter", "/usr/local/rlm_jupyter", "/rlm_jupyter")
_SAFE = ("--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--no-healthcheck", "--pull=never")
_MARK = "rlm_jupyter:"

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(
    rf"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{{1,5}})?/)?{_PART}(?:/{_PART})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?|sha256:[0-9a-f]{64}"
)
_PATH = re.compile(r"/[A-Za-z0-9._+@/-]{1,250}")


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
    found = _inspect(client, base)
    if found is None:
        _pull(client, base, named=image is not None, told=told)
        found = _inspect(client, base)
        if found is None:
            raise SettingsError(f"--image {base}: `{client.name} pull` ended well, and yet it is not here: name it by its id")
    needs = wanted()
    reference = _reference(found, needs)
    derived = _inspect(client, reference)
    if derived is None or not derived.python:
        _make(client, base, found, needs, reference, told)
        _tidy(client, reference.partition(":")[2])
        derived = _inspect(client, reference)
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
    found = _inspect(client, base)
    reference = _reference(found, wanted()) if found is not None else ""
    derived = _inspect(client, reference) if reference else None
    if found is None or derived is None or not derived.python:
        return None
    return Image(reference, base, derived.python, found.volumes, derived.interpreter)


def _reference(found: _Found, needs: dict[str, str]) -> str:
    """Name the image that is derived from a base: other packages or another base, another name."""
    return f"{REPOSITORY}:{hashlib.sha256(chr(10).join([found.id, RECIPE, *needs.values()]).encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class _Found:
    """An image that is here. `python` and `interpreter` are of derived ones."""

    id: str
    architecture: str
    user: str
    volumes: tuple[str, ...]
    proxies: tuple[str, ...]
    python: str
    interpreter: str


def _inspect(client: Client, name: str) -> _Found | None:
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
        found = _Found(
            str(entry["Id"]).removeprefix("sha256:"), cleaned(str(entry.get("Architecture") or "?"))[:50],
            str(config.get("User") or ""), volumes, own,
            str(labels.get("rlm_jupyter.python") or ""), str(labels.get("rlm_jupyter.interpreter") or ""),
        )  # fmt: skip
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise KernelStartError(f"`{client.name} image inspect {name}` gave no answer that can be read") from None
    if not re.fullmatch(r"[0-9a-f]{12,64}", found.id) or not all(_PATH.fullmatch(path) for path in volumes):
        raise SettingsError(f"--image {name}: it declares volumes or an id that are not plain; choose another image")
    return found


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


def _make(client: Client, base: str, found: _Found, needs: dict[str, str], reference: str, told: Callable[[str], None]) -> None:
    """Layer what the image lacks, and name the result."""
    interior = _probe(client, base, found)
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
        with _container(client, *_flags(found), found.id, interior.interpreter) as name:
            client.run("commit", *options, name, reference, seconds=_BUILD_SECONDS)
        return
    told(f"making an image with {', '.join(lacking)} on top of {base} (once)")
    try:
        with tempfile.TemporaryDirectory(prefix="rlm-image-") as folder:
            packages = Fetch(interior, base, Path(folder), told, client.stop).fill(lacking)
            _layer(client, found, interior, packages, [*options, reference], told)
    except OSError as error:
        raise KernelStartError(f"no image could be made: {error.strerror or error}") from None


def _layer(
    client: Client, found: _Found, interior: Interior, packages: Path, commit: list[str], told: Callable[[str], None]
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
        _container(client, "--rm", *_flags(found), *rights, found.id, *script) as name,
        client.start("start", "--attach", "--interactive", name, stdin=subprocess.PIPE, seconds=_BUILD_SECONDS) as command,
    ):
        assert command.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            pack(packages, command.stdin)
            command.stdin.flush()
        answer = _answer(command)
        if answer is None:
            client.check("start", command.wait(), _BUILD_SECONDS)
            raise KernelStartError("the container in which the image is made ended too soon")
        if problem := answer.get("problem"):
            raise KernelStartError(f"the packages do not work in this image: {cleaned(str(problem))[-300:]}")
        told("storing the image")
        client.run("commit", "--pause=false", *commit[:-1], name, commit[-1], seconds=_BUILD_SECONDS)
        command.stdin.close()
        command.wait()


_IMPORTED = ("IPython", "ipykernel.kernelapp", "ipykernel.ipkernel", "jupyter_client.session", "zmq", "dill", "multiprocessing",
             "asyncio", "ctypes", "selectors", "secrets", "tempfile", "fcntl")  # fmt: skip

UNPACK = """
import compileall, json, os, re, subprocess, sys, tarfile
target, site, modules = sys.argv[1:4]
os.umask(0o022)
with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as tar:
    tar.extractall(target, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
os.makedirs(site, exist_ok=True)
with open(os.path.join(site, "zz_rlm_jupyter.pth"), "w") as file:
    file.write(target + "\\n")
compileall.compile_dir(target, quiet=2, rx=re.compile(r"/tests?/"), workers=os.cpu_count() or 1)
env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
code = "import " + modules
done = subprocess.run([sys.executable, "-P", "-c", code], env={**env, "HOME": "/tmp"}, capture_output=True, text=True)
problem = (done.stderr.strip().splitlines() or ["exit code %d" % done.returncode])[-1] if done.returncode else ""
print("rlm_jupyter:" + json.dumps({"problem": problem}), flush=True)
sys.stdin.buffer.read()
"""
"""Run in the container, by the image's own Python. Importing once leaves the compiled files of what kernels import."""

PROBE = """
import sys
sys.path[:] = [path for path in sys.path if path]
import json
out = {"version": list(sys.version_info[:3]), "interpreter": sys.executable}
if sys.version_info >= (3, 11):
    import importlib.metadata, importlib.util, glob, os, platform, re, site, subprocess, sysconfig
    names = ("asyncio", "ctypes", "json", "multiprocessing", "tarfile", "zlib", "compileall", "uuid", "logging")
    out["absent"] = [name for name in names if importlib.util.find_spec(name) is None]
    out["implementation"] = sys.implementation.name
    out["machine"] = sysconfig.get_platform().rpartition("-")[2]
    out["threaded"] = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    try:
        out["libc"] = os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError):
        loaders = glob.glob("/lib/ld-musl-*.so.1")
        said = subprocess.run(loaders[:1], stderr=subprocess.PIPE, text=True).stderr if loaders else ""
        out["libc"] = "musl " + (re.findall(r"Version ([0-9.]+)", said) or ["?"])[0]
    folders = site.getsitepackages() if hasattr(site, "getsitepackages") else [sysconfig.get_path("purelib")]
    out["site"] = ([path for path in folders if os.path.isdir(path)] or folders)[-1]
    out["installed"] = {}
    for found in importlib.metadata.distributions():
        if found.metadata["Name"]:
            out["installed"].setdefault(found.metadata["Name"], found.version)
    full = platform.python_version()
    out["markers"] = {
        "implementation_name": sys.implementation.name, "implementation_version": full, "os_name": os.name,
        "platform_machine": platform.machine(), "platform_release": platform.release(), "platform_system": platform.system(),
        "platform_version": platform.version(), "python_full_version": full, "sys_platform": sys.platform,
        "platform_python_implementation": platform.python_implementation(), "python_version": ".".join(full.split(".")[:2]),
    }
print("\\nrlm_jupyter:" + json.dumps(out))
"""
"""Run once in a hardened container. Its syntax is that of every Python since 2.7, so that an old one can say how old it is."""


def _probe(client: Client, base: str, found: _Found) -> Interior:
    """Ask the image's Python what it is; a SettingsError when it has none that would do."""
    for program in ("python3", "python"):
        flags = ("--rm", *_flags(found), "--read-only", "--user=65534:65534", "--workdir=/", f"--entrypoint={program}")
        try:
            with _container(client, *flags, found.id, "-c", PROBE) as name:
                with client.start("start", "--attach", name, seconds=_PROBE_SECONDS) as command:
                    answer = _answer(command)
                    ended = command.wait()
                if answer is None:
                    client.check("start", ended, _PROBE_SECONDS)
        except ClientError as error:
            if re.search(r"exec format error", error.said, re.IGNORECASE):
                raise SettingsError(
                    f"--image {base}: its programs are for another kind of processor ({found.architecture}) than this "
                    "engine's; choose an image for this one"
                ) from None
            if re.search(r"not found|no such file|permission denied", error.said, re.IGNORECASE):
                continue
            raise
        return _read_probe(base, answer)
    raise SettingsError(
        f"--image {base}: it has no Python that any user may run; choose one that has, such as {default_image(client)}"
    )


def _read_probe(base: str, answer: dict[str, Any] | None) -> Interior:
    """Check what the image said of itself: nothing of it is taken on trust."""
    try:
        if answer is None:
            raise ValueError
        version = tuple(int(part) for part in answer["version"])
        if version < _LEAST_PYTHON:
            shown = ".".join(map(str, version))
            raise SettingsError(f"--image {base}: its Python is {shown}, and at least 3.11 is needed; choose another image")
        absent = [_matching(r"\w{1,50}", name) for name in answer["absent"]]
        if answer["implementation"] != "cpython" or absent:
            what = f"lacks {', '.join(absent)}" if absent else "is not CPython"
            raise SettingsError(f"--image {base}: its Python {what}; choose an image with a complete CPython")
        libc, _, libc_version = _matching(r"(?:glibc|musl) \d+\.\d+[0-9.]*", answer["libc"]).partition(" ")
        major, minor = (int(part) for part in libc_version.split(".")[:2])
        if minor > 200:
            raise ValueError
        installed: dict[str, str] = {
            canonicalize_name(_matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}", name)): version_
            for name, version_ in answer["installed"].items()
            if _is_version(version_)
        }
        markers = {
            _matching(r"\w{1,40}", name): _matching(r"[^\x00-\x1f]{0,300}", value) for name, value in answer["markers"].items()
        }
        return Interior(
            python=".".join(map(str, version)),
            interpreter=_matching(_PATH, answer["interpreter"]),
            machine=_matching(r"[a-z0-9_]{1,20}", answer["machine"]),
            libc=libc,
            libc_version=(major, minor),
            threaded=answer["threaded"] is True,
            site=_matching(_PATH, answer["site"]),
            markers=markers,
            installed=installed,
        )
    except SettingsError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SettingsError(
            f"--image {base}: its Python does not say what it is as CPython would; choose another image"
        ) from None


def _answer(command: Command) -> dict[str, Any] | None:
    """Read a container's output up to the line that is for us; None when it ends without one."""
    for line in command.lines():
        if line.startswith(_MARK) and len(line) < _ANSWER_CAP:
            with contextlib.suppress(ValueError):
                answer = json.loads(line[len(_MARK) :])
                return answer if isinstance(answer, dict) else None
    return None


@contextlib.contextmanager
def _container(client: Client, *arguments: str) -> Iterator[str]:
    """Create a container and give its name; it is gone afterwards, whatever happens."""
    name = f"rlm-jupyter-build-{secrets.token_hex(6)}"
    # A creation that is cut in the middle may still come to pass: nothing but its own end stops it.
    own = Client(client.program, client.name)
    try:
        own.run("create", "--name", name, f"--label={BUILD_LABEL}={os.getpid()}", *arguments, seconds=60, grace=10)
        yield name
    finally:
        _remove(own, name)


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


def _flags(found: _Found) -> tuple[str, ...]:
    """Give what holds for every container that is made here; what the image itself says of proxies stays."""
    return (*_SAFE, *NO_PROXIES, *(f"--env={line}" for line in found.proxies))


def _below(path: str, volumes: tuple[str, ...]) -> bool:
    return any(f"{path}/".startswith(f"{volume.rstrip('/')}/") for volume in volumes)


def _matching(pattern: str | re.Pattern[str], text: Any) -> str:
    if not isinstance(text, str) or not re.fullmatch(pattern, text):
        raise ValueError
    return text


def _is_version(text: Any) -> bool:
    try:
        return isinstance(text, str) and len(text) < 100 and bool(Version(text))
    except InvalidVersion:
        return False


__all__ = ["BUILD_LABEL", "LEAST", "Image", "check_name", "default_image", "prepare", "ready"]
