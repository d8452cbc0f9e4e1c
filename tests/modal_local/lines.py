"""A connection whose bytes travel under conditions: late, not at all, or until it is cut.

`Wire` sits between a real transport and the protocol that serves it (gRPC, a tunnel), so a delay costs no further hop and
the client meets real sockets. `Conditions` hold for one kind of connection at a time and may change while they are open.
A black hole keeps what is sent and lets it pass when it ends, as TCP does. Nothing here knows what the bytes mean.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

QUEUE = 16 << 20
"""Bytes on their way in one direction of one connection, beyond which the sender is asked to pause."""
OPEN, DOWN, BLACK_HOLE, BAD_GATEWAY = "open", "down", "black hole", "502"
STATES = (OPEN, DOWN, BLACK_HOLE, BAD_GATEWAY)
Deliver = Callable[[bytes], None]
Inner = asyncio.Protocol | asyncio.BufferedProtocol
"""What serves a connection: TLS, where it begins, reads into buffers of its own."""


class Conditions:
    """What holds for one kind of connection, and the connections for which it holds."""

    def __init__(self) -> None:
        self.delay, self.state, self.buffering = 0.0, OPEN, False
        self.accepted = self.bytes = 0
        self.lines: set[Line] = set()
        self._until: asyncio.TimerHandle | None = None
        self._then: tuple[int, str, float | None] | None = None

    def enter(self, state: str, seconds: float | None = None) -> None:
        """Change the state, for good or for a while; connections that are open end unless it is a black hole."""
        if state not in STATES:
            raise ValueError(f"there is no state {state!r}; use one of {', '.join(STATES)}")
        if self._until is not None:
            self._until.cancel()
            self._until = None
        self.state = state
        if state in (DOWN, BAD_GATEWAY):
            self.cut()
        if seconds is not None:
            self._until = asyncio.get_running_loop().call_later(seconds, self.enter, OPEN)
        for line in tuple(self.lines):
            line.wake()

    def cut(self) -> int:
        """End every open connection at once, as a reset does. Tells how many there were."""
        lines = tuple(self.lines)
        for line in lines:
            line.abort()
        return len(lines)

    def after(self, count: int, state: str, seconds: float | None) -> None:
        """Enter the state (or 'cut') when so many more bytes have passed, counted over both directions."""
        self._then = (self.bytes + count, state, seconds)

    def passed(self, count: int) -> None:
        self.bytes += count
        if self._then is not None and self.bytes >= self._then[0]:
            (_, state, seconds), self._then = self._then, None
            loop = asyncio.get_running_loop()
            if state == "cut":
                loop.call_soon(self.cut)
            else:
                loop.call_soon(self.enter, state, seconds)

    @property
    def held(self) -> bool:
        return self.state == BLACK_HOLE


class Way:
    """One direction of a connection: bytes go in now and come out when they are due."""

    def __init__(self, conditions: Conditions, deliver: Deliver, finish: Callable[[], None], opened: float) -> None:
        self._conditions, self._deliver, self._finish, self._opened = conditions, deliver, finish, opened
        self._queue: deque[tuple[float, bytes | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.size = 0

    def push(self, data: bytes | None) -> None:
        """Send bytes, or None for the end."""
        delay = self._conditions.delay
        if not self._queue and not delay and not self._conditions.held:
            self._pass(data)
            return
        self._queue.append((max(self._loop.time(), self._opened) + delay, data))
        self.size += len(data or b"")
        self.wake()

    def wake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._queue and not self._conditions.held:
            due, data = self._queue[0]
            if due > self._loop.time() + 0.0002:
                self._timer = self._loop.call_at(due, self.wake)
                return
            self._queue.popleft()
            self.size -= len(data or b"")
            self._pass(data)

    def drop(self) -> None:
        self._queue.clear()
        self.size = 0
        self.wake()

    def _pass(self, data: bytes | None) -> None:
        if data is None:
            self._finish()
        else:
            self._conditions.passed(len(data))
            self._deliver(data)


class Line(asyncio.Transport):
    """The transport as the inner protocol sees it; `loop.start_tls` takes it too."""

    _start_tls_compatible = True

    def __init__(self, transport: asyncio.Transport, inner: Inner, conditions: Conditions) -> None:
        super().__init__()
        self._transport, self.inner, self._conditions = transport, inner, conditions
        # What a client sends with its first packet has waited for the handshake: one round trip more.
        opened = asyncio.get_running_loop().time() + 2 * conditions.delay
        self.incoming = Way(conditions, self._arrived, self._eof, opened)
        self.outgoing = Way(conditions, self._send, self._close, 0.0)
        self._over = self._paused = self._full = self._blocked = False
        conditions.lines.add(self)

    def wake(self) -> None:
        self.incoming.wake()
        self.outgoing.wake()

    def received(self, data: bytes | None) -> None:
        if not self._over:
            self.incoming.push(data)
            self._flow()

    def block(self, blocked: bool) -> None:
        """Take note of whether the real connection takes more bytes now."""
        if not self._over:
            self._blocked = blocked
            self._flow()

    def lost(self, error: BaseException | None) -> None:
        """The real connection is gone."""
        if not self._over:
            self._over = True
            self._conditions.lines.discard(self)
            self.incoming.drop()
            self.outgoing.drop()
            self.inner.connection_lost(error if isinstance(error, Exception) else None)

    def _arrived(self, data: bytes) -> None:
        if isinstance(self.inner, asyncio.Protocol):
            if not self._over:
                self.inner.data_received(data)
        else:
            rest = memoryview(data)
            while rest and not self._over:
                with memoryview(self.inner.get_buffer(len(rest))) as room:
                    taken = min(len(rest), len(room))
                    room[:taken] = rest[:taken]
                self.inner.buffer_updated(taken)
                rest = rest[taken:]
        if not self._over:
            self._flow()

    def _send(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)
            self._flow()

    def _eof(self) -> None:
        if not self._over and not self.inner.eof_received():
            self.close()

    def _close(self) -> None:
        self._transport.close()

    def _flow(self) -> None:
        if self._full != (self._blocked or self.outgoing.size > QUEUE):
            self._full = not self._full
            (self.inner.pause_writing if self._full else self.inner.resume_writing)()
        if not self._transport.is_closing():
            if self._paused or self.incoming.size > QUEUE:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if not self._over:
            self.outgoing.push(bytes(data))
            self._flow()

    def write_eof(self) -> None:
        self.close()

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        if not self._over:
            self.outgoing.push(None)

    def abort(self) -> None:
        self._transport.abort()

    def _force_close(self, error: BaseException | None) -> None:
        """End it as TLS does that has failed."""
        self.abort()

    def get_protocol(self) -> Inner:
        return self.inner

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol | asyncio.BufferedProtocol)
        self.inner = protocol

    def is_closing(self) -> bool:
        return self._over or self._transport.is_closing()

    def pause_reading(self) -> None:
        self._paused = True
        self._flow()

    def resume_reading(self) -> None:
        self._paused = False
        self._flow()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)


class Wire(asyncio.Protocol):
    """What the real transport talks to: makes a `Line` for the inner protocol, or refuses the connection."""

    def __init__(self, conditions: Conditions, inner: Callable[[], asyncio.Protocol]) -> None:
        self._conditions, self._factory = conditions, inner
        self._line: Line | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._conditions.accepted += 1
        if self._conditions.state == DOWN:
            transport.abort()
            return
        inner = self._factory()
        self._line = Line(transport, inner, self._conditions)
        inner.connection_made(self._line)

    def data_received(self, data: bytes) -> None:
        if self._line is not None:
            self._line.received(data)

    def eof_received(self) -> bool:
        if self._line is None:
            return False
        self._line.received(None)
        return True

    def pause_writing(self) -> None:
        if self._line is not None:
            self._line.block(True)

    def resume_writing(self) -> None:
        if self._line is not None:
            self._line.block(False)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._line is not None:
            self._line.lost(exc)
