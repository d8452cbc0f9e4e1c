"""The kernel side's promises, each a test named after its number, for every environment in which it can be broken."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from rlm_jupyter.errors import KernelDied, KernelError, ProtocolError
from rlm_jupyter.kernels.docker import open_docker
from rlm_jupyter.kernels.environment import Environment
from rlm_jupyter.kernels.guest import codec, processes, wire
from rlm_jupyter.kernels.guest.frames import Header, pack
from rlm_jupyter.kernels.transports import Listener
from tests.conformance.driving import ENVIRONMENTS, Open, Session, make_test_box, session
from tests.conformance.test_ends import STUBBORN, started
from tests.deadlines import BACK_WITHIN, TOLD_WITHIN, WAIT

pytestmark = pytest.mark.anyio

CANARY = "canary-4711-of-the-host"


@pytest.fixture(params=["local-forked", "docker"])
def opening(request: pytest.FixtureRequest) -> Open:
    """What opens an environment, for what must hold in each; `conformance` has the tests that a shared one is enough for."""
    return ENVIRONMENTS[request.param](request)


@pytest.fixture
async def repl(opening: Open) -> AsyncIterator[Session]:
    async with session(opening) as opened:
        yield opened


@pytest.fixture
async def local() -> AsyncIterator[Session]:
    """A kernel whose processes and files the host can look at."""
    async with session() as opened:
        yield opened


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder in which nobody else's runs lie."""
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def tree(root: int) -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(root).children(recursive=True)
    return found


def left(folder: Path) -> list[str]:
    return os.listdir(folder)


async def emptied(folder: Path, seconds: float = WAIT) -> bool:
    """Wait until a folder is empty; nobody tells when a killed host's files are gone."""
    deadline = time.monotonic() + seconds
    for _ in iter(lambda: bool(left(folder)) and time.monotonic() < deadline, False):
        await asyncio.sleep(0.05)
    return not left(folder)


async def all_gone(those: Sequence[psutil.Process], seconds: float = 10) -> bool:
    _, alive = await asyncio.to_thread(psutil.wait_procs, those, seconds)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


async def within(seconds: float, awaitable: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(awaitable, seconds)


async def test_p03_no_secret_of_the_host_is_in_environment_arguments_files_or_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "MODAL_TOKEN_SECRET", "JUPYTER_TOKEN", "JPY_API_TOKEN", "MY_OWN_VARIABLE"):
        monkeypatch.setenv(name, CANARY)
    code = f"""
import gc, os, pathlib
needle = {CANARY[:9]!r} + {CANARY[9:]!r}
found = [name for name, value in os.environ.items() if needle in value]
here = os.getpid()
mine = []
pid = os.getppid()
while pid > 1:
    status = pathlib.Path(f"/proc/{{pid}}/stat").read_text().rpartition(")")[2].split()
    if b"guest/__main__.py" in pathlib.Path(f"/proc/{{pid}}/cmdline").read_bytes():
        mine.append(pid)
    pid = int(status[1])
for each in [here, *mine]:
    for what in ("environ", "cmdline"):
        if needle.encode() in pathlib.Path(f"/proc/{{each}}/{{what}}").read_bytes():
            found.append((each, what))
run = pathlib.Path(os.environ["HOME"]).parents[1]
found += [str(path) for path in run.rglob("*") if path.is_file() and needle.encode() in path.read_bytes()]
for each in gc.get_objects():
    if type(each) is dict and "needle" not in each and needle in map(str, list(each.values())[:50]):
        found.append(sorted(each))
print(len(mine), found)
"""
    async with session() as repl:
        assert await repl.out(code) == "2 []"


async def test_p03_the_streams_token_is_in_no_argument_environment_or_file(local: Session) -> None:
    supervisor = psutil.Process(local.kernel.pid).parents()[1]
    said = " ".join([*supervisor.cmdline(), *supervisor.environ().values()])
    assert not [word for word in said.split() if len(word) == 64 and not set(word) - set("0123456789abcdef")]
    run = Path(psutil.Process(local.kernel.pid).cwd()).parents[1]
    assert run.stat().st_mode & 0o777 == 0o700
    for path in run.rglob("*"):
        assert not path.is_file() or b"token" not in path.read_bytes()


