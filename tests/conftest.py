"""Fixtures that every test may use, and what is done about a missing system part.

In CI, and as root on Debian where `make test` installs and starts it, a missing part is a failure. Elsewhere the tests that
need it are skipped, and the last lines of the run say how many, why, and how to have it.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import engine
from tests.modal_local import boxes
from tests.modal_local.plane import LocalModal


def _no_chromium() -> str:
    return "" if shutil.which("chromium") else "there is no `chromium` on the PATH. As root on Debian: make system-deps"


def _no_engine() -> str:
    why = engine.why_missing()
    return why and f"{why}. As root on Debian: make system-deps engine; elsewhere start a Docker engine"


def _no_engine_to_stop() -> str:
    if os.getuid() != 0:
        return "only root can start an engine that a test may stop"
    return "" if shutil.which("dockerd") else "there is no `dockerd` on the PATH. As root on Debian: make system-deps"


@functools.cache
def other_python() -> tuple[str, str]:
    """Give the path of a Python of another minor version than this one, or '' and in one line why there is none."""
    script = str(engine.SCRIPTS / "other-python")
    done = subprocess.run([script], env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, timeout=60)
    return done.stdout.strip(), done.stderr.strip().removeprefix("other-python: ") if done.returncode else ""


PARTS: dict[str, Callable[[], str]] = {
    "bwrap": boxes.why_missing,
    "chromium": _no_chromium,
    "docker": _no_engine,
    "dockerd": _no_engine_to_stop,
    "python": lambda: other_python()[1],
}
"""Each part by name, with what gives '' where it is there and else one line that says why not and what to do."""


def need(part: str, why: str) -> None:
    """Skip the test if there is a reason why it cannot have the part; fail it where every part must be there."""
    if why and (os.environ.get("CI") or (os.getuid() == 0 and shutil.which("apt-get"))):
        pytest.fail(f"{part} is missing: {why}", pytrace=False)
    elif why:
        pytest.skip(f"{part} is missing: {why}")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def docker_image() -> str:
    """Give the name of a base image in a running engine: a Python of this minor version, where it can be had, and no more."""
    need("docker", PARTS["docker"]())
    try:
        return engine.base_image()
    except engine.EngineError as error:
        need("docker", str(error))
        raise


@pytest.fixture(scope="session")
def modal_plane() -> Iterator[LocalModal]:
    """Give a local Modal control plane for the whole session; `local_modal` points the SDK at it."""
    need("bwrap", PARTS["bwrap"]())
    with LocalModal() as plane:
        yield plane


@pytest.fixture(scope="module")
def modal_variables(modal_plane: LocalModal) -> Iterator[LocalModal]:
    """Point the SDK at the control plane for a module's time, for a sandbox that several tests share."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in modal_plane.environment.items():
            patch.setenv(name, value)
        yield modal_plane


@pytest.fixture
def local_modal(modal_plane: LocalModal, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalModal]:
    """Give the control plane with the SDK pointed at it; afterwards its faults are mended and the test's sandboxes ended."""
    before = [state.id for state in modal_plane.running()]
    for name, value in modal_plane.environment.items():
        monkeypatch.setenv(name, value)
    yield modal_plane
    modal_plane.tidy(before)


@pytest.fixture(autouse=True)
def own_traces(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep trace files out of the user's folder, and the user's defaults out of the tests."""
    for name in [name for name in os.environ if name.startswith("RLM_JUPYTER_")]:
        monkeypatch.delenv(name)
    folder = tmp_path_factory.mktemp("traces")
    monkeypatch.setenv("RLM_JUPYTER_TRACES", str(folder))
    return folder


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "matrix: `make test-matrix` has it, `make test` does not")
    config.addinivalue_line("markers", "needs(part): the test needs a system part: " + ", ".join(PARTS))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the browser's tests: some take half a minute, and at the end nothing would go beside them."""
    items.sort(key=lambda item: item.path.parent.name != "browser")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        part = mark.args[0]
        need(part, PARTS[part]())


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Leave behind how the run ended, for `make retest`."""
    cache = getattr(session.config, "cache", None)  # `-p no:cacheprovider` has none
    if cache is not None and not hasattr(session.config, "workerinput"):
        cache.set("rlm_jupyter/exitstatus", int(exitstatus))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell, as the last thing of a run, how many tests a missing part left out."""
    missing: Counter[tuple[str, str]] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if found := re.fullmatch(r"Skipped: (\w+) is missing: (.*)", reason):
            missing[found[1], found[2]] += 1
    for (part, why), count in sorted(missing.items()):
        terminalreporter.write_line(f"{count} tests that need {part} did not run: {why}", yellow=True)
