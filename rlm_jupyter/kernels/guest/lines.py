"""What crosses between the broker in a sandbox and the host that pulls its calls: lines one way, framed replies the other.

`/pending` is lines of JSON (ASCII), each at most `LINE_CAP` bytes; blank ones only show that the connection lives:

    {"kind":"hello","session":S}                    the first line of every answer
    {"n":5,"kind":"call","size":70,"digest":D,      a `wire.Call`: its header, and the first piece
     "head":{...},"data":"..."}                     of its prompts in base64
    {"n":5,"kind":"more","data":"..."}              its next piece, until there are `size` bytes
    {"n":6,"kind":"dropped","kernel":1,"call":C}    nobody waits for that call any more

The numbers grow; whoever has read up to N asks for what came after N. A digest covers every field of a call and its prompts,
and a reply must name it, so that an id alone answers nothing. `/respond` takes messages of `frames`: a `wire.Reply` with its
digest.

Both ends use this module. It refuses long lines, unknown kinds, numbers that do not grow and calls that are not what their
digest says.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from . import codec, wire
from .fields import WireError
from .frames import MESSAGE_CAP, FrameError, Header, pack

TOKEN = "X-RLM-Token"
SESSION = "X-RLM-Session"
PIECE = 512 * 1024
LINE_CAP = 4 * 1024 * 1024
HELD_MESSAGES = 2
"""How many requests of the greatest size the broker may be in the middle of."""

REPLY: wire.Known = {wire.Reply.kind: wire.Reply}


class LineError(Exception):
    """A line that this module does not write."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The broker is there; `session` is another one after each of its starts."""

    session: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A call, whole, and the digest that its reply has to name."""

    number: int
    call: wire.Call
    digest: str


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A call for which nobody waits any more."""

    number: int
    dropped: wire.Dropped


Event = Hello | Asked | GivenUp


def digest_of(call: wire.Call) -> str:
    """Hash everything that a call says."""
    hasher = _hasher(codec.encode(call)[0])
    hasher.update(call.data)
    return hasher.hexdigest()


def hello_line(session: str) -> bytes:
    return _line({"kind": "hello", "session": session})


def call_lines(number: int, call: wire.Call, digest: str) -> Iterator[bytes]:
    """Write a call, its prompts in pieces."""
    head, data = codec.encode(call)
    first = {"n": number, "kind": "call", "size": len(data), "digest": digest, "head": head, "data": _coded(data[:PIECE])}
    yield _line(first)
    for at in range(PIECE, len(data), PIECE):
        yield _line({"n": number, "kind": "more", "data": _coded(data[at : at + PIECE])})


def dropped_line(number: int, dropped: wire.Dropped) -> bytes:
    return _line({"n": number, "kind": "dropped", "kernel": dropped.kernel, "call": dropped.call})


def pack_reply(reply: wire.Reply, digest: str) -> bytes:
    """Write a reply to the call with this digest."""
    header, body = codec.encode(reply)
    return b"".join(pack({**header, "digest": digest}, body))


def read_reply(header: Header, body: bytes) -> tuple[wire.Reply, str]:
    """Read a reply and the digest that it names; FrameError or WireError for anything else."""
    digest = header.pop("digest", None)
    if type(digest) is not str:
        raise FrameError("a reply without a digest")
    reply = codec.decode(header, body, REPLY)
    assert isinstance(reply, wire.Reply)
    return reply, digest


