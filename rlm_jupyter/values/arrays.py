"""Arrays of numpy from their type, shape and bytes. A type is read by a small grammar of our own; numpy's would evaluate."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from rlm_jupyter.values.typed import Malformed, Reader, pair, text, whole

_SIMPLE = re.compile(
    r"[<>|=](?:b1|[iu][1248]|f(?:2|4|8|16)|c(?:8|16|32)|[SUV]\d{1,9}|[mM]8(?:\[\d{0,6}(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?)"
)
_FIELDS = 10_000


def dtype(told: Any, depth: int = 0) -> np.dtype[Any]:
    """Read a type: a string such as `<f8`, or for records a list of name, type and offset, with the size of an item."""
    if type(told) is str:
        if not _SIMPLE.fullmatch(told):
            raise Malformed("an array of unknown type")
        return np.dtype(told)
    fields, size = pair(told)
    if type(fields) is not list or len(fields) > _FIELDS or depth > 10:
        raise Malformed("an array of unknown type")
    parts = [pair(field, 3) for field in fields]
    return np.dtype(
        {
            "names": [text(name) for name, _, _ in parts],
            "formats": [dtype(kind, depth + 1) for _, kind, _ in parts],
            "offsets": [whole(offset) for _, _, offset in parts],
            "itemsize": whole(size),
        }
    )


def shape_of(told: Any) -> tuple[int, ...]:
    if type(told) is not list or len(told) > 32 or not all(type(n) is int and 0 <= n < 2**40 for n in told):
        raise Malformed("an array of unknown shape")
    return tuple(told)


def array(reader: Reader, details: list[Any], data: Any) -> np.ndarray[Any, Any]:
    """Give an array that can be written to."""
    kind, shape = dtype(pair(details)[0]), shape_of(details[1])
    section = reader.section(data)
    if math.prod(shape) * kind.itemsize != len(section):
        raise Malformed("an array of another size")
    if not kind.itemsize:
        return np.zeros(shape, kind)
    return np.frombuffer(bytearray(section), kind).reshape(shape)


def masked(values: Any, mask: Any, filler: Any) -> np.ma.MaskedArray[Any, Any]:
    """Give an array with gaps; a mask of no dimension where there is none."""
    if not all(isinstance(part, np.ndarray) for part in (values, mask, filler)) or filler.shape:
        raise Malformed("an array with gaps that is none")
    if mask.dtype.kind != "b" and mask.dtype.names is None:
        raise Malformed("an array whose gaps do not fit")
    if mask.shape not in (values.shape, ()) or (not mask.shape and bool(mask)):
        raise Malformed("an array whose gaps do not fit")
    return np.ma.MaskedArray(values, mask if mask.shape or not values.shape else np.ma.nomask, fill_value=filler[()])
