"""Interrupts at every moment, deaths of every kind, and what is left afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence

import psutil
import pytest

from rlm_jupyter.errors import KernelDied
from rlm_jupyter.kernels.cell import CellResult
from rlm_jupyter.kernels.messages import CallOutcome, CallRequest
from tests.conformance.driving import Session, alive
from tests.deadlines import BACK_WITHIN, TOLD_WITHIN, WAIT

pytestmark = pytest.mark.anyio

ENDLESS = {
    "busy loop": "while True: pass",
    "sleep": "import time; time.sleep(60)",
    "idle await": "import asyncio; await asyncio.sleep(60)",
    "busy await": "import asyncio\nwhile True: await asyncio.sleep(0)",
    "subprocess": "import subprocess; subprocess.run(['sleep', '60'])",
    "shell escape": "!echo on; sleep 60",
    "output flood": "while True: print('x' * 100)",
    "threads": "import concurrent.futures as f, time\nf.ThreadPoolExecutor(4).submit(time.sleep, 3).result()",
    "lock": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
}
ON = "print('on')"
FOREVER = "import time\nwhile True:\n    try: time.sleep(60)\n    except OSError: pass"
STUBBORN = {
    "swallows interrupts": f"import time\nwhile True:\n    try: {ON}; time.sleep(60)\n    except BaseException: pass",
    "masks signals": f"import signal; signal.pthread_sigmask(signal.SIG_SETMASK, range(1, 65)); {ON}\n{FOREVER}",
    "ignores signals": f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); {ON}\n{FOREVER}",
    "holds the GIL": f"import itertools; {ON}; any(itertools.repeat(0))",
}


async def started(repl: Session, code: str, first: str = ON) -> asyncio.Task[CellResult]:
    """Start a cell and wait until it has begun."""
    on = asyncio.Event()
    cell = asyncio.ensure_future(repl.kernel.execute(f"{first}\n{code}", lambda output: on.set()))
    waiting = asyncio.ensure_future(on.wait())
    await asyncio.wait({cell, waiting}, return_when=asyncio.FIRST_COMPLETED, timeout=30)
    assert on.is_set()
    return cell


@pytest.mark.parametrize("name", ENDLESS)
async def test_an_interrupt_ends_the_cell_and_keeps_the_kernel(repl: Session, name: str) -> None:
    await repl.ok("kept = 1")
    # An interrupt while IPython still starts a shell meets a name in it that is not set yet.
    cell = await started(repl, ENDLESS[name], first="" if name == "shell escape" else ON)
    assert await asyncio.wait_for(repl.kernel.interrupt(), BACK_WITHIN)
    result = await cell
    # IPython itself ends a shell escape at an interrupt, and calls the cell good.
    assert result.status == "interrupted" or (name, result.status) == ("shell escape", "ok"), result
    assert result.notes[0].startswith("SIGINT after ")
    assert not any("SIGKILL" in note for note in result.notes)
    assert await repl.out("print(kept)") == "1"


@pytest.mark.parametrize("name", STUBBORN)
async def test_code_that_cannot_be_interrupted_is_killed_and_told(repl: Session, name: str) -> None:
    cell = await started(repl, STUBBORN[name], first="")
    assert not await asyncio.wait_for(repl.kernel.interrupt(), BACK_WITHIN)
    with pytest.raises(KernelDied, match=r"SIGKILL.*did not answer two interrupts"):
        await cell
    assert not repl.kernel.alive
    with pytest.raises(KernelDied):
        await repl.run("1")


async def test_cancelling_a_cell_interrupts_it(repl: Session) -> None:
    cell = await started(repl, ENDLESS["sleep"])
    cell.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(cell, BACK_WITHIN)
    assert await repl.out("print('again')") == "again"


async def test_interrupts_at_any_moment_of_a_cell(repl: Session) -> None:
    for step in range(40):
        cell = asyncio.ensure_future(repl.kernel.execute("import time; time.sleep(0.02)", lambda output: None))
        await asyncio.sleep(step * 0.001)
        assert await asyncio.wait_for(repl.kernel.interrupt(), BACK_WITHIN)
        result = await asyncio.wait_for(cell, BACK_WITHIN)
        assert result.status in ("ok", "interrupted", "error")
    assert await repl.out("print('well')") == "well"


async def test_an_interrupt_of_an_idle_kernel_does_nothing(repl: Session) -> None:
    assert await repl.kernel.interrupt()
    assert await repl.out("print(1)") == "1"


async def test_an_interrupted_call_releases_its_threads_and_is_cancelled_on_the_host(repl: Session) -> None:
    began, cancelled = asyncio.Event(), []

    async def answer(request: CallRequest) -> Sequence[CallOutcome]:
        if request.prompts == ("quick",):
            return [CallOutcome(text="yes")]
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(request.call)
            raise
        return []

    kernel = await repl.environment.start_kernel(answer)
    repl.kernel, old = kernel, repl.kernel
    await old.close()
    code = "import concurrent.futures as f\nwith f.ThreadPoolExecutor(8) as pool: list(pool.map(llm_query, ['wait'] * 8))"
    cell = asyncio.ensure_future(repl.run(code))
    await asyncio.wait_for(began.wait(), WAIT)
    assert await asyncio.wait_for(repl.kernel.interrupt(), BACK_WITHIN)
    assert (await cell).result.status == "interrupted"
    assert await repl.out("import threading; print(threading.active_count() < 20, llm_query('quick'))") == "True yes"
    assert 1 <= len(cancelled) <= 8


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("import ctypes; ctypes.string_at(0)", "killed by SIGSEGV"),
        ("import os; os._exit(7)", "ended itself with exit status 7"),
        ("import os; os.abort()", "killed by SIGABRT"),
    ],
)
async def test_a_death_is_told_with_its_cause_and_what_was_lost(repl: Session, code: str, told: str) -> None:
    outputs: list[str] = []
    cell = repl.kernel.execute(f"print('last words', flush=True)\n{code}", lambda output: outputs.append(output.text))
    with pytest.raises(KernelDied, match=told) as caught:
        await asyncio.wait_for(cell, TOLD_WITHIN)
    assert "Every variable in it is lost" in str(caught.value)
    assert "".join(outputs) == "last words\n"
    assert not repl.kernel.alive


async def test_a_death_between_cells_is_told_at_the_next(repl: Session) -> None:
    await repl.ok("import threading, os; threading.Timer(0.1, os._exit, (3,)).start()")
    assert await alive(repl.environment, [repl.kernel.pid], WAIT) == []
    with pytest.raises(KernelDied, match="exit status 3"):
        await repl.run("1")


async def test_closing_takes_everything_that_the_code_started(repl: Session) -> None:
    code = """
