"""What a kernel needs beside Python, and a folder of it made on the host for the Python of an image.

The host's pip (or uv) does it, for a foreign interpreter: so the user's index, proxy and certificates hold, and no credential
enters an image. Nothing of what it fetches is run here: wheels only, nothing compiled. What the image has is handed to pip as
empty wheels of the same name and version, which are thrown away afterwards: so pip neither fetches nor contradicts it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import sys
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import IO

from packaging.markers import InvalidMarker, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from rlm_jupyter.errors import KernelStartError, SettingsError
from rlm_jupyter.kernels.client import cleaned
from rlm_jupyter.kernels.commands import Command, Stop
from rlm_jupyter.kernels.interior import Interior

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LEAST: Mapping[str, str] = {"ipykernel": "6.31", "ipython": "8.31", "jupyter-client": "8.6", "pyzmq": "26", "dill": "0.3.9"}
"""What every kernel needs, with the oldest version that does."""
DATA = ("numpy", "pandas", "pyarrow")
"""What lets tables and arrays cross, and what code that an LM writes expects to find."""
ALSO = ("matplotlib", "polars")
"""What a kernel gets where the user's own Python has it: plots, and one more kind of frame."""
FETCH_SECONDS = 1200.0
_MARK = "rlmstub"
_ROUNDS = 4
_LEFT_OUT = frozenset({"bin", "Scripts", "share", "etc", "include"})
_SHOWN = re.compile(r"\s*Downloading (?:.*/)?([A-Za-z0-9_.]+)-[^ ]+ \(([\d.]+ [MG]B)\)")


def wanted() -> dict[str, str]:
    """Give what the kernel needs with the host's own versions, as requirements by name: contexts cross as pickles of pandas."""
    found = {}
    for name in (*LEAST, *DATA, *ALSO):
        try:
            found[name] = f"{name}=={Version(metadata.version(name)).public}"
        except (metadata.PackageNotFoundError, InvalidVersion):
            if name not in ALSO:
                found[name] = _loose(name)
    return found


def missing(needs: Mapping[str, str], installed: Mapping[str, str], image: str) -> dict[str, str]:
    """Give the requirements that the image does not meet; a SettingsError when what it has of them is too old."""
    for name, least in LEAST.items():
        if name in installed and _older(installed[name], least):
            raise SettingsError(
                f"--image {image}: its {name} is {installed[name]}, and at least {least} is needed: "
                f"update it there (pip install -U {name}), or choose another image"
            )
    return {name: need for name, need in needs.items() if name not in installed}


