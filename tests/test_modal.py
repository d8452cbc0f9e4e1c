"""Sandboxes at Modal, with the real SDK on the local control plane: what is asked for, how one is lost, what faults cost.

That kernels in them behave as anywhere else is shown by `conformance`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import modal
import pytest

from rlm_jupyter.errors import KernelDied, KernelError, KernelStartError, SettingsError
from rlm_jupyter.kernels.cell import Output
from rlm_jupyter.kernels.environment import Environment
from rlm_jupyter.kernels.guest import hold
from rlm_jupyter.kernels.messages import CallOutcome, CallRequest
from rlm_jupyter.kernels.modal import ModalPlace, modal_image, open_modal
from rlm_jupyter.kernels.modal_files import PIECE, WHOLE
from rlm_jupyter.kernels.packages import wanted
from rlm_jupyter.settings import size_text
from tests.conformance.driving import Session, alive, payload
from tests.conformance.test_ends import started
from tests.modal_local.plane import LocalModal

pytestmark = [pytest.mark.anyio, pytest.mark.needs("bwrap")]
matrix = pytest.mark.matrix

MEGABYTE = 1 << 20
WAIT = 60
SLEEP = "import time; time.sleep(600)"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """What was told of the shared sandbox."""
    return []


@pytest.fixture(scope="module")
async def shared(modal_variables: LocalModal, lines: list[str], anyio_backend: str) -> AsyncIterator[Environment]:
    """A sandbox that several tests share."""
    environment = await open_modal(ModalPlace(), told=lines.append)
    try:
        yield environment
    finally:
        await environment.close()


@pytest.fixture(autouse=True)
def nothing_left(local_modal: LocalModal) -> Iterator[None]:
    """Each test ends the sandboxes that it had made; what the shared fixtures have may stay."""
    before = {state.id for state in local_modal.running()}
    yield
    assert {state.id for state in local_modal.running()} <= before


@pytest.fixture
async def repl(shared: Environment, local_modal: LocalModal) -> AsyncIterator[Session]:
    session = await Session(shared).start()
    try:
        yield session
    finally:
        await session.kernel.close()


def asked_last(plane: LocalModal) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Give the back end, the request and the definition of the sandbox that was made last."""
    created = plane.told().created[-1]
    return created.backend, created.request, created.definition


async def until(done: Callable[[], bool], seconds: float = 15) -> None:
    """Look again until it is so: what the plane has seen can be asked for only."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def ended(plane: LocalModal, sandbox: str, seconds: float) -> str:
    """Wait for the end of a sandbox, and give its status."""
    await until(lambda: all(state.id != sandbox for state in plane.running()), seconds)
    return next(state.status for state in plane.told().sandboxes if state.id == sandbox)


async def at_the_root_of(sandbox: str, command: str) -> str:
    """Run a command of the shell as a sandbox's root, which no code in a kernel is."""
    found = await modal.Sandbox.from_id.aio(sandbox)
    process = await found.exec.aio("sh", "-c", command)
    assert await process.wait.aio() == 0, await process.stderr.read.aio()
    return await process.stdout.read.aio()


def commands_of(plane: LocalModal, image: str) -> list[str]:
    return [line for layer in plane.image(image) for line in layer["dockerfile_commands"]]


# What is asked for


