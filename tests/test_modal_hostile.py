"""Hostile inside and outside a sandbox at Modal: what code in a kernel, and whoever knows the tunnel's address, cannot do."""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
from collections.abc import AsyncIterator, Sequence
from urllib.parse import urlsplit

import modal
import pytest

from rlm_jupyter.kernels.environment import Environment
from rlm_jupyter.kernels.guest import lines, wire
from rlm_jupyter.kernels.messages import CallOutcome, CallRequest
from rlm_jupyter.kernels.modal import ModalPlace, SandboxPlace, open_modal
from tests.brokers import call_message
from tests.conformance.driving import Session
from tests.modal_local.plane import LocalModal

pytestmark = [pytest.mark.anyio, pytest.mark.needs("bwrap")]
WAIT = 60


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def shared(modal_variables: LocalModal, anyio_backend: str) -> AsyncIterator[Environment]:
    environment = await open_modal(ModalPlace())
    try:
        yield environment
    finally:
        await environment.close()


@pytest.fixture
async def repl(shared: Environment) -> AsyncIterator[Session]:
    session = await Session(shared).start()
    try:
        yield session
    finally:
        await session.kernel.close()


def token_of(environment: Environment) -> str:
    """Give the host's token, which no other side may ever have."""
    place = environment._place
    assert isinstance(place, SandboxPlace)
    return place._token


PROCESSES = """
import json, os, pathlib, signal
def attempt(work):
    try:
        return repr(work())
    except OSError as error:
        return type(error).__name__
others = [int(path.name) for path in pathlib.Path("/proc").glob("[0-9]*") if path.stat().st_uid != os.getuid()]
told = {"others": len(others), "users": sorted({os.stat(f"/proc/{pid}").st_uid for pid in others}), "me": os.getresuid()}
for pid in others:
    for name in ("environ", "mem", "maps", "auxv"):
        told[f"{pid} {name}"] = attempt(lambda: open(f"/proc/{pid}/{name}", "rb").read(1))
    told[f"{pid} fd"] = attempt(lambda: os.listdir(f"/proc/{pid}/fd"))
    told[f"{pid} cwd"] = attempt(lambda: os.readlink(f"/proc/{pid}/cwd"))
    for number in (signal.SIGKILL, signal.SIGSTOP, 0):
        told[f"{pid} {number}"] = attempt(lambda: os.kill(pid, number))
print(json.dumps(told))
"""


async def test_p03_p18_code_reaches_no_process_but_its_own(repl: Session) -> None:
    other = await Session(repl.environment).start()
    told = json.loads(await repl.out(PROCESSES))
    mine = told.pop("me")[0]
    users = told.pop("users")
    assert mine > 60_000
    assert 0 in users
    assert any(user > 60_000 and user != mine for user in users), "the other kernel is another user"
    assert told.pop("others") >= 5, "the first program, the supervisor, the broker, the kernel parent, the other kernel"
    assert set(told.values()) == {"PermissionError"}, told
    await repl.ok("import os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.kill(-1, signal.SIGTERM)")
    assert await other.out("print(llm_query('well'))") == "WELL"
    await other.kernel.close()


FILES = """
import json, os, pathlib, socket, subprocess, sys
found = []
def search(path):
    try:
        data = path.read_bytes() if path.is_file() and path.stat().st_size < 2**22 else b""
    except (OSError, ValueError):
        return
    found.extend(str(path) for secret in context if secret[:40].encode() in data)
for folder in ("/tmp", "/run", "/home", "/var/tmp", "/dev/shm"):
    for path in pathlib.Path(folder).rglob("*"):
        if "context" not in path.name:
            search(path)
for name in ("environ", "cmdline", "maps", "status"):
    for path in pathlib.Path("/proc").glob(f"[0-9]*/{name}"):
        search(path)
written = []
for path in (os.__file__, json.__file__, "/usr/bin/env", "/tmp/rlm/x", "/etc/passwd", "/root/x", "/tmp/.rlm-hold"):
    try:
        open(path, "ab" if os.path.exists(path) else "xb").close()
        written.append(path)
    except OSError: pass
bound = []
for address in ("0.0.0.0", "127.0.0.1", "::", "::1"):
    try:
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT): sock.setsockopt(socket.SOL_SOCKET, option, 1)
        sock.bind((address, 8080)); sock.listen()
        bound.append(address)
    except OSError: pass
try:
    socket.create_connection(("1.1.1.1", 443), 5)
    reached = "there"
except OSError as error:
    reached = error.strerror
users = os.popen("id -u; sudo -n id -u 2>/dev/null; su -c 'id -u' 2>/dev/null").read().split()
print(json.dumps([found, written, bound, reached, users]))
"""


async def test_p03_no_token_is_found_nothing_is_changed_and_the_port_is_not_to_be_had(
    repl: Session, modal_variables: LocalModal
) -> None:
    await repl.load([token_of(repl.environment), modal_variables.environment["MODAL_TOKEN_SECRET"]])
    found, written, bound, reached, users = json.loads(await repl.out(FILES))
    assert (found, written, bound) == ([], [], [])
    assert reached == "Network is unreachable"
    assert len(users) == 1, "no program makes it another user"
    assert int(users[0]) > 60_000


INSIDE = """
import http.client, json, socket, sys
enqueue = sys.modules["_rlm_repl"].repl.asks
told = {}
def ask(port, method, path, token, body=b""):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body, {"X-RLM-Token": token} if token else {})
    status = connection.getresponse().status
    connection.close()
    return status
for method, path in (("GET", "/pending?wait=0"), ("POST", "/respond"), ("GET", "/health"), ("POST", "/enqueue"), ("GET", "/")):
    for name, token in (("none", ""), ("kernel's", enqueue._token), ("wrong", "0" * 64)):
        told[f"{method} {path} {name}"] = ask(8080, method, path, token)
told["other kernel"] = ask(enqueue._port, "POST", "/enqueue", "f" * 64)
print(json.dumps(told))
"""


