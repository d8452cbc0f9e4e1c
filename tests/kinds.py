"""Objects of every kind that a notebook holds, for the tests of what crosses."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import fractions
import importlib
import uuid
import zoneinfo
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

UTC = datetime.UTC
TZ: Any = importlib.import_module("dateutil.tz")  # it has no types
DAY = datetime.date(2026, 3, 1)
NOON = datetime.datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)
ODD_TEXT = 'quote " \' \\ nul \x00 surrogate \ud800 emoji 😀 crlf \r\n end "'


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "n": [1, 2, 3, 4],
            "x": [1.5, float("nan"), float("inf"), -0.0],
            "name": ["a", "ü€😀", "", "d"],
            "when": pd.to_datetime(["2026-01-01", "NaT", "2026-03-01", "2026-04-01"]),
            "kind": pd.Categorical(["u", "v", "u", "v"], ordered=True),
            "maybe": pd.array([1, None, 3, 4], dtype="Int64"),
            "yes": [True, False, True, False],
        },
        index=pd.Index(["r1", "r2", "r3", "r4"], name="row"),
    )


def levels() -> pd.DataFrame:
    index = pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=["letter", None])
    return pd.DataFrame(np.arange(8).reshape(4, 2), index=index, columns=pd.Index([10, 20], name="year"))


@dataclasses.dataclass
class Point:
    """A class that only the test has."""

    x: int
    y: int


IN: Mapping[str, Callable[[], Any]] = {
    "str": lambda: ODD_TEXT,
    "empty str": lambda: "",
    "long str": lambda: "line of text\n" * 200_000,
    "bytes": lambda: bytes(range(256)) * 10,
    "bytearray": lambda: bytearray(b"\x00\xff" * 5),
    "int": lambda: 10**400,
    "float": lambda: -0.0,
    "bool": lambda: True,
    "None": lambda: None,
    "complex": lambda: 1 - 2j,
    "Decimal": lambda: decimal.Decimal("1.10"),
    "Fraction": lambda: fractions.Fraction(1, 3),
    "date": lambda: DAY,
    "datetime": lambda: NOON,
    "timedelta": lambda: datetime.timedelta(days=-1, microseconds=7),
    "UUID": lambda: uuid.UUID(int=7),
    "list": lambda: ["a", 1, [2.5, None], ODD_TEXT],
    "dict": lambda: {"a": {"__type__": "pickle"}, 4: "four", (1, 2): "pair", None: 0},
    "dict of texts": lambda: {f"{n}.txt": "text " * 50_000 for n in range(8)},
    "tuple": lambda: (1, ("two", [3])),
    "set": lambda: {1, "a", (2, 3)},
    "frozenset": lambda: frozenset({1, 2}),
    "OrderedDict": lambda: collections.OrderedDict(b=1, a=2),
    "Counter": lambda: collections.Counter("aab"),
    "defaultdict": lambda: collections.defaultdict(list, x=[1]),
    "deque": lambda: collections.deque([1, 2], maxlen=3),
    "ndarray": lambda: np.arange(600_000, dtype="<f4").reshape(3, -1),
    "ndarray of dates": lambda: np.array(["2026-01-01", "NaT"], dtype="datetime64[s]"),
    "ndarray of records": lambda: np.array([(1, b"x"), (2, b"y")], dtype=[("n", "<i4"), ("s", "S3")]),
    "ndarray, strided": lambda: np.arange(100).reshape(10, 10)[::2, ::3],
    "DataFrame": frame,
    "DataFrame with levels": levels,
    "DataFrame of objects": lambda: pd.DataFrame({"o": [{"a": 1}, (2,), None, b"x"]}, dtype=object),
    "Series": lambda: pd.Series([1, 2, 3], name="s", dtype="int8"),
    "Arrow table": lambda: pa.table({"a": [1, None, 3], "s": ["x", "y", None]}),
    "Arrow slice": lambda: pa.table({"a": list(range(100_000))}).slice(500, 3),
    "polars DataFrame": lambda: pl.DataFrame({"a": [1, None, 3], "s": ["x", "y", None]}),
    "polars Series": lambda: pl.Series("p", [1.5, None]),
    "object": lambda: Point(1, 2),
    "dict of frames": lambda: {"one": frame(), "two": [np.ones(3)]},
}
"""Kinds of context by name."""


def same(left: Any, right: Any) -> bool:
    """Whether two objects are equal in type, structure and content, NaNs included."""
    if type(left) is not type(right):
        return False
    if isinstance(left, (pd.DataFrame, pd.Series)):
        check: Any = pd.testing.assert_frame_equal if isinstance(left, pd.DataFrame) else pd.testing.assert_series_equal
        check(left, right, check_exact=True)
        return True
    if isinstance(left, pd.Index):
        assert getattr(left, "freq", None) == getattr(right, "freq", None)
        pd.testing.assert_index_equal(left, right, exact=True, check_exact=True)
        return True
    if isinstance(left, pd.api.extensions.ExtensionArray):
        pd.testing.assert_extension_array_equal(left, right, check_exact=True)
        return True
    if isinstance(left, np.ma.MaskedArray):
        parts: Any = [(x.data, np.asarray(x.mask), np.asarray(x.fill_value)) for x in (left, right)]
        return all(map(same, *parts))
    if isinstance(left, (pa.Array, pa.ChunkedArray, pa.RecordBatch, pa.Scalar)):
        return bool(left.equals(right))
    if isinstance(left, np.ndarray) and left.dtype == object:
        return left.shape == right.shape and same(left.tolist(), right.tolist())
    if isinstance(left, np.ndarray):
        return bool(left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes())
    if isinstance(left, (pl.DataFrame, pl.Series, pa.Table)):
        return bool(left.equals(right))
    if isinstance(left, dict):
        return list(map(repr, left)) == list(map(repr, right)) and all(same(left[key], right[key]) for key in left)
    if left is pd.NA or left is pd.NaT:
        return left is right
    if isinstance(left, (pd.Timestamp, pd.Timedelta)):
        return bool(left == right and left.unit == right.unit and repr(left) == repr(right))
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right) or (left != left and right != right)


class Pair(NamedTuple):
    """A named tuple that only the test has."""

    left: int
    right: str


OUT: Mapping[str, Callable[[], Any]] = {
    **{
        kind: make
        for kind, make in IN.items()
        if kind not in ("defaultdict", "object", "Arrow slice", "dict of frames", "DataFrame of objects")
    },
    "tags in JSON": lambda: {"__type__": "pickle", "form": "typed", "shape": ["bytes"], "data": 0, "sections": [1]},
    "tags in a tuple": lambda: (["tuple", 0], ["bytes"], {"shape": ["ndarray", "<f8", [1]], "data": 0}),
    "surrogates that would join": lambda: ["\ud83d\ude00", {"\udfff": 1}],
    "int of 10,000 digits": lambda: [10**10_000, -(10**10_000)],
    "dict with odd keys": lambda: {(1, 2): {3, 4}, None: b"x", 1.5: DAY, True: [()]},
    "dict of numbers": lambda: {1: "a", "1": "b"},
    "time": lambda: datetime.time(1, 2, 3, 4, fold=1),
    "datetime, zoned": lambda: datetime.datetime(2026, 3, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
    "range": lambda: range(0, 10**30, 7),
    "numpy scalar": lambda: np.float32(1.5),
    "empty ndarray": lambda: np.zeros((0, 3), dtype="<i2"),
    "ndarray of objects": lambda: np.array([{"a": (1,)}, None], dtype=object),
    "empty DataFrame": lambda: pd.DataFrame(),
    "DataFrame of odd columns": lambda: pd.DataFrame(
        {
            "zoned": pd.to_datetime(["2026-01-01", "NaT"]).tz_localize("Europe/Berlin"),
            "float": pd.array([1.5, None], dtype="Float32"),
            "bool": pd.array([True, None], dtype="boolean"),
            "text": pd.array(["a", None], dtype="string"),
            "arrow": pd.Series([1, None], dtype=pd.ArrowDtype(pa.int16())),
            "objects": pd.Series([{"a": {1}}, (2,)], dtype=object),
            "delta": pd.to_timedelta([1, 2], unit="s"),
        }
    ),
    "frame of odd steps, zoned": lambda: pd.DataFrame(
        {
            "sparse": pd.arrays.SparseArray([0.0, 0.0, 1.5]),
            "month": pd.period_range("2026-01", periods=3, freq="M"),
            "span": pd.IntervalIndex.from_breaks([0, 1, 2, 3], closed="left"),
            "cut": pd.cut(pd.Series([1, 2, 3]), 2),
        },
        index=pd.date_range("2026-01-31", periods=3, freq="2ME", tz="Europe/Berlin", name="end"),
    ),
    "Series by quarter": lambda: pd.Series([1, 2], index=pd.period_range("2026", periods=2, freq="Q")),
    "Series by hour": lambda: pd.Series([1, 2], index=pd.timedelta_range("1h", periods=2, freq="h")),
    "Series by bin": lambda: pd.cut(pd.Series([1, 2, 3, 4]), 2).value_counts(),
    "Series on workdays": lambda: pd.Series([1, 2, 3], index=pd.bdate_range("2026-01-02", periods=3)),
    "moments of pandas, zoned": lambda: [
        pd.Timestamp("2026-10-25 02:30:00.123456789", tz="UTC").tz_convert("Europe/Berlin"),
        pd.Timestamp("2026-01-01").as_unit("s"),
        pd.Timestamp("2026-01-01", tz="UTC"),
        pd.Timedelta("-1D 3ns"),
        pd.NaT,
        pd.NA,
        pd.Period("2026-03", "M"),
        pd.Period("2026-03-01 04", "2h"),
        pd.Interval(0, 1.5, "both"),
        pd.Interval(pd.Timestamp("2026"), pd.Timestamp("2027")),
    ],
    "indexes": lambda: [
        pd.Index(["a", "b"], name="q"),
        pd.RangeIndex(3),
        levels().index,
        pd.CategoricalIndex(["a", "b"]),
        pd.date_range("2026-01-01", periods=3, freq="D"),
        pd.interval_range(0, 3),
        pd.Index([1, "a", None]),
        pd.Index([]),
    ],
    "masked arrays": lambda: [
        np.ma.array([1, 2, 3], mask=[False, True, False], fill_value=-7),
        np.ma.array([[1.5], [2.5]], mask=True),
    ],
    "parts of Arrow": lambda: [
        pa.table({"a": [1, None], "b": [["x"], []]}).to_batches()[0],
        pa.chunked_array([[1], [2, None]]),
        pa.array(["a", None]),
        pa.RecordBatch.from_pylist([], pa.schema([("n", pa.int8())])),
        pa.array([1, 2, 3]).slice(1, 1),
        pa.array(["a", "a"]).dictionary_encode(),
    ],
    "frames of texts that are objects": lambda: [
        pd.DataFrame({"o": pd.Series(["x", "bad \ud800"], dtype=object, index=["i", "i"]), "s": ["a", "b"]}),
        pd.Series(["x", "y"], dtype=object),
        pd.DataFrame({"n": [1]}, index=pd.MultiIndex.from_arrays([pd.Index(["x"], dtype=object), [1]])),
    ],
    "arrays of pandas, zoned": lambda: [
        pd.Series(["a", "b", "a"]).unique(),
        pd.Categorical(["a", "b"], ordered=True),
        pd.array([1, None], dtype="Int64"),
        pd.Series(pd.date_range("2026", periods=2, tz="Europe/Berlin")).unique(),
        pd.array(pd.to_timedelta([1, 2], unit="s")),
        pd.Series([1.5, 2.5]).array,
        pd.Series(["a", {1}], dtype=object).array,
        pd.period_range("2026", periods=2, freq="M").array,
    ],
    "single values of Arrow": lambda: [pc.sum(pa.array([1, 2])), pa.scalar(None, pa.int8()), pa.scalar({"a": ["x"]})],
    "groups of a frame": lambda: dict(pd.DataFrame({"a": ["x", "y", "x"]}).groupby("a").groups),
    "moments, zoned otherwise": lambda: [
        NOON.astimezone(datetime.timezone(datetime.timedelta(hours=1), "CET")),
        NOON.astimezone(TZ.tzutc()),
        NOON.astimezone(TZ.tzoffset(None, -3600)),
    ],
    "frames in a dict": lambda: {"a": frame(), "b": [levels(), (np.arange(3),)]},
}
"""Kinds of value that come back equal, by name."""
