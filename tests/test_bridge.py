"""P25: the host speaks to the exact origin of a broker only, and whatever comes from there is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from rlm_jupyter.errors import KernelError, ProtocolError, SettingsError
from rlm_jupyter.kernels.bridge import Bridge
from rlm_jupyter.kernels.guest import lines, wire
from tests.brokers import LM, WAIT, BrokerProcess, Tunnel, bridged, serve, threads
from tests.proxy import CERTIFICATES, VARIABLES, behind_a_proxy

pytestmark = pytest.mark.anyio
TOKEN = "t" * 64
HELLO = lines.hello_line("0" * 32)
Script = Callable[[asyncio.StreamReader, Any], Awaitable[None]]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, *CERTIFICATES):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


class Hostile:
    """A server that answers every request for `/pending` by its script; keeps the heads of all requests, and counts bytes."""

    def __init__(self, script: Script) -> None:
        self.heads: list[str] = []
        self.connections = self.sent = self.port = 0
        self._script = script
        self._came = asyncio.Event()

    @property
    def pulls(self) -> list[str]:
        return [head for head in self.heads if head.startswith("GET /pending")]

    async def asked(self, count: int) -> None:
        """Wait for so many requests for what is pending."""
        while len(self.pulls) < count:
            self._came.clear()
            await asyncio.wait_for(self._came.wait(), WAIT)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, script: Script, security: ssl.SSLContext | None = None) -> AsyncIterator[Hostile]:
        hostile = cls(script)
        server = await asyncio.start_server(hostile.connected, "127.0.0.1", 0, ssl=security)
        hostile.port = server.sockets[0].getsockname()[1]
        try:
            yield hostile
        finally:
            server.close()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            self.heads.append(head)
            self._came.set()
            if head.startswith("GET /pending"):
                await self._script(reader, _Counted(self, writer))
        writer.close()


class _Counted:
    """A writer that counts what has left."""

    def __init__(self, hostile: Hostile, writer: asyncio.StreamWriter) -> None:
        self._hostile, self._writer = hostile, writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()
        self._hostile.sent += len(data)


def answer(body: bytes = b"", status: str = "200 OK", *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode() + body


def says(data: bytes) -> Script:
    async def script(reader: asyncio.StreamReader, writer: Any) -> None:
        await writer.send(data)

    return script


def pours(data: bytes, count: int, pause: float = 0.0) -> Script:
    """Send a head, and then the same again and again."""

    async def script(reader: asyncio.StreamReader, writer: Any) -> None:
        await writer.send(answer(HELLO))
        for _ in range(count):
            await writer.send(data)
            await asyncio.sleep(pause)

    return script


def a_call(data: bytes = b"do it", **changed: Any) -> bytes:
    call = wire.Call(1, 1, "c" * 32, False, None, (len(data),), data)
    written = b"".join(lines.call_lines(1, call, lines.digest_of(call)))
    for name, value in changed.items():
        written = written.replace(f'"{name}":'.encode(), f'"{name}":{value},"_":'.encode(), 1)
    return written


FORGED = a_call().replace(b'"cell":1', b'"cell":2')
BREACHES = {
    "redirect": (says(answer(b"", "307 Temporary Redirect", "Location: http://localhost:9/pending")), "sends elsewhere"),
    "gzip": (says(answer(gzip.compress(b"\n" * (64 << 20)), "200 OK", "Content-Encoding: gzip")), "packs its answers"),
    "brotli": (says(answer(b"x", "200 OK", "Content-Encoding: br")), "packs its answers"),
    "no token": (says(answer(b"", "401 Unauthorized")), "does not take"),
    "no greeting": (says(answer(a_call())), "no greeting"),
    "huge line": (pours(b"x" * (1 << 20), 200), "a line above"),
    "blank lines": (pours(b"\n" * 1000, 200, 0.01), "blank lines without end"),
    "forged call": (says(answer(HELLO + FORGED)), "not what its digest says"),
    "call above the cap": (says(answer(HELLO + a_call(size=1 << 40))), "above its cap"),
    "not JSON": (says(answer(HELLO + b"{\n")), "not plain JSON"),
    "deep JSON": (says(answer(HELLO + b"[" * 1_000_000 + b"\n")), "not plain JSON"),
    "same number again": (says(answer(HELLO + a_call() + a_call())), "out of order"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREACHES)
async def test_p25_what_breaks_the_rules_ends_the_bridge(name: str) -> None:
    script, why = BREACHES[name]
    lm = LM()
    async with Hostile.open(script) as hostile:
        with pytest.raises(ProtocolError, match=why):
            await asyncio.wait_for(serve(hostile.url, TOKEN, lm, print, deadline=5.0), WAIT)
        assert len(hostile.pulls) == 1
        assert hostile.sent < 16 << 20  # of the 200 MB that it would pour
    assert lm.asked.total() <= (1 if name == "same number again" else 0)


async def test_p25_a_redirect_takes_the_token_nowhere() -> None:
    async with Hostile.open(says(answer(HELLO))) as other:
        for status in ("301", "302", "303", "307", "308"):
            moved = answer(b"", f"{status} Moved", f"Location: {other.url}/pending", "Content-Length: 0")
            async with Hostile.open(says(moved)) as hostile:
                with pytest.raises(ProtocolError):
                    await asyncio.wait_for(serve(hostile.url, TOKEN, LM(), print), WAIT)
        assert other.connections == 0


async def test_p25_no_cookie_and_no_password_of_netrc_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login me password secret\ndefault login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # loopback is reached directly
    told: list[str] = []
    async with Hostile.open(says(answer(HELLO, "200 OK", "Set-Cookie: who=you; Path=/"))) as hostile:
        url = hostile.url.replace("127.0.0.1", "localhost")  # cookie jars take nothing from bare addresses
        task = asyncio.create_task(serve(url, TOKEN, LM(), told.append))
        await hostile.asked(3)
        task.cancel()
        await asyncio.wait({task})
        for head in hostile.heads:
            names = {line.partition(":")[0].lower() for line in head.split("\r\n")[1:] if line}
            assert names <= {"host", "x-rlm-token", "accept", "accept-encoding", "user-agent", "content-length", "content-type"}
            assert f"X-RLM-Token: {TOKEN}" in head
            assert "Accept-Encoding: identity" in head
    assert any("is lost" in line for line in told)
    assert not any(TOKEN in line for line in told)


@pytest.mark.parametrize("part", ["head", "line"])
async def test_p25_a_drip_is_given_up(part: str) -> None:
    async def drip(reader: asyncio.StreamReader, writer: Any) -> None:
        await writer.send(answer(HELLO) if part == "line" else b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            await writer.send(b"x")
            await asyncio.sleep(0.02)

    told: list[str] = []
    async with Hostile.open(drip) as hostile:
        deadline = 4.0 if part == "head" else 20.0
        task = asyncio.create_task(serve(hostile.url, TOKEN, LM(), told.append, silence=0.3, deadline=deadline))
        await hostile.asked(3)  # each was dropped, and another made
        if part == "head":
            with pytest.raises(KernelError, match="could not be reached for 4 s"):
                await asyncio.wait_for(task, WAIT)
        task.cancel()
        await asyncio.wait({task})
    assert hostile.sent < 10_000


@pytest.mark.parametrize("names", ["unknown authority", "another name"])
async def test_p25_a_wrong_certificate_gets_no_byte(names: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, unknown = trustme.CA(), trustme.CA()
    known.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    issued = unknown.issue_cert("127.0.0.1") if names == "unknown authority" else known.issue_cert("sandbox.example")
    security = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(security)
    async with Hostile.open(says(answer(HELLO)), security) as hostile:
        url = hostile.url.replace("http:", "https:")
        with pytest.raises(ProtocolError, match=r"certificate of 127\.0\.0\.1 was not accepted"):
            await asyncio.wait_for(serve(url, TOKEN, LM(), print), WAIT)
        assert hostile.heads == []


@pytest.mark.parametrize(
    "url",
    [
        "http://sandbox.example", "https://me:secret@sandbox.example", "https://sandbox.example/path", "https://sandbox.example?x=1",
        "https://sandbox.example#x", "ftp://sandbox.example", "sandbox.example", "https://", "https://sandbox.example:port",
        "http://127.0.0.1.sandbox.example", "https://me@127.0.0.1",
    ],
)  # fmt: skip
async def test_p25_an_address_that_is_no_safe_origin_is_refused(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Bridge(url, TOKEN, print, print)
    assert "secret" not in str(caught.value)
    assert TOKEN not in str(caught.value)


async def test_p06_a_call_that_comes_again_under_other_numbers_is_asked_once() -> None:
    call = wire.Call(1, 1, "c" * 32, False, None, (5,), b"do it")
    again = b"".join(line for number in (1, 2, 7) for line in lines.call_lines(number, call, lines.digest_of(call)))
    lm = LM()
    async with Hostile.open(says(answer(HELLO + again))) as hostile:
        task = asyncio.create_task(serve(hostile.url, TOKEN, lm, print))
        await hostile.asked(2)
        assert "after=7" in hostile.pulls[1]
        task.cancel()
        await asyncio.wait({task})
    assert lm.asked == {"do it": 1}


async def test_another_broker_in_the_same_place_is_not_believed() -> None:
    sessions = iter(("1" * 32, "2" * 32))

    async def script(reader: asyncio.StreamReader, writer: Any) -> None:
        await writer.send(answer(lines.hello_line(next(sessions))))

    async with Hostile.open(script) as hostile:
        with pytest.raises(ProtocolError, match="another broker"):
            await asyncio.wait_for(serve(hostile.url, TOKEN, LM(), print), WAIT)


@pytest.fixture(scope="module")
def broker() -> Any:
    process = BrokerProcess()
    yield process
    process.close()


async def test_a_firms_proxy_is_used_and_its_authority_believed(
    broker: BrokerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = LM()
    with (
        behind_a_proxy(monkeypatch, tmp_path, {"sandbox.example": broker.port}, "REQUESTS_CA_BUNDLE") as proxy,
        threads(1) as run,
    ):
        async with bridged("https://sandbox.example", broker.token, lm):
            assert await asyncio.wait_for(run(broker.ask, ["through it"]), WAIT) == ["re: through it"]
        assert set(proxy.asked) == {"sandbox.example:443"}
        monkeypatch.setenv("NO_PROXY", "sandbox.example")
        assert Bridge("https://sandbox.example", TOKEN, print, print).origin.proxy is None
    assert lm.asked == {"through it": 1}


async def test_where_a_proxy_holds_answers_back_the_host_asks_by_long_polls(broker: BrokerProcess) -> None:
    lm, told = LM(), list[str]()
    with threads(4) as run:
        async with Tunnel.to(broker.port) as tunnel:
            tunnel.conditions.buffering = True
            async with bridged(tunnel.url, broker.token, lm, told, silence=2.0):
                for number in range(3):
                    asking = [run(broker.ask, [f"{number} {place}"]) for place in range(4)]
                    got = await asyncio.wait_for(asyncio.gather(*asking), WAIT)
                    assert got == [[f"re: {number} {place}"] for place in range(4)]
    assert set(lm.asked.values()) == {1}
    assert len(lm.asked) == 12
    assert told == []


async def test_a_sandbox_that_stays_away_is_told_and_ends_the_bridge(broker: BrokerProcess) -> None:
    lm, told = LM(seconds=600), list[str]()
    lm.open.set()
    with threads(1) as run:
        async with Tunnel.to(broker.port) as tunnel:
            task = asyncio.create_task(serve(tunnel.url, broker.token, lm, told.append, silence=1.0, deadline=1.0))
            asking = run(broker.ask, ["lost"])
            await asyncio.wait_for(lm.begun.wait(), WAIT)
            tunnel.conditions.enter("down")
            with pytest.raises(KernelError, match="could not be reached for 1 s"):
                await asyncio.wait_for(task, WAIT)
            assert (lm.cancelled, lm.asked) == (1, {"lost": 1})
            assert "is lost" in told[0]
        broker.order(kind="gone", kernel=1)
        assert await asyncio.wait_for(asking, WAIT) == ["Error: the kernel is gone"]
    broker.kernels[1] = broker.admit(1)


@pytest.mark.matrix
async def test_a_call_outlasts_a_lease_that_is_short_while_its_host_lives() -> None:
    broker = BrokerProcess(lease=9.0)
    lm = LM(seconds=12)
    lm.open.set()
    try:
        with threads(1) as run:
            async with bridged(broker.url, broker.token, lm, silence=1.0):
                assert await asyncio.wait_for(run(broker.ask, ["slow"]), WAIT) == ["re: slow"]
    finally:
        broker.close()


async def test_large_prompts_and_replies_cross_whole(broker: BrokerProcess) -> None:
    lm = LM()
    prompts = [os.urandom(6 << 20).hex(), "", "é\n" * 1000, *map(str, range(20_000))]
    with threads(1) as run:
        async with bridged(broker.url, broker.token, lm):
            got = await asyncio.wait_for(run(broker.ask, prompts), WAIT)
    assert got == [f"re: {prompt}" for prompt in prompts]
    assert lm.asked.total() == len(prompts)
    with pytest.raises(OSError, match=r"refused|timed out"):  # /enqueue listens on loopback alone
        socket.create_connection(("127.0.0.2", broker.enqueue_port), 2).close()
