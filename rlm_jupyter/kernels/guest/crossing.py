"""Values on their way from a kernel to the host. The host's half is `rlm_jupyter.values`.

A value goes out in one of three forms. `text`: a str, or what a thing of another kind looks like as text. `json`: what JSON
gives back exactly. `typed`: a header of JSON, and sections of bytes. In the header `shape` says of which type each part of
`data` is, and stands beside it: data that looks like a shape is only data. Built-in types and pictures are written here, what
packages hold in `tables`.

Standard library only at import; packages such as pandas are touched only when a value is one of theirs. Like `repl` this very
source is executed in every kernel.
"""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import struct
import types
from collections.abc import Collection, Iterator
from typing import Any

from . import tables
from .shapes import PACKAGES, PLAIN, Encoded, Inexact, zone

_DEEPEST = 100
_PARTS_CAP = 5_000_000
_INT_BITS = 8192
_PICTURE_CAP = 8 * 1024 * 1024
_NO_PNG = ("CMYK", "YCbCr", "LAB", "HSV", "RGBX", "RGBa")
"""Modes of PIL's images that PNG does not know, such as that of a photograph for print."""
_VIEWS = ("dict_keys", "dict_values", "dict_items")


def encode(value: Any, packages: Collection[str] = PACKAGES) -> tuple[str, str, bytes]:
    """Give form, type name and bytes of a value: exact, or as text with its type named.

    `packages` are those that the host has: it could not read a table of another. A TypeError says what has no value yet, such
    as a generator, and what cannot even be told as text.
    """
    kind = type_name(value)
    _refuse(value, "is")
    if type(value) is str:
        return "text", kind, value.encode("utf-8", "surrogatepass")
    try:
        encoder = _Encoder(packages)
        shape, data = encoder.encode(value)
        if shape == PLAIN:
            return "json", kind, json.dumps(data, separators=(",", ":")).encode("ascii")
        if type(shape) is not list or shape[0] != "text":
            return "typed", kind, encoder.frame(shape, data)
    except (Inexact, ValueError, RecursionError):
        pass
    return "text", kind, _told(value).encode("utf-8", "surrogatepass")


def _refuse(value: Any, how: str) -> None:
    """Refuse what has no value yet: as text it would be a name and an address."""
    kind = type_name(value)
    if isinstance(value, (Iterator, types.AsyncGeneratorType, asyncio.Future)) or kind.startswith("polars.lazyframe."):
        raise TypeError(
            f"the answer {how} a {kind}, which has no value yet; give what comes of it, as list(...) or .collect() does"
        )
    if isinstance(value, types.CoroutineType):
        raise TypeError(f"the answer {how} a coroutine, which has no value yet; await it first")


def type_name(value: Any) -> str:
    """Give the whole name of a value's type."""
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return name.encode("ascii", "backslashreplace").decode()[:200]


def text_of(value: Any) -> str:
    """Give what a value looks like as text."""
    return str(value) if isinstance(value, str) or _root(value) in ("pandas", "polars") else repr(value)


def _told(value: Any) -> str:
    try:
        return text_of(value)
    except Exception as error:  # an object's own __repr__ may raise anything
        reason = f"{type(error).__name__}: {error}"[:200]
        raise TypeError(f"a {type_name(value)} has no text to give as an answer ({reason}); give what it holds") from None


def _root(value: Any) -> str:
    return str(type(value).__module__).partition(".")[0]


