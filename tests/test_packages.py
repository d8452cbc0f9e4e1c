"""Packages for the Python of an image, fetched by the host: the image's own win, and its own conditions decide."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import threading
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from rlm_jupyter.errors import KernelStartError, SettingsError
from rlm_jupyter.kernels.interior import Interior
from rlm_jupyter.kernels.packages import REMOVER, Fetch, missing, pack, wanted, work_folder

MARKERS = {
    "implementation_name": "cpython", "implementation_version": "3.12.4", "os_name": "posix", "platform_machine": "aarch64",
    "platform_python_implementation": "CPython", "platform_release": "6", "platform_system": "Linux", "platform_version": "1",
    "python_full_version": "3.12.4", "python_version": "3.12", "sys_platform": "linux",
}  # fmt: skip


def interior(installed: dict[str, str], libc: str = "glibc", version: tuple[int, int] = (2, 36), **markers: str) -> Interior:
    return Interior(
        "3.12.4", "/usr/bin/python3", "aarch64", libc, version, False, "/usr/lib/python3", MARKERS | markers, installed
    )


def fetch(inside: Interior, tmp_path: Path, *needs: str) -> dict[str, str]:
    """Give what was fetched, with versions."""
    folder = Fetch(inside, "an-image", tmp_path, print, None).fill({need: need for need in needs})
    return {found.name: found.version for found in metadata.distributions(path=[str(folder)])}


def test_wheels_are_those_of_the_images_processor_and_library(tmp_path: Path) -> None:
    found = fetch(interior({}, "musl", (1, 2)), tmp_path, "psutil")
    assert set(found) == {"psutil"}
    libraries = {path.name for path in tmp_path.rglob("*.so")}
    assert libraries
    assert not any("x86_64" in name for name in libraries)
    (wheel,) = tmp_path.glob("packages-*/psutil-*.dist-info/WHEEL")
    assert "musllinux" in wheel.read_text()
    assert "aarch64" in wheel.read_text()


def test_what_the_image_has_is_neither_fetched_nor_contradicted(tmp_path: Path) -> None:
    has = {"tornado": "6.3", "traitlets": "5.9+debian1", "pyzmq": "26.0.0", "python-dateutil": "2.8.2", "six": "1.16.0"}
    found = fetch(interior(has), tmp_path, "jupyter-client")
    assert "jupyter_client" in found
    assert {name.replace("_", "-") for name in found}.isdisjoint(has)
    assert [path.name for path in tmp_path.glob("packages-*/tornado*")] == []
    (fetched,) = metadata.distributions(path=[str(path) for path in tmp_path.glob("packages-*")], name="jupyter_client")
    needs = [Requirement(text) for text in fetched.requires or ()]
    assert all(
        need.specifier.contains(has[need.name]) for need in needs if need.name in has and "extra" not in str(need.marker)
    )


def test_conditions_are_judged_by_the_image(tmp_path: Path) -> None:
    found = fetch(interior({}, platform_system="Windows"), tmp_path, "tqdm")
    assert set(found) == {"tqdm", "colorama"}


def test_versions_that_cannot_be_had_give_way_and_it_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    fetching = Fetch(interior({}), "an-image", tmp_path, told.append, None)
    folder = fetching.fill({"dill": "dill==0.0.12345"})
    assert "not with this machine's versions; trying others" in told
    assert [found.name for found in metadata.distributions(path=[str(folder)])] == ["dill"]


def test_what_cannot_be_had_at_all_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(KernelStartError, match="--image an-image: what the kernel needs cannot be had") as error:
        Fetch(interior({"tornado": "1.0"}), "an-image", tmp_path, print, None).fill({"jupyter-client": "jupyter-client>=8.6"})
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)


def test_without_pip_and_uv_it_says_what_to_do(tmp_path: Path) -> None:
    code = "import sys; sys.modules['pip'] = None; from tests.test_packages import *; "
    code += "fetch(interior({}), Path(sys.argv[1]), 'six')"
    env = {**os.environ, "PATH": str(tmp_path), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, capture_output=True, text=True, timeout=60)
    assert "SettingsError: the image lacks packages" in done.stderr
    assert "ensurepip" in done.stderr


def test_the_hosts_versions_are_wanted_and_only_what_lacks_is_missing() -> None:
    needs = wanted()
    assert needs["pandas"] == f"pandas=={metadata.version('pandas')}"
    have = {name: "999" for name in needs if name != "dill"}
    assert missing(needs, have, "an-image") == {"dill": f"dill=={metadata.version('dill')}"}
    with pytest.raises(SettingsError, match=r"its jupyter-client is 7\.0, and at least 8.6 is needed"):
        missing(needs, have | {"jupyter-client": "7.0"}, "an-image")


def test_a_packed_folder_holds_plain_files_only(tmp_path: Path) -> None:
    for name in ("a/tests/b.py", "numpy/tests/c.py", "numpy/d.py", "bin/e", "share/f"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!{sys.executable}")
    (tmp_path / "link.py").symlink_to("/etc/passwd")
    data = io.BytesIO()
    pack(tmp_path, data)
    data.seek(0)
    with tarfile.open(fileobj=data) as tar:
        held = {entry.name: entry for entry in tar}
    assert {name for name, entry in held.items() if entry.isfile()} == {"a/tests/b.py", "numpy/d.py"}
    assert all(
        (entry.uid, entry.gid, entry.uname) == (0, 0, "") and (entry.isfile() or entry.isdir()) for entry in held.values()
    )


def join() -> None:
    for thread in [thread for thread in threading.enumerate() if thread.name == REMOVER]:
        thread.join(60)


def test_a_folder_in_use_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "rlm-image-dead").mkdir()
    (tmp_path / "rlm-image-dead" / "lock").touch()
    with work_folder() as first, work_folder() as second:
        join()
        assert {first, second} == set(tmp_path.iterdir())
    join()
    assert list(tmp_path.iterdir()) == []
