"""The beginning of a value as text, which the host is told: never the whole of something large."""

from __future__ import annotations

import reprlib
from typing import Any

_TOLD = 16 * 1024
"""Characters that the host is told of what a child is given, or answers."""


def look(value: Any) -> str:
    """Give the beginning of a value as text, without building the whole of it."""
    if isinstance(value, str):
        return value
    short = reprlib.Repr()
    short.maxlist = short.maxtuple = short.maxdict = short.maxset = short.maxfrozenset = 100
    short.maxstring = short.maxother = short.maxlong = 2000
    try:
        return short.repr(value) if isinstance(value, (list, tuple, dict, set, frozenset)) else repr(value)
    except Exception as error:  # an object's own __repr__ may raise anything
        return f"{type(value).__name__} (its repr fails: {type(error).__name__})"


def shortened(text: str) -> str:
    """Give at most so much of a text as the host is told."""
    return text if len(text) <= _TOLD else f"{text[:_TOLD]}\n[... {len(text) - _TOLD:,} characters left out ...]"
