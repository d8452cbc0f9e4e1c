"""A broker as a process of its own, callers that block in it, and a way to it that can be cut, held up and repeated."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import secrets
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlm_jupyter.kernels import bridge
from rlm_jupyter.kernels.calls import Calls
from rlm_jupyter.kernels.guest import lines, wire
from rlm_jupyter.kernels.guest.desk import bound
from rlm_jupyter.kernels.guest.frames import Header, Parser, pack
from rlm_jupyter.kernels.guest.lines import TOKEN
from rlm_jupyter.kernels.messages import CallOutcome, CallRequest
from tests.modal_local.edges import Buffer, Refusal
from tests.modal_local.lines import BAD_GATEWAY, Conditions, Wire
from tests.modal_local.relays import Relay, Tasks, join

GUEST = Path(bridge.__file__).parent / "guest"
WAIT = 30.0
CAPS = {"message": 64 << 20, "prompt": 32 << 20, "batch": 100_000}
START = """
import importlib, json, runpy, socket, sys
read = (boot := runpy.run_path(sys.argv[1]))["read"]
sources, settings = [json.loads(read(int(read(16), 16))) for _ in range(2)]
sys.meta_path.insert(0, boot["Sources"](sources))
sockets = [socket.socket(fileno=int(number)) for number in sys.argv[2:]]
importlib.import_module("rlm_guest.broker").main(settings, *sockets)
"""


class BrokerProcess:
    """A broker that runs from sources in memory, as in a sandbox, and is ordered as its supervisor does it."""

    def __init__(self, lease: float = 60.0, caps: dict[str, int] | None = None, heartbeat: float = 0.3) -> None:
        self.token = secrets.token_hex(32)
        sources = {f"rlm_guest.{path.stem}": path.read_text(encoding="utf-8") for path in GUEST.glob("[a-z]*.py")}
        sources["rlm_guest"] = (GUEST / "__init__.py").read_text(encoding="utf-8")
        # heartbeats so often that a test need not be silent for long
        settings = {"token": self.token, "lease": lease, "caps": caps or CAPS, "heartbeat": heartbeat}
        public, local = bound("127.0.0.1", 0), bound("127.0.0.1", 0)
        self.port, self.enqueue_port = public.getsockname()[1], local.getsockname()[1]
        self._orders, theirs = socket.socketpair()
        self._orders.settimeout(WAIT)
        self._answers = self._orders.makefile("rb")
        handed = [public, local, theirs]
        fds = [each.fileno() for each in handed]
        command = [sys.executable, "-P", "-c", START, str(GUEST / "boot.py"), *map(str, fds)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=fds)
        for each in handed:
            each.close()
        assert self.process.stdin is not None
        with self.process.stdin as stdin:
            for given in (sources, settings):
                data = json.dumps(given).encode()
                stdin.write(b"%016x" % len(data) + data)
        self.session = self.answer()["session"]
        self.kernels = {number: self.admit(number) for number in (1, 2)}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def order(self, **fields: Any) -> None:
        self._orders.sendall(json.dumps(fields).encode() + b"\n")

    def answer(self) -> dict[str, Any]:
        """Wait for what the broker tells its supervisor."""
        told: dict[str, Any] = json.loads(self._answers.readline())
        return told

    def admit(self, number: int) -> str:
        """Let a kernel in that runs its first cell."""
        token = secrets.token_hex(32)
        self.order(kind="kernel", kernel=number, token=token)
        self.order(kind="cell", kernel=number, cell=1)
        return token

    def close(self) -> None:
        self._answers.close()
        self._orders.close()
        self.process.wait(WAIT)

    def request(
        self, method: str, path: str, body: bytes = b"", token: str | None = None, port: int | None = None
    ) -> tuple[int, bytes]:
        """Make one request of the host's, or with another token and port anybody's."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=WAIT)
        with contextlib.closing(connection):
            connection.request(method, path, body, {} if token == "" else {TOKEN: token or self.token})
            response = connection.getresponse()
            return response.status, response.read()

    def health(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.request("GET", "/health")[1])
        return told

    def ask(self, prompts: Sequence[str], *, kernel: int = 1, call: str = "", batch: bool | None = None) -> list[str]:
        """Ask as code in a kernel does; an item that failed begins with `Error: `."""
        header, body = self.enqueue(call_message(prompts, call=call, batch=batch), self.kernels[kernel])
        if "refused" in header:
            return [f"Error: {header['refused']}"] * len(prompts)
        texts, at = [], 0
        for place, size in enumerate(header["sizes"]):
            texts.append(("Error: " if place in header["errors"] else "") + body[at : at + size].decode())
            at += size
        return texts

    def enqueue(self, message: bytes, token: str) -> tuple[Header, bytes]:
        status, data = self.request("POST", "/enqueue", message, token, self.enqueue_port)
        assert status == 200, (status, data)
        return next(iter(Parser().feed(data)))


