"""Arrays, tables and columns on their way to the host, each by the parts that make it.

The host's half is `rlm_jupyter.values.tables` and `arrays`. The packages are touched only for values of their own. What has no
exact form here is Inexact, and goes out as text.
"""

from __future__ import annotations

import io
from typing import Any

from .shapes import Coder, Encoded, Inexact, zone

_SPARSE_CAP = 20_000_000
"""Rows of a sparse column, which goes out as what it shows."""


def encode(coder: Coder, value: Any, root: str) -> Encoded | None:
    """Encode a value of the package `root`; None where it is none that has a shape."""
    kind = type(value).__name__
    if root == "numpy" and kind == "MaskedArray":
        return _masked(coder, value)
    if root == "numpy" and hasattr(value, "dtype") and kind not in ("matrix", "recarray"):
        return _array(coder, value)
    if root == "pandas":
        return _pandas(coder, value) if kind in ("DataFrame", "Series") else _pandas_part(coder, value)
    if root == "pyarrow":
        return _pyarrow(coder, value)
    if root == "polars" and kind in ("DataFrame", "Series"):
        return [f"polars.{kind}"], _polars(coder, value.to_frame() if kind == "Series" else value)
    return None


def _array(coder: Coder, value: Any) -> Encoded:
    import numpy as np

    array = np.asarray(value)
    scalar = not isinstance(value, np.ndarray)
    if array.dtype.hasobject or (not scalar and type(value) not in (np.ndarray, np.memmap)):
        if array.dtype == object and not scalar:
            shapes, data = coder.items(array.ravel().tolist())
            return ["ndarray of objects", list(array.shape), shapes], data
        raise Inexact(str(array.dtype))
    section = coder.section(np.ascontiguousarray(array).tobytes())
    return ["numpy scalar" if scalar else "ndarray", _dtype(array.dtype), list(array.shape)], section


def _masked(coder: Coder, value: Any) -> Encoded:
    import numpy as np

    if value.dtype.hasobject or type(value) is not np.ma.MaskedArray:
        raise Inexact(str(value.dtype))
    values, mask, filler = (_array(coder, np.asarray(part)) for part in (value.data, value.mask, value.fill_value))
    return ["masked array", values[0], mask[0], filler[0]], [values[1], mask[1], filler[1]]


def _pyarrow(coder: Coder, value: Any) -> Encoded | None:
    import pyarrow as pa

    if isinstance(value, pa.Table):
        return ["pyarrow.Table"], _arrow(coder, value)
    if isinstance(value, pa.RecordBatch):
        return ["pyarrow.RecordBatch"], _arrow(coder, pa.Table.from_batches([value]))
    if isinstance(value, (pa.ChunkedArray, pa.Array)):
        kind = "ChunkedArray" if isinstance(value, pa.ChunkedArray) else "Array"
        return [f"pyarrow.{kind}"], _arrow(coder, pa.table({"": value}))
    if isinstance(value, pa.Scalar):
        try:
            return ["pyarrow.Scalar"], _arrow(coder, pa.table({"": pa.array([value], value.type)}))
        except pa.ArrowException as error:  # of a union, say
            raise Inexact(str(error)) from None
    return None


def _arrow(coder: Coder, table: Any) -> int:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return coder.section(sink.getvalue().to_pybytes())


def _polars(coder: Coder, frame: Any) -> int:
    out = io.BytesIO()
    try:
        frame.write_ipc_stream(out)
    except Exception as error:
        raise Inexact(str(error)) from None
    return coder.section(out.getvalue())


def _pandas(coder: Coder, value: Any) -> Encoded:
    index = _index(coder, value.index)
    if type(value).__name__ == "Series":
        name, column = coder.encode(value.name), _column(coder, value.array, value.dtype)
        return ["pandas.Series", index[0], name[0], column[0]], [index[1], name[1], column[1]]
    labels = _index(coder, value.columns)
    columns = [_column(coder, value.iloc[:, place].array, dtype) for place, dtype in enumerate(value.dtypes)]
    shapes = ["pandas.DataFrame", index[0], labels[0], [shape for shape, _ in columns]]
    return shapes, [index[1], labels[1], [data for _, data in columns]]


