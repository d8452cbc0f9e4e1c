"""What stands between a tunnel's client and the sandbox and understands HTTP: a proxy that buffers, an edge that refuses."""

from __future__ import annotations

import asyncio
import re

from tests.modal_local.relays import Relay

REFUSAL = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 12\r\nConnection: close\r\n\r\nBad gateway\n"
HEAD_END, LAST_CHUNK = b"\r\n\r\n", b"0\r\n\r\n"


class Refusal(asyncio.Protocol):
    """Answers the first bytes of a request with 502."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(REFUSAL)
            self._transport.close()


class Buffer(Relay):
    """The sandbox's side of a connection through a proxy that passes an answer on only when it has all of it.

    An answer is whole after the bytes it announces, after its last chunk, or when the sandbox ends the connection.
    """

    def __init__(self) -> None:
        super().__init__()
        self._held = bytearray()

    def data_received(self, data: bytes) -> None:
        self._held += data
        while self._held and (size := _whole(self._held)):
            super().data_received(bytes(self._held[:size]))
            del self._held[:size]

    def eof_received(self) -> bool:
        self._flush()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._flush()
        super().connection_lost(exc)

    def _flush(self) -> None:
        if self._held:
            super().data_received(bytes(self._held))
            self._held.clear()


def _whole(held: bytearray) -> int:
    """Give the size of the answer that the bytes begin with, 0 while it is not whole."""
    at = held.find(HEAD_END)
    if at < 0:
        return 0
    head, body = bytes(held[:at]).lower(), at + len(HEAD_END)
    if found := re.search(rb"\r\ncontent-length: *(\d+)", head):
        size = body + int(found[1])
        return size if len(held) >= size else 0
    if b"\r\ntransfer-encoding: chunked" in head:
        end = held.find(b"\r\n" + LAST_CHUNK, body - 2)
        return end + 2 + len(LAST_CHUNK) if end >= 0 else 0
    return 0
