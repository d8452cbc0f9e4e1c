"""A JupyterLab for all tests in a browser, and a Chromium of its own for each."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.browser import ipykernels
from tests.browser.lab import Browser, Lab, chromium, jupyter_lab


@pytest.fixture(scope="session")
def labs(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Callable[[str], Lab]]:
    """Give JupyterLabs by the version of ipykernel that their notebooks have."""
    with contextlib.ExitStack() as running:

        @functools.cache
        def started(version: str) -> Lab:
            if version == ipykernels.INSTALLED:
                return running.enter_context(jupyter_lab(tmp_path_factory.mktemp("lab")))
            kept = pytestconfig.cache if version != ipykernels.NEWEST else None
            cache: Path = kept.mkdir("ipykernels") if kept else tmp_path_factory.mktemp("ipykernels")
            python = ipykernels.python_with(version, cache)
            spec = ipykernels.offer(python, tmp_path_factory.mktemp("kernelspec"))
            return running.enter_context(jupyter_lab(tmp_path_factory.mktemp("lab"), {"JUPYTER_PATH": str(spec)}))

        yield started


@pytest.fixture
def lab(request: pytest.FixtureRequest, labs: Callable[[str], Lab]) -> Lab:
    """Give a JupyterLab; a test that is to run on each of `ipykernels.VERSIONS` names them as this fixture's parameters."""
    return labs(getattr(request, "param", ipykernels.INSTALLED))


@pytest.fixture
def hears(request: pytest.FixtureRequest) -> bool:
    """Whether the notebook's kernel hears its widgets while a cell runs, and so shows a run in one."""
    return bool(request.node.callspec.params["lab"] != ipykernels.DEAF)


@pytest.fixture
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started
