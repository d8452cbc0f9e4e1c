"""The engine that the Docker tests run on is real, and what happens where there is none is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine import SCRIPTS, Engine, EngineError, second_engine

ROOT = SCRIPTS.parent
NEEDING = """
import pytest

@pytest.mark.needs("docker")
@pytest.mark.parametrize("number", range(3))
def test_with_a_mark(number):
    assert False, "this must not run"

def test_with_an_image(docker_image):
    assert False, "this must not run"
"""


def run_without_engine(folder: Path, *, ci: bool) -> subprocess.CompletedProcess[str]:
    """Run tests that need an engine, with our conftest, where none answers and nobody may install one."""
    (folder / "test_needing.py").write_text(NEEDING)
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_XDIST_WORKER")}
    environment = {
        **kept,
        "DOCKER_HOST": f"unix://{folder}/nobody",
        "PYTHONPATH": str(ROOT),
        "PATH": os.defpath if ci else _path_without_apt(folder),
        **({"CI": "true"} if ci else {}),
    }
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-n", "2", str(folder)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False)


def _path_without_apt(folder: Path) -> str:
    """Give a PATH on which there is a docker client, and no apt-get as on another system than Debian."""
    (folder / "bin").mkdir()
    client = [path for path in os.get_exec_path() if (Path(path) / "docker").is_file()]
    (folder / "bin" / "docker").symlink_to(Path(client[0]) / "docker")
    return str(folder / "bin")


def test_the_image_holds_a_python_and_nothing_of_ours(docker_image: str) -> None:
    engine = Engine()
    look = "import importlib.util as u; print(u.find_spec('ssl') is not None, u.find_spec('ipykernel'))"
    assert engine.run("run", "--rm", "--network", "none", docker_image, "python3", "-c", look) == "True None"


@pytest.mark.needs("docker")
def test_without_an_engine_the_skips_are_told_as_the_last_thing(tmp_path: Path) -> None:
    ran = run_without_engine(tmp_path, ci=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = [line for line in ran.stdout.splitlines() if "did not run" in line]
    assert len(told) == 1
    assert told[0].startswith("4 tests that need docker did not run: ")
    assert "start a Docker engine" in told[0]


@pytest.mark.needs("docker")
def test_without_an_engine_ci_fails(tmp_path: Path) -> None:
    ran = run_without_engine(tmp_path, ci=True)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert ran.stdout.rstrip("= \n").rpartition("= ")[2].startswith("4 errors in "), ran.stdout


@pytest.mark.needs("dockerd")
def test_an_engine_is_started_keeps_no_pipe_open_and_is_not_started_twice() -> None:
    bridge = Path("/sys/class/net/docker0")
    there = bridge.exists()
    with second_engine() as (engine, pid):  # its script has ended with its output read to the end, so the engine holds no pipe
        opened = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if int(path.name) < 3}
        assert opened == {"/dev/null", str(Path(engine.host.removeprefix("unix://")).parent / "log")}
        assert os.getsid(pid) == pid
        folder = Path(engine.host.removeprefix("unix://")).parent
        subprocess.run([SCRIPTS / "docker-engine", folder], check=True, timeout=30)
        assert int((folder / "pid").read_text()) == pid
        assert engine.containers() == set()
        assert bridge.exists() == there  # the machine's own engine keeps its network
    assert not folder.exists()
    with pytest.raises(EngineError):
        engine.run("version")


@pytest.mark.needs("docker")
def test_where_none_can_be_started_one_line_says_so(tmp_path: Path) -> None:
    environment = {**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/nobody"}
    for script in ("docker-engine", "base-image"):
        ran = subprocess.run([SCRIPTS / script], env=environment, capture_output=True, text=True, timeout=30, check=False)
        assert (ran.returncode, ran.stdout) == (1, "")
        assert len(ran.stderr.splitlines()) == 1, ran.stderr
