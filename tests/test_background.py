"""Runs in the background: the prompt is back at once, each is shown in its own cell, and nothing outlives the notebook."""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.error import UsageError

from rlm_jupyter import RunStopped
from rlm_jupyter.course import KILLED, TOO_LATE
from rlm_jupyter.engine import Engine
from rlm_jupyter.run import Run
from rlm_jupyter.testing import Reply, Request, ScriptedServer
from tests.boxes import Marked, derived_image, marked_image
from tests.modal_local.plane import LocalModal
from tests.models import answer, code, scripted, text_of
from tests.notebooks import Cell, Notebook, gone, notebook, run_folders
from tests.shells import Shell, open_shell

PLACES = ("local", "docker", "modal")
JOIN = "import threading; [t.join(60) for t in threading.enumerate() if t.name.startswith('rlm_jupyter view')]; print('joined')"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


@pytest.fixture
def marked(docker_image: str) -> Iterator[Marked]:
    """Give an image whose containers are told from those of others on the engine."""
    with marked_image(derived_image()) as image:
        yield image


@pytest.fixture
def shell() -> Iterator[Shell]:
    with open_shell() as shell:
        yield shell


def started(book: Notebook, server: ScriptedServer, place: str, options: str = "") -> Cell:
    """Begin a run in the background whose question and context name its place."""
    line = f"--context about_{place} --base-url {server.url} --model root --sub-model sub --env {place} {options}"
    ran = book.run(f"%%rlm {line} --background --out in_{place}\nquestion of {place}.")
    assert ran.status == "ok", ran.traceback + ran.streams
    return ran


def of_its_place(request: Request) -> Reply | str:
    """Play a root LM that looks at its context once all runs have begun, then answers with what it saw."""
    told = text_of(request)
    place = next(place for place in PLACES if f"question of {place}." in told)
    if len(request.messages) == 2:
        return Reply(code(f"part = llm_query('sub-call of {place}')\nprint('seen in', context['owner'])"), hold=True)
    return answer("[context['owner'], part]")


@pytest.mark.needs("docker")
@pytest.mark.needs("bwrap")
def test_p22_three_runs_on_three_environments_at_once_share_nothing_and_a_restart_leaves_nothing(
    tmp_path: Path, local_modal: LocalModal, marked: Marked
) -> None:
    variables = {**local_modal.environment, "RLM_JUPYTER_TRACES": str(tmp_path / "traces")}
    options = {"local": "", "docker": f"--image {marked.name}", "modal": ""}
    before = len(local_modal.running())
    with (
        tempfile.TemporaryDirectory(prefix="t") as temporary,
        notebook(tmp_path, TMPDIR=temporary, **variables) as book,
        ScriptedServer(models={"root": of_its_place, "sub": lambda request: f"answer to the {request.prompt}"}) as server,
    ):
        for place in PLACES:
            book.run(f"about_{place} = {{'owner': 'secret of {place}'}}")
        cells = {place: started(book, server, place, options[place]) for place in PLACES}
        server.wait_for(3, timeout=180)
        (listed,) = book.run("%rlm list").displays
        assert listed["data"]["text/plain"].count("asking the model") == 3
        assert book.value("[in_local.status, in_docker.result, in_modal.result]") == ["running", None, None]
        server.release()
        values = book.value("[run.wait(120).value for run in (in_local, in_docker, in_modal)]", 200)
        assert values == [[f"secret of {place}", f"answer to the sub-call of {place}"] for place in PLACES]
        joined = book.run(JOIN)
        assert (joined.streams, joined.displays) == ("joined\n", [])

        for request in server.requests:
            assert sum(f"of {place}" in text_of(request) for place in PLACES) == 1
        for file in (tmp_path / "traces").iterdir():
            assert sum(f"seen in secret of {place}" in file.read_text(encoding="utf-8") for place in PLACES) == 1
        for place, ran in cells.items():
            ids = [display["transient"]["display_id"] for display in ran.displays if display.get("transient")]
            assert len(ids) == 2
            page = "\n".join(book.shown[name]["text/html"] for name in ids)
            assert "Answered" in page
            assert [other for other in PLACES if f"secret of {other}" in page] == [place]
            assert (ran.streams, len(ran.displays)) == ("", 3), "two displays, and the Run that the cell gives"
            assert ran.displays[-1]["data"].keys() == {"text/plain"}

        with ScriptedServer(lambda request: Reply(hold=True)) as again:
            for place in PLACES:
                started(book, again, place, options[place])
            again.wait_for(3, timeout=180)
            processes = book.descendants()
            assert processes
            assert (len(marked.boxes()), len(local_modal.running()) - before) == (1, 1)
            book.manager.restart_kernel()
            again.wait_for(3, ended=True, timeout=60)
        assert gone(processes, 30)
        assert marked.gone(30)
        deadline = time.monotonic() + 90
        while len(local_modal.running()) > before:  # what the plane has seen can be asked for only
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert not run_folders(temporary)


