"""Tables of pandas, pyarrow and polars, and arrays of objects, from columns that were encoded one by one."""

from __future__ import annotations

import contextlib
import io
import math
import re
from typing import Any

from rlm_jupyter.values.arrays import array, shape_of
from rlm_jupyter.values.typed import Malformed, Reader, pair, text, whole, zone

Details = list[Any]
_STEP = re.compile(r"-?\d{0,9}[A-Za-z]{1,10}(?:-[A-Za-z0-9-]{1,12})?")


def objects_array(reader: Reader, details: Details, data: Any) -> Any:
    import numpy as np

    shape, shapes = shape_of(pair(details)[0]), details[1]
    items = reader.items(shapes, data)
    if math.prod(shape) != len(items):
        raise Malformed("an array of another size")
    return _objects(np, items).reshape(shape)


def _objects(np: Any, items: list[Any]) -> Any:
    found = np.empty(len(items), dtype=object)
    for place, item in enumerate(items):
        found[place] = item
    return found


def pandas_frame(reader: Reader, details: Details, data: Any) -> Any:
    import pandas as pd

    index_shape, labels_shape, shapes = pair(details, 3)
    index_data, labels_data, columns = pair(data, 3)
    index, labels = _index(reader, index_shape, index_data), _index(reader, labels_shape, labels_data)
    if type(shapes) is not list or type(columns) is not list or not len(shapes) == len(columns) == len(labels):
        raise Malformed("columns without labels")
    found = {place: _column(reader, *each) for place, each in enumerate(zip(shapes, columns, strict=True))}
    if any(len(column) != len(index) for column in found.values()):
        raise Malformed("columns of another length")
    for place, column in found.items():
        if column.dtype == object:  # given as it is, pandas would guess at a type for it
            found[place] = pd.Series(column, index=index, dtype=object)
    frame = pd.DataFrame(found, index=index, copy=False)
    frame.columns = labels
    return frame


def pandas_series(reader: Reader, details: Details, data: Any) -> Any:
    import pandas as pd

    index_shape, name_shape, shape = pair(details, 3)
    index_data, name_data, column = pair(data, 3)
    name = reader.read(name_shape, name_data)
    values = _column(reader, shape, column)
    return pd.Series(values, index=_index(reader, index_shape, index_data), name=name, dtype=values.dtype)


def pandas_index(reader: Reader, details: Details, data: Any) -> Any:
    return _index(reader, pair(details, 1)[0], data)


def pandas_array(reader: Reader, details: Details, data: Any) -> Any:
    import pandas as pd

    values = _column(reader, pair(details, 1)[0], data)
    return pd.array(values, dtype=values.dtype)


def pandas_timestamp(reader: Reader, details: Details, data: Any) -> Any:
    import pandas as pd

    moment, where = pair(data)
    found = pd.Timestamp(reader.read(pair(details, 1)[0], moment))
    return found if where is None else found.tz_localize("UTC").tz_convert(zone(where))


def pandas_timedelta(reader: Reader, details: Details, data: Any) -> Any:
    import pandas as pd

    return pd.Timedelta(reader.read(pair(details, 1)[0], data))


def pandas_period(reader: Reader, details: Details, data: Any) -> Any:
    import pandas as pd

    ordinal, step = pair(data)
    return pd.Period(ordinal=int(text(ordinal), 16), freq=_step(step))


def pandas_interval(reader: Reader, details: Details, data: Any) -> Any:
    import pandas as pd

    ends, closed = pair(data)
    left, right = pair(reader.items(pair(details, 1)[0], ends))
    return pd.Interval(left, right, closed=_closed(closed))


def pandas_gap(reader: Reader, details: Details, data: Any) -> Any:
    import pandas as pd

    if data not in ("NaT", "<NA>"):
        raise Malformed("a gap of unknown kind")
    return pd.NaT if data == "NaT" else pd.NA


def _index(reader: Reader, shape: Any, data: Any) -> Any:
    import pandas as pd

    if type(shape) is not list or not shape:
        raise Malformed("an index of unknown kind")
    held, name_data = pair(data)
    names = reader.items(shape[1], name_data)
    if shape[0] == "range":
        start, stop, step = map(whole, pair(held, 3))
        return pd.RangeIndex(start, stop, step, name=names[0])
    if shape[0] not in ("index", "levels", "steps"):
        raise Malformed("an index of unknown kind")
    shapes = pair(shape, 4 if shape[0] == "steps" else 3)[2]
    if type(shapes) is not list or type(held) is not list or not shapes or not len(shapes) == len(held) == len(names):
        raise Malformed("an index of unknown kind")
    levels = [_column(reader, *each) for each in zip(shapes, held, strict=True)]
    if shape[0] == "levels":
        return pd.MultiIndex.from_arrays([pd.Index(level, dtype=level.dtype) for level in levels], names=names)
    level = levels[0]
    index: Any = pd.Index(level, name=names[0], dtype=getattr(level, "dtype", None))
    if shape[0] == "steps":
        steps = _step(shape[3])
        with contextlib.suppress(ValueError, TypeError):  # steps that their name does not tell in full, as those of holidays
            index.freq = steps
    return index


def _step(told: Any) -> str:
    """Read the name of an interval of time, as `D`, `2h` or `QE-DEC`."""
    if not _STEP.fullmatch(text(told)):
        raise Malformed("an interval of time that is none")
    return str(told)