async def test_p04_p05_code_in_a_kernel_cannot_be_the_host_nor_another_kernel(repl: Session) -> None:
    told = json.loads(await repl.out(INSIDE))
    assert len(told) == 16
    assert set(told.values()) == {401}
    assert await repl.out("print(llm_query('well'))") == "WELL"


class Outside:
    """Somebody who knows the tunnel's address. `statuses` are of requests with some token."""

    def __init__(self, url: str, authority: str) -> None:
        self._where = urlsplit(url)
        self._security = ssl.create_default_context(cafile=authority)

    def ask(self, method: str, path: str, token: str = "", body: bytes = b"") -> tuple[int, bytes]:
        assert self._where.hostname
        connection = http.client.HTTPSConnection(self._where.hostname, self._where.port, timeout=WAIT, context=self._security)
        try:
            connection.request(method, path, body, {lines.TOKEN: token} if token else {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


async def outside(plane: LocalModal, sandbox: str) -> Outside:
    tunnels = await (await modal.Sandbox.from_id.aio(sandbox)).tunnels.aio()
    return Outside(tunnels[8080].url, str(plane.authority))


async def test_p04_p05_nobody_outside_reads_or_answers_a_call_or_makes_one(modal_variables: LocalModal) -> None:
    asked: asyncio.Queue[CallRequest] = asyncio.Queue()
    answered = asyncio.Event()

    async def answer(request: CallRequest) -> Sequence[CallOutcome]:
        asked.put_nowait(request)
        await answered.wait()
        return [CallOutcome(text="true")]

    before = await open_modal(ModalPlace())
    old = token_of(before)
    await before.close()
    environment = await open_modal(ModalPlace())
    try:
        stranger = await outside(modal_variables, modal_variables.told().created[-1].sandbox)
        kernel = await environment.start_kernel(answer)
        outputs: list[str] = []
        code = "print(llm_query('a secret'), repr(llm_query('another')))"
        cell = asyncio.ensure_future(kernel.execute(code, lambda output: outputs.append(output.text)))
        request = await asyncio.wait_for(asked.get(), WAIT)
        call = wire.Call(request.kernel, request.cell, request.call, False, None, (8,), b"a secret")
        forged = lines.pack_reply(wire.Reply(request.kernel, request.call, (6,), (), b"forged"), lines.digest_of(call))
        for token in ("", "0" * 64, old):
            for method, path, body in (
                ("GET", "/pending?wait=0", b""), ("GET", "/pending?wait=0&after=0", b""), ("POST", "/respond", forged),
                ("GET", "/health", b""), ("POST", "/enqueue", call_message(["mine"])),
            ):  # fmt: skip
                status, data = await asyncio.to_thread(stranger.ask, method, path, token, body)
                assert (status, b"secret" in data) == (401, False), (method, path, token)
        mine = token_of(environment)
        assert (await asyncio.to_thread(stranger.ask, "POST", "/enqueue", mine, call_message(["mine"])))[0] == 404
        # Even with the token, an answer to what was not asked, or to another body, answers nothing.
        for reply, digest in (
            (wire.Reply(request.kernel, "0" * 32, (6,), (), b"forged"), lines.digest_of(call)),
            (wire.Reply(request.kernel, request.call, (6,), (), b"forged"), "0" * 64),
            (wire.Reply(request.kernel + 1, request.call, (6,), (), b"forged"), lines.digest_of(call)),
        ):
            status, data = await asyncio.to_thread(stranger.ask, "POST", "/respond", mine, lines.pack_reply(reply, digest))
            assert (status, json.loads(data)["results"]) in [(200, ["gone"]), (200, ["conflict"])]
        answered.set()
        result = await asyncio.wait_for(cell, WAIT)
        assert (result.status, "".join(outputs), asked.qsize()) == ("ok", "true 'true'\n", 1)
    finally:
        await environment.close()


FLOOD = """
import socket, threading, time, concurrent.futures as f
port = __import__("sys").modules["_rlm_repl"].repl.asks._port
until = time.monotonic() + 3
def shout(number):
    while time.monotonic() < until:
        try:
            with socket.create_connection(("127.0.0.1", (port, 8080)[number % 2]), 5) as connection:
                connection.sendall(b"POST /respond HTTP/1.1\\r\\nX-RLM-Token: no\\r\\nContent-Length: 9999999\\r\\n\\r\\n")
                connection.sendall(b"x" * 65536)
                connection.recv(100)
        except OSError: pass
threads = [threading.Thread(target=shout, args=(n,)) for n in range(16)]
for thread in threads: thread.start()
refused = 0
def ask(n):
    try: return llm_query(f"flood {n}")
    except LMError as error: return "refused"
with f.ThreadPoolExecutor(200) as pool: got = list(pool.map(ask, range(1000)))
for thread in threads: thread.join()
print(sum(answer.startswith("FLOOD") for answer in got) + got.count("refused"))
"""


async def test_p18_a_flood_of_calls_and_of_strangers_harms_no_other_kernel(repl: Session) -> None:
    other = await Session(repl.environment).start()
    flood = asyncio.ensure_future(repl.out(FLOOD))
    for number in range(20):
        assert await asyncio.wait_for(other.out(f"print(llm_query('me {number}'))"), WAIT) == f"ME {number}"
    assert await asyncio.wait_for(flood, WAIT) == "1000"
    assert len({request.call for request in repl.requests}) == len(repl.requests)
    await other.kernel.close()
