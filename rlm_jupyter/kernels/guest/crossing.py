"""Values on their way from a kernel to the host. The host's half is `rlm_jupyter.values`.

A value goes out in one of three forms. `text`: a str, or what a thing of another kind looks like as text. `json`: what JSON
gives back exactly. `typed`: a header of JSON, and sections of bytes. In the header `shape` says of which type each part of
`data` is, and stands beside it: data that looks like a shape is only data.

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

PACKAGES = ("numpy", "pandas", "pyarrow", "polars")
_DEEPEST = 100
_PARTS_CAP = 5_000_000
_INT_BITS = 8192
_PICTURE_CAP = 8 * 1024 * 1024
_NO_PNG = ("CMYK", "YCbCr", "LAB", "HSV", "RGBX", "RGBa")
"""Modes of PIL's images that PNG does not know, such as that of a photograph for print."""
_SPARSE_CAP = 20_000_000
"""Rows of a sparse column, which goes out as what it shows."""
_PLAIN = 0
"""The shape of data that JSON gives back exactly."""

Encoded = tuple[Any, Any]
"""A shape, and the data beside it."""


class _Inexact(Exception):
    """A value that cannot go out with its type."""


def encode(value: Any, packages: Collection[str] = PACKAGES) -> tuple[str, str, bytes]:
    """Give form, type name and bytes of a value: exact, or as text with its type named.

    `packages` are those that the host has: it could not read a table of another. A TypeError says what has no value yet, such
    as a generator, and what cannot even be told as text.
    """
    kind = type_name(value)
    if isinstance(value, (Iterator, types.AsyncGeneratorType, asyncio.Future)) or kind.startswith("polars.lazyframe."):
        raise TypeError(
            f"the answer is a {kind}, which has no value yet; give what comes of it, as list(...) or .collect() does"
        )
    if isinstance(value, types.CoroutineType):
        raise TypeError("the answer is a coroutine, which has no value yet; await it first")
    if type(value) is str:
        return "text", kind, value.encode("utf-8", "surrogatepass")
    try:
        encoder = _Encoder(packages)
        shape, data = encoder.encode(value)
        if shape == _PLAIN:
            return "json", kind, json.dumps(data, separators=(",", ":")).encode("ascii")
        if type(shape) is not list or shape[0] != "text":
            return "typed", kind, encoder.frame(shape, data)
    except (_Inexact, ValueError, RecursionError):
        pass
    return "text", kind, _told(value).encode("utf-8", "surrogatepass")


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
        self._packages = packages
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
            raise _Inexact("too many parts")
        if kind is str:
            return (_PLAIN, value) if _is_utf8(value) else (["str"], self._section(value.encode("utf-8", "surrogatepass")))
        if value is None or kind is bool or kind is float:
            return _PLAIN, value
        if kind is int:
            return (_PLAIN, value) if value.bit_length() <= _INT_BITS else (["int"], hex(value))
        if id(value) in self._inside or self._depth >= _DEEPEST:
            raise _Inexact("within itself, or too deep")
        self._inside.add(id(value))
        self._depth += 1
        try:
            return self._container(value) or self._scalar(value) or self._package(value) or self._other(value)
        finally:
            self._inside.discard(id(value))
            self._depth -= 1

    def _section(self, data: Any) -> int:
        self.sections.append(data)
        return len(self.sections) - 1

    def _items(self, values: Any) -> Encoded:
        """Encode many values: one shape where all are plain, else one for each."""
        pairs = [self.encode(item) for item in values]
        shapes = [shape for shape, _ in pairs]
        return (shapes if any(shape != _PLAIN for shape in shapes) else _PLAIN), [data for _, data in pairs]

    def _container(self, value: Any) -> Encoded | None:
        kind = type(value)
        if kind is list:
            shapes, data = self._items(value)
            return (["list", shapes] if shapes else _PLAIN), data
        if kind is dict and all(type(key) is str and _is_utf8(key) for key in value):
            shapes, data = self._items(value.values())
            if not shapes:
                return _PLAIN, dict(zip(value, data, strict=True))
            return ["dict", _PLAIN, shapes], [list(value), data]
        name = kind.__name__
        if kind in (tuple, set, frozenset):
            shapes, data = self._items(value)
            return [name, shapes], data
        if kind.__module__ == "collections" and name == "deque":
            shapes, data = self._items(value)
            return [name, shapes], [value.maxlen, data]
        if kind is dict or (kind.__module__ == "collections" and name in ("OrderedDict", "Counter", "defaultdict")):
            keys, key_data = self._items(value.keys())
            shapes, data = self._items(value.values())
            return ["dict" if name == "defaultdict" else name, keys, shapes], [key_data, data]
        return None

    def _scalar(self, value: Any) -> Encoded | None:
        kind = type(value)
        name = kind.__name__
        if kind in (bytes, bytearray):
            return [name], self._section(bytes(value))
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
            return [name], [value.replace(tzinfo=None, fold=0).isoformat(), value.fold, _zone(value.tzinfo)]
        return None

    def _package(self, value: Any) -> Encoded | None:
        root = _root(value)
        if root in PACKAGES and root not in self._packages:
            return None
        if root == "numpy" and type(value).__name__ == "MaskedArray":
            return self._masked(value)
        if root == "numpy" and hasattr(value, "dtype") and type(value).__name__ not in ("matrix", "recarray"):
            return self._array(value)
        if root == "pandas":
            return self._pandas(value) if type(value).__name__ in ("DataFrame", "Series") else self._pandas_part(value)
        if root == "pyarrow":
            return self._pyarrow(value)
        if root == "polars" and type(value).__name__ in ("DataFrame", "Series"):
            series = type(value).__name__ == "Series"
            return [f"polars.{type(value).__name__}"], self._polars(value.to_frame() if series else value)
        picture = _picture(value, root)
        return None if picture is None else (["picture"], self._section(picture))

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
            return ["text", type_name(value)], _told(value).encode("utf-8", "backslashreplace").decode()
        shapes, data = self._items([getattr(value, name) for name in names])
        return ["record", type_name(value), names, shapes], data

    # Arrays and tables

    def _array(self, value: Any) -> Encoded:
        import numpy as np

        array = np.asarray(value)
        scalar = not isinstance(value, np.ndarray)
        if array.dtype.hasobject or (not scalar and type(value) not in (np.ndarray, np.memmap)):
            if array.dtype == object and not scalar:
                shapes, data = self._items(array.ravel().tolist())
                return ["ndarray of objects", list(array.shape), shapes], data
            raise _Inexact(str(array.dtype))
        section = self._section(np.ascontiguousarray(array).tobytes())
        return ["numpy scalar" if scalar else "ndarray", _dtype(array.dtype), list(array.shape)], section

    def _masked(self, value: Any) -> Encoded:
        import numpy as np

        if value.dtype.hasobject or type(value) is not np.ma.MaskedArray:
            raise _Inexact(str(value.dtype))
        values, mask, filler = (self._array(np.asarray(part)) for part in (value.data, value.mask, value.fill_value))
        return ["masked array", values[0], mask[0], filler[0]], [values[1], mask[1], filler[1]]

    def _pyarrow(self, value: Any) -> Encoded | None:
        import pyarrow as pa

        if isinstance(value, pa.Table):
            return ["pyarrow.Table"], self._arrow(value)
        if isinstance(value, pa.RecordBatch):
            return ["pyarrow.RecordBatch"], self._arrow(pa.Table.from_batches([value]))
        if isinstance(value, (pa.ChunkedArray, pa.Array)):
            kind = "ChunkedArray" if isinstance(value, pa.ChunkedArray) else "Array"
            return [f"pyarrow.{kind}"], self._arrow(pa.table({"": value}))
        return None

    def _arrow(self, table: Any) -> int:
        import pyarrow as pa

        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return self._section(sink.getvalue().to_pybytes())

    def _polars(self, frame: Any) -> int:
        out = io.BytesIO()
        try:
            frame.write_ipc_stream(out)
        except Exception as error:
            raise _Inexact(str(error)) from None
        return self._section(out.getvalue())

    def _pandas(self, value: Any) -> Encoded:
        index = self._index(value.index)
        if type(value).__name__ == "Series":
            name, column = self.encode(value.name), self._column(value.array, value.dtype)
            return ["pandas.Series", index[0], name[0], column[0]], [index[1], name[1], column[1]]
        labels = self._index(value.columns)
        columns = [self._column(value.iloc[:, place].array, dtype) for place, dtype in enumerate(value.dtypes)]
        shapes = ["pandas.DataFrame", index[0], labels[0], [shape for shape, _ in columns]]
        return shapes, [index[1], labels[1], [data for _, data in columns]]

    def _pandas_part(self, value: Any) -> Encoded | None:
        """Encode what columns and indexes are made of: a moment, a span, a gap; or an index by itself."""
        import pandas as pd

        if value is pd.NaT or value is pd.NA:
            return ["pandas gap"], str(value)
        if type(value) is pd.Timestamp:
            moment = self._array(value.to_datetime64())
            return ["pandas.Timestamp", moment[0]], [moment[1], _zone(value.tz)]
        if type(value) is pd.Timedelta:
            span = self._array(value.to_timedelta64())
            return ["pandas.Timedelta", span[0]], span[1]
        if type(value) is pd.Period:
            return ["pandas.Period"], [hex(value.ordinal), value.freqstr]
        if type(value) is pd.Interval:
            shapes, ends = self._items([value.left, value.right])
            return ["pandas.Interval", shapes], [ends, value.closed]
        if isinstance(value, pd.Index):
            shape, data = self._index(value)
            return ["pandas.Index", shape], data
        return None

    def _index(self, index: Any) -> Encoded:
        kind = type(index).__name__
        names = self._items(index.names)
        if kind == "RangeIndex":
            return ["range", names[0]], [[index.start, index.stop, index.step], names[1]]
        levels = [index.get_level_values(n) for n in range(index.nlevels)] if kind == "MultiIndex" else [index]
        columns = [self._column(level.array, level.dtype) for level in levels]
        shapes, data = [shape for shape, _ in columns], [data for _, data in columns]
        if kind in ("DatetimeIndex", "TimedeltaIndex") and index.freq is not None:
            return ["steps", names[0], shapes, index.freqstr], [data, names[1]]
        return ["levels" if kind == "MultiIndex" else "index", names[0], shapes], [data, names[1]]

    def _column(self, array: Any, dtype: Any) -> Encoded:
        """Encode one column of pandas: what numpy holds as it is, the rest by the parts that make it."""
        kind = type(dtype).__name__
        if kind == "CategoricalDtype":
            codes, categories = self._array(array.codes), self._index(dtype.categories)
            return ["category", codes[0], categories[0], bool(dtype.ordered)], [codes[1], categories[1]]
        if kind == "DatetimeTZDtype":
            values = self._array(array.tz_convert("UTC").tz_localize(None).to_numpy())
            return ["zoned", values[0], _zone(dtype.tz)], values[1]
        if kind == "PeriodDtype":
            values = self._array(array.asi8)
            return ["period", values[0], dtype._freqstr if hasattr(dtype, "_freqstr") else dtype.freq.freqstr], values[1]
        if kind == "IntervalDtype":
            left, right = self._index(array.left), self._index(array.right)
            return ["interval", left[0], right[0], array.closed], [left[1], right[1]]
        if kind == "SparseDtype" and len(array) <= _SPARSE_CAP:
            values, filler = self._column(array.to_dense(), dtype.subtype), self.encode(dtype.fill_value)
            return ["sparse", values[0], filler[0]], [values[1], filler[1]]
        if kind == "StringDtype":
            missing = array.isna()
            shapes, data = self._items(None if gone else item for item, gone in zip(array, missing, strict=True))
            return ["string", shapes, dtype.storage, "NA" if repr(dtype.na_value) == "<NA>" else "nan"], data
        if kind == "ArrowDtype":
            if "pyarrow" not in self._packages:
                raise _Inexact("no pyarrow beside the notebook")
            import pyarrow as pa

            return ["arrow"], self._arrow(pa.table({"": pa.chunked_array(array.__arrow_array__())}))
        if hasattr(array, "_mask") and hasattr(array, "_data"):
            values, mask = self._array(array._data), self._array(array._mask)
            return ["masked", values[0], mask[0]], [values[1], mask[1]]
        if getattr(dtype, "hasobject", False):
            shapes, data = self._items(array)
            return ["objects", shapes], data
        if type(dtype).__module__.partition(".")[0] == "numpy":
            values = self._array(array if type(array).__module__ == "numpy" else array.to_numpy())
            return ["numpy", values[0]], values[1]
        raise _Inexact(str(dtype))


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _zone(zone: Any) -> Any:
    """Tell a time zone: None, seconds from UTC, or the key of a named zone."""
    import datetime

    if zone is None:
        return None
    if type(zone) is datetime.timezone and zone.tzname(None) == datetime.timezone(zone.utcoffset(None)).tzname(None):
        return zone.utcoffset(None).total_seconds()
    key = getattr(zone, "key", None)
    if type(key) is str:
        return key
    raise _Inexact("a time zone of its own")


def _dtype(dtype: Any) -> Any:
    """Tell a numpy dtype: its string, or for a record the list of its fields."""
    if dtype.names is None:
        if dtype.kind not in "biufcSUVmM" or dtype.subdtype is not None:
            raise _Inexact(str(dtype))
        return dtype.str
    fields = [dtype.fields[name] for name in dtype.names]
    if any(len(field) > 2 for field in fields):
        raise _Inexact("titled fields")
    told = [[name, _dtype(field[0]), field[1]] for name, field in zip(dtype.names, fields, strict=True)]
    return [told, dtype.itemsize]


def _picture(value: Any, root: str) -> bytes | None:
    """Give the PNG or JPEG of a figure of matplotlib, an image of PIL, or an image of IPython."""
    if root == "IPython" and type(value).__name__ == "Image":
        data = value.data
    elif root == "PIL" and hasattr(value, "save"):
        out = io.BytesIO()
        try:
            (value.convert("RGB") if value.mode in _NO_PNG else value).save(out, "PNG")
        except (OSError, ValueError):  # of numbers that are no colours, or without a pixel
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