def test_stop_ends_the_run_that_is_meant_and_says_what_cannot_be_stopped(shell: Shell) -> None:
    def play(request: Request) -> Reply:
        return Reply(code("FINAL_VAR('so' + ' far')\nllm_query('p')"))

    def refused(line: str) -> str:
        ran = shell.run(line)
        assert isinstance(ran.error, UsageError)
        assert ran.output.strip().count("\n") == 0
        return str(ran.error)

    with ScriptedServer(models={"root": play, "sub": lambda request: Reply(hold=True)}) as server:
        cell = f"%%rlm --background --base-url {server.url} --model root --sub-model sub --out"
        assert refused("%rlm stop") == "no run is running"
        assert shell.run(f"{cell} first\nq").error is None
        assert shell.run(f"{cell} second\nq").error is None
        server.wait_for(4)
        first, second = shell.namespace["first"], shell.namespace["second"]
        assert isinstance(first, Run)
        assert repr(first).startswith(f"Run({first.id!r}): running; ")
        assert f"with one of {first.id}, {second.id}" in refused("%rlm stop")
        assert f"did you mean {first.id}?" in refused(f"%rlm stop {first.id[:-1]}")
        assert "%rlm list shows" in refused("%rlm stop nonsense")
        assert "takes no more than one word" in refused(f"%rlm stop {first.id} {second.id}")
        assert "takes no more words" in refused("%rlm list running")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert sorted(shell.complete("%rlm stop ")) == sorted([first.id, second.id])
        shown = shell.run(f"%rlm show {second.id}").output
        assert shown.startswith(
            f"{second.id} is running; this is how it stood just now. %rlm attach {second.id} shows it live\n"
        )
        assert "only a notebook shows it live. Type %rlm show" in shell.run(f"%rlm attach {second.id}").output
        told = shell.run(f"%rlm stop {first.id[-6:]}")  # the last part of an id names a run, too
        assert told.error is None
        assert f"Stopped: {first.id}; 1 iteration, 2 requests, ~" in told.output
        assert first.result is not None
        assert (first.status, first.result.status) == ("stopped", "stopped")
        assert first.result.value == "so far" or {KILLED, TOO_LATE} & set(first.trace.notices)
        assert isinstance(first.result.error, RunStopped)
        assert second.status == "running"
        assert f"{first.id} has ended already (stopped)" in refused(f"%rlm stop {first.id}")
        assert shell.run("%rlm stop").error is None
        assert second.status == "stopped"
        assert [row.split()[1] for row in shell.run("%rlm list").output.splitlines()[1:]] == ["stopped", "stopped"]
        server.wait_for(4, ended=True)


def test_unloading_ends_a_run_in_the_background(shell: Shell) -> None:
    with ScriptedServer([Reply(hold=True)]) as server:
        shell.run(f"%%rlm --background --base-url {server.url} --model root --out run\nq")
        server.wait_for(1)
        shell.run("%unload_ext rlm_jupyter")
        assert shell.namespace["run"].wait(30).status == "stopped"
        server.wait_for(1, ended=True)


def test_what_waits_for_the_end_is_refused_in_the_background(shell: Shell) -> None:
    ran = shell.run("%%rlm --background --model demo --save-files there\nq")
    assert isinstance(ran.error, UsageError)
    assert re.search(r"--save-files .*\.result\.save_files", str(ran.error))


@pytest.mark.anyio
async def test_a_run_can_be_awaited_by_many_and_giving_up_stops_nothing(engine: Engine) -> None:
    with scripted([Reply(answer("7"), hold=True)], engine=engine) as (rlm, server):
        run = rlm.start("c", "q")
        await asyncio.to_thread(server.wait_for, 1)
        assert (run.status, run.result) == ("running", None)

        async def wait() -> Any:
            return (await run).value

        impatient, first, second = (asyncio.ensure_future(wait()) for _ in range(3))
        await asyncio.sleep(0)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        server.release()
        assert (await first, await second) == (7, 7)
    assert run.result is not None
    assert run.result.value == 7
