"""A firm's proxy: HTTP CONNECT, with the TLS of every host taken apart by certificates of a CA of its own.

What a client sends to `https://HOST/` through it reaches the scripted server that stands for HOST, so the client under test
uses its real addresses, headers and certificate checks. It knows only the hosts that it was told; nothing leaves this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import trustme

WAIT = 30.0
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


class InterceptingProxy:
    """The proxy, in a thread of its own. `asked` lists what it was asked to connect to, `HOST:PORT`, in order."""

    def __init__(self, authority: trustme.CA, hosts: Mapping[str, int]) -> None:
        self.asked: list[str] = []
        self.port = 0
        self._authority, self._hosts = authority, dict(hosts)
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="proxy", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(WAIT)

    def close(self) -> None:
        assert self._loop is not None
        assert self._over is not None
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(WAIT)

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                await self._connection(reader, writer)
            finally:
                tasks.discard(task)

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ssl.SSLError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = await reader.readuntil(b"\r\n\r\n")
            method, target, *_ = head.decode("latin-1").split(" ")
            self.asked.append(target)
            host = target.rpartition(":")[0]
            if method != "CONNECT" or host not in self._hosts:
                writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                return
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._authority.issue_cert(host).configure_cert(context)
            await writer.start_tls(context)
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._hosts[host])
            there = asyncio.create_task(_pump(reader, inner_writer))
            await _pump(inner_reader, writer)
            there.cancel()
        writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, ssl.SSLError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.contextmanager
def behind_a_proxy(
    monkeypatch: pytest.MonkeyPatch, folder: Path, hosts: Mapping[str, int], certificates: str | None = "SSL_CERT_FILE"
) -> Iterator[InterceptingProxy]:
    """Put this process behind a proxy whose CA the variable `certificates` names; `hosts` says which port stands for which."""
    authority = trustme.CA()
    path = folder / "firm.pem"
    authority.cert_pem.write_to_path(str(path))
    for name in (*VARIABLES, *CERTIFICATES):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    proxy = InterceptingProxy(authority, hosts)
    proxy.start()
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    if certificates is not None:
        monkeypatch.setenv(certificates, str(path))
    try:
        yield proxy
    finally:
        proxy.close()
