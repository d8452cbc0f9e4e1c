"""The way from a kernel to its supervisor: a unix socket, one connection per process and thread.

A token first, then requests, each with one answer; a descriptor may travel with either. The frames are those of `frames`,
written here without its caps: what comes is the supervisor's own, and what goes is bounded at the other end.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

from .failures import LMError

FRAME_CAP = 16 * 1024 * 1024
_FRAME = struct.Struct(">IB")
_LENGTH = struct.Struct(">I")
_ENCODER = json.JSONEncoder(separators=(",", ":"))


class Channel:
    """Requests to the supervisor. Safe from threads and in forked children: each has a connection of its own."""

    def __init__(self, address: str, token: str) -> None:
        self._address = address
        self._token = token
        self._local = threading.local()

    def ask(self, header: dict[str, Any], body: bytes = b"", fd: int | None = None) -> tuple[dict[str, Any], bytes]:
        """Send one request, with a descriptor if one is given, and wait for its answer."""
        return self._exchange(header, body, fd)[:2]

    def take(self, header: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Send one request whose answer brings a descriptor, or says why not."""
        answer, _, fd = self._exchange(header, b"", None)
        if fd is None:
            raise LMError(answer.get("refused", "nothing was handed over"))
        return answer, fd

    def _exchange(self, header: dict[str, Any], body: bytes, fd: int | None) -> tuple[dict[str, Any], bytes, int | None]:
        """Ask and wait; an interrupted wait gives the connection up, and so the request."""
        try:
            connection = self._connection()
            send(connection, header, body, fd)
            return receive(connection)
        except OSError as error:
            self.drop()
            raise LMError(f"the connection to the host is gone ({error})") from None
        except BaseException:
            self.drop()
            raise

    def drop(self) -> None:
        """Close this thread's connection; the next request opens another."""
        connection = getattr(self._local, "connection", None)
        self._local.connection = None
        if connection is not None:
            connection.close()

    def _connection(self) -> socket.socket:
        connection: socket.socket | None = getattr(self._local, "connection", None)
        if connection is not None and self._local.pid == os.getpid():
            return connection
        connection = socket.socket(socket.AF_UNIX)
        self._local.connection, self._local.pid = connection, os.getpid()
        connection.connect(self._address)
        send(connection, {"kind": "hello", "token": self._token}, b"")
        return connection


def frames(header: dict[str, Any], body: bytes) -> Iterator[bytes]:
    """Write a message, in frames."""
    head = _ENCODER.encode(header).encode("ascii")
    view = memoryview(_LENGTH.pack(len(head)) + head + body)
    while True:
        piece, view = view[:FRAME_CAP], view[FRAME_CAP:]
        yield _FRAME.pack(len(piece), 1 if view else 0) + piece
        if not view:
            return


def message(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Read a message that is whole."""
    whole, at, more = bytearray(), 0, 1
    while more:
        size, more = _FRAME.unpack_from(data, at)
        at += _FRAME.size + size
        whole += data[at - size : at]
    (size,) = _LENGTH.unpack_from(whole)
    return json.loads(whole[4 : 4 + size].decode("ascii")), bytes(whole[4 + size :])


def send(connection: socket.socket, header: dict[str, Any], body: bytes, fd: int | None = None) -> None:
    """Write a message to a connection, and a descriptor with its first byte."""
    for frame in frames(header, body):
        if fd is not None:
            frame, fd = frame[socket.send_fds(connection, [frame], [fd]) :], None
        connection.sendall(frame)


def receive(connection: socket.socket) -> tuple[dict[str, Any], bytes, int | None]:
    """Read one message, and the descriptor that came with its first byte."""
    whole = bytearray()
    first, fds, _, _ = socket.recv_fds(connection, 1, 1)
    head = first + _read(connection, _FRAME.size - len(first)) if first else _read(connection, _FRAME.size)
    while True:
        size, more = _FRAME.unpack(head)
        whole += _read(connection, size)
        if not more:
            break
        head = _read(connection, _FRAME.size)
    (size,) = _LENGTH.unpack_from(whole)
    return json.loads(whole[4 : 4 + size].decode("ascii")), bytes(whole[4 + size :]), fds[0] if fds else None


def _read(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    at = 0
    while at < size:
        count = connection.recv_into(view[at:])
        if not count:
            raise ConnectionError("closed")
        at += count
    return data
