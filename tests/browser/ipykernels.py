"""Pythons for notebooks' kernels with another ipykernel than the one installed here; what else they import is what is here.

Each is a virtual environment that holds ipykernel alone and looks for the rest where the tests' own Python does. It is made
from the package registry once, and kept in pytest's cache; the newest is asked for anew each time.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest

INSTALLED, NEWEST = "installed", "newest"
DEAF = "6.31"
"""Its kernel hears a widget only between cells: while one runs, the plain page is what is seen of a run in it."""
VERSIONS = [INSTALLED, *(pytest.param(version, marks=pytest.mark.matrix) for version in (DEAF, "7.3", NEWEST))]
"""What a test of a live notebook is run on: `make test` has the first, `make test-matrix` the others."""
HEARING = [INSTALLED, *(pytest.param(version, marks=pytest.mark.matrix) for version in ("7.3", NEWEST))]
DEADLINE = 300.0
"""Seconds that the registry may take."""


def python_with(version: str, cache: Path) -> Path:
    """Give the Python of an environment that has this ipykernel, kept in `cache`."""
    beside = hashlib.sha256(f"{sys.prefix} {sys.version}".encode()).hexdigest()[:12]
    made = cache / f"{version}-{beside}"
    if version == NEWEST or not made.exists():
        cache.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f"{version}-", dir=cache))
        _make(fresh, "ipykernel" if version == NEWEST else f"ipykernel=={version}.*")
        if version == NEWEST or made.exists():
            made = fresh
        else:
            fresh.rename(made)
    return made / "bin" / "python"


def _make(folder: Path, wanted: str) -> None:
    def run(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    run(sys.executable, "-m", "venv", str(folder))
    python = str(folder / "bin" / "python")
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "tests.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n", encoding="utf-8")
    run(*pip, "--ignore-installed", "--no-deps", wanted)
    # What this version needs and those here do not.
    run(*pip, wanted)


def offer(python: Path, folder: Path) -> Path:
    """Write a kernelspec that takes the place of `python3`; give what to set JUPYTER_PATH to."""
    spec = folder / "kernels" / "python3"
    spec.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    told = {"argv": argv, "display_name": "Python 3 (ipykernel)", "language": "python", "metadata": {"debugger": True}}
    (spec / "kernel.json").write_text(json.dumps(told), encoding="utf-8")
    return folder