import os, subprocess, sys
child = subprocess.Popen(["sleep", "600"])
session = subprocess.Popen(["sleep", "600"], start_new_session=True)
read, write = os.pipe()
if not os.fork():
    os.setsid()
    pid = os.fork()
    if pid:
        os.write(write, str(pid).encode()); os._exit(0)
    import time; time.sleep(600)
print(os.getpid(), child.pid, session.pid, int(os.read(read, 20)))
"""
    pids = list(map(int, (await repl.out(code)).split()))
    assert len(pids) == 4
    assert sorted(await alive(repl.environment, pids)) == sorted(pids)
    await repl.kernel.close()
    assert await alive(repl.environment, pids, WAIT) == []


async def test_a_dead_neighbour_does_not_matter(repl: Session) -> None:
    other = await Session(repl.environment).start()
    await repl.ok("kept = 1")
    with pytest.raises(KernelDied):
        await other.run("import os; os._exit(1)")
    assert await repl.out("print(kept)") == "1"
    await other.kernel.close()


async def test_two_kernels_keep_their_states_calls_and_outputs_apart(repl: Session) -> None:
    other = await Session(repl.environment).start()
    try:
        await asyncio.gather(repl.ok("mine = 'left'"), other.ok("mine = 'right'"))
        code = "for _ in range(200):\n    print(mine, llm_query(mine))"
        left, right = await asyncio.gather(repl.out(code), other.out(code))
        assert set(left.splitlines()) == {"left LEFT"}
        assert set(right.splitlines()) == {"right RIGHT"}
        assert {request.prompts for request in repl.requests} == {("left",)}
        assert {request.prompts for request in other.requests} == {("right",)}
        assert {request.kernel for request in other.requests} == {other.kernel.number}
    finally:
        await other.kernel.close()


async def test_the_supervisors_death_is_told(repl: Session) -> None:
    from tests.conformance.driving import session

    async with session() as own:
        cell = await started(own, ENDLESS["sleep"])
        kernel = psutil.Process(own.kernel.pid)
        *_, supervisor = (
            each for each in kernel.parents() if any(part.endswith("guest/__main__.py") for part in each.cmdline())
        )
        os.kill(supervisor.pid, signal.SIGKILL)
        with pytest.raises(KernelDied, match="the kernels is gone"):
            await asyncio.wait_for(cell, TOLD_WITHIN)
        psutil.wait_procs([kernel], timeout=WAIT)
        assert not kernel.is_running()