async def test_p04_the_ask_socket_takes_nothing_without_its_token(local: Session) -> None:
    (path,) = [path for path in (Path(psutil.Process(local.kernel.pid).cwd()).parents[1] / "s").iterdir() if is_kernels(path)]
    cell = asyncio.ensure_future(local.run("import time; time.sleep(2); print(llm_query('mine'))"))
    call = {"kind": "call", "call": "0" * 32, "batch": False, "model": None, "sizes": [3]}
    hello: list[Header] = [{"kind": "hello", "token": "0" * 64}, {"kind": "hello"}, {"kind": "hello", "token": 5}, call]
    for first in hello:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.writelines(map(bytes, [*pack(first), *pack(call, b"you")]))
        with contextlib.suppress(ConnectionError):
            assert await within(WAIT, reader.read()) == b""
        writer.close()
    assert (await cell).out == "MINE\n"
    assert [request.prompts for request in local.requests] == [("mine",)]


def is_kernels(path: Path) -> bool:
    return path.name == "k1.ask"


def listeners() -> set[tuple[int, int]]:
    """Give who listens for the network, and on which port: this process, and all that it has started for whatever test."""
    found: set[tuple[int, int]] = set()
    for process in (psutil.Process(), *tree(os.getpid())):
        with contextlib.suppress(psutil.NoSuchProcess):
            connections = process.net_connections("inet")
            found |= {(process.pid, each.laddr.port) for each in connections if each.status == psutil.CONN_LISTEN}
    return found


async def test_p04_nothing_listens_for_the_network_once_the_supervisor_is_there() -> None:
    before = listeners()
    async with session():
        assert listeners() <= before


async def test_p09_an_interrupt_gives_the_prompt_back_at_every_stage(runs: Path, opening: Open, repl: Session) -> None:
    async def cancelled(work: Awaitable[Any], after: float) -> None:
        task = asyncio.ensure_future(work)
        await asyncio.sleep(after)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            done = await within(BACK_WITHIN, task)
            if isinstance(done, Environment):
                await done.close()

    for after in (0.0, 0.02, 0.1, 0.3):
        await cancelled(opening(), after)
        await cancelled(Session(repl.environment).start(), after / 10)
        await cancelled(repl.load("x" * 50_000_000), after / 5)
        await cancelled(repl.run("import time; time.sleep(60)"), after)
    big = (await repl.ok("FINAL_VAR('x' * 100_000_000 + '')")).result.final
    assert big is not None
    for after in (0.0, 0.01, 0.05):
        await cancelled(repl.kernel.value(big), after)
    assert (await repl.kernel.value(big)).data == b"x" * 100_000_000
    await cancelled(repl.kernel.close(), 0.0)
    others = await Session(repl.environment).start()
    assert await others.out("print('well')") == "well"
    await cancelled(repl.environment.close(), 0.0)
    await repl.environment.close()
    assert left(runs) == []


async def test_p09_a_supervisor_that_stands_still_is_given_up_at_an_interrupt(request: pytest.FixtureRequest) -> None:
    async with session(ENVIRONMENTS["docker"](request)) as boxed:
        cell = asyncio.ensure_future(boxed.run("import time; time.sleep(60)"))
        await asyncio.sleep(0.3)
        place: Any = boxed.environment._place
        await asyncio.to_thread(subprocess.run, ["docker", "pause", place.container], check=True, capture_output=True)
        assert not await within(BACK_WITHIN, boxed.kernel.interrupt())
        with pytest.raises(KernelDied):
            await within(WAIT, cell)


async def test_p11_a_stopped_supervisor_is_told(local: Session) -> None:
    code = "import os, signal, time\nos.kill(PID, signal.SIGSTOP)\ntime.sleep(60)"
    supervisor = psutil.Process(local.kernel.pid).parents()[1]
    with pytest.raises(KernelDied, match="was stopped by a signal, so it was killed; every variable is lost"):
        await within(TOLD_WITHIN, local.run(code.replace("PID", str(supervisor.pid))))
    assert not local.environment.alive


