"""Fixtures that every test may use, and what is done about a missing system part.

In CI, and as root on Debian where `make system-deps` installs it, a missing part is a failure. Elsewhere the tests that need
it are skipped, and the last lines of the run say which and how to have it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

PARTS = {"chromium": "as root on Debian: make system-deps; elsewhere put a `chromium` on the PATH"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def own_traces(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep trace files out of the user's folder, and the user's defaults out of the tests."""
    for name in [name for name in os.environ if name.startswith("RLM_JUPYTER_")]:
        monkeypatch.delenv(name)
    folder = tmp_path_factory.mktemp("traces")
    monkeypatch.setenv("RLM_JUPYTER_TRACES", str(folder))
    return folder


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(part): the test needs a system part: " + ", ".join(PARTS))


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        part = mark.args[0]
        if shutil.which(part) is None:
            told = f"{part} is missing; {PARTS[part]}"
            if os.environ.get("CI") or (os.getuid() == 0 and shutil.which("apt-get")):
                pytest.fail(told)
            pytest.skip(told)
