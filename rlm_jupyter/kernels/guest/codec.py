"""Messages as headers and bodies, both ways: what host and supervisor write, and all that either of them reads.

The keys of a header are exactly the fields of the message; `data` is the body and stands in no header. A field with a default
may be left out, and stands there only where it says something else. The supervisor numbers its messages besides (`n`).

What is not exactly one of the known messages is refused with a WireError: unknown kinds, missing or further keys, other types
(`fields`), and values that no sender of ours writes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from . import fields, wire
from .fields import WireError, read_digest
from .frames import Header

_CALL = re.compile(r"[0-9a-f]{32}")


def encode(message: wire.Message) -> tuple[Header, bytes]:
    """Give the header and the body of a message."""
    header: Header = {"kind": message.kind}
    body = b""
    for name, _, default in _FIELDS[type(message)]:
        value = getattr(message, name)
        if name == "data":
            body = value
        elif value != default:
            header[name] = dataclasses.asdict(value) if isinstance(value, wire.FinalInfo) else value
    return header, body


def decode(header: Header, body: bytes, known: wire.Known) -> wire.Message:
    """Read a message of one of the `known` types; WireError for anything else."""
    kind = header.get("kind")
    cls = known.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise WireError(f"a message of unknown kind {str(kind)[:40]!r}")
    values = _read(cls, header, body, 1)
    message: wire.Message = cls(**values)
    _check_meaning(message)
    return message


def _read(cls: type, header: Header, body: bytes, extra: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, read, default in _FIELDS[cls]:
        if name == "data":
            values[name] = body
            extra -= 1
        elif name in header:
            values[name] = read(header[name])
        elif default is dataclasses.MISSING:
            raise WireError(f"{cls.__name__} without {name}")
    if len(header) != len(values) + extra:
        raise WireError(f"{cls.__name__} with unknown keys")
    if body and "data" not in values:
        raise WireError(f"{cls.__name__} with a body")
    return values


def _check_meaning(message: wire.Message) -> None:
    """Refuse values that no sender of ours writes."""
    if isinstance(message, wire.Call | wire.Reply | wire.Dropped | wire.Bring) and not _CALL.fullmatch(message.call):
        raise WireError("a call id that is not 32 hex digits")
    if isinstance(message, wire.Call | wire.Reply) and sum(message.sizes) + sum(getattr(message, "told", ())) != len(
        message.data
    ):
        raise WireError("sizes that do not add up to the body")
    if isinstance(message, wire.Call) and len(message.told) != len(message.sizes) * message.child:
        raise WireError("contexts that are not one for each child")
    if isinstance(message, wire.Call) and not message.batch and len(message.sizes) != 1:
        raise WireError("a single call with several prompts")
    if isinstance(message, wire.FilePart | wire.Append | wire.Discard) and not wire.FILE.fullmatch(message.path):
        raise WireError("a file's name that is none")
    if isinstance(message, wire.Append) and not wire.FILE.fullmatch(message.part):
        raise WireError("a file's name that is none")
    if isinstance(message, wire.Output) and message.stream not in wire.STREAMS:
        raise WireError("output on an unknown stream")
    if isinstance(message, wire.Done) and message.status not in wire.STATUSES:
        raise WireError("an unknown status")
    if isinstance(message, wire.Picture) and len(message.data) > wire.PICTURE_CAP:
        raise WireError("a picture above its cap")
    if isinstance(message, wire.ValuePart) and len(message.data) > wire.VALUE_PIECE:
        raise WireError("a piece of a value above its cap")


def read_final(value: object) -> wire.FinalInfo:
    """Read what FINAL_VAR says of its value."""
    if type(value) is not dict:
        raise WireError("a final value that is no object")
    final = wire.FinalInfo(**_read(wire.FinalInfo, value, b"", 0))
    if final.form not in wire.FORMS:
        raise WireError("a final value of unknown form")
    read_digest(final.digest)
    return final


def _final(value: object) -> wire.FinalInfo | None:
    return None if value is None else read_final(value)


_READERS: dict[str, Callable[[object], Any]] = {
    "int": fields.whole, "str": fields.text, "str | None": fields.text_or_none, "bool": fields.truth, "bytes": fields.whole,
    "tuple[int, ...]": fields.wholes, "tuple[str, ...]": fields.texts, "FinalInfo | None": _final,
}  # fmt: skip

_FIELDS: dict[type, tuple[tuple[str, Callable[[object], Any], Any], ...]] = {
    cls: tuple((field.name, _READERS[str(field.type)], field.default) for field in dataclasses.fields(cls))
    for cls in (*wire.TO_SUPERVISOR.values(), *wire.TO_HOST.values(), wire.FinalInfo)
}
