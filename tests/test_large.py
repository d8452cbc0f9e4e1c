"""Large contexts cost what they must: memory of host and kernel, and nothing again in each iteration."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest

from rlm_jupyter import RLM
from rlm_jupyter.engine import Engine
from rlm_jupyter.kernels.environment import Environment
from rlm_jupyter.kernels.launch import Launch, Told
from rlm_jupyter.testing import Request, ScriptedServer
from tests.models import answer, code

MEASURE = """
import asyncio, resource, sys
from rlm_jupyter.contexts import prepare
from rlm_jupyter.kernels.local import open_local

PEAK = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"

async def nobody(request): return []

async def peak(kernel):
    told = []
    await kernel.execute(PEAK, told.append)
    return int(told[0].text)

async def main():
    environment = await open_local()
    try:
        kernel = await environment.start_kernel(nobody)
        await kernel.execute("import numpy, pandas; pandas.DataFrame({'a': ['b']})", lambda output: None)
        import numpy, pandas
        prepare(pandas.DataFrame({"a": numpy.zeros(10)}))
        own, empty = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, await peak(kernel)
        value, size = MAKE
        await kernel.load("context", prepare(value).payload)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - own + await peak(kernel) - empty
        print(grown / size)
    finally:
        await environment.close()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    "make",
    [
        '("0123456789" * 10_000_000, 100_000_000)',
        "(pandas.DataFrame(numpy.ones((1_000_000, 10))), 80_000_000)",
        '({f"{n}.txt": str(n) + "0123456789" * 100_000 for n in range(100)}, 100_000_000)',
    ],
)
def test_a_context_takes_at_most_three_and_a_half_times_its_size(make: str) -> None:
    source = MEASURE.replace("MAKE", make)
    ran = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=100, check=True)
    assert 1.0 < float(ran.stdout) <= 3.5


class Watched(Engine):
    """An engine that tells which environment it has leased."""

    leased: Environment

    async def lease(self, launch: Launch, told: Told = lambda line: None) -> Environment:
        self.leased = await super().lease(launch, told)
        return self.leased


def test_what_is_sent_in_each_iteration_does_not_grow_with_context_and_state() -> None:
    """50 iterations with a context of 20 MB and as much state: neither the LM nor the kernel is sent any of it again."""
    to_kernel: list[int] = []
    engine = Watched()

    def root(request: Request) -> str:
        to_kernel.append(engine.leased.sent)
        last = len(to_kernel) == 51
        return answer("len(context) + len(state)") if last else code("state = context[::-1]; print(len(state))")

    with ScriptedServer(root) as server:
        with RLM(backend_kwargs={"model_name": "m", "base_url": server.url}, max_iterations=60, engine=engine) as rlm:
            result = rlm.completion("x" * 20_000_000, "How long?")
        to_lm = [len(json.dumps(request.body)) for request in server.requests]
    engine.close()
    assert (result.value, result.iterations) == (40_000_000, 51)
    for sizes, at_most in ((to_lm, 100_000), (to_kernel, 20_000)):
        added = [after - before for before, after in itertools.pairwise(sizes)]
        assert len(added) == 50
        assert 0 < max(added) < 1_000
        assert max(added) - min(added) < 100
        assert sizes[-1] < at_most