async def test_p10_every_step_of_the_ladder_is_timed_and_told(repl: Session) -> None:
    cell = await started(repl, STUBBORN["swallows interrupts"], first="")
    await within(BACK_WITHIN, repl.kernel.interrupt())
    with pytest.raises(KernelDied) as caught:
        await cell
    steps = re.search(r"SIGINT after (.*) s; SIGINT after (.*) s; SIGKILL of the process tree after (.*) s", str(caught.value))
    assert steps, str(caught.value)
    at = [float(seconds) for seconds in steps.groups()]
    assert at[0] < 1.0 <= at[1] < 2.0 <= at[2] < 10.0


async def test_p11_a_kernel_out_of_memory_is_noticed(repl: Session) -> None:
    code = "import resource, os, signal\nresource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))\nx = bytearray(2**30)"
    assert (await repl.run(code)).result.error.startswith("MemoryError")
    told = {"local": r"Out of memory is a common cause|has just killed", "docker": r"\(not for want of memory: "}
    with pytest.raises(KernelDied, match=told[repl.environment.name]):
        await within(TOLD_WITHIN, repl.run("os.kill(os.getpid(), signal.SIGKILL)"))


async def test_p11_out_of_memory_in_a_container_is_told_for_certain() -> None:
    box = make_test_box(0, memory="256m")
    async with session(partial(open_docker, box)) as repl:
        neighbour = await Session(repl.environment).start()
        with pytest.raises(KernelDied, match=r"SIGKILL.*\(out of memory: the limit is 256 MiB\)\.\nEvery"):
            await within(60, repl.run("big = []\nwhile True: big.append(b'x' * 2**20)"))
        assert await neighbour.out("print('well')") == "well"


async def test_p12_nothing_is_left_after_the_end(runs: Path) -> None:
    before = {process.pid for process in tree(os.getpid())}
    async with session() as repl:
        await repl.ok("import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True)")
        started = [process for process in tree(os.getpid()) if process.pid not in before]
        assert len(started) >= 4
        with pytest.raises(KernelDied):
            await repl.run("import os; os._exit(0)")
        await Session(repl.environment).start()
        started += [process for process in tree(os.getpid()) if process.pid not in before and process not in started]
    assert await all_gone(started)
    assert left(runs) == []


