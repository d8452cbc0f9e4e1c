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
    """Cut a byte stream into messages. `cap` bounds one message; `FrameError` ends the stream for good."""

    def __init__(self, cap: int = MESSAGE_CAP) -> None:
        self.cap = cap
        self._buffer = bytearray()
        self._message = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[tuple[Header, bytes]]:
        """Take what was read; give every message that is whole now."""
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= _FRAME.size:
            size, flags = _FRAME.unpack_from(buffer, at)
            if size > FRAME_CAP or flags & ~_MORE:
                raise FrameError(f"a frame of {size:,} bytes with flags {flags}")
            if len(self._message) + size > self.cap:
                raise FrameError(f"a message above {self.cap:,} bytes")
            end = at + _FRAME.size + size
            if len(buffer) < end:
                break
            piece = buffer[at + _FRAME.size : end]
            at = end
            if flags & _MORE:
                self._message += piece
                continue
            if self._message:
                self._message += piece
                piece, self._message = self._message, bytearray()
            yield _unpack(piece)
        del buffer[:at]


def _unpack(message: bytearray) -> tuple[Header, bytes]:
    if len(message) < _LENGTH.size:
        raise FrameError("a message without a header")
    (size,) = _LENGTH.unpack_from(message)
    if size > HEADER_CAP or size > len(message) - _LENGTH.size:
        raise FrameError(f"a header of {size:,} bytes in a message of {len(message):,}")
    end = _LENGTH.size + size
    try:
        header = _DECODER.decode(message[_LENGTH.size : end].decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise FrameError("a header that is not plain JSON") from error
    if type(header) is not dict:
        raise FrameError("a header that is not an object")
    return header, bytes(memoryview(message)[end:])


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
