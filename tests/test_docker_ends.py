"""How a box ends, wanted or not: told at once with what was lost, ended by a failed run with its partial result, and gone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlm_jupyter import RLM
from rlm_jupyter.errors import KernelDied, RunStopped
from rlm_jupyter.events import CellEnded, KernelStarted
from rlm_jupyter.kernels.docker import LABEL
from rlm_jupyter.kernels.environment import Environment
from rlm_jupyter.result import RLMResult
from rlm_jupyter.run import Run
from rlm_jupyter.settings import MIB
from rlm_jupyter.testing import Reply, Request, Script, ScriptedServer
from tests.boxes import Marked, boxes_of, derived_image, marked_image
from tests.conformance.driving import session
from tests.deadlines import BACK_WITHIN, TOLD_WITHIN, WAIT
from tests.engine import SCRIPTS, Engine, copy_image, second_engine
from tests.models import answer, code, scripted
from tests.notebooks import notebook

pytestmark = [pytest.mark.anyio, pytest.mark.needs("docker")]

LOST = "Every variable in it is lost; what was put out before is kept."
BUSY = "print('before', flush=True)\nllm_query('here')\nimport time; time.sleep(600)"


@pytest.fixture(scope="module")
def marked() -> Iterator[Marked]:
    with marked_image(derived_image()) as image:
        yield image


def boxed(image: str, root: Script, sub: Script = lambda request: "ok") -> AbstractContextManager[tuple[RLM, ScriptedServer]]:
    """Give an RLM whose code runs in boxes of that image, and the scripted server of its LMs."""
    return scripted(root, sub, environment="docker", environment_kwargs={"image": image})


def client_of(label: str) -> psutil.Process:
    """Give the process of the client that is attached to the box of this process."""
    children = psutil.Process().children(recursive=True)
    (found,) = (child for child in children if f"--label={LABEL}" in child.cmdline() and label in child.cmdline())
    return found


def failed(run: Run, began: float) -> RLMResult:
    """Check that a run ended as one that lost its kernel should, soon, and give its result."""
    result = run.wait(60)
    assert time.monotonic() - began < TOLD_WITHIN
    assert result.status == "failed"
    assert isinstance(result.error, KernelDied)
    assert str(result.error).endswith(LOST)
    assert result.error.result is result
    assert len([event for event in result.trace.events if isinstance(event, KernelStarted)]) == 1
    return result


KILLS: dict[str, tuple[Callable[[Marked], object], str]] = {
    "docker kill": (lambda marked: marked.engine.run("kill", marked.box()), "was killed: from outside"),
    "docker rm": (lambda marked: marked.engine.run("rm", "--force", marked.box()), "was killed: from outside"),
    "docker stop": (lambda marked: marked.engine.run("stop", marked.box()), "was killed: from outside"),
    "its client killed": (lambda marked: client_of("run").kill(), "its client, docker, was killed by signal 9"),
}


@pytest.mark.parametrize("how", KILLS)
def test_p11_a_box_that_ends_in_a_cell_fails_the_run_which_keeps_what_there_is(marked: Marked, how: str) -> None:
    kill, told = KILLS[how]
    turns = [code("kept = 1\nprint('first turn')"), code(BUSY)]
    with boxed(marked.name, turns) as (rlm, server):
        run = rlm.start("the context", "q?")
        server.wait_for(3, ended=True)
        began = time.monotonic()
        kill(marked)
        result = failed(run, began)
        assert told in str(result.error)
        assert result.iterations == 2
        (first,), (second,) = (turn.cells for turn in result.trace.iterations)
        assert (first.status, first.outputs[0].text) == ("ok", "first turn\n")
        assert second.status == "died"
        assert LOST in second.error
        assert len(server.requests) == 3
        assert marked.gone()


def test_p11_a_box_that_is_killed_while_an_lm_call_is_under_way(marked: Marked) -> None:
    def held(request: Request) -> Reply:
        return Reply("late", hold=True)

    turns = [code("print(llm_query_batched(['a', 'b', 'c']))")]
    with boxed(marked.name, turns, held) as (rlm, server):
        run = rlm.start("the context", "q?")
        server.wait_for(4)
        began = time.monotonic()
        marked.engine.run("kill", marked.box())
        result = failed(run, began)
        assert [call.state for call in result.trace.iterations[0].cells[0].calls] == ["failed"] * 3
        server.wait_for(4, ended=True)
        assert marked.gone()


def test_p11_a_box_that_is_killed_while_the_context_arrives(marked: Marked) -> None:
    def cut(run: Run) -> None:
        feed = run.feed()
        while not isinstance(next(feed), KernelStarted):
            pass
        marked.engine.run("kill", marked.box())

    with boxed(marked.name, [answer()]) as (rlm, server):
        run = rlm.start("x" * (256 * MIB), "q?")
        cut(run)
        result = failed(run, time.monotonic())
        assert result.iterations == 0
        assert server.requests == []
        assert marked.gone()


async def test_p11_out_of_memory_ends_the_kernel_and_is_told(marked: Marked) -> None:
    async with session(boxes_of(marked, memory="256m")) as repl:
        with pytest.raises(KernelDied, match=r"SIGKILL.*while a cell ran.*[Oo]ut of memory") as caught:
            await repl.run("big = [bytearray(1 << 20) for _ in range(1000)]")
        assert str(caught.value).endswith(LOST)
        assert marked.boxes()
        with pytest.raises(KernelDied):
            await repl.run("1")
    assert await asyncio.to_thread(marked.gone)


async def test_p11_memory_that_its_files_take_is_told_whatever_has_to_die(marked: Marked) -> None:
    async with session(boxes_of(marked, memory="256m")) as repl:
        code = """
