"""The reference implementation's virtual environment, which shares nothing with ours: `.bench-venv`, made on the first run."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

BENCH_VENV = Path(__file__).resolve().parent.parent / ".bench-venv"
REFERENCE = "0.1.3"


def reference_python() -> Path:
    """Make `.bench-venv` if it is not there, and give its interpreter."""
    python = BENCH_VENV / ("Scripts" if os.name == "nt" else "bin") / "python"
    look = "import importlib.metadata as m; print(m.version('rlms'))"
    if python.exists():
        found = subprocess.run([python, "-c", look], capture_output=True, text=True, check=False).stdout.strip()
        if found == REFERENCE:
            return python
    print(f"installing rlms {REFERENCE} into {BENCH_VENV.name}", file=sys.stderr)
    venv.create(BENCH_VENV, with_pip=True, clear=True)
    packages = [
        f"rlms[ipython]=={REFERENCE}",
        *(f"{name}=={version(name)}" for name in ("openai", "ipykernel", "jupyter_client")),
    ]
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], check=True)
    return python
