"""Whole runs on every environment: a stop at any stage leaves nothing (P9, P10, P12); caps hold and sums are true (P7, P26).

Each stage is reached by a fact: an event of the run, or requests at the scripted server. That a notebook's interrupt stops a
run is shown in `test_notebook` and, line by line, in `test_interrupts`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from rlm_jupyter import RunStopped, events
from rlm_jupyter.course import KILLED, TOO_LATE
from rlm_jupyter.errors import KernelDied
from rlm_jupyter.events import Event
from rlm_jupyter.run import STOP_WITHIN, Run
from rlm_jupyter.testing import Reply, Request, ScriptedServer
from rlm_jupyter.trace import Trace
from tests.boxes import Marked, derived_image, marked_image
from tests.modal_local.plane import LocalModal
from tests.models import code, scripted
from tests.notebooks import gone
from tests.test_interrupts import Lines

Reached = Callable[[Run, ScriptedServer], object]


def told(kind: type[Event], node: str = "0") -> Reached:
    """Wait until a run has told an event of a kind."""

    def wait(run: Run, server: ScriptedServer) -> None:
        for event in run.feed():
            if isinstance(event, kind) and event.node == node:
                return
        raise AssertionError(f"the run ended before it told {kind.__name__}: {run.future.result().error}")

    return wait


def asked(times: int) -> Reached:
    return lambda run, server: server.wait_for(times, timeout=120)


class Slow:
    """A context whose unpickling in the kernel takes for ever."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("__import__('time').sleep(600)",)


@dataclasses.dataclass(frozen=True)
class Stage:
    """What the root LM answers first, the context, and how one sees that the stage is reached."""

    reply: Reply | str | Callable[[Request], Reply | str]
    reached: Reached
    context: Any = "c"
    value: Any = None
    stubborn: bool = False
    ends: tuple[str, ...] = ("stopped",)


LATE = ("stopped", "answered")
"""How a run ends that is stopped when it has almost ended."""
SWALLOWS = """
print('here', flush=True)
while True:
    try:
        n = 0
        while True:
            try:
                n = 0
                while True: n = len('some work')
            except BaseException: pass
    except BaseException: pass"""
ENDLESS = "print('here', flush=True)\nwhile True: pass"
NEVER = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('here', flush=True)\nsignal.pause()"


DAEMON = """
import os, signal
if os.fork() == 0:
    os.setsid()
    signal.pause()
llm_query('hold')"""
FAMILY = {
    "q": "FINAL_VAR('so' + ' far')\nrlm_query_batched(['waits', 'runs'], [1, 2])",
    "waits": "rlm_query('below', 1)",
    "below": DAEMON,
    "runs": ENDLESS,
}
"""What each of a family does: the root and a child wait, a child runs, a grandchild waits and has left a process of its own."""


def of_a_child(request: Request) -> str:
    return code(ENDLESS if "dig" in request.prompt else "FINAL_VAR('so' + ' far')\nrlm_query('dig', context='deep')")


def of_a_family(request: Request) -> str:
    return code(FAMILY[request.messages[1]["content"].split()[1]])


def at_work(run: Run, server: ScriptedServer) -> None:
    told(events.CellOutput, "0.2")(run, server)
    asked(5)(run, server)


STAGES = {
    "the start of the kernel": Stage("", told(events.RunStarted)),
    "the load of the context": Stage("", told(events.KernelStarted), Slow()),
    "a root request": Stage(Reply(hold=True), asked(1)),
    "a reply that streams": Stage(Reply("word " * 5_000, pause=0.2), told(events.ReplyPart)),
    "a cell that runs": Stage(code(f"FINAL_VAR('so' + ' far')\n{ENDLESS}"),
                              told(events.CellOutput), value="so far"),
    "a cell that swallows the interrupt": Stage(code(SWALLOWS), told(events.CellOutput), stubborn=True),
    "a C call that never returns": Stage(code(NEVER), told(events.CellOutput), stubborn=True),
    "a batch of 300": Stage(code("llm_query_batched(['p'] * 300)"), asked(1 + 32)),
    "a cell of a child": Stage(of_a_child, told(events.CellOutput, "0.1"), value="so far"),
    "a family at work": Stage(of_a_family, at_work, value="so far"),
    "the fetch of a value": Stage(code("FINAL_VAR('x' * 100_000_000 + '')"), told(events.CellEnded), ends=LATE),
    "the close": Stage(code("FINAL_VAR(1)"), told(events.CellEnded), value=1, ends=LATE),
}  # fmt: skip