import os
for folder in ("/tmp", "/dev/shm"):
    with open(folder + "/big", "wb", buffering=0) as file:
        try:
            while True: file.write(bytes(1 << 20))
        except OSError: pass
big = [bytearray(1 << 20) for _ in range(1000)]
"""
        with pytest.raises(KernelDied, match="memory"):
            await asyncio.wait_for(repl.run(code), 60)
    assert await asyncio.to_thread(marked.gone)


@pytest.fixture(scope="module")
def stoppable() -> Iterator[tuple[Engine, int, str]]:
    """An engine of the tests' own, its process id, and an image in it."""
    image = derived_image()
    with second_engine() as (engine, pid):
        copy_image(image, engine)
        yield engine, pid, image


@pytest.mark.needs("dockerd")
@pytest.mark.timeout(400)
def test_p11_an_engine_that_is_stopped_and_one_that_is_killed(
    stoppable: tuple[Engine, int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, pid, image = stoppable
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    for end in (signal.SIGTERM, signal.SIGKILL):
        with boxed(image, [code(BUSY)]) as (rlm, server):
            run = rlm.start("the context", "q?")
            server.wait_for(2, ended=True)
            assert len(engine.containers(f"label={LABEL}")) == 1
            began = time.monotonic()
            os.kill(pid, end)
            result = failed(run, began)
            assert "its engine" in str(result.error)
        psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=20)
        pid = restart(engine)
        assert engine.containers(f"label={LABEL}") == set()


def restart(engine: Engine) -> int:
    """Start an engine again in its folder; give its process id."""
    folder = Path(engine.host.removeprefix("unix://")).parent
    subprocess.run([str(SCRIPTS / "docker-engine"), str(folder)], check=True, timeout=60, capture_output=True)
    return int((folder / "pid").read_text())


# Nothing is left


async def test_p12_nothing_is_left_of_a_start_or_a_close_that_is_cancelled(marked: Marked) -> None:
    async def cancelled(after: float) -> None:
        opening = asyncio.ensure_future(boxes_of(marked)())
        await asyncio.sleep(after)
        opening.cancel()
        try:
            opened: Environment = await asyncio.wait_for(opening, WAIT)
        except asyncio.CancelledError:
            return
        await opened.close()

    for step in range(8):
        await cancelled(step * 0.08)
    closing = asyncio.ensure_future((await boxes_of(marked)()).close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait({closing}, timeout=WAIT)
    assert await asyncio.to_thread(marked.gone)


STAGES: dict[str, tuple[list[Reply | str], Any, Callable[[Run, Any], object]]] = {
    "the first request": ([Reply("late", hold=True)], "c", lambda run, server: server.wait_for(1)),
    "a cell": ([code(BUSY)], "c", lambda run, server: server.wait_for(2, ended=True)),
    "the context": ([answer()], "x" * (256 * MIB), lambda run, server: event(run, KernelStarted)),
    "the answer": ([answer("'x' * 300_000_000")], "c", lambda run, server: event(run, CellEnded)),
}


def event(run: Run, kind: type) -> None:
    feed = run.feed()
    while not isinstance(next(feed), kind):
        pass


@pytest.mark.parametrize("stage", STAGES)
def test_p12_nothing_is_left_of_a_run_that_is_stopped(marked: Marked, stage: str) -> None:
    root, context, wait = STAGES[stage]
    with boxed(marked.name, root) as (rlm, server):
        run = rlm.start(context, "q?")
        wait(run, server)
        stopped = run.interrupted()
        assert isinstance(stopped, RunStopped)
        assert stopped.result is not None
        assert marked.gone()


def test_p12_nothing_is_left_of_runs_that_end_well_or_fail(marked: Marked) -> None:
    for turns, status in (([answer()], "answered"), ([Reply(status=401)], "failed")):
        with boxed(marked.name, turns) as (rlm, _):
            assert rlm.start("c", "q?").wait(60).status == status
            assert marked.gone()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_p12_nothing_is_left_after_the_death_of_the_notebook(tmp_path: Path, marked: Marked, end: signal.Signals) -> None:
    with notebook(tmp_path) as book, boxed(marked.name, [code(BUSY)]) as (_, server):
        book.send(f"%%rlm --env docker --image {marked.name} --base-url {server.url} --model root --sub-model sub\nq?")
        server.wait_for(2, ended=True)
        assert marked.boxes()
        clients = [child for child in book.descendants() if f"--label={LABEL}" in child.cmdline()]
        assert len(clients) == 1
        book.process.send_signal(end)
        assert marked.gone()
        assert psutil.wait_procs(clients, timeout=10)[1] == []


SLOW = "mkdir /slow && printf '#!/bin/sh\\nsleep 120\\n' > /slow/python3 && chmod 755 /slow /slow/python3"


def test_p12_nothing_is_left_when_it_is_interrupted_while_the_image_is_made(tmp_path: Path, marked: Marked) -> None:
    path = "ENV PATH=/slow:/usr/local/bin:/usr/bin:/bin"
    with marked_image(marked.name, path, script=SLOW) as slow, notebook(tmp_path) as book:
        message = book.send(f"%%rlm --env docker --image {slow.name} --model demo\nq?")
        assert slow.wait("start", lambda: bool(slow.containers()), 30)
        book.interrupt()
        assert book.finish(message, BACK_WITHIN).ename == "KeyboardInterrupt"
        assert slow.gone()
