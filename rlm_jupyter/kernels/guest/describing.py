"""What the LM is told of a context that it never sees: type, size, shape, columns, and a look at its beginning.

A preview is at most a quarter of what it previews, and short (docs/decisions/006): of a text its first characters, of a table
its first rows, of a list or dict its first items. A single number or date is told by its type alone.

Standard library only: the host describes contexts with it, and kernels, in which this source is executed, what they give to
their children.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import itertools
import uuid
from collections.abc import Collection, Iterable, Mapping
from typing import Any

PREVIEW_CHARACTERS = 500
PREVIEW_ITEMS = 5
PREVIEW_OF_ITEM = 100
PREVIEW_OF_CELL = 40
PREVIEW_COLUMNS = 50
NAMED_AT_MOST = 20

_LEAVES = frozenset(
    {str, bytes, bytearray, int, float, complex, bool, type(None), datetime.date, datetime.datetime, datetime.time,
     datetime.timedelta, decimal.Decimal, fractions.Fraction, uuid.UUID}
)  # fmt: skip
_TEXTS = (str, bytes, bytearray)
_TABLES = frozenset({"DataFrame", "Series", "Table", "RecordBatch", "ChunkedArray"})
_GROUPS = (list, tuple, set, frozenset, collections.deque)


def type_name(value: Any) -> str:
    """Give the name of a type as one speaks of it: `list`, `pandas.DataFrame`, `numpy.ndarray`."""
    kind = type(value)
    if kind.__module__ in ("builtins", "__main__"):
        return kind.__name__
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


def size(value: Any) -> tuple[int, str]:
    """Give the size of a value and its unit."""
    try:
        if isinstance(value, str):
            return len(value), "characters"
        if isinstance(value, (bytes, bytearray)):
            return len(value), "bytes"
        if is_table(value):
            return _rows(value), "rows"
        if _is_array(value):
            return int(value.size), "values"
        return len(value), "items"
    except Exception:  # a user's own __len__ may raise anything
        return 1, "value"


def describe(value: Any, note: str = "") -> str:
    """Describe the variable `context` that holds `value`; `note` is what is known of where it came from."""
    try:
        text = _describe(value)
    except Exception as error:  # a user's own __len__, items and the like may raise anything
        text = f"`context` is {_kind(value)}, which cannot be looked at from outside ({type(error).__name__})."
    return f"{text}\n{note}" if note else text


def describe_named(values: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    """Describe several contexts, which are in one dict by name."""
    head = f"`context` is a dict of {_many(len(values), 'input')}, by name:"
    rows = []
    for name, value in itertools.islice(values.items(), NAMED_AT_MOST):
        rows.append(f"\n- context[{_short(name)}]: " + describe(value, notes.get(name, "")).removeprefix("`context` is "))
    return head + "".join(rows) + ("\n- ..." if len(values) > NAMED_AT_MOST else "")


def is_table(value: Any) -> bool:
    """Whether a value is a DataFrame or Series of pandas or polars (or a kind of one), or an Arrow table. Imports none."""
    return any(
        kind.__module__.partition(".")[0] in ("pandas", "polars", "pyarrow") and kind.__name__ in _TABLES
        for kind in type(value).__mro__
    )


def _is_array(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "numpy" and hasattr(value, "dtype") and hasattr(value, "shape")


def _describe(value: Any) -> str:
    if isinstance(value, str):
        return _describe_text(value)
    if isinstance(value, (bytes, bytearray)):
        return f"`context` is {_kind(value)} of {_many(len(value), 'byte')}.{_begins(value)}"
    if isinstance(value, Mapping):
        return _describe_dict(value)
    if isinstance(value, (list, tuple, collections.deque)):
        return _describe_list(value)
    if isinstance(value, (set, frozenset)):
        return f"`context` is {_kind(value)} of {_many(len(value), 'item')} ({_kinds(value) or 'none'})."
    if is_table(value):
        return f"`context` is {_kind(value)} {_table(value)}"
    if _is_array(value):
        return f"`context` is {_kind(value)} {_array(value)}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"`context` is an int of {_many(value.bit_length(), 'bit')}."
    if value is None:
        return "`context` is None."
    return f"`context` is {_kind(value)}{_extent(value)}{_fields(value)}."


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _kind(value: Any) -> str:
    name = type_name(value)
    return f"an {name}" if name[:1].lower() in "aeiou" else f"a {name}"


def _begins(data: bytes | bytearray) -> str:
    shown = bytes(data[: min(PREVIEW_OF_ITEM, len(data) // 4)])
    return f" It begins: {shown!r}" if shown else ""


def _extent(value: Any) -> str:
    """Tell shape and type of what has them, as a tensor does, or how many items there are."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None and not isinstance(value, type):
        return f" of shape {' x '.join(f'{n:,}' for n in shape) or 'no dimension'}, dtype {_cut(str(dtype))}"
    return f" of {_many(len(value), 'item')}" if hasattr(type(value), "__len__") else ""