def _column(reader: Reader, shape: Any, data: Any) -> Any:
    """Give one column as an array of pandas or numpy."""
    import numpy as np
    import pandas as pd

    if type(shape) is not list or not shape:
        raise Malformed("a column of unknown kind")
    kind, *details = shape
    match kind:
        case "numpy":
            return _array(reader, details[0], data)
        case "objects":
            return _objects(np, reader.items(details[0], data))
        case "period":
            make: Any = pd.PeriodIndex
            values, each = _array(reader, pair(details)[0], data), _step(details[1])
            return make.from_ordinals(values, freq=each).array
        case "interval":
            left_shape, right_shape, closed = pair(details, 3)
            left, right = pair(data)
            ends = _index(reader, left_shape, left), _index(reader, right_shape, right)
            return pd.arrays.IntervalArray.from_arrays(ends[0], ends[1], _closed(closed))
        case "sparse":
            values_shape, filler_shape = pair(details)
            column, filler = pair(data)
            return pd.arrays.SparseArray(_column(reader, values_shape, column), fill_value=reader.read(filler_shape, filler))
        case "string":
            shapes, storage, missing = pair(details, 3)
            items = reader.items(shapes, data)
            if not all(item is None or isinstance(item, str) for item in items):
                raise Malformed("a column of text that holds something else")
            return pd.array(items, dtype=_string_type(text(storage), text(missing)))
        case "masked":
            values, mask = (_array(reader, *each) for each in zip(pair(details), pair(data), strict=True))
            return _masked(values, mask)
        case "zoned":
            values, where = _array(reader, pair(details)[0], data), zone(details[1])
            if values.dtype.kind != "M" or where is None:
                raise Malformed("a column of times that holds something else")
            return pd.DatetimeIndex(values).tz_localize("UTC").tz_convert(where).array
        case "category":
            codes_shape, categories_shape, ordered = pair(details, 3)
            codes, categories = pair(data)
            found = _index(reader, categories_shape, categories)
            return pd.Categorical.from_codes(_array(reader, codes_shape, codes), found, ordered=ordered is True)
        case "arrow":
            chunks = arrow_table(reader, [], data).column(0)
            return pd.array(chunks, dtype=pd.ArrowDtype(chunks.type))
    raise Malformed("a column of unknown kind")


def _array(reader: Reader, shape: Any, data: Any) -> Any:
    kind, *details = pair(shape, 3)
    if kind != "ndarray":
        raise Malformed("a column that is no array")
    found = array(reader, details, data)
    if found.ndim != 1:
        raise Malformed("a column of several dimensions")
    return found


def _closed(told: Any) -> Any:
    if told not in ("left", "right", "both", "neither"):
        raise Malformed("an interval of unknown ends")
    return told


def _string_type(storage: str, missing: str) -> Any:
    import numpy as np
    import pandas as pd

    if storage not in ("python", "pyarrow") or missing not in ("nan", "NA"):
        raise Malformed("a column of text of unknown kind")
    make: Any = pd.StringDtype
    try:
        return make(storage, pd.NA if missing == "NA" else np.nan)
    except (ImportError, TypeError):  # no pyarrow here, or a pandas before 3
        return make("python")


def _masked(values: Any, mask: Any) -> Any:
    import pandas as pd

    if mask.dtype != bool or len(mask) != len(values):
        raise Malformed("a column whose gaps do not fit")
    arrays: Any = pd.arrays
    kinds = {"i": arrays.IntegerArray, "u": arrays.IntegerArray, "f": arrays.FloatingArray, "b": arrays.BooleanArray}
    kind = kinds.get(values.dtype.kind)
    if kind is None:
        raise Malformed("a column of unknown kind")
    return kind(values, mask)


def arrow_table(reader: Reader, details: Details, data: Any) -> Any:
    """Read an Arrow stream; every buffer is checked before anything uses it."""
    import pyarrow as pa

    with pa.ipc.open_stream(pa.py_buffer(bytes(reader.section(data)))) as stream:
        table = stream.read_all()
    table.validate(full=True)
    return table


def arrow_batch(reader: Reader, details: Details, data: Any) -> Any:
    import pyarrow as pa

    table = arrow_table(reader, [], data)
    return next(iter(table.combine_chunks().to_batches()), None) or pa.RecordBatch.from_pylist([], table.schema)


def arrow_chunks(reader: Reader, details: Details, data: Any) -> Any:
    table = arrow_table(reader, [], data)
    if table.num_columns != 1:
        raise Malformed("a column that is a table")
    return table.column(0)


def arrow_array(reader: Reader, details: Details, data: Any) -> Any:
    return arrow_chunks(reader, details, data).combine_chunks()


def arrow_scalar(reader: Reader, details: Details, data: Any) -> Any:
    items = arrow_chunks(reader, details, data)
    if len(items) != 1:
        raise Malformed("a single value that is several")
    return items[0]


def polars_frame(reader: Reader, details: Details, data: Any) -> Any:
    import polars as pl

    try:
        return pl.read_ipc_stream(io.BytesIO(reader.section(data)))
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # how polars tells what it did not expect; no Exception
            raise Malformed("a table that polars cannot read") from None
        raise


def polars_series(reader: Reader, details: Details, data: Any) -> Any:
    frame = polars_frame(reader, details, data)
    if frame.width != 1:
        raise Malformed("a series of several columns")
    return frame.to_series(0)
