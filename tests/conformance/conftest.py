"""One environment per test module and kind, a fresh kernel per test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from rlm_jupyter.kernels.environment import Environment
from tests.conformance.driving import ENVIRONMENTS, NAMES, Session


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=NAMES)
async def environment(request: pytest.FixtureRequest, anyio_backend: str) -> AsyncIterator[Environment]:
    opened = await ENVIRONMENTS[request.param](request)()
    try:
        yield opened
    finally:
        await opened.close()


@pytest.fixture
async def repl(environment: Environment) -> AsyncIterator[Session]:
    session = await Session(environment).start()
    try:
        yield session
    finally:
        await session.kernel.close()