class Fetch:
    """One filling of a folder with packages for an image. `folder` must be empty and is the caller's to remove."""

    def __init__(self, interior: Interior, image: str, folder: Path, told: Callable[[str], None], stop: Stop | None) -> None:
        self._interior = interior
        self._image = image
        self._folder = folder
        self._told = told
        self._stop = stop
        self._tool = _tool(interior)
        self._rounds = 0

    def fill(self, needs: Mapping[str, str]) -> Path:
        """Give a folder that holds what is needed and what that needs, less what the image has.

        The host's versions are asked for first; where the image or the index has no room for them, others are taken, and told.

        Raises
        ------
        KernelStartError
            When the packages cannot be had; the text is what pip said last.
        """
        self._write_stubs()
        loose = {name: _loose(name) for name in needs}
        attempts = [dict(needs), loose | {name: need for name, need in needs.items() if name in (*DATA, *ALSO)}, loose]
        said = ""
        for number, attempt in enumerate(attempts):
            if attempt in attempts[:number]:
                continue
            if number:
                self._told("not with this machine's versions; trying others")
            folder, said = self._resolve(attempt)
            if folder is not None:
                return folder
        raise KernelStartError(
            f"--image {self._image}: what the kernel needs cannot be had for it ({said}): "
            f"put {', '.join(needs)} into the image yourself, or choose another"
        )

    def _resolve(self, needs: Mapping[str, str]) -> tuple[Path | None, str]:
        """Install, and again with what the image's own markers ask for: pip judges those by the host."""
        requirements = dict(needs)
        for _ in range(_ROUNDS):
            self._rounds += 1
            folder = self._folder / f"packages-{self._rounds}"
            said = self._install(folder, list(requirements.values()))
            if said:
                return None, said
            for stub in folder.glob(f"*{_MARK}.dist-info"):
                shutil.rmtree(stub)
            unmet = self._unmet(folder)
            if not unmet:
                return folder, ""
            requirements |= unmet
            shutil.rmtree(folder)
        return None, f"still missing: {', '.join(unmet)}"

    def _install(self, folder: Path, requirements: list[str]) -> str:
        """Run pip or uv; give what it said last when it failed, else nothing."""
        stubs = str(self._folder / "stubs")
        constraints = str(self._folder / "constraints.txt")
        common = ["--target", str(folder), "--find-links", stubs, "--constraint", constraints]
        # pip's own switches for a virtual environment or a user's folder do not go with a target.
        env = {**os.environ, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0", "PIP_NO_INPUT": "1", "NO_COLOR": "1"}
        argv = [*self._tool, *common, *requirements]
        with Command(argv, seconds=FETCH_SECONDS, cwd=str(self._folder), env=env, stop=self._stop) as command:
            for line in command.lines():
                if shown := _SHOWN.match(line):
                    self._told(f"downloading {shown[1]} ({shown[2]})")
            ended = command.wait()
        if ended.late:
            return f"it took longer than {FETCH_SECONDS:.0f} s"
        return _failure(ended.stderr) if ended.code else ""

    def _unmet(self, folder: Path) -> dict[str, str]:
        """Give what the fetched packages require in the image and neither it nor the folder has."""
        fetched = list(metadata.distributions(path=[str(folder)]))
        have = {canonicalize_name(found.name) for found in fetched} | set(self._interior.installed)
        markers = {**self._interior.markers, "extra": ""}
        unmet: dict[str, str] = {}
        for text in [text for found in fetched for text in found.requires or ()]:
            try:
                need = Requirement(text)
                applies = need.marker is None or need.marker.evaluate(markers)
            except (InvalidRequirement, InvalidMarker, UndefinedEnvironmentName):
                continue
            name = canonicalize_name(need.name)
            if applies and name not in have:
                unmet[name] = f"{need.name}{need.specifier}"
        return unmet

    def _write_stubs(self) -> None:
        """Write an empty wheel for each package of the image, and the constraints that name exactly those."""
        stubs = self._folder / "stubs"
        stubs.mkdir()
        constraints = []
        for name, version in self._interior.installed.items():
            marked = version + (f".{_MARK}" if "+" in version else f"+{_MARK}")
            try:
                full = f"{name.replace('-', '_')}-{Version(marked)}"
            except InvalidVersion:
                continue
            info = f"{full}.dist-info"
            with zipfile.ZipFile(stubs / f"{full}-py3-none-any.whl", "w") as wheel:
                wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {Version(marked)}\n")
                wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
                wheel.writestr(f"{info}/RECORD", "")
            constraints.append(f"{name}=={Version(marked)}\n")
        (self._folder / "constraints.txt").write_text("".join(constraints), encoding="utf-8")


def _tool(interior: Interior) -> list[str]:
    """Give the command that installs for a foreign interpreter, all but its target; a SettingsError when there is none."""
    if importlib.util.find_spec("pip") is not None:
        tags = [part for tag in interior.platforms() for part in ("--platform", tag)]
        return [
            sys.executable, "-P", "-m", "pip", "install", "--only-binary=:all:", "--no-compile", "--progress-bar=off",
            "--disable-pip-version-check", "--no-color", "--python-version", interior.python, "--implementation", "cp",
            "--abi", interior.abi(), *tags,
        ]  # fmt: skip
    uv = shutil.which("uv")
    if uv is None:
        raise SettingsError(
            "the image lacks packages that the kernel needs, and neither pip nor uv is here to fetch them: "
            f"{sys.executable} -m ensurepip, or use --env local"
        )
    machine = interior.machine
    major, minor = interior.libc_version
    platform = f"{machine}-unknown-linux-musl" if interior.libc == "musl" else f"{machine}-manylinux_{major}_{_known(minor)}"
    return [
        uv, "pip", "install", "--only-binary", ":all:", "--no-progress", "--python", sys.executable,
        "--python-version", interior.python, "--python-platform", platform,
    ]  # fmt: skip


def _known(minor: int) -> int:
    """Give the newest glibc that uv can be asked for and that is not newer than this one."""
    return max([known for known in (17, 28, *range(31, 41)) if known <= minor], default=17)


REMOVER = "rlm_jupyter remover"


@contextlib.contextmanager
def work_folder() -> Iterator[Path]:
    """Give a folder to work in that is gone soon afterwards, and remove those of processes that were killed meanwhile.

    Thousands of files take seconds to remove, for which nobody should wait after an interrupt: a thread does it.
    """
    for left in Path(tempfile.gettempdir()).glob("rlm-image-*/lock"):
        with contextlib.suppress(OSError), left.open("rb") as lock:
            _take(lock)
            _remove_later(left.parent)
    folder = Path(tempfile.mkdtemp(prefix="rlm-image-"))
    try:
        with (folder / "lock").open("wb") as lock:
            with contextlib.suppress(OSError):
                _take(lock)
            yield folder
    finally:
        _remove_later(folder)


def _remove_later(folder: Path) -> None:
    threading.Thread(target=shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True}, name=REMOVER).start()


def _take(lock: IO[bytes]) -> None:
    """Take a lock that ends with the process; an OSError when another has it, or where there are no such locks."""
    if fcntl is None:
        raise OSError
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def pack(folder: Path, to: IO[bytes]) -> None:
    """Write a folder's importable files as a tar: regular files and folders only, owned by root, all with the same date.

    Programs (their first line names this machine's Python) and the tests of numpy, pandas and pyarrow (a quarter of all files)
    are left out.
    """
    with tarfile.open(fileobj=to, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1024 * 1024) as tar:
        for path in sorted(folder.rglob("*")):
            inner = path.relative_to(folder)
            tests = inner.parts[0] in (*DATA, *ALSO) and "tests" in inner.parts
            if inner.parts[0] in _LEFT_OUT or tests or path.is_symlink() or not (path.is_dir() or path.is_file()):
                continue
            entry = tarfile.TarInfo(inner.as_posix())
            entry.mtime = 1_000_000_000
            if path.is_dir():
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
                continue
            entry.size, entry.mode = path.stat().st_size, 0o755 if os.access(path, os.X_OK) else 0o644
            with path.open("rb") as file:
                tar.addfile(entry, file)


def _loose(name: str) -> str:
    return f"{name}>={LEAST[name]}" if name in LEAST else name


def _older(version: str, least: str) -> bool:
    try:
        return Version(version) < Version(least)
    except InvalidVersion:
        return False


def _failure(stderr: str) -> str:
    """Give the line of pip or uv that says why."""
    lines = [line.strip() for line in cleaned(stderr).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR:", "error:", "×", "╰"))]
    told = (errors or lines or ["it did not say why"])[-1]
    return told.removeprefix("ERROR:").strip()[:300]