@pytest.mark.parametrize(
    ("bridge", "network", "policy", "told"),
    [
        ("tunnel", "closed", {"network_access_type": "ALLOWLIST"}, "no way out, one way in (port 8080, for whoever holds this"),
        pytest.param("tunnel", "open", {"network_access_type": "OPEN"}, "an open network: code can send", marks=matrix),
        pytest.param(
            "tunnel", ["pypi.org"], {"network_access_type": "ALLOWLIST", "allowed_domains": ["pypi.org"]},
            "no way out but to pypi.org, one way in (port 8080", marks=matrix,
        ),
        pytest.param("exec", "closed", {"network_access_type": "BLOCKED"}, "no network", marks=matrix),
    ],
)  # fmt: skip
async def test_p23_a_sandbox_is_asked_for_with_the_least(
    local_modal: LocalModal, bridge: str, network: Any, policy: dict[str, Any], told: str
) -> None:
    default = (bridge, network) == ("tunnel", "closed")
    environment = await open_modal(ModalPlace.of({} if default else {"bridge": bridge, "network": network}))
    try:
        backend, request, asked = asked_last(local_modal)
        assert (environment.name, backend) == ("modal", "V2")
        assert environment.isolation.startswith(f"isolated: a sandbox at Modal (app rlm-sandbox), {told}")
        assert environment.isolation.endswith("; ended after 600 s at most")
        assert (environment.apart, environment.notices) == (True, ())
        assert asked["network_access"] == policy
        assert asked["timeout_secs"] == 600
        if bridge == "tunnel":
            assert asked["open_ports"] == {"ports": [{"port": 8080}]}, "encrypted"
            assert asked["readiness_probe"]["tcp_port"] == 8080
        else:
            assert not asked.get("open_ports")
            assert not asked.get("readiness_probe")
        for absent in (
            "volume_mounts",
            "secret_ids",
            "idle_timeout_secs",
            "name",
            "scheduler_placement",
            "workdir",
        ):
            assert not asked.get(absent), absent
        assert not request.get("secret_sources")
        assert {tag["tag_name"] for tag in request["tags"]} == {"made-by", "user", "host", "process", "begun"}
        assert asked["entrypoint_args"][:3] == ["python", "-P", "-c"]
        built = commands_of(local_modal, asked["image_id"])
        assert any(f"python:{sys.version_info.major}.{sys.version_info.minor}" in line for line in built)
        installed = " ".join(line for line in built if "pip install" in line)
        for package in (*wanted().values(), "scipy", "sympy", "requests", "httpx", "flask", "waitress", "pyyaml", "tqdm"):
            assert package in installed, package
    finally:
        await environment.close()


async def test_what_is_wished_for_is_asked_for(local_modal: LocalModal) -> None:
    given: dict[str, str | None] = {"WORD": "hush"}
    place = ModalPlace.of(
        {
            "app_name": "others", "timeout": 900, "idle_timeout": 120, "gpu": "T4", "cpu": 2, "memory": 2048, "name": "one",
            "region": "us-east", "network": ["pypi.org", "*.example.com"], "secrets": [modal.Secret.from_dict(given)],
            "volumes": {"/data": modal.Volume.from_name("tests-modal", create_if_missing=True)},
            "image": modal.Image.debian_slim(python_version="3.11").pip_install("numpy", "dill", "requests", "flask"),
        }
    )  # fmt: skip
    environment = await open_modal(place)
    try:
        backend, _, asked = asked_last(local_modal)
        assert (backend, asked["resources"]["gpu_config"]["gpu_type"], asked["name"]) == ("V1", "T4", "one")
        assert local_modal.told().created[-1].app == "others"
        assert asked["network_access"]["allowed_domains"] == ["pypi.org", "*.example.com"]
        assert (asked["timeout_secs"], asked["idle_timeout_secs"]) == (900, 120)
        assert (asked["resources"]["milli_cpu"], asked["resources"]["memory_mb"]) == (2000, 2048)
        assert asked["scheduler_placement"]["regions"] == ["us-east"]
        assert asked["volume_mounts"][0]["mount_path"] == "/data"
        *_, own, ours = (line for line in commands_of(local_modal, asked["image_id"]) if "pip install" in line)
        assert "flask" in own
        assert "ipykernel>=" in ours
        assert "numpy==" not in ours, "the user's own versions stay"
        assert "GPU T4, 1 secrets, 1 volumes" in environment.isolation
        session = await Session(environment).start()
        assert await session.out("import os; print(os.environ['WORD'], llm_query('well'))") == "hush WELL"
        with pytest.raises(SettingsError, match="name='one': a running sandbox has this name"):
            await open_modal(place)
    finally:
        await environment.close()


