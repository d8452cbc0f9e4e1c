"""Tables of pandas, pyarrow and polars, and arrays of objects, from columns that were encoded one by one."""

from __future__ import annotations

import io
import math
from typing import Any

from rlm_jupyter.values.arrays import array, shape_of
from rlm_jupyter.values.typed import Malformed, Reader, pair, text, whole, zone

Details = list[Any]


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
    frame = pd.DataFrame(found, index=index, copy=False)
    frame.columns = labels
    return frame


def pandas_series(reader: Reader, details: Details, data: Any) -> Any:
    import pandas as pd

    index_shape, name_shape, shape = pair(details, 3)
    index_data, name_data, column = pair(data, 3)
    name = reader.read(name_shape, name_data)
    return pd.Series(_column(reader, shape, column), index=_index(reader, index_shape, index_data), name=name)


def _index(reader: Reader, shape: Any, data: Any) -> Any:
    import pandas as pd

    if type(shape) is not list or not shape:
        raise Malformed("an index of unknown kind")
    held, name_data = pair(data)
    names = reader.items(shape[1], name_data)
    if shape[0] == "range":
        start, stop, step = map(whole, pair(held, 3))
        return pd.RangeIndex(start, stop, step, name=names[0])
    if shape[0] not in ("index", "levels"):
        raise Malformed("an index of unknown kind")
    shapes = pair(shape, 3)[2]
    if type(shapes) is not list or type(held) is not list or not shapes or not len(shapes) == len(held) == len(names):
        raise Malformed("an index of unknown kind")
    levels = [_column(reader, *each) for each in zip(shapes, held, strict=True)]
    if shape[0] == "levels":
        return pd.MultiIndex.from_arrays([pd.Index(level) for level in levels], names=names)
    level = levels[0]
    return pd.Index(level, name=names[0], dtype=getattr(level, "dtype", None))


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
