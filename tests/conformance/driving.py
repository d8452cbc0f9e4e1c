"""How a conformance test drives a kernel, and the list of what it must behave the same on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from rlm_jupyter.contexts import Payload, prepare
from rlm_jupyter.kernels import client, images
from rlm_jupyter.kernels.cell import CellResult, Output
from rlm_jupyter.kernels.docker import Box, make_box, open_docker
from rlm_jupyter.kernels.environment import Environment
from rlm_jupyter.kernels.kernel import Kernel
from rlm_jupyter.kernels.local import open_local
from rlm_jupyter.kernels.messages import CallOutcome, CallRequest
from rlm_jupyter.kernels.modal import ModalPlace, open_modal
from rlm_jupyter.settings import MIB, RunSettings
from rlm_jupyter.values import decode
from tests.conftest import PARTS, need
from tests.engine import base_image

Open = Callable[[], Awaitable[Environment]]


def _local_forked(request: pytest.FixtureRequest) -> Open:
    return open_local


def _local_cold(request: pytest.FixtureRequest) -> Open:
    return partial(open_local, how="cold")


def _docker(request: pytest.FixtureRequest) -> Open:
    need("docker", PARTS["docker"]())
    return partial(open_docker, make_test_box())


def _modal_tunnel(request: pytest.FixtureRequest) -> Open:
    request.getfixturevalue("modal_variables")
    return partial(open_modal, ModalPlace(timeout=3600))


def _modal_exec(request: pytest.FixtureRequest) -> Open:
    request.getfixturevalue("modal_variables")
    return partial(open_modal, ModalPlace(timeout=3600, bridge="exec"))


def make_test_box(context: int = 300 * MIB, image: str = "", **settings: Any) -> Box:
    """Make what `--env docker` would make for a context of so many bytes, on the base image of the tests."""
    found = client.find()
    asked = RunSettings(model="demo", environment="docker", image=image or base_image(), **settings)
    ready = images.prepare(found, asked.image, print)
    return make_box(asked, found, client.check_engine(found, client.PATIENT_SECONDS), ready, context)


ENVIRONMENTS: dict[str, Callable[[pytest.FixtureRequest], Open]] = {
    "local-forked": _local_forked,
    "local-cold": _local_cold,
    "docker": _docker,
    "modal-exec": _modal_exec,
    "modal-tunnel": _modal_tunnel,
}
"""What opens each environment, by name, with the fixtures it needs. A new one is added here and nowhere else in this folder."""

IN_THE_MATRIX = ("modal-exec", "modal-tunnel")
"""Environments whose tests take minutes: `make test-matrix` has them, `make test` does not."""

NAMES = [pytest.param(name, marks=pytest.mark.matrix if name in IN_THE_MATRIX else ()) for name in ENVIRONMENTS]
"""The parameters of a fixture that opens each."""


@dataclass(frozen=True)
class Ran:
    """A cell's outcome with its output by stream."""

    result: CellResult
    outputs: tuple[Output, ...]

    def text(self, stream: str) -> str:
        return "".join(output.text for output in self.outputs if output.stream == stream)

    @property
    def out(self) -> str:
        return self.text("stdout")


class Session:
    """A kernel and a scripted sub-LM: replies are the prompts in upper case; a prompt `fail ...` fails."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.requests: list[CallRequest] = []
        self.kernel: Kernel

    async def answer(self, request: CallRequest) -> Sequence[CallOutcome]:
        self.requests.append(request)
        return [
            CallOutcome(error=f"no reply to {prompt!r}") if prompt.startswith("fail") else CallOutcome(text=prompt.upper())
            for prompt in request.prompts
        ]

    async def start(self) -> Session:
        self.kernel = await self.environment.start_kernel(self.answer)
        return self

    async def run(self, code: str) -> Ran:
        outputs: list[Output] = []
        result = await self.kernel.execute(code, outputs.append)
        return Ran(result, tuple(outputs))

    async def ok(self, code: str) -> Ran:
        """Run a cell that must go well."""
        ran = await self.run(code)
        assert ran.result.status == "ok", (ran.result.error, ran.text("error"))
        return ran

    async def out(self, code: str) -> str:
        """Give the standard output of a cell that must go well, without the last line break."""
        return (await self.ok(code)).out.rstrip("\n")

    async def final(self, code: str) -> Any:
        """Run a cell that must end with an answer; give the answer."""
        ran = await self.ok(code)
        assert ran.result.final is not None
        return decode(await self.kernel.value(ran.result.final))

    async def load(self, value: Any, name: str = "context") -> None:
        await self.kernel.load(name, payload(value))


async def alive(environment: Environment, pids: Sequence[int], seconds: float = 0) -> list[int]:
    """Give those of an environment's processes that have not ended within `seconds`, seen by another kernel in it."""
    code = f"""
import os, select
handles = {{}}
for pid in {list(pids)}:
    try:
        handles[os.pidfd_open(pid)] = pid
    except ProcessLookupError:
        pass
waiting = select.poll()
for handle in handles:
    waiting.register(handle, select.POLLIN)
left = {int(seconds * 1000)}
for _ in range(len(handles)):
    for handle, _ in waiting.poll(left)[:1]:
        waiting.unregister(handle)
        del handles[handle]
print(*handles.values())
"""
    observer = await Session(environment).start()
    try:
        return list(map(int, (await observer.out(code)).split()))
    finally:
        await observer.kernel.close()


def payload(value: Any) -> Payload:
    return prepare(value).payload


@asynccontextmanager
async def session(open_environment: Open = open_local) -> AsyncIterator[Session]:
    """An environment of one's own with one kernel in it."""
    environment = await open_environment()
    try:
        yield await Session(environment).start()
    finally:
        await environment.close()