async def test_an_image_that_ends_with_local_files_is_taken_as_it_is(
    local_modal: LocalModal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "given.txt").write_text("given")
    (tmp_path / "a_module_of_mine.py").write_text("word = 'mine'")
    monkeypatch.syspath_prepend(tmp_path)
    image = modal_image().add_local_file(tmp_path / "given.txt", "/root/data/given.txt")
    image = image.add_local_python_source("a_module_of_mine")
    environment = await open_modal(ModalPlace(image=image))
    try:
        session = await Session(environment).start()
        assert await session.out("print(open('/root/data/given.txt').read())") == "given"
        assert await session.out("import a_module_of_mine; print(a_module_of_mine.word)") == "mine"
    finally:
        await environment.close()


async def test_an_image_without_what_the_kernel_needs_is_told_with_its_own_words(
    local_modal: LocalModal, tmp_path: Path
) -> None:
    (tmp_path / "zmq.py").write_text("raise ImportError('this zmq is broken')")
    image = modal.Image.debian_slim().add_local_file(tmp_path / "zmq.py", "/bad/zmq.py")
    bad = modal.Secret.from_dict({"PYTHONPATH": "/bad"})
    with pytest.raises(KernelStartError, match="the supervisor did not start in the sandbox: ImportError: this zmq is broken"):
        await open_modal(ModalPlace(image=image, secrets=(bad,)))


async def test_an_image_with_a_user_of_its_own_is_told_to_have_one_user_for_all(local_modal: LocalModal) -> None:
    image = modal.Image.debian_slim().pip_install("flask").dockerfile_commands("USER 1000")
    environment = await open_modal(ModalPlace(image=image))
    try:
        (notice,) = environment.notices
        assert notice.startswith("all code in this sandbox runs as the user of its image, so it can end the supervisor")
        first, second = await Session(environment).start(), await Session(environment).start()
        await first.load("a text")
        assert await first.out("import os; print(os.getuid(), context, llm_query('well'))") == "1000 a text WELL"
        other = second.kernel.pid
        await first.run(f"os.kill({other}, 9)")
        with pytest.raises(KernelDied, match="SIGKILL"):
            await second.run("pass")
        assert await first.out("print(context)") == "a text"
    finally:
        await environment.close()


# What runs in one


RUNS = """
import matplotlib.pyplot as plt, threading, concurrent.futures as f
plt.plot([1, 2, 3]); plt.show()
numbers, lock = (n * n for n in range(10)), threading.Lock()
with f.ThreadPoolExecutor(20) as pool: replies = list(pool.map(llm_query, map(str, range(100))))
batch = llm_query_batched([f"prompt {n}" for n in range(50)] + ["fail here"])
own = __import__("pathlib").Path.home() / ".local/lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
(own / "site-packages" / "installed.py").write_text("word = 'found'")
"""


@pytest.mark.parametrize("bridge", ["tunnel", "exec"])
async def test_a_session_has_calls_plots_state_that_does_not_pickle_and_large_answers(
    local_modal: LocalModal, bridge: str
) -> None:
    environment = await open_modal(ModalPlace(bridge=bridge, image=modal.Image.debian_slim().pip_install("dill", "flask")))
    try:
        session = await Session(environment).start()
        await session.load("x" * 10_000_000)
        ran = await session.ok(f"import sys{RUNS}next(numbers), next(numbers)")
        assert sum(output.picture is not None for output in ran.outputs) == 1
        assert ran.text("result") == "(0, 1)\n"
        assert await session.out("print(next(numbers), lock.acquire(), replies == list(map(str, range(100))))") == "4 True True"
        assert await session.out("print(batch[49], type(batch[50]).__name__)") == "PROMPT 49 FailedReply"
        assert await session.out("import installed; print(installed.word)") == "found"
        assert await session.final("FINAL_VAR(context + context)") == "x" * 20_000_000
        assert sum(len(request.prompts) for request in session.requests) == 151
        assert len({request.call for request in session.requests}) == len(session.requests) == 101
        waiting = asyncio.Event()

        async def never(request: CallRequest) -> Sequence[CallOutcome]:
            waiting.set()
            await asyncio.sleep(600)
            return []

        kernel = await environment.start_kernel(never)
        cell = asyncio.ensure_future(kernel.execute("kept = 1\nllm_query('never')", lambda output: None))
        await asyncio.wait_for(waiting.wait(), WAIT)
        assert await asyncio.wait_for(kernel.interrupt(), 5)
        assert (await cell).status == "interrupted"
        assert (await kernel.execute("assert kept", lambda output: None)).status == "ok"
    finally:
        await environment.close()
    assert await ended(local_modal, local_modal.told().created[-1].sandbox, 15) == "TERMINATED"