HOST = """
import asyncio, os, signal, sys
from rlm_jupyter.kernels.local import open_local
async def answer(request): return []
async def main():
    environment = await open_local()
    kernel = await environment.start_kernel(answer)
    await kernel.execute('''
import os, subprocess, time
subprocess.Popen(["sleep", "600"], start_new_session=True)
if not os.fork():
    os.setsid()
    if os.fork(): os._exit(0)
    time.sleep(600)
''', lambda output: None)
    print("ready", flush=True)
    await kernel.execute("while True: pass", lambda output: None)
asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_p12_nothing_is_left_after_the_host_is_killed(runs: Path, number: signal.Signals) -> None:
    environment = {**os.environ, "TMPDIR": str(runs)}
    command = [sys.executable, "-c", HOST]
    async with await anyio.open_process(command, stdout=subprocess.PIPE, stderr=None, env=environment) as host:
        assert host.stdout is not None
        try:
            assert (await within(60, host.stdout.receive())).startswith(b"ready")
            started = tree(host.pid)
            assert len(started) >= 4
            host.send_signal(number)
            await within(WAIT, host.wait())
        finally:
            with contextlib.suppress(ProcessLookupError):
                host.kill()
    assert await all_gone(started)
    assert await emptied(runs)
    assert [pid for pid in processes.parents() if processes.belongs_to(pid, str(runs))] == []


async def test_p12_nothing_is_left_after_the_supervisor_is_killed(runs: Path) -> None:
    async with session() as repl:
        await repl.ok("import os, time\nif not os.fork():\n    os.setsid()\n    if os.fork(): os._exit(0)\n    time.sleep(600)")
        supervisor = psutil.Process(repl.kernel.pid).parents()[1]
        started = tree(supervisor.pid)
        assert len(started) >= 3
        supervisor.kill()
        with pytest.raises(KernelDied):
            await within(TOLD_WITHIN, repl.run("import time; time.sleep(60)"))
    assert await all_gone(started)
    assert left(runs) == []


class Impostor:
    """A supervisor that sends what it likes."""

    def __init__(self) -> None:
        self.killed = False

    name, isolation, lends = "local", "none", False

    def kill(self) -> None:
        self.killed = True


async def against(
    *lies: tuple[wire.Message | Header, bytes],
) -> tuple[Session, Impostor, Callable[[Sequence[tuple[Any, bytes]]], None]]:
    """Connect an environment to an impostor that has sent Ready and Started, and give a way to send more."""
    place = Impostor()
    environment = Environment(place)  # type: ignore[arg-type]
    listener = Listener()
    await listener.start()
    _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    numbers = iter(range(1, 10_000))

    def send(messages: Sequence[tuple[Any, bytes]]) -> None:
        for message, body in messages:
            header = message
            if isinstance(message, wire.Message):
                header, body = codec.encode(message)
            writer.writelines(map(bytes, pack({"n": next(numbers), **header}, body)))

    writer.writelines(map(bytes, pack({"kind": "hello", "token": listener.token})))
    send([(wire.Ready(wire.PROTOCOL, 1), b"")])
    stream = await within(WAIT, listener.connection(environment.receive, environment.closed))
    await within(WAIT, environment.connect(stream))
    starting = asyncio.ensure_future(Session(environment).start())
    await asyncio.sleep(0)
    send([(wire.Started(1, 1, "cold", "3"), b""), *lies])
    return await within(WAIT, starting), place, send


LIES: dict[str, list[tuple[wire.Message | Header, bytes]]] = {
    "a number again": [({"kind": "heartbeat", "n": 1}, b"")],
    "an unknown kind": [({"kind": "eval", "code": "1"}, b"")],
    "a kernel that nobody started": [(wire.Output(7, 1, "stdout", 0, b"x"), b"")],
    "another cell's end": [(wire.Done(1, 99, "ok", "", 0, None, ()), b"")],
    "a value that nobody asked for": [(wire.ValuePart(1, 1, 0, b"x"), b"")],
    "more output than a cell may have": [(wire.Output(1, 1, "stdout", 0, b"x" * 65536), b"")] * 5,
    "a value above the cap": [
        (wire.Done(1, 1, "ok", "", 0, wire.FinalInfo(1, "", "str", "text", 2**40, "0" * 64), ()), b"")
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
async def test_p18_a_lie_of_the_supervisor_ends_in_a_protocol_error(name: str) -> None:
    repl, place, send = await against()
    cell = asyncio.ensure_future(repl.run("1"))
    await asyncio.sleep(0.05)
    send(LIES[name])
    with pytest.raises(ProtocolError):
        await within(WAIT, cell)
    assert place.killed
    with pytest.raises(ProtocolError):
        await repl.run("1")


async def test_p18_a_call_id_is_answered_once_and_only_for_the_cell_that_runs() -> None:
    repl, _, send = await against()
    cell = asyncio.ensure_future(repl.run("1"))
    await asyncio.sleep(0.05)
    call = wire.Call(1, 1, "a" * 32, False, None, (2,), b"hi")
    other = wire.Call(1, 5, "b" * 32, False, None, (2,), b"no")
    send([(call, b""), (call, b""), (other, b""), (wire.Done(1, 1, "ok", "", 0, None, ()), b""), (call, b"")])
    assert (await within(WAIT, cell)).result.status == "ok"
    assert [request.prompts for request in repl.requests] in ([("hi",)], [])


async def test_p18_forged_shell_messages_of_a_cell_reach_no_other_kernel(repl: Session) -> None:
    other = await Session(repl.environment).start()
    code = """
import json, os, pathlib, zmq
from jupyter_client.session import Session
run = pathlib.Path.cwd().parents[1]
context = zmq.Context()
for path in (run / "s").glob("k*-1"):
    socket = context.socket(zmq.DEALER)
    socket.linger = 200
    socket.connect(f"ipc://{path}")
    session = Session(key=b"guessed")
    session.send(socket, "execute_request", {"code": "forged = True", "silent": False})
kernel = get_ipython().kernel
parent = kernel.get_parent("shell")
reply = {"status": "ok", "execution_count": 1, "user_expressions": {}, "payload": []}
forged = {**parent, "header": {**parent["header"], "msg_id": "0" * 32}}
kernel.session.send(kernel.shell_stream, "execute_reply", reply, forged, ident=kernel._parent_ident["shell"])
"""
    await repl.run(code)
    ran = await other.run("forged")
    assert ran.result.error.startswith("NameError")
    assert await other.out("print('well')") == "well"


async def test_p18_noise_on_the_ask_socket_harms_nobody(repl: Session) -> None:
    code = """
