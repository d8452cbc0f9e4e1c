"""One JupyterLab for all tests in a browser, and a Chromium of its own for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.lab import Browser, Lab, chromium, jupyter_lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with jupyter_lab(tmp_path_factory.mktemp("lab")) as started:
        yield started


@pytest.fixture
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started