class _Encoder:
    """Encodes one value; `sections` collects what is bytes."""

    def __init__(self, packages: Collection[str]) -> None:
        self.packages = packages
        self.sections: list[Any] = []
        self._inside: set[int] = set()
        self._parts = 0
        self._depth = 0

    def frame(self, shape: Any, data: Any) -> bytes:
        """Give the bytes of the `typed` form: length of the header, header, sections."""
        sizes = [len(section) for section in self.sections]
        header = json.dumps({"shape": shape, "data": data, "sections": sizes}, separators=(",", ":")).encode("ascii")
        return b"".join([struct.pack(">Q", len(header)), header, *self.sections])

    def encode(self, value: Any) -> Encoded:
        kind = type(value)
        self._parts += 1
        if self._parts > _PARTS_CAP:
            raise Inexact("too many parts")
        if kind is str:
            return (PLAIN, value) if _is_utf8(value) else (["str"], self.section(value.encode("utf-8", "surrogatepass")))
        if value is None or kind is bool or kind is float:
            return PLAIN, value
        if kind is int:
            return (PLAIN, value) if value.bit_length() <= _INT_BITS else (["int"], hex(value))
        if id(value) in self._inside or self._depth >= _DEEPEST:
            raise Inexact("within itself, or too deep")
        self._inside.add(id(value))
        self._depth += 1
        try:
            return self._container(value) or self._scalar(value) or self._package(value) or self._other(value)
        finally:
            self._inside.discard(id(value))
            self._depth -= 1

    def section(self, data: Any) -> int:
        self.sections.append(data)
        return len(self.sections) - 1

    def items(self, values: Any) -> Encoded:
        """Encode many values: one shape where all are plain, else one for each."""
        pairs = [self.encode(item) for item in values]
        shapes = [shape for shape, _ in pairs]
        return (shapes if any(shape != PLAIN for shape in shapes) else PLAIN), [data for _, data in pairs]

    def _container(self, value: Any) -> Encoded | None:
        kind = type(value)
        if kind is list:
            shapes, data = self.items(value)
            return (["list", shapes] if shapes else PLAIN), data
        if kind is dict and all(type(key) is str and _is_utf8(key) for key in value):
            shapes, data = self.items(value.values())
            if not shapes:
                return PLAIN, dict(zip(value, data, strict=True))
            return ["dict", PLAIN, shapes], [list(value), data]
        name = kind.__name__
        if name in _VIEWS and kind.__module__ == "builtins":
            return self._container(list(value))
        if kind in (tuple, set, frozenset):
            shapes, data = self.items(value)
            return [name, shapes], data
        if kind.__module__ == "collections" and name == "deque":
            shapes, data = self.items(value)
            return [name, shapes], [value.maxlen, data]
        special = kind.__module__ == "collections" and name in ("OrderedDict", "Counter", "defaultdict")
        if kind is dict or special or (name == "PrettyDict" and _root(value) == "pandas"):
            keys, key_data = self.items(value.keys())
            shapes, data = self.items(value.values())
            return [name if name in ("OrderedDict", "Counter") else "dict", keys, shapes], [key_data, data]
        return None

    def _scalar(self, value: Any) -> Encoded | None:
        kind = type(value)
        name = kind.__name__
        if kind in (bytes, bytearray):
            return [name], self.section(bytes(value))
        if kind is complex:
            return [name], [value.real, value.imag]
        if kind is range:
            return [name], [hex(number) for number in (value.start, value.stop, value.step)]
        if (kind.__module__, name) in (("decimal", "Decimal"), ("uuid", "UUID"), ("datetime", "date")):
            return [name], str(value)
        if (kind.__module__, name) == ("fractions", "Fraction"):
            return [name], [hex(value.numerator), hex(value.denominator)]
        if (kind.__module__, name) == ("datetime", "timedelta"):
            return [name], [value.days, value.seconds, value.microseconds]
        if (kind.__module__, name) in (("datetime", "datetime"), ("datetime", "time")):
            return [name], [value.replace(tzinfo=None, fold=0).isoformat(), value.fold, zone(value.tzinfo)]
        return None

    def _package(self, value: Any) -> Encoded | None:
        root = _root(value)
        if root in PACKAGES:
            return tables.encode(self, value, root) if root in self.packages else None
        picture = _picture(value, root)
        return None if picture is None else (["picture"], self.section(picture))

    def _other(self, value: Any) -> Encoded:
        kind = type(value)
        names: list[str] | None = None
        if dataclasses.is_dataclass(kind):
            names = [field.name for field in dataclasses.fields(value)]
        elif isinstance(value, tuple) and isinstance(getattr(kind, "_fields", None), tuple):
            names = list(kind._fields)
        elif isinstance(getattr(kind, "__pydantic_fields__", None), dict):
            names = list(kind.__pydantic_fields__)
        elif isinstance(getattr(kind, "__attrs_attrs__", None), tuple):
            names = [field.name for field in kind.__attrs_attrs__]
        if names is None or not all(type(name) is str and hasattr(value, name) for name in names):
            _refuse(value, "holds")
            return ["text", type_name(value)], _told(value).encode("utf-8", "backslashreplace").decode()
        shapes, data = self.items([getattr(value, name) for name in names])
        return ["record", type_name(value), names, shapes], data


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _picture(value: Any, root: str) -> bytes | None:
    """Give the PNG or JPEG of a figure of matplotlib, an image of PIL, or an image of IPython."""
    if root == "IPython" and type(value).__name__ == "Image":
        data = value.data
    elif root == "PIL" and hasattr(value, "save"):
        out = io.BytesIO()
        try:
            (value.convert("RGB") if value.mode in _NO_PNG else value).save(out, "PNG")
        except Exception:  # of numbers that are no colours, or without a pixel; what PIL raises then is its own affair
            return None
        data = out.getvalue()
    elif root == "matplotlib" and hasattr(value, "savefig"):
        out = io.BytesIO()
        value.savefig(out, format="png")
        data = out.getvalue()
    else:
        return None
    if not isinstance(data, bytes) or len(data) > _PICTURE_CAP or not data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        return None
    return data
