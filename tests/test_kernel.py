"""The host's end of a kernel: one thing at a time, closing under way, errors of the host's own functions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from rlm_jupyter.errors import KernelDied
from rlm_jupyter.kernels.cell import Output
from tests.conformance.driving import Session, session
from tests.deadlines import BACK_WITHIN, WAIT

pytestmark = pytest.mark.anyio


@pytest.fixture
async def repl() -> AsyncIterator[Session]:
    async with session() as opened:
        yield opened


async def begun(repl: Session, code: str) -> asyncio.Task[object]:
    on = asyncio.Event()
    cell = asyncio.ensure_future(repl.kernel.execute(f"print('on')\n{code}", lambda output: on.set()))
    await asyncio.wait_for(on.wait(), WAIT)
    return cell


async def test_a_kernel_does_one_thing_at_a_time(repl: Session) -> None:
    cell = await begun(repl, "import time; time.sleep(60)")
    with pytest.raises(RuntimeError, match="one thing at a time"):
        await repl.run("1")
    with pytest.raises(RuntimeError, match="one thing at a time"):
        await repl.load("x")
    cell.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cell
    assert await repl.out("print(1)") == "1"


async def test_closing_a_kernel_ends_its_cell(repl: Session) -> None:
    cell = await begun(repl, "import time; time.sleep(60)")
    await asyncio.wait_for(repl.kernel.close(), BACK_WITHIN)
    with pytest.raises(KernelDied, match="closed"):
        await asyncio.wait_for(cell, WAIT)
    other = await Session(repl.environment).start()
    assert await other.out("print(1)") == "1"


async def test_closing_an_environment_ends_its_cells(repl: Session) -> None:
    cell = await begun(repl, "import time; time.sleep(60)")
    await asyncio.wait_for(repl.environment.close(), BACK_WITHIN)
    with pytest.raises(KernelDied, match="closed"):
        await asyncio.wait_for(cell, WAIT)


async def test_closing_twice_and_at_once_is_fine(repl: Session) -> None:
    await asyncio.gather(repl.kernel.close(), repl.kernel.close())
    await asyncio.gather(repl.environment.close(), repl.environment.close())
    assert not repl.environment.alive


async def test_an_error_in_the_hosts_own_function_is_told_as_what_it_is(repl: Session) -> None:
    def on_output(output: Output) -> None:
        raise LookupError("of the host")

    with pytest.raises(LookupError, match="of the host"):
        await asyncio.wait_for(repl.kernel.execute("print(1)", on_output), WAIT)
    assert not repl.environment.alive


async def test_output_streams_while_the_cell_runs(repl: Session) -> None:
    first, outputs = asyncio.Event(), []

    def on_output(output: Output) -> None:
        outputs.append(output)
        first.set()

    code = "print('early')\nimport os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('late')"
    folder = await repl.out("import os; print(os.getcwd())")
    cell = asyncio.ensure_future(repl.kernel.execute(code, on_output))
    await asyncio.wait_for(first.wait(), WAIT)
    assert outputs == [Output("stdout", "early\n")]
    await asyncio.to_thread(lambda: open(f"{folder}/go", "x").close())
    await asyncio.wait_for(cell, WAIT)
    assert "".join(output.text for output in outputs) == "early\nlate\n"


async def test_many_prints_come_in_few_pieces(repl: Session) -> None:
    ran = await repl.ok("for n in range(10_000): print(n)")
    assert ran.out == "".join(f"{n}\n" for n in range(10_000))
    assert len(ran.outputs) < 100