@contextmanager
def local(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    yield {}


@contextmanager
def docker(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    marked: Marked = request.getfixturevalue("marked")
    yield {"environment": "docker", "environment_kwargs": {"image": marked.name}}
    assert marked.gone(30)


@contextmanager
def modal(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    plane: LocalModal = request.getfixturevalue("local_modal")
    before = {state.id for state in plane.running()}
    yield {"environment": "modal"}
    assert {state.id for state in plane.running()} <= before


@pytest.fixture(scope="module")
def marked(docker_image: str) -> Iterator[Marked]:
    with marked_image(derived_image()) as image:
        yield image


IN_DOCKER = (
    "the start of the kernel",
    "a cell that runs",
    "a C call that never returns",
    "a batch of 300",
    "a family at work",
)
"""What `make test` tries in a container; `make test-matrix` has the rest, and a sandbox."""
Place = Callable[[pytest.FixtureRequest], Any]
PLACES = [
    pytest.param(local, id="local"),
    pytest.param(docker, id="docker", marks=pytest.mark.needs("docker")),
    pytest.param(modal, id="modal", marks=[pytest.mark.needs("bwrap"), pytest.mark.matrix]),
]
EVERYWHERE = [
    *(pytest.param(name, local, id=f"local: {name}") for name in STAGES),
    *(pytest.param(name, docker, id=f"docker: {name}", marks=pytest.mark.needs("docker")) for name in IN_DOCKER),
    *(
        pytest.param(name, docker, id=f"docker: {name}", marks=[pytest.mark.needs("docker"), pytest.mark.matrix])
        for name in STAGES
        if name not in IN_DOCKER
    ),
    *(
        pytest.param(name, modal, id=f"modal: {name}", marks=[pytest.mark.needs("bwrap"), pytest.mark.matrix])
        for name in STAGES
    ),
]


@pytest.mark.parametrize(("name", "place"), EVERYWHERE)
def test_p09_a_stop_at_any_stage_ends_the_run_with_what_there_is(
    name: str, place: Place, request: pytest.FixtureRequest
) -> None:
    stage = STAGES[name]
    assert STOP_WITHIN <= 5.0

    def root(asked: Request) -> Reply | str:
        return stage.reply(asked) if callable(stage.reply) else stage.reply

    with place(request) as where:
        before = psutil.Process().children(recursive=True)
        with scripted(root, lambda asked: Reply(hold=True), max_depth=3, **where) as (rlm, server):
            run = rlm.start(stage.context, "q")
            stage.reached(run, server)
            error = run.interrupted()
            assert isinstance(error, RunStopped)
            result = run.future.result(120)
            assert result.status in stage.ends
            assert KILLED in result.trace.notices or not stage.stubborn
            late = {KILLED, TOO_LATE} & set(result.trace.notices)  # on a machine that is too busy
            assert late or result.value == stage.value or stage.ends is LATE
            assert result.calls == len(server.wait_for(0))
            assert {child.status for child in result.trace.children} <= {"stopped"}
            assert result.trace.status == result.status
            assert Trace.from_events(result.trace.events).to_dict() == result.trace.to_dict()
            server.wait_for(len(server.requests), ended=True)
        assert gone([process for process in psutil.Process().children(recursive=True) if process not in before], 30)


PRESSED = """
import os, secrets, signal, threading
told, main = f'/tmp/rlm-told-{secrets.token_hex(8)}', threading.main_thread().ident
os.mkfifo(told)
os.chmod(told, 0o666)
def press():
    open(told).read()
    os.unlink(told)
    signal.pthread_kill(main, signal.SIGINT)
thread = threading.Thread(target=press)
thread.start()
try: rlm_query('child', told)
except KeyboardInterrupt: print('given up')
thread.join()"""
TELLS = "import os\nos.close(os.open(context, os.O_WRONLY))\nllm_query('hold')"


@pytest.mark.parametrize("place", PLACES)
def test_an_interrupt_within_the_parents_cell_ends_the_child_that_it_waits_for(
    place: Place, request: pytest.FixtureRequest
) -> None:
    """The code gives its call up when the child says, through a pipe, that it is at work; the run goes on."""

    def root(asked: Request) -> str:
        if "Question:\nchild" in asked.messages[1]["content"]:
            return code(TELLS)
        return code(PRESSED if len(asked.messages) == 2 else "FINAL_VAR(1)")

    with (
        place(request) as where,
        scripted(root, lambda asked: Reply(hold=True), max_depth=2, **where) as (rlm, server),
    ):
        result = rlm.completion("c", root_prompt="q")
        server.wait_for(len(server.requests), ended=True)
    assert result.value == 1
    assert "given up" in server.requests_to("root")[-1].prompt
    assert [child.status for child in result.trace.children] == ["stopped"]


def end_what_runs_the_kernels(request: pytest.FixtureRequest, place: Place, others: Sequence[psutil.Process]) -> None:
    """Kill the supervisor, or the container or sandbox that it is the first process of."""
    if place is local:
        (supervisor,) = (process for process in psutil.Process().children() if process not in others)
        supervisor.kill()
    elif place is docker:
        marked: Marked = request.getfixturevalue("marked")
        marked.engine.run("kill", marked.box())
    else:
        plane: LocalModal = request.getfixturevalue("local_modal")
        (sandbox,) = plane.running()
        plane.preempt(sandbox.id, silent=False)


@pytest.mark.parametrize("place", PLACES)
def test_p11_the_end_of_all_kernels_is_told_while_children_live_and_nothing_is_left_of_them(
    place: Place, request: pytest.FixtureRequest
) -> None:
    with (
        place(request) as where,
        scripted(of_a_family, lambda asked: Reply(hold=True), max_depth=3, **where) as (rlm, server),
    ):
        before = psutil.Process().children(recursive=True)
        run = rlm.start("c", "q")
        at_work(run, server)
        others = [process for process in psutil.Process().children(recursive=True) if process not in before]
        end_what_runs_the_kernels(request, place, before)
        result = run.wait(60)
        assert (result.status, type(result.error)) == ("failed", KernelDied)
        assert "lost" in str(result.error) or "every variable" in str(result.error)
        assert len(result.trace.children) == 3
        assert {child.status for child in result.trace.children} <= {"failed", "stopped"}
        server.wait_for(5, ended=True)
        assert gone(others, 30)


def test_p09_a_second_interrupt_waits_no_longer() -> None:
    lines, first = inspect.getsourcelines(Run.interrupted)
    at = first + next(number for number, line in enumerate(lines) if "future.result(STOP_WITHIN)" in line)
    with scripted([code(NEVER)]) as (rlm, server):
        run = rlm.start("c", "q")
        told(events.CellOutput)(run, server)
        with Lines("interrupted", (str(inspect.getsourcefile(Run)), at)) as passed:
            error = run.interrupted()
        assert (str(inspect.getsourcefile(Run)), at) in passed.passed
        assert "what has not ended yet is being ended" in str(error)
        assert error.result is not None
        assert error.result.status == "stopped"
        assert run.future.result(120).status == "stopped"


GREEDY = """
import threading, time
kept, told = 'what was found', threading.Event()
ways = [llm_query, lambda text: llm_query_batched([text] * 10), lambda text: rlm_query(text, context='deep'),
        lambda text: rlm_query_batched([text] * 3, ['deep'] * 3)]
def work(way):
    while True:
        try: got = way('dig')
        except BaseException as error: got = error
        if 'max-calls' in str(got): told.set(); time.sleep(0.2)
for number in range(64): threading.Thread(target=work, args=(ways[number % 4],), daemon=True).start()
told.wait()"""
DEEP = """
while True:
    try: llm_query_batched(['deep'] * 3); rlm_query_batched(['dig'] * 2, [1, 2])
    except BaseException: pass"""


def most_children(told: Sequence[Event]) -> int:
    """Give how many children of one level there were at once, at most."""
    alive, most = Counter[int](), 0
    for event in told:
        if isinstance(event, (events.ChildStarted, events.ChildEnded)):
            alive[event.node.count(".")] += 1 if isinstance(event, events.ChildStarted) else -1
            most = max(most, *alive.values())
    return most


@pytest.mark.parametrize("place", PLACES)
def test_p07_p26_one_budget_for_threads_batches_and_children_and_sums_as_the_server_has_them(
    place: Place, request: pytest.FixtureRequest
) -> None:
    """64 threads and 8 children that never give up, batches within batches, every fifth request of the sub-LM fails.

    Of 120 requests for all, 12 at once at most, none more is sent and none is lost.
    """
    usage = (1000, 10, 100)

    def root(asked: Request) -> Reply:
        child = "dig" in asked.messages[1]["content"]
        last = "This is the last request" in asked.prompt
        said = code(DEEP) if child else code("FINAL_VAR(kept)" if last else GREEDY)
        return Reply(said, usage=usage)

    def sub(asked: Request) -> Reply:
        return Reply(status=500, error={"message": "oops"}) if asked.number % 5 == 0 else Reply("yes", usage=usage)

    arguments: dict[str, Any] = {
        "max_calls": 120,
        "max_depth": 3,
        "max_concurrent_children": 8,
        "max_concurrency": 12,
        "max_retries": 1,
    }
    prices = {"root": (1.0, 2.0), "sub": (3.0, 4.0)}
    with place(request) as where, scripted(root, sub, prices=prices, **arguments, **where) as (rlm, server):
        result = rlm.completion("c", root_prompt="q")
        requests = server.wait_for(len(server.requests), ended=True)
    assert (result.status, result.limit, result.value) == ("limit", "max_calls", "what was found")
    assert len(requests) == result.calls == 120
    assert server.peak <= 12
    assert 0 < most_children(result.trace.events) <= 8
    told_of = [item for item in requests if item.status == 200 and not item.aborted]
    unsure = [item for item in requests if item.aborted]
    cost = {"root": (900 * 1 + 100 * 1 + 10 * 2) / 1e6, "sub": (900 * 3 + 100 * 3 + 10 * 4) / 1e6}
    sure = (1000 * len(told_of), 10 * len(told_of), sum(cost[item.model] for item in told_of))
    if not unsure:
        assert (result.usage.input_tokens, result.usage.output_tokens) == sure[:2]
        assert result.cost == pytest.approx(sure[2])
    assert result.usage.estimated == bool(unsure)
    assert result.usage.input_tokens >= sure[0]
    assert (result.cost or 0) >= sure[2] * (1 - 1e-9)
    ends = [event for event in result.trace.events if isinstance(event, (events.ReplyEnded, events.CallEnded))]
    assert sum(event.attempts for event in ends) == 120
    assert sum((event.usage for event in ends), events.Usage()) == result.usage