import os, socket, struct, random
from _rlm_repl.channel import send
import _rlm_repl
channel = _rlm_repl.repl.channel
def connect():
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(channel._address)
    send(connection, {"kind": "hello", "token": channel._token}, b"")
    return connection
random.seed(1)
for _ in range(200):
    connect().send(random.randbytes(200))
for header in ({"kind": "call"}, {"kind": "call", "call": "x"}, {"kind": "final"}, {"kind": "final", "path": "../../x"},
               {"kind": "show", "stream": "stdin"}, {"kind": "ready"}, {"kind": "nothing"}, {},
               {"kind": "call", "call": "0" * 32, "batch": False, "model": None, "sizes": [10**18]}):
    send(connect(), header, b"abc")
connect().send(struct.pack(">IB", 2**31, 0))
print(llm_query("still"))
"""
    assert await repl.out(code) == "STILL"
    assert [request.prompts for request in repl.requests] == [("still",)]


async def test_p18_a_forged_answer_is_refused_and_leaves_no_descriptor(local: Session) -> None:
    """Neither pipes, devices, folders and files of another size, nor memory that can still be changed, pass for an answer."""
    supervisor = psutil.Process(local.kernel.pid).parents()[1]
    await local.ok("""
import hashlib, os, sys

def _ask(fd, **other):
    channel = sys.modules["_rlm_repl"].repl.channel
    header = {"kind": "final", "name": "", "type_name": "str", "form": "text", "size": 3, "digest": "0" * 64, **other}
    return channel.ask(header, fd=fd)[0]

fds = {"none": None, "pipe": os.pipe()[0], "device": os.open("/dev/zero", os.O_RDONLY), "folder": os.open(".", os.O_RDONLY)}
fds["loose memory"] = os.memfd_create("x")
os.write(fds["loose memory"], b"abc")
fds["other size"] = os.open("four", os.O_RDWR | os.O_CREAT)
os.write(fds["other size"], b"abcd")
fds["good"] = os.open("three", os.O_RDWR | os.O_CREAT)
os.write(fds["good"], b"abc")
""")
    before = supervisor.num_fds()
    answers = await local.out("""
for _ in range(20):
    told = {kind: _ask(fd) for kind, fd in fds.items() if kind != "good"}
    told["bad form"] = _ask(fds["good"], form="pickle")
    told["not a final"] = _ask(fds["good"], kind="picture")
print(told)
""")
    assert answers.count("could not be read") == 7
    assert supervisor.num_fds() < before + 20  # those of a spare kernel may have come; one leak would be 20
    forged = await local.ok("_ask(fds['good'])")
    assert forged.result.final is not None
    with pytest.raises(KernelError, match="digest"):
        await local.kernel.value(forged.result.final)
    digest = "hashlib.sha256(b'abc').hexdigest()"
    assert await local.final(f"_ask(fds['good'], digest={digest})") == "abc"


async def test_p19_the_helpers_are_there_in_every_cell(repl: Session) -> None:
    await repl.load("the context")
    await repl.ok("llm_query = llm_query_batched = FINAL_VAR = SHOW_VARS = context = LMError = None")
    assert (
        await repl.out("print(llm_query('a'), llm_query_batched(['b']), context, LMError.__name__)")
        == "A ['B'] the context LMError"
    )
    await repl.ok("del llm_query, llm_query_batched, FINAL_VAR, SHOW_VARS, context, LMError")
    await repl.ok("get_ipython().ast_transformers.clear()")
    await repl.ok("%reset -f")
    assert await repl.final("answer = llm_query('c')\nFINAL_VAR('answer')") == "C"


async def test_p19_no_call_or_final_is_taken_while_no_cell_runs(repl: Session) -> None:
    code = """
import socket, threading
heard = []
def later():
    asked = door.accept()[0]
    for act in (lambda: llm_query("between"), lambda: FINAL_VAR(1)):
        try:
            heard.append(act())
        except Exception as error:
            heard.append(type(error).__name__)
    asked.close()
