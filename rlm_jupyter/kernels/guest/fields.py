"""How one field of a message is read: exactly the type that it must have, and bounded; anything else is a WireError.

JSON tells true from 1 and text from a number, and so do these readers: nothing is converted.
"""

from __future__ import annotations

import re

TEXT_CAP = 64 * 1024

_DIGEST = re.compile(r"[0-9a-f]{64}")


class WireError(Exception):
    """A message that the protocol does not know."""


def read_digest(value: object) -> str:
    """Read a digest: 64 hex digits."""
    if type(value) is not str or not _DIGEST.fullmatch(value):
        raise WireError("a digest that is none")
    return value


def whole(value: object) -> int:
    """Read a whole number from 0."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise WireError("a number that is not a whole number from 0")
    return value


def text(value: object) -> str:
    """Read a text of bounded length."""
    if type(value) is not str or len(value) > TEXT_CAP:
        raise WireError("a text that is none, or too long")
    return value


def text_or_none(value: object) -> str | None:
    """Read a text, or none."""
    return None if value is None else text(value)


def truth(value: object) -> bool:
    """Read a truth value."""
    if type(value) is not bool:
        raise WireError("a truth value that is none")
    return value


def wholes(value: object) -> tuple[int, ...]:
    """Read a list of whole numbers from 0."""
    if type(value) is not list or not all(type(item) is int and 0 <= item < 2**63 for item in value):
        raise WireError("a list of numbers that is none")
    return tuple(value)


def texts(value: object) -> tuple[str, ...]:
    """Read a list of bounded texts."""
    if type(value) is not list or len(value) > 1000:
        raise WireError("a list of texts that is none, or too long")
    return tuple(text(item) for item in value)