def _fields(value: Any) -> str:
    fields = getattr(value, "__dict__", None)
    if type(value) in _LEAVES or not isinstance(fields, dict):
        return ""
    names = list(itertools.islice((str(name) for name in fields if not str(name).startswith("_")), NAMED_AT_MOST + 1))
    shown = ", ".join(_short(name).strip("'") for name in names[:NAMED_AT_MOST])
    return f" with the attributes {shown}{', ...' if len(names) > NAMED_AT_MOST else ''}" if names else ""


def _describe_text(text: str) -> str:
    lines = text.count("\n") + 1
    head = f"`context` is a str of {_many(len(text), 'character')} in {_many(lines, 'line')}."
    shown = text[: min(PREVIEW_CHARACTERS, len(text) // 4)]
    return f"{head} It begins:\n{shown}" if shown else head


def _describe_list(items: Collection[Any]) -> str:
    shown = itertools.islice(items, _shown(len(items)))
    rows = [f"[{place}] {_sized(item)}" for place, item in enumerate(shown)]
    return _rows_of(f"`context` is {_kind(items)} of {_many(len(items), 'item')}", items, rows)


def _describe_dict(items: Mapping[Any, Any]) -> str:
    shown = _shown(len(items))
    rows = [f"[{_short(key)}] {_sized(items[key])}" for key in itertools.islice(items, shown)]
    return _rows_of(f"`context` is {_kind(items)} of {_many(len(items), 'item')}", items.values(), rows)


def _shown(count: int) -> int:
    return min(PREVIEW_ITEMS, (count + 1) // 2)


def _rows_of(head: str, values: Collection[Any], rows: list[str]) -> str:
    total = sum(len(value) for value in values if isinstance(value, str))
    text = f"; {_many(total, 'character')} of text in all" if total else ""
    more = ["..."] if len(values) > len(rows) else []
    return "\n".join([f"{head} (values: {_kinds(values) or 'none'}{text}).", *rows, *more])


def _kinds(values: Iterable[Any]) -> str:
    counts = collections.Counter(type_name(value) for value in values)
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common(6))


def _sized(value: Any) -> str:
    """Tell one item by its type and size, with a look at its beginning."""
    kind = type_name(value)
    if isinstance(value, _TEXTS):
        size = _many(len(value), "character" if isinstance(value, str) else "byte")
        return f"{kind}, {size}: {_short(value, min(PREVIEW_OF_ITEM, len(value) // 4))}"
    if isinstance(value, (Mapping, *_GROUPS)):
        return f"{kind}, {_many(len(value), 'item')}"
    if is_table(value):
        return f"{kind} {_shape(value)}"
    if _is_array(value):
        return f"{kind} {_array(value).partition('.')[0]}"
    return f"{kind}: {_short(value)}" if type(value) in _LEAVES else kind


def _short(value: Any, limit: int = PREVIEW_OF_ITEM) -> str:
    if isinstance(value, _TEXTS):
        return repr(value[:limit]) + ("..." if len(value) > limit else "")
    if isinstance(value, int) and value.bit_length() > 4 * limit:
        return f"a number of {_many(value.bit_length(), 'bit')}"
    text = repr(value) if type(value) in _LEAVES else type(value).__name__
    return text if len(text) <= limit else text[:limit] + "..."


# Tables and arrays


def _rows(value: Any) -> int:
    height = getattr(value, "num_rows", None)
    return int(height) if isinstance(height, int) else len(value)


def _columns(value: Any) -> list[tuple[str, str]]:
    """Give the columns of a table with their types; a series is one column."""
    if hasattr(value, "schema"):
        schema = value.schema
        pairs = schema.items() if isinstance(schema, Mapping) else zip(schema.names, schema.types, strict=True)
        return [(str(name), str(kind)) for name, kind in pairs]
    if hasattr(value, "dtypes") and hasattr(value, "columns"):
        return [(str(name), str(kind)) for name, kind in zip(value.columns, list(value.dtypes), strict=True)]
    kind = getattr(value, "dtype", None) or getattr(value, "type", "")
    return [(str(getattr(value, "name", None) or "values"), str(kind))]


def _shape(value: Any) -> str:
    columns = _columns(value)
    return f"of {_many(_rows(value), 'row')} x {_many(len(columns), 'column')}"


def _table(value: Any) -> str:
    columns = _columns(value)
    told = ", ".join(f"{_cut(name)} ({_cut(kind)})" for name, kind in columns[:PREVIEW_COLUMNS])
    more = ", ..." if len(columns) > PREVIEW_COLUMNS else ""
    parts = [f"{_shape(value)}.", f"Columns: {told}{more}."]
    if index := _index(value):
        parts.append(index)
    if rows := _first_rows(value, columns):
        parts.append("It begins:\n" + rows)
    return "\n".join(parts)


def _index(value: Any) -> str:
    index = getattr(value, "index", None)
    if index is None or callable(index) or type(index).__name__ == "RangeIndex":
        return ""
    names = ", ".join(_cut(str(name)) for name in getattr(index, "names", []) if name is not None)
    return f"Index: {type(index).__name__}{f' named {names}' if names else ''}."


def _first_rows(value: Any, columns: list[tuple[str, str]]) -> str:
    """Give the first rows, at most a quarter of all, each cell short."""
    count = min(PREVIEW_ITEMS, _rows(value) // 4)
    if not count:
        return ""
    width = min(len(columns), 12)
    head = value.iloc[:count] if hasattr(value, "iloc") else value[:count]
    cells = [_cells(head, place, count) for place in range(width)]
    lines = ["\t".join(_cut(name) for name, _ in columns[:width])]
    lines += ["\t".join(_cut(str(column[row])) for column in cells) for row in range(count)]
    return "\n".join(lines)


def _cells(head: Any, place: int, count: int) -> list[Any]:
    if hasattr(head, "iloc"):
        column = head.iloc[:, place] if hasattr(head, "columns") else head
        return list(column)
    if hasattr(head, "column") and hasattr(head, "num_columns"):
        return list(head.column(place).to_pylist())
    if hasattr(head, "to_series"):
        return list(head.to_series(place)) if hasattr(head, "columns") else list(head)
    return list(head.to_pylist() if hasattr(head, "to_pylist") else head)[:count]


def _cut(text: str) -> str:
    line = " ".join(text[: 4 * PREVIEW_OF_CELL].split())
    return line if len(line) <= PREVIEW_OF_CELL else line[:PREVIEW_OF_CELL] + "..."


def _array(value: Any) -> str:
    shape = " x ".join(f"{n:,}" for n in value.shape) or "no dimension"
    text = f"of shape {shape}, dtype {_cut(str(value.dtype))}, {_many(value.nbytes, 'byte')}."
    count = min(PREVIEW_ITEMS, int(value.size) // 4)
    if not count:
        return text
    shown = ", ".join(_cut(str(item)) for item in itertools.islice(value.flat, count))
    return f"{text} Its first values: {shown}"