def call_message(prompts: Sequence[str], *, call: str = "", batch: bool | None = None, cell: int = 1) -> bytes:
    datas = [prompt.encode() for prompt in prompts]
    header = {
        "kind": "call",
        "call": call or secrets.token_hex(16),
        "cell": cell,
        "batch": len(prompts) != 1 if batch is None else batch,
        "model": None,
        "sizes": [len(data) for data in datas],
    }
    return b"".join(map(bytes, pack(header, b"".join(datas))))


def head(broker: BrokerProcess, fields: bytes, *, port: int | None = None, token: str = "") -> bytes:
    """Send the head of a request, none of its body; give the whole answer."""
    shown = f"{TOKEN}: {token}\r\n".encode() if token else b""
    with socket.create_connection(("127.0.0.1", port or broker.port), WAIT) as connection:
        connection.sendall(b"POST /respond HTTP/1.1\r\nHost: x\r\n" + shown + fields + b"\r\n\r\n")
        return connection.makefile("rb").read()


def asked(broker: BrokerProcess, call: str) -> lines.Asked:
    """Read what is pending until the call comes."""
    after = 0
    for _ in range(100):
        status, data = broker.request("GET", f"/pending?wait=10&after={after}")
        assert status == 200
        for event in lines.Reader(after).feed(data):
            if isinstance(event, lines.Asked) and event.call.call == call:
                return event
            after = after if isinstance(event, lines.Hello) else event.number
    raise AssertionError("the call is not pending")


def hang_up_after(broker: BrokerProcess, message: bytes, kernel: int = 1) -> Callable[[], None]:
    """Ask and give the way to hang up, without waiting."""
    connection = http.client.HTTPConnection("127.0.0.1", broker.enqueue_port, timeout=WAIT)
    connection.request("POST", "/enqueue", message, {TOKEN: broker.kernels[kernel]})
    return connection.close


@dataclass
class LM:
    """Who answers on the host: counts what it is asked, and answers after `seconds`, or when `gate` opens."""

    seconds: float = 0.0
    asked: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    cancelled: int = 0
    under_way: int = 0
    most: int = 0
    gate: int = 0
    """So many have to be under way at once until any is answered."""
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: CallRequest) -> list[CallOutcome]:
        self.calls[request.call] += 1
        self.asked.update(request.prompts)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.begun.set()
        try:
            if self.under_way >= self.gate:
                self.open.set()
            await self.open.wait()
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            self.stopped.set()
            raise
        finally:
            self.under_way -= 1
        return [CallOutcome(text=f"re: {prompt}") for prompt in request.prompts]


async def serve(url: str, token: str, lm: LM, told: Callable[[str], None] = print, **options: Any) -> None:
    """Be the host's side of a broker, whatever cell its calls come from."""

    def take(message: wire.Call | wire.Dropped) -> None:
        if isinstance(message, wire.Call):
            calls.take(message, message.cell)
        else:
            calls.drop(message)

    def send(message: wire.Message) -> None:
        assert isinstance(message, wire.Reply)
        served.reply(message)

    calls, served = Calls(send, lm.answer), bridge.Bridge(url, token, take, told, **options)
    try:
        await served.run()
    finally:
        await calls.end()


@contextlib.asynccontextmanager
async def bridged(
    url: str, token: str, lm: LM, told: list[str] | None = None, **options: Any
) -> AsyncIterator[asyncio.Task[None]]:
    """Run the host's side while the block runs."""
    said: list[str] = [] if told is None else told
    task = asyncio.create_task(serve(url, token, lm, said.append, **options))
    try:
        yield task
    finally:
        if task.done():
            task.result()
        task.cancel()
        await asyncio.wait({task}, timeout=WAIT)
        assert task.done()


@contextlib.contextmanager
def threads(count: int) -> Iterator[Callable[..., asyncio.Future[Any]]]:
    """Give what runs a function in one of so many threads of their own."""
    with ThreadPoolExecutor(count) as pool:

        def run(function: Callable[..., Any], *args: Any, **options: Any) -> asyncio.Future[Any]:
            future: Future[Any] = pool.submit(function, *args, **options)
            return asyncio.wrap_future(future)

        yield run


class Tunnel:
    """A way to a port of this machine whose `conditions` can be changed."""

    def __init__(self) -> None:
        self.conditions = Conditions()
        self._tasks = Tasks()
        self.url = ""

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, port: int) -> AsyncIterator[Tunnel]:
        tunnel = cls()

        def connected() -> asyncio.Protocol:
            if tunnel.conditions.state == BAD_GATEWAY:
                return Refusal()
            raw, inside = Relay(), Buffer() if tunnel.conditions.buffering else Relay()
            join(raw, inside)
            tunnel._tasks.spawn(tunnel._connect(inside, port))
            return raw

        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Wire(tunnel.conditions, connected), "127.0.0.1", 0)
        tunnel.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield tunnel
        finally:
            server.close()
            tunnel._tasks.cancel()
            tunnel.conditions.cut()

    async def _connect(self, inside: Relay, port: int) -> None:
        await asyncio.get_running_loop().create_connection(lambda: inside, "127.0.0.1", port)
        await inside.over.wait()
