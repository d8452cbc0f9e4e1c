"""The form `typed`: a header of JSON with `shape` and `data` side by side, and sections of bytes. The host's half.

`kernels/guest/crossing.py` and `tables.py` write it. Every shape is looked up in a table; the data it stands beside must be
exactly of the form that the shape asks for, else the value is `Malformed`. Packages are imported only for their own values.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import fractions
import json
import re
import struct
import uuid
import zoneinfo
from collections.abc import Callable
from typing import Any

from rlm_jupyter import pictures

_HEADER_CAP = 512 * 1024 * 1024
_DEEPEST = 150
_ZONE = re.compile(r"[A-Za-z0-9_+-]{1,40}(?:/[A-Za-z0-9_+-]{1,40}){0,3}")


class Malformed(ValueError):
    """Bytes that no encoder of ours wrote; the text says what is wrong."""


class OtherText(str):
    """A part of an answer of a kind that does not cross: its text. `type_name` is the kernel's name for its type."""

    type_name: str

    def __new__(cls, text: str, type_name: str) -> OtherText:
        self = super().__new__(cls, text)
        self.type_name = type_name
        return self


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """A dataclass or named tuple of the kernel's: the fields by name, since its class exists only there."""

    type_name: str
    fields: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.fields[name]
        except KeyError:
            raise AttributeError(name) from None

    def __hash__(self) -> int:
        return hash((self.type_name, *self.fields.items()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.fields.items())
        return f"{self.type_name.rpartition('.')[2]}({fields})"


def read(data: bytes | memoryview) -> Any:
    """Give the object that the bytes hold; `Malformed` where they hold none."""
    if len(data) < 8:
        raise Malformed("no header")
    (length,) = struct.unpack_from(">Q", data)
    if length > min(len(data) - 8, _HEADER_CAP):
        raise Malformed("a header that is cut off")
    header = json.loads(str(data[8 : 8 + length], "ascii"))
    if type(header) is not dict or set(header) != {"shape", "data", "sections"} or type(header["sections"]) is not list:
        raise Malformed("a header without its parts")
    sections, at = [], 8 + length
    for size in header["sections"]:
        if type(size) is not int or not 0 <= size <= len(data) - at:
            raise Malformed("a section that is cut off")
        sections.append(memoryview(data)[at : at + size])
        at += size
    if at != len(data):
        raise Malformed("bytes that belong to nothing")
    try:
        return Reader(sections).read(header["shape"], header["data"])
    except (Malformed, RecursionError, ModuleNotFoundError):
        raise
    except Exception as error:  # the packages that read arrays and tables raise what they like
        raise Malformed(f"{type(error).__name__}: {error}"[:300]) from None


class Reader:
    """Reads data by the shapes beside it."""

    def __init__(self, sections: list[memoryview]) -> None:
        self._sections = sections
        self._depth = 0

    def read(self, shape: Any, data: Any) -> Any:
        if type(shape) is int and shape == 0:
            return data
        if type(shape) is not list or not shape or type(shape[0]) is not str:
            raise Malformed("a shape that is none")
        name, *details = shape
        reader = _READERS.get(name)
        if reader is None:
            raise Malformed(f"a shape of unknown kind {name[:40]!r}")
        self._depth += 1
        if self._depth > _DEEPEST:
            raise Malformed("a value that is nested too deeply")
        try:
            return reader(self, details, data)
        finally:
            self._depth -= 1

    def items(self, shapes: Any, data: Any) -> list[Any]:
        """Read a list of values: with shape 0 all are plain, else each has its own."""
        if type(data) is not list:
            raise Malformed("items that are no list")
        if type(shapes) is int and shapes == 0:
            return data
        if type(shapes) is not list or len(shapes) != len(data):
            raise Malformed("items without a shape for each")
        return [self.read(shape, item) for shape, item in zip(shapes, data, strict=True)]

    def section(self, number: Any) -> memoryview:
        if type(number) is not int or not 0 <= number < len(self._sections):
            raise Malformed("a section that is not there")
        return self._sections[number]


Details = list[Any]


def pair(data: Any, count: int = 2) -> list[Any]:
    """Check that `data` is a list of `count` parts."""
    if type(data) is not list or len(data) != count:
        raise Malformed(f"not a list of {count}")
    return data


def text(data: Any) -> str:
    if type(data) is not str:
        raise Malformed("not a text")
    return data


def whole(data: Any) -> int:
    if type(data) is not int:
        raise Malformed("not a whole number")
    return data


def zone(data: Any) -> datetime.tzinfo | None:
    """Read a time zone: None, seconds from UTC (and a name), or a key of the host's own database, which leads nowhere else."""
    if data is None:
        return None
    if type(data) in (int, float):
        return datetime.timezone(datetime.timedelta(seconds=data))
    if type(data) is list:
        seconds, name = pair(data)
        return datetime.timezone(datetime.timedelta(seconds=seconds), text(name))
    if not _ZONE.fullmatch(text(data)):
        raise Malformed("a time zone that is none")
    return zoneinfo.ZoneInfo(data)


def _hex(data: Any) -> int:
    return int(text(data), 16)


def _apart(items: list[Any]) -> list[Any]:
    """Make each NaN one of its own, as different keys are: JSON gives the same one for all."""
    return [float("nan") if type(item) is float and item != item else item for item in items]


def _group(kind: Callable[[list[Any]], Any]) -> Callable[[Reader, Details, Any], Any]:
    def read(reader: Reader, details: Details, data: Any) -> Any:
        (shapes,) = details
        found = kind(_apart(reader.items(shapes, data)))
        if len(found) != len(data):
            raise Malformed("the same item twice")
        return found

    return read


def _mapping(kind: Callable[[Any], Any]) -> Callable[[Reader, Details, Any], Any]:
    def read(reader: Reader, details: Details, data: Any) -> Any:
        keys, values = pair(details)
        key_data, value_data = pair(data)
        found_keys, found = _apart(reader.items(keys, key_data)), reader.items(values, value_data)
        result = kind(dict(zip(found_keys, found, strict=True)))
        if len(result) != len(found):
            raise Malformed("the same key twice")
        return result

    return read


def _deque(reader: Reader, details: Details, data: Any) -> Any:
    longest, items = pair(data)
    return collections.deque(reader.items(details[0], items), None if longest is None else whole(longest))


def _moment(reader: Reader, details: Details, data: Any) -> datetime.datetime:
    told, fold, where = pair(data, 3)
    return datetime.datetime.fromisoformat(text(told)).replace(fold=whole(fold), tzinfo=zone(where))


def _time(reader: Reader, details: Details, data: Any) -> datetime.time:
    told, fold, where = pair(data, 3)
    return datetime.time.fromisoformat(text(told)).replace(fold=whole(fold), tzinfo=zone(where))


def _record(reader: Reader, details: Details, data: Any) -> Record:
    name, names, shapes = pair(details, 3)
    if type(names) is not list or len(set(map(text, names))) != len(names):
        raise Malformed("fields without names")
    return Record(text(name)[:200], dict(zip(names, reader.items(shapes, data), strict=True)))


def _picture(reader: Reader, details: Details, data: Any) -> pictures.Picture:
    return pictures.check(bytes(reader.section(data)))


def _numpy(reader: Reader, details: Details, data: Any) -> Any:
    from rlm_jupyter.values import arrays

    return arrays.array(reader, details, data)


def _numpy_scalar(reader: Reader, details: Details, data: Any) -> Any:
    return _numpy(reader, details, data)[()]


def _masked_array(reader: Reader, details: Details, data: Any) -> Any:
    from rlm_jupyter.values import arrays

    return arrays.masked(*(reader.read(*each) for each in zip(pair(details, 3), pair(data, 3), strict=True)))


def _table(name: str) -> Callable[[Reader, Details, Any], Any]:
    def read(reader: Reader, details: Details, data: Any) -> Any:
        from rlm_jupyter.values import tables

        return getattr(tables, name)(reader, details, data)

    return read


_READERS: dict[str, Callable[[Reader, Details, Any], Any]] = {
    "list": _group(list),
    "tuple": _group(tuple),
    "set": _group(set),
    "frozenset": _group(frozenset),
    "deque": _deque,
    "dict": _mapping(dict),
    "OrderedDict": _mapping(collections.OrderedDict),
    "Counter": _mapping(collections.Counter),
    "str": lambda reader, details, data: str(reader.section(data), "utf-8", "surrogatepass"),
    "bytes": lambda reader, details, data: bytes(reader.section(data)),
    "bytearray": lambda reader, details, data: bytearray(reader.section(data)),
    "int": lambda reader, details, data: _hex(data),
    "complex": lambda reader, details, data: complex(*pair(data)),
    "range": lambda reader, details, data: range(*map(_hex, pair(data, 3))),
    "Decimal": lambda reader, details, data: decimal.Decimal(text(data)),
    "UUID": lambda reader, details, data: uuid.UUID(text(data)),
    "Fraction": lambda reader, details, data: fractions.Fraction(*map(_hex, pair(data))),
    "date": lambda reader, details, data: datetime.date.fromisoformat(text(data)),
    "datetime": _moment,
    "time": _time,
    "timedelta": lambda reader, details, data: datetime.timedelta(*map(whole, pair(data, 3))),
    "record": _record,
    "picture": _picture,
    "text": lambda reader, details, data: OtherText(text(data), text(details[0])[:200]),
    "ndarray": _numpy,
    "numpy scalar": _numpy_scalar,
    "masked array": _masked_array,
    "ndarray of objects": lambda reader, details, data: _table("objects_array")(reader, details, data),
    "pandas.DataFrame": _table("pandas_frame"),
    "pandas.Series": _table("pandas_series"),
    "pandas.Index": _table("pandas_index"),
    "pandas.array": _table("pandas_array"),
    "pandas.Timestamp": _table("pandas_timestamp"),
    "pandas.Timedelta": _table("pandas_timedelta"),
    "pandas.Period": _table("pandas_period"),
    "pandas.Interval": _table("pandas_interval"),
    "pandas gap": _table("pandas_gap"),
    "pyarrow.Table": _table("arrow_table"),
    "pyarrow.RecordBatch": _table("arrow_batch"),
    "pyarrow.ChunkedArray": _table("arrow_chunks"),
    "pyarrow.Array": _table("arrow_array"),
    "pyarrow.Scalar": _table("arrow_scalar"),
    "polars.DataFrame": _table("polars_frame"),
    "polars.Series": _table("polars_series"),
}