# Faults of the SDK's connections


@matrix
async def test_p06_calls_batches_cells_and_output_go_on_through_cuts(repl: Session, local_modal: LocalModal) -> None:
    faults: dict[int, Callable[[], object]] = {
        10: lambda: local_modal.router.after(500),
        30: local_modal.sdk.cut,
        50: lambda: local_modal.sdk.down(seconds=1.5),
        70: lambda: local_modal.sdk.black_hole(seconds=1.5),
        121: lambda: local_modal.router.after(MEGABYTE),
    }
    before = local_modal.told().connections["router"]
    requests: list[CallRequest] = []

    async def answer(request: CallRequest) -> Sequence[CallOutcome]:
        requests.append(request)
        faults.pop(len(requests), lambda: None)()
        return [CallOutcome(text=prompt) for prompt in request.prompts]

    def heard(output: Output) -> None:
        if "True" in output.text:
            local_modal.router.after(50_000)
        outputs.append(output)

    code = """
import concurrent.futures as f
texts = [str(n) for n in range(60)]
one = [llm_query(text) for text in texts]
with f.ThreadPoolExecutor(8) as pool: two = list(pool.map(llm_query, texts))
three = llm_query_batched([text * 20_000 for text in texts])
print(one == two == texts, three == [text * 20_000 for text in texts], flush=True)
import time; time.sleep(0.3)
for n in range(200_000): print(f"{n:09d}")
"""
    outputs: list[Output] = []
    kernel = await repl.environment.start_kernel(answer)
    result = await asyncio.wait_for(kernel.execute(code, heard), WAIT)
    await kernel.close()
    assert (result.status, result.error, faults) == ("ok", "", {})
    out = "".join(output.text for output in outputs)
    assert out.startswith("True True\n")
    assert out.endswith("000199999\n")
    assert sorted(request.batch for request in requests) == [False] * 120 + [True]
    assert len({request.call for request in requests}) == 121
    assert sum(len(request.prompts) for request in requests) == 180
    assert local_modal.told().connections["router"] - before >= 4


@matrix
async def test_a_childs_answer_that_comes_after_the_reply_is_waited_for(shared: Environment, local_modal: LocalModal) -> None:
    """The reply goes to the broker, the order that lays the answer ready to the supervisor: neither waits for the other."""
    parent, below = Session(shared), Session(shared)
    orders: list[asyncio.TimerHandle] = []

    async def answer(request: CallRequest) -> Sequence[CallOutcome]:
        below.kernel = await shared.start_kernel(answer, parent=parent.kernel)
        await below.kernel.inherit(request.parcel, 0)
        final = (await below.ok("FINAL_VAR([context, 1])")).result.final
        assert final is not None
        orders.append(asyncio.get_running_loop().call_later(1.0, below.kernel.bring, final, request.call, 0))
        # What was handed over is not there a second time: that is told as soon as it is known.
        orders.append(asyncio.get_running_loop().call_later(2.0, below.kernel.bring, final, request.call, 1))
        return [CallOutcome(text="", brought=True)] * len(request.prompts)

    parent.kernel = await shared.start_kernel(answer, children=2)
    try:
        told = "Error: the child's answer could not be read here (LMError: nothing lies ready there)"
        assert await parent.out("print(rlm_query_batched(['first', 'second']))") == str([["first", 1], told])
    finally:
        for order in orders:
            order.cancel()
        for kernel in (below.kernel, parent.kernel):
            await kernel.close()


async def test_values_of_20_mb_arrive_whole_through_a_cut(repl: Session, local_modal: LocalModal) -> None:
    await repl.load(list(range(3_000_000)))
    before = local_modal.told().connections["router"]
    local_modal.router.after(8 * MEGABYTE)
    assert await repl.final("FINAL_VAR(context)") == list(range(3_000_000))
    assert local_modal.told().connections["router"] > before