class Reader:
    """Cut the bytes of one `/pending` into events whose numbers grow from `after`; LineError ends it.

    `whole` counts the lines so far, `blank` those without anything.
    """

    def __init__(self, after: int = 0) -> None:
        self.blank = self.whole = 0
        self._after = after
        self._buffer = bytearray()
        self._begun = False
        self._part: _Part | None = None

    @property
    def partial(self) -> bool:
        """Whether a line has begun that is not whole."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> Iterator[Event]:
        """Take what was read; give every event that is whole now."""
        start = len(self._buffer)
        self._buffer += data
        at = 0
        while (end := self._buffer.find(b"\n", max(at, start))) >= 0:
            line, at = bytes(self._buffer[at:end]), end + 1
            if len(line) > LINE_CAP:
                raise LineError(f"a line above {LINE_CAP:,} bytes")
            self.whole += 1
            if not line:
                self.blank += 1
            elif event := self._take(line):
                yield event
        del self._buffer[:at]
        if len(self._buffer) > LINE_CAP:
            raise LineError(f"a line above {LINE_CAP:,} bytes")

    def _take(self, line: bytes) -> Event | None:
        fields = _fields(line)
        kind = fields.get("kind")
        if not self._begun:
            if kind != "hello" or not _is_hex(fields.get("session"), 32):
                raise LineError("no greeting")
            self._begun = True
            return Hello(fields["session"])
        number = fields.get("n")
        if type(number) is not int:
            raise LineError("a line without a number")
        if kind == "more":
            return self._more(number, fields)
        if self._part is not None or number <= self._after:
            raise LineError("a line out of order")
        if kind == "call":
            self._part = _Part(number, fields)
            return self._whole()
        if kind != "dropped":
            raise LineError(f"a line of unknown kind {str(kind)[:40]!r}")
        self._after = number
        return GivenUp(number, _dropped(fields))

    def _more(self, number: int, fields: dict[str, Any]) -> Event | None:
        if self._part is None or self._part.number != number:
            raise LineError("a piece of no call")
        self._part.add(fields)
        return self._whole()

    def _whole(self) -> Event | None:
        part = self._part
        if part is None or not part.whole:
            return None
        self._after, self._part = part.number, None
        return part.asked()


class _Part:
    """A call as it comes."""

    def __init__(self, number: int, fields: dict[str, Any]) -> None:
        self.number = number
        self._head, self._size, self._digest = fields.get("head"), fields.get("size"), fields.get("digest")
        if type(self._head) is not dict or not _is_hex(self._digest, 64):
            raise LineError("a call without head or digest")
        if type(self._size) is not int or not 0 <= self._size <= MESSAGE_CAP:
            raise LineError("a call above its cap")
        self._hasher = _hasher(self._head)
        self._pieces: list[bytes] = []
        self._held = 0
        self.add(fields)

    @property
    def whole(self) -> bool:
        return self._held == self._size

    def add(self, fields: dict[str, Any]) -> None:
        coded = fields.get("data")
        if type(coded) is not str:
            raise LineError("a piece without data")
        try:
            piece = base64.b64decode(coded, validate=True)
        except (binascii.Error, ValueError):
            raise LineError("a piece that is not base64") from None
        self._held += len(piece)
        assert self._size is not None
        if self._held > self._size or (not piece and self._size):
            raise LineError("more or less of a call than was announced")
        self._hasher.update(piece)
        self._pieces.append(piece)

    def asked(self) -> Asked:
        if self._hasher.hexdigest() != self._digest:
            raise LineError("a call that is not what its digest says")
        assert self._head is not None
        try:
            call = codec.decode(self._head, b"".join(self._pieces), wire.CALL)
        except WireError as error:
            raise LineError(str(error)) from None
        assert isinstance(call, wire.Call)
        return Asked(self.number, call, self._hasher.hexdigest())


def _hasher(head: Header) -> hashlib._Hash:
    return hashlib.sha256(_SORTED.encode(head).encode("ascii") + b"\n")


def _line(fields: dict[str, Any]) -> bytes:
    return _ENCODER.encode(fields).encode("ascii") + b"\n"


def _coded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _fields(line: bytes) -> dict[str, Any]:
    try:
        fields = _DECODER.decode(line.decode("ascii"))
    except (ValueError, RecursionError):
        raise LineError("a line that is not plain JSON") from None
    if type(fields) is not dict:
        raise LineError("a line that is no object")
    return fields


def _dropped(fields: dict[str, Any]) -> wire.Dropped:
    header = {"kind": "dropped", "kernel": fields.get("kernel"), "call": fields.get("call")}
    try:
        message = codec.decode(header, b"", {wire.Dropped.kind: wire.Dropped})
    except WireError as error:
        raise LineError(str(error)) from None
    assert isinstance(message, wire.Dropped)
    return message


def _is_hex(value: object, length: int) -> bool:
    return type(value) is str and len(value) == length and set(value) <= set("0123456789abcdef")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


_ENCODER = json.JSONEncoder(separators=(",", ":"))
_SORTED = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
_DECODER = json.JSONDecoder(parse_constant=_refuse)
