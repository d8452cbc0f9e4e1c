"""Any object -> a pickle whose large buffers stay outside of it.

Pickle protocol 5 hands over the memory of arrays, data frames and Arrow columns as buffers: they are written as they are,
aligned, and who loads them maps them, so nothing large is copied. Functions and classes of the session itself cannot be
imported elsewhere: what holds them is pickled by dill, which sends their code, for the same minor version of Python only.

What can be read only once, or not before something else is done (iterators, open files, lazy frames), is refused, never used
up; what cannot be pickled is refused with the name of the part that fails.

The host writes contexts with it, and kernels what they hand to each other: like `loading`, which reads it, this source is
executed in every kernel. Standard library only at import.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import io
import json
import operator
import pickle
import struct
import sys
import threading
import types
import typing
import warnings
from collections.abc import Iterator
from typing import Any, Protocol

from .shapes import PACKAGES

ALIGNMENT = 64
_LAZY = {
    "LazyFrame": "{where} = {where}.collect()",
    "LazyGroupBy": "collect it first",
    "DataFrameGroupBy": "use an aggregate of it, or the frame itself",
    "SeriesGroupBy": "use an aggregate of it, or the series itself",
    "GroupBy": "use an aggregate of it, or the frame itself",
    "Expr": "evaluate it on a frame first",
    "RecordBatchReader": "{where} = {where}.read_all()",
    "InMemoryDataset": "{where} = {where}.to_table()",
    "FileSystemDataset": "{where} = {where}.to_table()",
    "UnionDataset": "{where} = {where}.to_table()",
    "Scanner": "{where} = {where}.to_table()",
    "DuckDBPyRelation": "{where} = {where}.df()",
    "TextFileReader": "{where} = pandas.concat({where})",
    "JsonReader": "{where} = pandas.concat({where})",
    "ExcelFile": "{where} = {where}.parse(sheet_name=None)",
    "HDFStore": "{where} = {where}.get(KEY)",
    "NpzFile": "{where} = dict({where})",
    "ParquetFile": "{where} = {where}.read()",
    "ParquetDataset": "{where} = {where}.read()",
    "CSVStreamingReader": "{where} = {where}.read_all()",
}
_RLOCK = type(threading.RLock())
_DEEPEST = 20
_PARTS = 10_000


class ByValue(Exception):
    """A function or class that only this session has: dill has to send its code."""


class Unsendable(Exception):
    """Something that may not be sent, and why."""

    def __init__(self, item: Any, why: str) -> None:
        super().__init__(why)
        self.item = item


class Target(Protocol):
    """Where a pickle is written."""

    size: int

    def write(self, data: bytes | bytearray | memoryview) -> int: ...


class Chunks:
    """A target that keeps what is written as it is, in pieces: nothing large is copied."""

    def __init__(self) -> None:
        self.size = 0
        self.pieces: list[Any] = []

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.pieces.append(data if type(data) is bytes else view)
        self.size += len(view)
        return len(view)


class _Reducer:
    """What both picklers do besides pickling: refuse, note the packages that are needed, and cut slices down to size."""

    packages: set[str]
    by_value: bool

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        root = str(kind.__module__).partition(".")[0]
        if root in PACKAGES:
            self.packages.add(root)
            if kind.__name__ in _LAZY:
                raise Unsendable(obj, f"is {_an(f'{root} {kind.__name__}')}, which is not data yet; {_LAZY[kind.__name__]}")
            if root == "pyarrow":
                return _compact(obj)
        elif isinstance(obj, io.IOBase):
            raise Unsendable(obj, "is an open file; pass what it holds, as in text = {where}.read(), or its path")
        elif isinstance(obj, (Iterator, asyncio.Future)) or kind in (types.CoroutineType, types.AsyncGeneratorType):
            told = "await it first" if kind is types.CoroutineType else "make a list of it: list({where})"
            raise Unsendable(obj, f"is {_an(kind.__name__)}, which can be read only once; {told}")
        elif kind is _RLOCK:  # dill restores one that nobody holds as one that is held for ever: that of a cached_property
            return threading.RLock, ()
        elif kind is memoryview:
            raise Unsendable(obj, "is a memoryview of another object; pass a copy of it: bytes({where})")
        elif isinstance(getattr(kind, "__pydantic_fields__", None), dict) and _is_of_the_session(kind):
            raise Unsendable(obj, "is a pydantic model of a class that only this session has; pass {where}.model_dump()")
        elif _is_of_the_session(obj):
            if not self.by_value:
                raise ByValue
            if isinstance(obj, enum.EnumMeta):
                return _enumeration(obj)
        elif type(obj) is typing.TypeVar and obj.__module__ == "__main__":
            return typing.TypeVar, (obj.__name__, *obj.__constraints__)
        return NotImplemented


class _Pickler(_Reducer, pickle.Pickler):
    by_value = False


CANNOT_BY_NAME = (ByValue, pickle.PicklingError, TypeError, AttributeError)
"""What is raised where another try, by value, may go well."""


def write(value: Any, target: Target, *, by_value: bool) -> None:
    """Write the pickle, the buffers that it leaves outside, and an index of them."""
    buffers: list[pickle.PickleBuffer] = []
    pickler = _pickler(target, buffers, by_value=by_value)
    _dump(pickler, value, by_value=by_value)
    index: dict[str, Any] = {
        "pickle": target.size,
        "buffers": [],
        "by": "dill" if by_value else "pickle",
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "packages": {name: str(sys.modules[name].__version__) for name in sorted(pickler.packages)},
    }
    for buffer in buffers:
        raw = buffer.raw()
        target.write(bytes(-target.size % ALIGNMENT))
        index["buffers"].append([target.size, len(raw)])
        target.write(raw)
    data = json.dumps(index).encode("ascii")
    target.write(data + struct.pack(">Q", len(data)))


def _dump(pickler: Any, value: Any, *, by_value: bool) -> None:
    """Pickle a value; what dill could write only by a name that no other process knows is an error, not a warning."""
    if not by_value:
        pickler.dump(value)
        return
    import dill

    with warnings.catch_warnings():
        warnings.simplefilter("error", dill.PicklingWarning)
        pickler.dump(value)


def pack(value: Any, name: str) -> tuple[str, Chunks]:
    """Give form and bytes of a value for another kernel: the text of a str, else a pickle; a TypeError says what cannot be."""
    chunks = Chunks()
    if type(value) is str:
        chunks.write(value.encode("utf-8", "surrogatepass"))
        return "text", chunks
    try:
        try:
            write(value, chunks, by_value=False)
        except CANNOT_BY_NAME:
            chunks = Chunks()
            write(value, chunks, by_value=True)
    except RecursionError:
        raise TypeError(f"{name} is nested too deeply to be sent; flatten it first") from None
    except MemoryError:
        raise TypeError(f"{name} does not fit into memory a second time; pass a part of it") from None
    except Exception as error:  # an object's own __reduce__ may raise anything
        raise TypeError(refusal(value, name, error)) from None
    return "pickle", chunks


def _pickler(file: Any, buffers: list[pickle.PickleBuffer], *, by_value: bool) -> Any:
    pickler: Any
    if not by_value:
        pickler = _Pickler(file, protocol=5, buffer_callback=buffers.append)
    else:
        import dill

        class ByValuePickler(_Reducer, dill.Pickler):  # type: ignore[misc,name-defined,unused-ignore]
            by_value = True

        pickler = ByValuePickler(file, protocol=5, byref=False, recurse=True, buffer_callback=buffers.append)
    pickler.packages = set()
    return pickler


def _an(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


_GIVEN_BY_ENUM = frozenset(
    {"_generate_next_value_", "__new__", "__reduce_ex__", "__dict__", "__weakref__", "__module__", "__qualname__"}
)


def _enumeration(kind: Any) -> Any:
    """Reduce an enumeration, which dill would write by its name, to its members; what else it holds is set afterwards."""
    body = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    start = vars(kind).get("__init__")
    if start is not None:
        body["__init__"] = start
    members = {name: member._value_ for name, member in kind.__members__.items()}
    others = {
        name: part
        for name, part in vars(kind).items()
        if name not in members and name not in body and name not in _GIVEN_BY_ENUM and not _is_of_enum(name, part)
    }
    make = functools.partial(types.new_class, kind.__name__, kind.__bases__, {})
    return make, (operator.methodcaller("update", {**body, **members}),), (None, others)


def _is_of_enum(name: str, part: Any) -> bool:
    """Whether a part of an enumeration was put there by its metaclass: private names of its, and what it took over."""
    own = isinstance(part, (types.FunctionType, classmethod, staticmethod, property, functools.cached_property))
    return (name.startswith("_") and not own) or getattr(part, "__module__", "__main__") == "enum"


def _is_of_the_session(obj: Any) -> bool:
    return isinstance(obj, (type, types.FunctionType)) and (obj.__module__ == "__main__" or "<" in obj.__qualname__)


def _compact(obj: Any) -> Any:
    """Reduce a slice of an Arrow table or array to what it shows: its pickle would hold the whole that it was cut from."""
    import pyarrow as pa

    if not isinstance(obj, (pa.Table, pa.RecordBatch, pa.ChunkedArray, pa.Array)):
        return NotImplemented
    if obj.get_total_buffer_size() <= 2 * obj.nbytes + 4096:
        return NotImplemented
    table: Any = obj
    if isinstance(obj, pa.RecordBatch):
        table = pa.Table.from_batches([obj])
    elif not isinstance(obj, pa.Table):
        table = pa.table({"": obj})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    copy = pa.ipc.open_stream(sink.getvalue()).read_all()
    if isinstance(obj, pa.RecordBatch):
        return copy.combine_chunks().to_batches()[0].__reduce__() if len(copy) else NotImplemented
    column: Any = copy if isinstance(obj, pa.Table) else copy.column(0)
    if isinstance(obj, pa.Array):
        column = column.combine_chunks()
    return column.__reduce_ex__(5)


def refusal(value: Any, name: str, error: Exception) -> str:
    """Say which part of a value cannot be sent, and why."""
    where, item, error = _culprit(value, name, error)
    if isinstance(error, Unsendable):
        named = error.item is item
        return f"{where} {'' if named else 'holds something that '}{str(error).format(where=where if named else 'it')}"
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return f"{where}, {_an(type(item).__name__)}, cannot be sent ({reason}); leave it out, or pass what it holds"


def _culprit(value: Any, name: str, error: Exception) -> tuple[str, Any, Exception]:
    """Go down to the smallest part that cannot be pickled."""
    above: list[Any] = []
    for _ in range(_DEEPEST):
        if isinstance(error, Unsendable) and error.item is value:
            break
        above.append(value)
        for place, part in _parts(value, name):
            failure = None if any(part is one for one in above) else _failure(part)
            if failure is not None:
                value, name, error = part, place, failure
                break
        else:
            break
    return name, value, error


def _failure(value: Any) -> Exception | None:
    try:
        _dump(_pickler(_Nowhere(), [], by_value=True), value, by_value=True)
    except Exception as error:  # the object's own code may raise anything; the refusal names it
        return error
    return None


class _Nowhere:
    """A file that forgets."""

    def write(self, data: Any) -> int:
        return len(memoryview(data))


def _parts(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Give what an object is made of, as one writes it in Python."""
    count = 0
    if isinstance(value, dict):
        found = ((f"{name}[{_key(key)}]", part) for key, part in list(value.items())[:_PARTS])
        yield from ((f"a key of {name}", key) for key in list(value)[:_PARTS] if not isinstance(key, (str, int)))
        yield from found
    elif isinstance(value, (list, tuple)):
        yield from ((f"{name}[{place}]", part) for place, part in enumerate(value[:_PARTS]))
    elif isinstance(value, (set, frozenset)):
        for part in value:
            if count < _PARTS:
                yield f"an item of {name}", part
            count += 1
    elif not isinstance(value, (type, types.ModuleType, types.FunctionType)):
        fields = getattr(value, "__dict__", None)
        if isinstance(fields, dict):
            yield from ((f"{name}.{field}", part) for field, part in list(fields.items())[:_PARTS])


def _key(key: Any) -> str:
    text = repr(key) if isinstance(key, (str, int, float, tuple, bytes)) else type(key).__name__
    return text if len(text) <= 100 else text[:100] + "..."