@matrix
async def test_a_context_of_100_mb_goes_from_its_file_and_arrives_through_a_cut(
    repl: Session, local_modal: LocalModal, lines: list[str]
) -> None:
    text = payload("".join(f"{n:09d}\n" for n in range(10_000_000)))
    before = local_modal.told().requests["TaskExecStdinWriteStream"]
    lines.clear()
    local_modal.router.after(80 * MEGABYTE)
    tracemalloc.start()
    try:
        await repl.kernel.load("context", text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * MEGABYTE, "it was read into memory"
    told = [line for line in lines if line.startswith("context") and not line.endswith(" sent")]
    assert told == ["context: 95.4 MiB of 95.4 MiB in the sandbox"]
    assert local_modal.told().requests["TaskExecStdinWriteStream"] - before == 2, "once, and on from where it was cut"
    assert await repl.out("print(len(context), context[-10:].strip())") == "100000000 009999999"
    sandbox = local_modal.running()[0].id
    assert "context" not in await at_the_root_of(sandbox, "ls /tmp/rlm")
    await at_the_root_of(sandbox, "cd /tmp/rlm && for n in $(seq 99); do mkdir context-$n; done")
    for refused in (text, payload("small")):
        with pytest.raises(KernelError, match=r"the context did not reach the sandbox: .*directory"):
            await repl.kernel.load("context", refused)
    await at_the_root_of(sandbox, "rmdir /tmp/rlm/context-*")
    await repl.load("small")
    assert await repl.out("print(context)") == "small"


@matrix
@pytest.mark.parametrize("kept", ["in memory", "in a file"])
async def test_a_context_goes_in_pieces_where_it_has_no_file_or_is_very_large(
    repl: Session, local_modal: LocalModal, lines: list[str], kept: str
) -> None:
    size = 2 * PIECE + 1 if kept == "in memory" else WHOLE + 1
    found = payload(bytes(size))
    if kept == "in memory":
        found = dataclasses.replace(found, data=found.read())
    pieces = -(-found.size // PIECE)
    before = local_modal.told().requests["TaskExecStdinWriteStream"]
    lines.clear()
    local_modal.router.after(80 * MEGABYTE)
    await repl.kernel.load("context", found)
    told = [line for line in lines if line.startswith("context")]
    whole = size_text(found.size)
    assert told == [f"context: {size_text(min(n * PIECE, found.size))} of {whole} in the sandbox" for n in range(1, pieces + 1)]
    assert local_modal.told().requests["TaskExecStdinWriteStream"] - before == pieces + 1, "one of them goes on after the cut"
    assert await repl.out("print(type(context), len(context), sum(context[-9:]))") == f"<class 'bytes'> {size} 0"
    assert "context" not in await at_the_root_of(local_modal.running()[0].id, "ls /tmp/rlm")


@matrix
@pytest.mark.parametrize("interrupted", [False, True])
async def test_how_much_of_a_context_is_sent_is_told_where_that_takes_long(
    repl: Session, local_modal: LocalModal, lines: list[str], interrupted: bool
) -> None:
    text = payload("0123456789" * 10_000_000)
    lines.clear()
    local_modal.router.after(20 * MEGABYTE, "black hole")
    loading = asyncio.ensure_future(repl.kernel.load("context", text))
    try:
        await until(lambda: any(line.endswith(" of 95.4 MiB sent") for line in lines))
        if interrupted:
            loading.cancel()
    finally:
        local_modal.router.restore()
    if interrupted:
        with pytest.raises(asyncio.CancelledError):
            await loading
        await repl.load("small")
    else:
        await loading
    assert await repl.out("print(len(context))") == ("5" if interrupted else "100000000")
    assert "context" not in await at_the_root_of(local_modal.running()[0].id, "ls /tmp/rlm")


@matrix
@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("router", "The connection to the sandbox is lost: nothing was heard of it for 6 s.* ends within 9 s."),
        (
            "tunnels",
            "The way of LM calls out of the sandbox is lost: the sandbox could not be reached for 6 s .*. It was given up.",
        ),
    ],
)
async def test_p11_a_connection_that_does_not_come_back_is_told(local_modal: LocalModal, way: str, told: str) -> None:
    environment = await open_modal(ModalPlace(reconnect=1))
    created = local_modal.told().created[-1].sandbox
    try:
        session = await Session(environment).start()
        cell = await started(session, SLEEP)
        getattr(local_modal, way).black_hole()
        with pytest.raises(KernelDied, match=f"{told}\nEvery variable in it is lost"):
            await asyncio.wait_for(cell, WAIT)
        assert not environment.alive
        # With the tunnel away it is ended by us; with Modal's own connection away it ends itself.
        assert await ended(local_modal, created, 30) == ("SUCCESS" if way == "router" else "TERMINATED")
    finally:
        await environment.close()


