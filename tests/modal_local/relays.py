"""Bytes from one connection to another, with each side held up when the other is full."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Relay(asyncio.Protocol):
    """One side of a pair. What it receives goes to the other side, or waits until that is connected."""

    def __init__(self) -> None:
        self.other: Relay | None = None
        self.transport: asyncio.Transport | None = None
        self.over = asyncio.Event()
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self.over.is_set():
            transport.abort()
            return
        assert self.other is not None
        if self.other.transport is None:
            transport.pause_reading()
            return
        for data in self.other._early:
            transport.write(data)
        self.other._early.clear()
        self.other.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)
        else:
            self._early.append(data)

    def eof_received(self) -> bool:
        """Pass on that the sender has no more; TLS cannot be open in one direction only."""
        other = self.other
        if self.transport is not None and self.transport.get_extra_info("ssl_object") is not None:
            return False
        if other is not None and other.transport is not None and other.transport.can_write_eof():
            other.transport.write_eof()
            return True
        return False

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set()
        if self.other is not None:
            self.other.close()

    def close(self) -> None:
        self.over.set()
        if self.transport is not None:
            self.transport.close()


class Tasks:
    """Tasks that belong to something and end with it."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def cancel(self) -> None:
        for task in self._running:
            task.cancel()


def join(one: Relay, other: Relay) -> None:
    """Make two relays the sides of one pair."""
    one.other, other.other = other, one