def _pandas_part(coder: Coder, value: Any) -> Encoded | None:
    """Encode what columns and indexes are made of: a moment, a span, a gap; or an index by itself."""
    import pandas as pd

    if value is pd.NaT or value is pd.NA:
        return ["pandas gap"], str(value)
    if type(value) is pd.Timestamp:
        moment = _array(coder, value.to_datetime64())
        return ["pandas.Timestamp", moment[0]], [moment[1], zone(value.tz)]
    if type(value) is pd.Timedelta:
        span = _array(coder, value.to_timedelta64())
        return ["pandas.Timedelta", span[0]], span[1]
    if type(value) is pd.Period:
        return ["pandas.Period"], [hex(value.ordinal), value.freqstr]
    if type(value) is pd.Interval:
        shapes, ends = coder.items([value.left, value.right])
        return ["pandas.Interval", shapes], [ends, value.closed]
    if isinstance(value, pd.Index):
        shape, data = _index(coder, value)
        return ["pandas.Index", shape], data
    if isinstance(value, pd.api.extensions.ExtensionArray):  # what .unique() and .values give
        shape, data = _column(coder, value, getattr(value.dtype, "numpy_dtype", value.dtype))
        return ["pandas.array", shape], data
    return None


def _index(coder: Coder, index: Any) -> Encoded:
    kind = type(index).__name__
    names = coder.items(index.names)
    if kind == "RangeIndex":
        return ["range", names[0]], [[index.start, index.stop, index.step], names[1]]
    levels = [index.get_level_values(n) for n in range(index.nlevels)] if kind == "MultiIndex" else [index]
    columns = [_column(coder, level.array, level.dtype) for level in levels]
    shapes, data = [shape for shape, _ in columns], [data for _, data in columns]
    if kind in ("DatetimeIndex", "TimedeltaIndex") and index.freq is not None:
        return ["steps", names[0], shapes, index.freqstr], [data, names[1]]
    return ["levels" if kind == "MultiIndex" else "index", names[0], shapes], [data, names[1]]


def _column(coder: Coder, array: Any, dtype: Any) -> Encoded:
    """Encode one column of pandas: what numpy holds as it is, the rest by the parts that make it."""
    kind = type(dtype).__name__
    if kind == "CategoricalDtype":
        codes, categories = _array(coder, array.codes), _index(coder, dtype.categories)
        return ["category", codes[0], categories[0], bool(dtype.ordered)], [codes[1], categories[1]]
    if kind == "DatetimeTZDtype":
        values = _array(coder, array.tz_convert("UTC").tz_localize(None).to_numpy())
        return ["zoned", values[0], zone(dtype.tz)], values[1]
    if kind == "PeriodDtype":
        values = _array(coder, array.asi8)
        return ["period", values[0], dtype._freqstr if hasattr(dtype, "_freqstr") else dtype.freq.freqstr], values[1]
    if kind == "IntervalDtype":
        left, right = _index(coder, array.left), _index(coder, array.right)
        return ["interval", left[0], right[0], array.closed], [left[1], right[1]]
    if kind == "SparseDtype" and len(array) <= _SPARSE_CAP:
        values, filler = _column(coder, array.to_dense(), dtype.subtype), coder.encode(dtype.fill_value)
        return ["sparse", values[0], filler[0]], [values[1], filler[1]]
    if kind == "StringDtype":
        missing = array.isna()
        shapes, data = coder.items(None if gone else item for item, gone in zip(array, missing, strict=True))
        return ["string", shapes, dtype.storage, "NA" if repr(dtype.na_value) == "<NA>" else "nan"], data
    if kind == "ArrowDtype":
        if "pyarrow" not in coder.packages:
            raise Inexact("no pyarrow beside the notebook")
        import pyarrow as pa

        return ["arrow"], _arrow(coder, pa.table({"": pa.chunked_array(array.__arrow_array__())}))
    if hasattr(array, "_mask") and hasattr(array, "_data"):
        values, mask = _array(coder, array._data), _array(coder, array._mask)
        return ["masked", values[0], mask[0]], [values[1], mask[1]]
    if getattr(dtype, "hasobject", False):
        shapes, data = coder.items(array)
        return ["objects", shapes], data
    if type(dtype).__module__.partition(".")[0] == "numpy":
        values = _array(coder, array if type(array).__module__ == "numpy" else array.to_numpy())
        return ["numpy", values[0]], values[1]
    raise Inexact(str(dtype))


def _dtype(dtype: Any) -> Any:
    """Tell a numpy dtype: its string, or for a record the list of its fields."""
    if dtype.names is None:
        if dtype.kind not in "biufcSUVmM" or dtype.subdtype is not None:
            raise Inexact(str(dtype))
        return dtype.str
    fields = [dtype.fields[name] for name in dtype.names]
    if any(len(field) > 2 for field in fields):
        raise Inexact("titled fields")
    told = [[name, _dtype(field[0]), field[1]] for name, field in zip(dtype.names, fields, strict=True)]
    return [told, dtype.itemsize]