@matrix
@pytest.mark.parametrize("how", ["down", "black_hole"])
async def test_p06_an_outage_while_a_kernel_closes_costs_the_others_nothing(local_modal: LocalModal, how: str) -> None:
    environment = await open_modal(ModalPlace(reconnect=5))
    try:
        parent, child = await Session(environment).start(), await Session(environment).start()
        await parent.ok("kept = 1")
        process = int(await child.out("import os; print(os.getpid())"))
        getattr(local_modal.sdk, how)()
        await asyncio.wait_for(child.kernel.close(), WAIT)
        assert environment.alive
        with pytest.raises(KernelDied, match="This kernel was closed"):
            await child.run("pass")
        local_modal.sdk.restore()
        assert await asyncio.wait_for(parent.out("print(kept, llm_query('well'))"), WAIT) == "1 WELL"
        assert await alive(environment, [process], WAIT) == []
    finally:
        await environment.close()


# How a sandbox is lost


WHO = """
import os, pathlib
told = {}
for path in pathlib.Path("/proc").glob("[0-9]*/status"):
    lines = path.read_text().splitlines()
    told[int(path.parent.name)] = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
mine = [pid for pid, status in told.items() if status["Uid"].split()[0] == "0" and pid != os.getpid()]
(supervisor,) = [pid for pid in mine if told[pid]["PPid"] == "0" and pid not in (1, os.getppid())]
(broker,) = [pid for pid in mine if told[pid]["PPid"] == str(supervisor) and int(told[pid]["Threads"]) > 2]
print(supervisor, broker)
"""
"""Tells root the processes of supervisor and broker: both are root's, and the broker has a thread for each of its doors."""


@pytest.mark.parametrize(
    ("how", "told"),
    [
        pytest.param("terminated", "The sandbox was terminated: by Modal", marks=matrix),
        ("preempted", "The sandbox was terminated: by Modal, which may take a machine away"),
        pytest.param("timed out", "The sandbox has reached its time-out of 12 s and was ended", marks=matrix),
        pytest.param("killed", "The process that runs the kernels is gone, and the sandbox with it", marks=matrix),
        (
            "broker killed",
            r"The process that runs the kernels is gone \(the broker of LM calls in the sandbox has ended\), and the sandbox",
        ),
    ],
)
async def test_p11_the_loss_of_a_sandbox_is_told_while_a_call_is_under_way(
    local_modal: LocalModal, how: str, told: str
) -> None:
    asked = asyncio.Event()

    async def answer(request: CallRequest) -> Sequence[CallOutcome]:
        asked.set()
        await asyncio.sleep(600)
        return []

    environment = await open_modal(ModalPlace(timeout=12 if how == "timed out" else 600))
    created = local_modal.told().created[-1].sandbox
    try:
        kernel = await environment.start_kernel(answer)
        outputs: list[str] = []

        def heard(output: Output) -> None:
            outputs.append(output.text)
            arrived.set()

        arrived = asyncio.Event()
        cell = asyncio.ensure_future(kernel.execute("print('kept', flush=True)\nllm_query('x')", heard))
        await asyncio.wait_for(asyncio.gather(asked.wait(), arrived.wait()), 10)
        seconds = 3.0
        if how == "terminated":
            await (await modal.Sandbox.from_id.aio(created)).terminate.aio()
        elif how == "preempted":
            local_modal.preempt(created)
        elif how.endswith("killed"):
            supervisor, broker = (await at_the_root_of(created, f"python -P -c '{WHO}'")).split()
            sandbox = await modal.Sandbox.from_id.aio(created)
            await sandbox.exec.aio("kill", "-9", broker if how == "broker killed" else supervisor)
        else:
            seconds = 15
        with pytest.raises(KernelDied, match=f"{told}.*\nEvery variable in it is lost; what was put out before is kept"):
            await asyncio.wait_for(cell, seconds)
        assert "".join(outputs) == "kept\n"
        assert not environment.alive
        with pytest.raises(KernelDied, match=told):
            await environment.start_kernel(answer)
        if how.endswith("killed"):
            assert await ended(local_modal, created, 10) == "SUCCESS", "its first program has ended, nobody terminated it"
    finally:
        await environment.close()


