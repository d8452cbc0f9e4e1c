"""A table as an answer: a few of its rows and columns as text, whatever library's it is.

pandas, polars and pyarrow are never imported here: who holds a table of theirs has them already. Cells are values of a kernel's
choosing: each becomes one short visible line, and none is asked for more than that.
"""

from __future__ import annotations

import dataclasses
import reprlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rlm_jupyter.widgets import words

ROWS, COLUMNS = 20, 12
"""Rows and columns shown; of more the first and the last half."""
CELL = 60
"""Characters of a cell."""


@dataclasses.dataclass(frozen=True, slots=True)
class Grid:
    """What is shown of a table. `head` names the index (if there is one) and the columns; a gap is a cell of `…`."""

    kind: str
    height: int
    width: int
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    index: bool

    @property
    def told(self) -> str:
        """Say how large the table is, and what of it is shown."""
        size = f"{words.count(self.height, 'row')}, {words.count(self.width, 'column')}"
        return f"{self.kind} of {size}" + ("; the first and the last are shown" if self.is_cut else "")

    @property
    def is_cut(self) -> bool:
        return self.height > ROWS or self.width > COLUMNS


def grid(value: Any) -> Grid | None:
    """Give what is to be shown of a table; None where `value` is none, or one that cannot be read."""
    for module, types, read in _KINDS:
        loaded = sys.modules.get(module)
        kinds = tuple(kind for name in types if isinstance(kind := getattr(loaded, name, None), type))
        if kinds and isinstance(value, kinds):
            try:
                return read(value)
            except Exception:  # an odd table of a library of any version: the answer's text is shown instead
                return None
    return None


def _pandas(value: Any) -> Grid:
    kind = type(value).__name__
    frame = value.to_frame() if kind == "Series" else value
    height, width = frame.shape
    named = [cell(name) for name in getattr(frame.index, "names", [frame.index.name])]
    index = " ".join("" if name == "None" else name for name in named).strip()
    columns = [cell("" if kind == "Series" and value.name is None else name) for name in _picked(frame.columns, width, COLUMNS)]

    def row(place: int) -> list[str]:
        return [
            cell(frame.index[place]),
            *_gapped([cell(frame.iat[place, at]) for at in _places(width, COLUMNS)], width, COLUMNS),
        ]

    return Grid(kind, height, width, [index, *_gapped(columns, width, COLUMNS)], _rows(height, row), True)


def _polars(value: Any) -> Grid:
    kind = type(value).__name__
    frame = value.to_frame() if kind == "Series" else value
    height, width = frame.shape

    def row(place: int) -> list[str]:
        return _gapped([cell(frame.item(place, at)) for at in _places(width, COLUMNS)], width, COLUMNS)

    columns = [cell(name) for name in _picked(frame.columns, width, COLUMNS)]
    return Grid(kind, height, width, _gapped(columns, width, COLUMNS), _rows(height, row), False)


def _arrow(value: Any) -> Grid:
    height, width = value.num_rows, value.num_columns

    def row(place: int) -> list[str]:
        return _gapped([cell(value.column(at)[place].as_py()) for at in _places(width, COLUMNS)], width, COLUMNS)

    columns = [cell(name) for name in _picked(value.column_names, width, COLUMNS)]
    return Grid("Table", height, width, _gapped(columns, width, COLUMNS), _rows(height, row), False)


_KINDS: tuple[tuple[str, tuple[str, ...], Callable[[Any], Grid]], ...] = (
    ("pandas", ("DataFrame", "Series"), _pandas),
    ("polars", ("DataFrame", "Series"), _polars),
    ("pyarrow", ("Table",), _arrow),
)


def cell(value: Any) -> str:
    """Give a value as one short visible line."""
    if isinstance(value, str):
        return words.one_line(value, CELL)
    try:
        text = str(value) if type(value).__module__.partition(".")[0] in _PLAIN else _short.repr(value)
    except Exception:  # a number of too many digits, an object that cannot say what it is
        text = f"a {type(value).__name__}"
    return words.one_line(text, CELL)


_PLAIN = ("datetime", "decimal", "numpy", "pandas", "uuid")
"""Modules of values whose `str` is short."""
_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother, _short.maxlong = 2, CELL, CELL, CELL


def _places(number: int, most: int) -> list[int]:
    half = most // 2
    return list(range(number)) if number <= most else [*range(half), *range(number - half, number)]


def _picked(names: Any, number: int, most: int) -> list[Any]:
    return [names[place] for place in _places(number, most)]


def _gapped(cells: list[str], number: int, most: int) -> list[str]:
    return cells if number <= most else [*cells[: most // 2], "…", *cells[most // 2 :]]


def _rows(height: int, row: Callable[[int], list[str]]) -> list[list[str]]:
    rows = [row(place) for place in _places(height, ROWS)]
    gap = [["…"] * len(rows[0])] if height > ROWS else []
    return [*rows[: ROWS // 2], *gap, *rows[ROWS // 2 :]] if gap else rows
