"""Sandboxes at Modal, with the real SDK on the local control plane: what is asked for, how one is lost, what faults cost.

That kernels in them behave as anywhere else is shown by `conformance`.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import modal
import pytest

from rlm_jupyter.errors import KernelDied, KernelError, KernelStartError, SettingsError
from rlm_jupyter.kernels.environment import Environment
from rlm_jupyter.kernels.guest import hold
from rlm_jupyter.kernels.kernel import Output
from rlm_jupyter.kernels.messages import CallOutcome, CallRequest
from rlm_jupyter.kernels.modal import ModalPlace, modal_image, open_modal
from rlm_jupyter.kernels.packages import wanted
from tests.conformance.driving import Session
from tests.conformance.test_ends import started
from tests.modal_local.plane import LocalModal

pytestmark = [pytest.mark.anyio, pytest.mark.matrix, pytest.mark.needs("bwrap")]

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


def commands_of(plane: LocalModal, image: str) -> list[str]:
    return [line for layer in plane.image(image) for line in layer["dockerfile_commands"]]


# What is asked for


@pytest.mark.parametrize(
    ("bridge", "network", "policy", "told"),
    [
        ("tunnel", "closed", {"network_access_type": "ALLOWLIST"}, "no way out, one way in (port 8080, for whoever holds this"),
        ("tunnel", "open", {"network_access_type": "OPEN"}, "an open network: code can send what it reads"),
        (
            "tunnel", ["pypi.org"], {"network_access_type": "ALLOWLIST", "allowed_domains": ["pypi.org"]},
            "no network but pypi.org",
        ),
        ("exec", "closed", {"network_access_type": "BLOCKED"}, "no network"),
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


async def test_an_image_that_ends_with_local_files_is_taken_as_it_is(local_modal: LocalModal, tmp_path: Path) -> None:
    (tmp_path / "given.txt").write_text("given")
    environment = await open_modal(ModalPlace(image=modal_image().add_local_file(tmp_path / "given.txt", "/given.txt")))
    try:
        session = await Session(environment).start()
        assert await session.out("print(open('/given.txt').read())") == "given"
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


# What the code can and cannot do


async def test_p03_the_code_sees_no_token_no_network_and_not_into_the_supervisor(
    repl: Session, local_modal: LocalModal
) -> None:
    code = """
import json, os, pathlib, socket
def stat(pid): return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
parent = os.getppid()
supervisor = int(stat(parent)[1])
denied = 0
for pid in (parent, supervisor):
    for name in ("environ", "mem", "maps", "fd/0", "cwd"):
        try:
            open(f"/proc/{pid}/{name}", "rb").read(1) if name != "cwd" else os.readlink(f"/proc/{pid}/cwd")
        except PermissionError:
            denied += 1
try:
    socket.create_connection(("1.1.1.1", 443), 5)
except OSError as error:
    reached = error.strerror
print(json.dumps([denied, reached, dict(os.environ), pathlib.Path("/proc/self/cmdline").read_text()]))
"""
    denied, reached, variables, command = json.loads(await repl.out(code))
    assert denied == 10
    assert reached == "Network is unreachable"
    for secret in (local_modal.environment["MODAL_TOKEN_ID"], local_modal.environment["MODAL_TOKEN_SECRET"]):
        assert secret not in json.dumps([variables, command])


# Faults of the SDK's connections


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


async def test_values_of_20_mb_arrive_whole_through_a_cut(repl: Session, local_modal: LocalModal) -> None:
    await repl.load(list(range(3_000_000)))
    before = local_modal.told().connections["router"]
    local_modal.router.after(8 * MEGABYTE)
    assert await repl.final("FINAL_VAR(context)") == list(range(3_000_000))
    assert local_modal.told().connections["router"] > before


async def test_a_context_of_100_mb_goes_in_pieces_and_arrives_through_a_cut(
    repl: Session, local_modal: LocalModal, lines: list[str]
) -> None:
    text = "".join(f"{n:09d}\n" for n in range(10_000_000))
    before = local_modal.told().requests["TaskExecStdinWriteStream"]
    lines.clear()
    local_modal.router.after(80 * MEGABYTE)
    await repl.load(text)
    assert lines == ["context: 64 MiB of 95.4 MiB in the sandbox", "context: 95.4 MiB of 95.4 MiB in the sandbox"]
    assert local_modal.told().requests["TaskExecStdinWriteStream"] - before == 3, "two pieces, one of them begun again"
    code = (
        "import hashlib, os; print(len(context), context[-10:].strip(), [n for n in os.listdir('/tmp/rlm') if 'context' in n])"
    )
    assert await repl.out(code) == "100000000 009999999 []"
    await repl.ok("for n in range(1000): os.mkdir(f'/tmp/rlm/context-{n}')")
    try:
        with pytest.raises(KernelError, match=r"the context did not reach the sandbox: .*directory"):
            await repl.load("small")
    finally:
        await repl.ok("for n in range(1000): os.rmdir(f'/tmp/rlm/context-{n}')")
    await repl.load("small")
    assert await repl.out("print(context)") == "small"


async def test_p11_a_connection_that_does_not_come_back_is_told(local_modal: LocalModal) -> None:
    environment = await open_modal(ModalPlace(bridge="exec"), reconnect=1.5)
    try:
        session = await Session(environment).start()
        cell = await started(session, SLEEP)
        local_modal.router.black_hole()
        with pytest.raises(
            KernelDied, match=r"connection to the sandbox is lost: nothing was heard of it for 6 s.* ends within 9 s.\nEvery"
        ):
            await asyncio.wait_for(cell, 30)
        assert not environment.alive
    finally:
        await environment.close()


# How a sandbox is lost


KILL = """
import os, pathlib, signal
os.kill(int(pathlib.Path(f"/proc/{os.getppid()}/stat").read_text().split()[3]), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("terminated", "The sandbox was terminated: by Modal"),
        ("preempted", "The sandbox was terminated: by Modal, which may take a machine away"),
        ("timed out", "The sandbox has reached its time-out of 12 s and was ended"),
        ("killed", "The process that runs the kernels is gone, and the sandbox with it"),
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
        other = await Session(environment).start()

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
        elif how == "killed":
            with pytest.raises(KernelDied, match=told):
                await asyncio.wait_for(other.run(KILL), 3)
        else:
            seconds = 15
        with pytest.raises(KernelDied, match=f"{told}.*\nEvery variable in it is lost; what was put out before is kept"):
            await asyncio.wait_for(cell, seconds)
        assert "".join(outputs) == "kept\n"
        assert not environment.alive
        with pytest.raises(KernelDied, match=told):
            await environment.start_kernel(answer)
        if how == "killed":
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
    environment = await open_modal(ModalPlace(), reconnect=1)
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
        ({"block_network": True}, "block_network is spelled network='closed' here.*bridge='exec' it"),
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