async def test_what_is_lost_before_it_is_ready_is_told_and_leaves_nothing(local_modal: LocalModal) -> None:
    local_modal.fail("SandboxCreateV2", "RESOURCE_EXHAUSTED", "the workspace has reached its limit")
    with pytest.raises(KernelStartError, match="no sandbox could be had at Modal: the workspace has reached its limit"):
        await open_modal(ModalPlace())
    opening = asyncio.ensure_future(open_modal(ModalPlace()))
    before = len(local_modal.told().sandboxes)
    await until(lambda: any(state.execs for state in local_modal.told().sandboxes[before:]))
    local_modal.preempt(local_modal.told().sandboxes[-1].id)
    with pytest.raises(KernelStartError, match="the kernels' sandbox did not come up: the sandbox was terminated"):
        await asyncio.wait_for(opening, 10)
    with local_modal.control.delayed(0.2):
        opening = asyncio.ensure_future(open_modal(ModalPlace()))
        requests = local_modal.told().requests["SandboxCreateV2"]
        await until(lambda: local_modal.told().requests["SandboxCreateV2"] > requests)
        opening.cancel()
        await asyncio.wait({opening}, timeout=10)
        assert opening.cancelled()


HOST = """
import asyncio
from rlm_jupyter.kernels.modal import ModalPlace, open_modal
async def main():
    environment = await open_modal(ModalPlace(reconnect=1))
    print("ready", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_p12_the_sandbox_of_a_killed_host_ends_itself_within_the_lease(local_modal: LocalModal) -> None:
    variables = {**os.environ, **local_modal.environment}
    with subprocess.Popen([sys.executable, "-c", HOST], stdout=subprocess.PIPE, env=variables) as host:  # noqa: ASYNC220
        assert host.stdout is not None
        assert host.stdout.readline() == b"ready\n"
        created = local_modal.told().created[-1].sandbox
        host.kill()
    assert await ended(local_modal, created, 6 + 15) == "SUCCESS"


ENDS = """
import signal, sys, threading
from rlm_jupyter import RLM
from rlm_jupyter.testing import Reply, ScriptedServer
def reply_to(request):
    return Reply("```repl\\nllm_query('x')\\n```" if request.number == 1 else "", hold=request.number > 1)
with ScriptedServer(reply_to) as server:
    rlm = RLM(
        backend_kwargs={"model_name": "gpt-5-mini", "base_url": server.url, "api_key": "none"}, environment="modal",
        environment_kwargs={"app_name": "ends"},
    )
    run = rlm.start("anything")
    server.wait_for(2)
    print("asked", flush=True)
    if sys.argv[1] == "exit":
        sys.exit()
    try:
        run.wait()
    except BaseException as error:
        print(type(error).__name__, flush=True)