door = socket.create_server(("127.0.0.1", 0))
thread = threading.Thread(target=later); thread.start()
print(door.getsockname()[1])
"""
    port = int(await repl.out(code))
    other = await Session(repl.environment).start()
    await other.ok(f"import socket\nwith socket.create_connection(('127.0.0.1', {port})) as asked: asked.recv(1)")
    ran = await repl.ok("thread.join(); print(heard)")
    assert ran.out == "['LMError', 'RuntimeError']\n"
    assert ran.result.final is None
    assert repl.requests == []


async def test_p22_two_sessions_never_see_each_others_prompts_or_tokens(opening: Open) -> None:
    async with session(opening) as one, session(opening) as two:
        code = "import _rlm_repl; print(_rlm_repl.repl.channel._token, _rlm_repl.repl.channel._address)"
        seen = [*(await one.out(code)).split(), *(await two.out(code)).split()]
        assert len(set(seen)) == (4 if one.environment.name == "local" else 3)  # in a box, paths are its own
        many = "import concurrent.futures as f\nwith f.ThreadPoolExecutor(8) as p: print(set(p.map(llm_query, ['{}'] * 200)))"
        left, right = await asyncio.gather(one.out(many.format("left")), two.out(many.format("right")))
        assert (left, right) == ("{'LEFT'}", "{'RIGHT'}")
        assert {request.prompts for request in one.requests} == {("left",)}
        assert {request.prompts for request in two.requests} == {("right",)}


async def test_p22_a_kernels_token_does_not_open_its_neighbours_socket(repl: Session) -> None:
    other = await Session(repl.environment).start()
    address = await other.out("import _rlm_repl; print(_rlm_repl.repl.channel._address)")
    code = f"""
import _rlm_repl, socket
mine = _rlm_repl.repl.channel
stranger = _rlm_repl.Channel({address!r}, mine._token)
try:
    print(stranger.ask({{"kind": "call", "call": "0" * 32, "batch": False, "model": None, "sizes": [1]}}, b"x"))
except LMError as error:
    print("refused")
"""
    cell = asyncio.ensure_future(other.run("import time; time.sleep(1)"))
    assert await repl.out(code) == "refused"
    await cell
    assert other.requests == []


@pytest.mark.parametrize(
    "opening",
    [
        "rlm_jupyter.kernels.local.open_local",
        pytest.param(
            "functools.partial(rlm_jupyter.kernels.docker.open_docker, make_test_box())", marks=pytest.mark.needs("docker")
        ),
    ],
    ids=["local", "docker"],
)
async def test_p27_nothing_changes_in_the_users_folder_terminal_and_files(tmp_path: Path, opening: str) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    (work / "mine.txt").write_text("mine")
    code = """
import asyncio, sys
sys.path.insert(0, ROOT)
import functools, rlm_jupyter.kernels.docker, rlm_jupyter.kernels.local
from tests.conformance.driving import make_test_box, session
async def main():
    async with session(OPENING) as repl:
        await repl.ok("import os, sys\\nos.write(1, b'raw one\\\\n'); os.write(2, b'raw two\\\\n')")
        await repl.ok("os.system('echo from a shell; echo to stderr >&2')")
        await repl.ok("open('new.txt', 'w').write('x'); import matplotlib; print('printed', file=sys.__stdout__)")
        await repl.ok("import json; open(os.path.expanduser('~/settings.json'), 'w').write('{}')")
        await repl.run("1/0")
asyncio.run(main())
""".replace("ROOT", repr(str(Path(__file__).parents[1]))).replace("OPENING", opening)
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code],
        cwd=work,
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        timeout=90,
    )
    assert ran.returncode == 0, ran.stderr
    assert (ran.stdout, ran.stderr) == (b"", b"")
    assert left(work) == ["mine.txt"]
    assert left(home) == []


async def test_p27_the_kernel_works_in_a_private_folder(repl: Session) -> None:
    told = json.loads(
        await repl.out(
            "import json, os, sys; here, home = os.getcwd(), os.path.expanduser('~')\n"
            "print(json.dumps([here, home, sys.path, [os.stat(path).st_mode & 0o777 for path in (here, home)]]))"
        )
    )
    assert os.path.dirname(told[0]) == os.path.dirname(told[1])
    assert os.path.basename(os.path.dirname(os.path.dirname(told[0]))).startswith("rlm")
    assert os.getcwd() not in [path for path in told[2] if path] or os.getcwd() in sys.path
    assert told[3] == [0o700, 0o700]
