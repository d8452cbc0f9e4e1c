"""A framed stream to a supervisor, and the loopback listener on which the local one calls in.

The listener takes one connection, which must begin with its token: few bytes, soon, compared in constant time. Whoever else
connects is cut off without any effect. After the one connection it listens no more.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
from collections.abc import Callable
from typing import Any

from rlm_jupyter.errors import ProtocolError
from rlm_jupyter.kernels.guest import codec, wire
from rlm_jupyter.kernels.guest.frames import FrameError, Header, Parser, pack

HELLO_CAP = 4096
HELLO_SECONDS = 5.0
STRANGERS = 64
WRITE_AHEAD = 4 * 1024 * 1024
SOCKET_AHEAD = 256 * 1024
"""Bytes that may wait for a socket, behind which another process waits for them: more would be new memory, and gain nothing."""


class FramedStream(asyncio.Protocol):
    """Messages both ways over one asyncio transport.

    `receive` is called with header and body of each message; what it raises closes the stream, as do bytes that are no frames.
    `closed` is called once at the end, with the reason or None. `sent` counts the bytes that were given to the transport.
    """

    def __init__(self) -> None:
        self.receive: Callable[[Header, bytes], None] = lambda header, body: None
        self.closed: Callable[[Exception | None], None] = lambda error: None
        self.sent = 0
        self._transport: asyncio.Transport | None = None
        self._parser = Parser()
        self._reason: Exception | None = None
        self._ended = False
        self._writable = asyncio.Event()
        self._writable.set()

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, message: wire.Message) -> None:
        """Queue a message. On a stream that is closed it is lost; `closed` has told so."""
        if self._transport is not None and not self._transport.is_closing():
            for piece in pack(*codec.encode(message)):
                self._transport.write(piece)
                self.sent += len(piece)

    def write(self, data: bytes) -> None:
        """Send bytes that are no message, before the first one."""
        if self._transport is not None:
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until what was sent has left for the most part. At the end of the stream it returns at once."""
        await self._writable.wait()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def close(self, reason: Exception | None = None) -> None:
        if self._reason is None:
            self._reason = reason
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        try:
            for header, body in self._parser.feed(data):
                self.receive(header, body)
                if not self.open:
                    return
        except FrameError as error:
            self.close(ProtocolError(f"the supervisor sent {error}"))
        except Exception as error:
            self.close(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        if not self._ended:
            self._ended = True
            self.closed(self._reason or exc)


async def open_stream(
    sock: socket.socket, receive: Callable[[Header, bytes], None], closed: Callable[[Exception | None], None]
) -> FramedStream:
    """Speak over a connected socket; `receive` and `closed` as of FramedStream."""

    def make() -> FramedStream:
        stream = FramedStream()
        stream.receive, stream.closed = receive, closed
        return stream

    transport, stream = await asyncio.get_running_loop().create_connection(make, sock=sock)
    transport.set_write_buffer_limits(high=SOCKET_AHEAD)
    return stream


class _Caller(FramedStream):
    """A connection that has not shown the token yet."""

    def __init__(self, listener: Listener) -> None:
        super().__init__()
        self._listener = listener
        self._parser = Parser(HELLO_CAP)
        self._deadline: asyncio.TimerHandle | None = None
        self.receive = self._hello

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._listener.callers += 1
        if self._listener.callers > STRANGERS:
            self.close()
            return
        self._deadline = asyncio.get_running_loop().call_later(HELLO_SECONDS, self.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.callers -= 1
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _hello(self, header: Header, body: bytes) -> None:
        token = header.get("token")
        text = token if header.get("kind") == "hello" and isinstance(token, str) else ""
        if not hmac.compare_digest(text.encode("utf-8", "replace"), self._listener.token.encode()):
            self.close()
            return
        assert self._deadline is not None
        self._deadline.cancel()
        self._parser.cap = Parser().cap
        self.receive = self._listener.hold
        self._listener.accept(self)


class Listener:
    """Wait on 127.0.0.1 for the one supervisor that knows the token."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(32)
        self.callers = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._caller: asyncio.Future[FramedStream] = asyncio.get_running_loop().create_future()
        self._held: list[tuple[Header, bytes]] = []

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Caller(self), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def accept(self, stream: FramedStream) -> None:
        if self._caller.done():
            stream.close()
        else:
            self._caller.set_result(stream)
            self.close()

    def hold(self, header: Header, body: bytes) -> None:
        """Keep what comes before somebody has taken the stream."""
        if len(self._held) >= 16:
            raise ProtocolError("too many messages before the first answer")
        self._held.append((header, body))

    async def connection(self, receive: Callable[[Header, bytes], None], closed: Callable[[Exception | None], None]) -> Any:
        """Wait for the supervisor, and connect its stream to the two functions."""
        stream = await self._caller
        stream.receive, stream.closed = receive, closed
        for header, body in self._held:
            receive(header, body)
        return stream

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
