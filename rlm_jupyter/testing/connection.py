"""One connection to a scripted server: HTTP/1.1 as the clients under test send it, and no more.

It is cheap, since it shares the machine with what it tests, and is no server for anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import TYPE_CHECKING

from rlm_jupyter.testing import answers
from rlm_jupyter.testing.messages import Reply, Request

if TYPE_CHECKING:
    from rlm_jupyter.testing.server import ScriptedServer


class Connection(asyncio.Protocol):
    """One connection of a client: reads requests one after the other, and writes the answers."""

    def __init__(self, server: ScriptedServer, connections: set[Connection]) -> None:
        self._server, self._connections = server, connections
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._request: Request | None = None
        self._task: asyncio.Task[None] | None = None
        self._sent = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        if self._request is not None:
            self._server.end(self._request, 0, aborted=True)
        if self._task is not None:
            self._task.cancel()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._request is None:
            self._read()

    def _read(self) -> None:
        """Take one whole request from the buffer, if there is one, and begin to answer it."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = int(headers.get("content-length", "0"))
        start = end + 4
        if len(self._buffer) < start + size:
            return
        raw = bytes(self._buffer[start : start + size])
        del self._buffer[: start + size]
        method, path, *_ = first.split(" ")
        number = len(self._server.requests)
        request = self._request = Request(method, path, headers, raw, number, time.monotonic())
        with contextlib.suppress(ValueError):
            body = json.loads(raw) if raw else {}
            request.body = body if isinstance(body, dict) else {}
        self._server.begin(request)
        self._answer(request)

    def _answer(self, request: Request) -> None:
        """Answer now, later by the loop's clock (the cheap way), or by a task where there is more to wait for."""
        reply = self._server.reply(request)
        delay = reply.delay + self._server.latency
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        if reply.hold or (reply.pause and request.stream):
            self._task = loop.create_task(self._slowly(request, reply, delay))
        elif delay:
            loop.call_later(delay, self._at_once, request, reply)
        else:
            self._at_once(request, reply)

    def _at_once(self, request: Request, reply: Reply) -> None:
        self._send(reply, b"".join(answers.pieces(request, reply, self._server.profile, self._server.omit_usage)))
        self._done(request, reply)

    async def _slowly(self, request: Request, reply: Reply, delay: float) -> None:
        await asyncio.sleep(delay)
        if reply.hold:
            await self._server.held()
        for number, data in enumerate(answers.pieces(request, reply, self._server.profile, self._server.omit_usage)):
            if reply.pause and number:
                await asyncio.sleep(reply.pause)
            self._send(reply, data)
        self._done(request, reply)

    def _send(self, reply: Reply, data: bytes) -> None:
        assert self._transport is not None
        if reply.cut_after is not None:
            data = data[: max(0, reply.cut_after - self._sent)]
        self._sent += len(data)
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def _done(self, request: Request, reply: Reply) -> None:
        assert self._transport is not None
        if self._transport.is_closing():
            return
        self._server.end(request, reply.status)
        self._request, self._task, self._sent = None, None, 0
        if reply.drop or reply.cut_after is not None:
            self._transport.close()
        elif self._buffer:
            self._read()
