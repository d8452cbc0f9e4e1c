"""The Python inside an image: asked once, in a hardened container, and nothing that it says is taken on trust."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from rlm_jupyter.errors import SettingsError
from rlm_jupyter.kernels.client import Client, ClientError
from rlm_jupyter.kernels.inspection import PATH, Found, hardened, made_container, read_answer

_PROBE_SECONDS = 60.0
_LEAST_PYTHON = (3, 11)
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


@dataclass(frozen=True, slots=True)
class Interior:
    """What the Python inside an image is: version and path, processor and C library, where packages go, what is installed.

    `markers` is the environment by which requirements with conditions are judged (PEP 508); `installed` maps names to versions.
    """

    python: str
    interpreter: str
    machine: str
    libc: str
    libc_version: tuple[int, int]
    threaded: bool
    site: str
    markers: Mapping[str, str]
    installed: Mapping[str, str]

    def platforms(self) -> list[str]:
        """Give the platform tags of the wheels that it can use, the newest first (PEP 600, PEP 656)."""
        major, minor = self.libc_version
        if self.libc == "musl":
            return [f"musllinux_{major}_{n}_{self.machine}" for n in range(minor, -1, -1)]
        oldest = 5 if self.machine in ("x86_64", "i686") else 17
        many = [f"manylinux_{major}_{n}_{self.machine}" for n in range(minor, oldest - 1, -1)]
        return [*many, f"manylinux2014_{self.machine}"]

    def abi(self) -> str:
        return "cp" + "".join(self.python.split(".")[:2]) + ("t" if self.threaded else "")


def probe(client: Client, base: str, found: Found) -> Interior:
    """Ask the image's Python what it is; a SettingsError when it has none that would do."""
    for program in ("python3", "python"):
        flags = ("--rm", *hardened(found), "--read-only", "--user=65534:65534", "--workdir=/", f"--entrypoint={program}")
        try:
            with made_container(client, *flags, found.id, "-c", PROBE) as name:
                with client.start("start", "--attach", name, seconds=_PROBE_SECONDS) as command:
                    answer = read_answer(command)
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
        f"--image {base}: it has no Python that any user may run; choose one that has, such as python:3.11-slim"
    )


def _read_probe(base: str, answer: dict[str, Any] | None) -> Interior:
    """Check what the image said of itself: nothing of it is taken on trust."""
    try:
        if answer is None:
            raise ValueError
        version = tuple(int(part) for part in answer["version"])
        if len(version) != 3:
            raise ValueError
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
            interpreter=_matching(PATH, answer["interpreter"]),
            machine=_matching(r"[a-z0-9_]{1,20}", answer["machine"]),
            libc=libc,
            libc_version=(major, minor),
            threaded=answer["threaded"] is True,
            site=_matching(PATH, answer["site"]),
            markers=markers,
            installed=installed,
        )
    except SettingsError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SettingsError(
            f"--image {base}: its Python does not say what it is as CPython would; choose another image"
        ) from None


def _matching(pattern: str | re.Pattern[str], text: Any) -> str:
    if not isinstance(text, str) or not re.fullmatch(pattern, text):
        raise ValueError
    return text


def _is_version(text: Any) -> bool:
    try:
        return isinstance(text, str) and len(text) < 100 and bool(Version(text))
    except InvalidVersion:
        return False
