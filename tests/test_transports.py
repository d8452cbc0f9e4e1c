"""The listener takes the one caller that knows the token, and the stream ends at the first thing that is no protocol."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import pytest

from rlm_jupyter.errors import ProtocolError
from rlm_jupyter.kernels.guest import wire
from rlm_jupyter.kernels.guest.frames import Header, Parser, pack
from rlm_jupyter.kernels.transports import HELLO_CAP, FramedStream, Listener
from tests.deadlines import WAIT

pytestmark = pytest.mark.anyio


def framed(header: dict[str, Any], body: bytes = b"") -> bytes:
    return b"".join(map(bytes, pack(header, body)))


class Taken:
    """What a stream delivered."""

    def __init__(self) -> None:
        self.messages: list[tuple[Header, bytes]] = []
        self.reason: Exception | None = None
        self.ended = asyncio.Event()
        self.got = asyncio.Event()

    def receive(self, header: Header, body: bytes) -> None:
        if header.get("kind") == "bad":
            raise ProtocolError("bad")
        self.messages.append((header, body))
        self.got.set()

    def closed(self, reason: Exception | None) -> None:
        self.reason = reason
        self.ended.set()


async def call(listener: Listener, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    writer.write(data)
    await writer.drain()
    return reader, writer


async def ended(reader: asyncio.StreamReader) -> bytes:
    try:
        return await asyncio.wait_for(reader.read(), WAIT)
    except ConnectionError:
        return b""


async def opened(listener: Listener, taken: Taken) -> tuple[FramedStream, asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await call(listener, framed({"kind": "hello", "token": listener.token}))
    stream = await asyncio.wait_for(listener.connection(taken.receive, taken.closed), WAIT)
    return stream, reader, writer


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        framed({"kind": "hello", "token": "0" * 64}),
        framed({"kind": "hello", "token": ""}),
        framed({"kind": "hello", "token": None}),
        framed({"kind": "hello", "token": ["a"]}),
        framed({"kind": "hello", "token": "\ud800"}),
        framed({"kind": "hello"}),
        framed({"kind": "ready", "n": 1, "protocol": 1, "pid": 1}),
        framed({"kind": "hello", "token": "x" * HELLO_CAP}),
        struct.pack(">IB", HELLO_CAP + 1, 0),
    ],
)
async def test_a_stranger_is_cut_off_and_the_supervisor_still_taken(data: bytes) -> None:
    listener, taken = Listener(), Taken()
    await listener.start()
    reader, _ = await call(listener, data)
    assert await ended(reader) == b""
    stream, _, _ = await opened(listener, taken)
    assert stream.open
    assert taken.messages == []
    stream.close()


async def test_a_silent_stranger_is_cut_off_in_time() -> None:
    listener = Listener()
    await listener.start()
    reader, _ = await call(listener, b"")
    assert await ended(reader) == b""
    listener.close()


async def test_only_one_connection_is_taken() -> None:
    listener, taken = Listener(), Taken()
    await listener.start()
    early = await call(listener, b"")
    stream, _, _ = await opened(listener, taken)
    early[1].write(framed({"kind": "hello", "token": listener.token}))
    assert await ended(early[0]) == b""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", listener.port)
    assert stream.open
    stream.close()


async def test_it_listens_on_loopback_only() -> None:
    listener = Listener()
    await listener.start()
    assert listener._server is not None
    assert [sock.getsockname()[0] for sock in listener._server.sockets] == ["127.0.0.1"]
    listener.close()


async def test_messages_cross_both_ways_and_early_ones_are_kept() -> None:
    listener, taken = Listener(), Taken()
    await listener.start()
    early = framed({"kind": "hello", "token": listener.token}) + framed({"kind": "a"}, b"1")
    reader, writer = await call(listener, early)
    stream = await listener.connection(taken.receive, taken.closed)
    await asyncio.wait_for(taken.got.wait(), WAIT)
    assert taken.messages == [({"kind": "a"}, b"1")]
    stream.send(wire.Execute(1, 2, b"x" * 20_000_000))
    parser = Parser()
    got: list[tuple[Header, bytes]] = []
    while not got:
        got += parser.feed(await asyncio.wait_for(reader.read(1 << 20), WAIT))
    assert got == [({"kind": "execute", "kernel": 1, "cell": 2}, b"x" * 20_000_000)]
    writer.close()
    await asyncio.wait_for(taken.ended.wait(), WAIT)
    assert taken.reason is None


@pytest.mark.parametrize("data", [b"\xff" * 64, framed({"kind": "bad"}), struct.pack(">IB", 2, 0) + b"ab"])
async def test_what_breaks_the_protocol_closes_the_stream_and_is_told(data: bytes) -> None:
    listener, taken = Listener(), Taken()
    await listener.start()
    _, reader, writer = await opened(listener, taken)
    writer.write(data + framed({"kind": "a"}))
    await asyncio.wait_for(taken.ended.wait(), WAIT)
    assert isinstance(taken.reason, ProtocolError)
    assert taken.messages == []
    assert await ended(reader) == b""


async def test_small_messages_do_not_wait_for_more() -> None:
    listener, taken = Listener(), Taken()
    await listener.start()
    stream, _, _ = await opened(listener, taken)
    assert stream._transport is not None
    sock = stream._transport.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    stream.close()
