"""How a message travels on a byte stream: bounded frames, a JSON header, raw bytes behind it.

    frame    = length of the piece (u32, big endian), flags (u8; bit 0: the message goes on in the next frame), piece
    message  = length of the header (u32, big endian), header (JSON, ASCII, so that lone surrogates survive), body

Both ends use this module. It refuses frames, messages and headers above their caps before it stores them, so that what the
other end can make us hold is bounded.
"""

from __future__ import annotations

import json
import os
import struct
from collections import deque
from collections.abc import Iterator
from typing import Any, NoReturn

MIB = 1024 * 1024
FRAME_CAP = 16 * MIB
MESSAGE_CAP = 512 * MIB
HEADER_CAP = 4 * MIB

_FRAME = struct.Struct(">IB")
_LENGTH = struct.Struct(">I")
_MORE = 1
_LARGE = 64 * 1024
"""Bytes from which a frame is not gathered in one buffer first."""

Header = dict[str, Any]


class FrameError(Exception):
    """The bytes are not what this module writes, or are more than they may be."""


def pack(header: Header, body: bytes | memoryview = b"") -> list[bytes | memoryview]:
    """Give the pieces to write, in order, for one message."""
    head = _ENCODER.encode(header).encode("ascii")
    if len(head) > HEADER_CAP:
        raise FrameError(f"a header of {len(head):,} bytes; at most {HEADER_CAP:,}")
    start = _LENGTH.pack(len(head)) + head
    size = len(start) + len(body)
    if size > MESSAGE_CAP:
        raise FrameError(f"a message of {size:,} bytes; at most {MESSAGE_CAP:,}")
    if size <= FRAME_CAP:
        prefix = _FRAME.pack(size, 0) + start
        return [prefix + body] if size < 65536 else [prefix, body]
    view = memoryview(body)
    cut = FRAME_CAP - len(start)
    pieces: list[bytes | memoryview] = [_FRAME.pack(FRAME_CAP, _MORE) + start, view[:cut]]
    while cut < len(view):
        piece = view[cut : cut + FRAME_CAP]
        cut += len(piece)
        pieces += [_FRAME.pack(len(piece), _MORE if cut < len(view) else 0), piece]
    return pieces


class Parser:
    """Cut a byte stream into messages. `cap` bounds one message; `FrameError` ends the stream for good.

    What is read of a large frame is kept as it came, and copied once, when the message is whole.
    """

    def __init__(self, cap: int = MESSAGE_CAP) -> None:
        self.cap = cap
        self._buffer = bytearray()
        self._message = _Parts()
        self._missing = 0
        self._more = False

    @property
    def held(self) -> int:
        """Bytes of a message that is not whole yet."""
        return len(self._buffer) + self._message.size

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[tuple[Header, bytes]]:
        """Take what was read; give every message that is whole now."""
        if self._missing:
            piece = data[: self._missing]
            self._missing -= len(piece)
            self._message.put(piece)
            data = data[len(piece) :]
            if not self._missing and not self._more:
                yield self._message.take()
        if len(data):
            self._buffer += data
            yield from self._frames()

    def _frames(self) -> Iterator[tuple[Header, bytes]]:
        buffer, at = self._buffer, 0
        while len(buffer) - at >= _FRAME.size:
            size, flags = _FRAME.unpack_from(buffer, at)
            if size > FRAME_CAP or flags & ~_MORE:
                raise FrameError(f"a frame of {size:,} bytes with flags {flags}")
            if self._message.size + size > self.cap:
                raise FrameError(f"a message above {self.cap:,} bytes")
            end = at + _FRAME.size + size
            if len(buffer) < end and size < _LARGE:
                break
            self._more = bool(flags & _MORE)
            self._message.put(buffer[at + _FRAME.size : end])
            self._missing = max(0, end - len(buffer))
            at = min(end, len(buffer))
            if not self._missing and not self._more:
                yield self._message.take()
        del buffer[:at]


class _Parts:
    """A message as it comes. Small parts are put together, so that many of them cost no more than their bytes."""

    def __init__(self) -> None:
        self.size = 0
        self._parts: list[bytes | bytearray] = []

    def put(self, piece: bytes | bytearray | memoryview) -> None:
        self.size += len(piece)
        if len(piece) < _LARGE and self._parts and isinstance(self._parts[-1], bytearray):
            self._parts[-1] += piece
        else:
            self._parts.append(piece if type(piece) is bytes and len(piece) >= _LARGE else bytearray(piece))

    def take(self) -> tuple[Header, bytes]:
        """Read the message, which is whole, and begin the next one."""
        parts, size, self._parts, self.size = self._parts, self.size, [], 0
        if size < _LENGTH.size:
            raise FrameError("a message without a header")
        if len(parts[0]) < min(size, HEADER_CAP + _LENGTH.size):
            parts = _whole_header(parts, size)
        end = _LENGTH.size + _header_size(parts[0], size)
        with memoryview(parts[0]) as first:
            return _header(first[_LENGTH.size : end]), b"".join([first[end:], *parts[1:]])


def _whole_header(parts: list[bytes | bytearray], size: int) -> list[bytes | bytearray]:
    """Put so many parts together that the header is in the first one."""
    start = bytearray()
    for count, part in enumerate(parts, 1):
        start += part
        if len(start) >= _LENGTH.size and len(start) >= _LENGTH.size + _header_size(start, size):
            return [start, *parts[count:]]
    raise FrameError("a message without a header")


def _header_size(start: bytes | bytearray, whole: int) -> int:
    (size,) = _LENGTH.unpack_from(start)
    if size > HEADER_CAP or size > whole - _LENGTH.size:
        raise FrameError(f"a header of {size:,} bytes in a message of {whole:,}")
    return int(size)


def _header(data: memoryview) -> Header:
    try:
        header = _DECODER.decode(str(data, "ascii"))
    except (ValueError, RecursionError) as error:
        raise FrameError("a header that is not plain JSON") from error
    if type(header) is not dict:
        raise FrameError("a header that is not an object")
    return header


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


_ENCODER = json.JSONEncoder(separators=(",", ":"))
_DECODER = json.JSONDecoder(parse_constant=_refuse)


class Outbox:
    """What is still to be written to a descriptor that does not block."""

    def __init__(self) -> None:
        self.size = 0
        self._pieces: deque[memoryview] = deque()

    def put(self, pieces: list[bytes | memoryview]) -> None:
        for piece in pieces:
            if len(piece):
                self._pieces.append(memoryview(piece))
                self.size += len(piece)

    def write(self, fd: int) -> bool:
        """Write as much as the descriptor takes; whether nothing is left."""
        while self._pieces:
            piece = self._pieces[0]
            try:
                sent = os.write(fd, piece)
            except (BlockingIOError, InterruptedError):
                return False
            self.size -= sent
            if sent == len(piece):
                self._pieces.popleft()
            else:
                self._pieces[0] = piece[sent:]
        return True