"""


@pytest.mark.parametrize("how", ["exit", pytest.param("interrupt", marks=matrix)])
async def test_p12_the_sandbox_ends_with_an_interrupt_and_with_the_interpreter(local_modal: LocalModal, how: str) -> None:
    variables = {**os.environ, **local_modal.environment}
    with subprocess.Popen([sys.executable, "-c", ENDS, how], stdout=subprocess.PIPE, env=variables) as host:  # noqa: ASYNC220
        assert host.stdout is not None
        assert host.stdout.readline() == b"asked\n"
        created = local_modal.told().created[-1].sandbox
        if how == "interrupt":
            host.send_signal(signal.SIGINT)
        assert host.wait(WAIT) == 0
    assert await ended(local_modal, created, 15) == "TERMINATED"


def test_the_first_program_ends_without_a_supervisor_and_with_it(tmp_path: Path) -> None:
    pipe, script = str(tmp_path / "hold"), str(hold.__file__)
    assert subprocess.run([sys.executable, script, "keep", pipe, "0.2"], timeout=WAIT).returncode == 0
    with (
        subprocess.Popen([sys.executable, script, "keep", pipe, str(WAIT)]) as first,
        subprocess.Popen(
            [sys.executable, script, "run", pipe, "print('held', flush=True); input()"], stdin=-1, stdout=-1
        ) as held,
    ):
        assert held.stdout is not None
        assert held.stdout.readline() == b"held\n"
        with pytest.raises(subprocess.TimeoutExpired):
            first.wait(1)
        held.kill()
        assert first.wait(WAIT) == 0


# Bad input


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"timeout": 86_401}, "timeout=86401: Modal lets a sandbox live 86,400 s"),
        ({"timeout": 0}, "timeout must be a whole number of seconds"),
        ({"timeout": 60, "idle_timeout": 90}, "idle_timeout=90: timeout=60 ends the sandbox before"),
        ({"app_nam": "x"}, "modal takes no 'app_nam'; did you mean app_name?"),
        ({"block_network": True}, "block_network: it is spelled network='closed' here.*bridge='exec' it"),
        ({"context_payload": "x"}, "context_payload is set by RLM itself"),
        ({"bridge": "exce"}, "bridge='exce' is not known; did you mean exec?"),
        ({"network": "pypi.org"}, r"type network=\[\"pypi.org\"\]"),
        ({"network": ["https://pypi.org/"]}, "'https://pypi.org/' is no domain"),
        ({"app_name": "no blanks"}, "app_name='no blanks': type letters"),
        ({"memory": 0.5}, "memory=0.5: type MiB"),
        ({"cpu": "two"}, "cpu='two': type cores"),
        ({"image": 5}, "image: give a modal.Image or a name in a registry, not a int"),
        ({"secrets": "openai"}, "secrets: give a list"),
        ({"volumes": {"data": "x"}}, "volumes: give a dict by absolute path"),
    ],
)
def test_p24_what_cannot_be_is_refused_in_one_line(given: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingsError, match=line) as refused:
        ModalPlace.of(given)
    assert "\n" not in str(refused.value)


OPENS = """
import asyncio, sys
if sys.argv[1] == "no package": sys.modules["modal"] = None
from rlm_jupyter.errors import SettingsError
from rlm_jupyter.kernels.modal import ModalPlace, open_modal
assert sys.modules.get("modal") is None
try:
    asyncio.run(open_modal(ModalPlace()))
except SettingsError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("what", "changed", "line"),
    [
        ("no package", {}, "the package modal is not installed: type pip install 'rlm_jupyter[modal]', then modal setup"),
        ("no token", {"MODAL_TOKEN_ID": "", "MODAL_TOKEN_SECRET": ""}, "type modal setup (Token missing"),
        ("another's token", {"MODAL_TOKEN_ID": "ak-x", "MODAL_TOKEN_SECRET": "as-x"}, "type modal setup ("),
    ],
)
def test_p24_without_the_package_or_a_token_nothing_is_made(
    local_modal: LocalModal, what: str, changed: dict[str, str], line: str
) -> None:
    before = len(local_modal.told().created)
    variables = {**os.environ, **local_modal.environment, **changed}
    done = subprocess.run(
        [sys.executable, "-c", OPENS, what], capture_output=True, text=True, timeout=WAIT,
        env={name: value for name, value in variables.items() if value},
    )  # fmt: skip
    assert line in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1
    assert len(local_modal.told().created) == before
