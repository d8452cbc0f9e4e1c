"""The worker thread and the warm environment: kept for the next run, ended with their owner."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading

import psutil

from rlm_jupyter import RLM
from rlm_jupyter.engine import Engine
from rlm_jupyter.testing import Reply, ScriptedServer
from tests.models import answer, code, scripted
from tests.notebooks import gone


def children() -> list[psutil.Process]:
    return [process for process in psutil.Process().children(recursive=True) if process.status() != psutil.STATUS_ZOMBIE]


def threads() -> int:
    return sum(thread.name == "rlm_jupyter" for thread in threading.enumerate())


def test_the_second_run_takes_the_warm_environment() -> None:
    before = children()
    with scripted([answer("1"), answer("2")]) as (rlm, _):
        rlm.completion("c", root_prompt="q")
        kept = {process.pid for process in children()} - {process.pid for process in before}
        assert len(kept) in (2, 3)
        rlm.completion("c", root_prompt="q")
        assert {min(kept)} <= {process.pid for process in children()}
    assert gone([process for process in children() if process not in before])


def test_a_run_that_went_wrong_leaves_nothing_warm() -> None:
    before = children()
    engine = Engine()
    with scripted([code("import os; os.kill(os.getpid(), 9)")], engine=engine) as (rlm, _):
        run = rlm.start("c", "q")
        assert run.wait(30).status == "failed"
        assert gone([process for process in children() if process not in before])
    engine.close()


def test_closing_twice_is_fine_and_a_closed_engine_starts_anew() -> None:
    engine = Engine()
    with scripted([answer("1"), answer("2")], engine=engine) as (rlm, _):
        assert rlm.completion("c", root_prompt="q").value == 1
        engine.close()
        engine.close()
        assert rlm.completion("c", root_prompt="q").value == 2
    engine.close()
    assert threads() == 0


def test_an_rlm_that_nobody_holds_any_longer_ends_what_it_kept() -> None:
    before = children()
    with ScriptedServer([answer("1")]) as server:
        rlm = RLM(backend_kwargs={"model_name": "m", "base_url": server.url})
        rlm.completion("c", root_prompt="q")
        thread = next(thread for thread in threading.enumerate() if thread.name == "rlm_jupyter")
        kept = [process for process in children() if process not in before]
        assert kept
        del rlm
        gc.collect()
        thread.join(10)
    assert not thread.is_alive()
    assert gone(kept)


def test_closing_stops_a_run_under_way() -> None:
    engine = Engine()
    with scripted([Reply(hold=True)], engine=engine) as (rlm, server):
        run = rlm.start("c", "q")
        server.wait_for(1)
        engine.close()
        assert run.wait(10).status == "stopped"
    assert threads() == 0


def test_a_script_that_closes_nothing_ends_by_itself() -> None:
    script = (
        "from rlm_jupyter import RLM\nresult = RLM(backend='demo').completion({'a.txt': 'x\\nthe needle'}, root_prompt="
        "'Which file contains \"needle\"?')\nprint(result)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "a.txt:2" in done.stdout
    assert done.stderr == ""
