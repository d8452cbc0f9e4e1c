"""The digests that contexts and answers are held to: SHA-256, of a pickle in two lanes that are hashed side by side.

A text's digest is that of its UTF-8, as `sha256sum` gives it. A pickle is hashed by nobody but us, and hashing would be most of
its way into a kernel: so its stripes go to two lanes in turn, and its digest is that of both lanes' digests. Nothing is read
or written here.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable
from typing import Any

STRIPE = 1024 * 1024
_STEP = 256 * 1024 * 1024
"""Hashed in one go where there is one lane, without the interpreter's lock: so a text is decoded meanwhile."""
_LANES = {"pickle": 2}
_BESIDE = 1024 * 1024
"""Bytes from which it pays to hash beside other work."""


class Lane:
    """Every stripe of one lane, in order; where there is one lane, everything."""

    def __init__(self, number: int, lanes: int) -> None:
        self._number, self._lanes = number, lanes
        self._stripe = STRIPE if lanes > 1 else _STEP
        self._hash = hashlib.sha256()
        self._given_up = False

    def update(self, piece: bytes | memoryview, at: int) -> None:
        """Hash what is this lane's of a piece that begins at the byte `at` of the whole."""
        view = memoryview(piece)
        for stripe in range(at // self._stripe, -(-(at + len(view)) // self._stripe)):
            if stripe % self._lanes == self._number and not self._given_up:
                self._hash.update(view[max(stripe * self._stripe - at, 0) : (stripe + 1) * self._stripe - at])

    def give_up(self) -> None:
        """Leave out what is still to come: nobody wants the digest any more."""
        self._given_up = True

    def digest(self) -> bytes:
        return self._hash.digest()


def lanes_of(form: str) -> list[Lane]:
    """Give new lanes for bytes of a form."""
    count = _LANES.get(form, 1)
    return [Lane(number, count) for number in range(count)]


def joined(lanes: list[Lane]) -> str:
    """Give the digest of the whole, in hexadecimal."""
    found = [lane.digest() for lane in lanes]
    return (found[0] if len(found) == 1 else hashlib.sha256(b"".join(found)).digest()).hex()


class Digest:
    """The digest of something that is whole, made beside other work where it is large."""

    def __init__(self, form: str, pieces: Iterable[Any]) -> None:
        views = [memoryview(piece).cast("B") for piece in pieces]
        self._lanes = lanes_of(form)
        self._threads = [threading.Thread(target=_hash, args=(lane, views)) for lane in self._lanes]
        if sum(map(len, views)) > _BESIDE:
            for thread in self._threads:
                thread.start()
        else:
            self._threads = []
            for lane in self._lanes:
                _hash(lane, views)

    def result(self) -> str:
        """Give it in hexadecimal, when it is made; an interrupt ends the making."""
        try:
            for thread in self._threads:
                thread.join()
        except BaseException:
            self.give_up()
            raise
        return joined(self._lanes)

    def give_up(self) -> None:
        """Stop: when this is done, nobody reads the pieces any more."""
        for lane in self._lanes:
            lane.give_up()
        for thread in self._threads:
            thread.join()


def digest_of(form: str, pieces: Iterable[Any]) -> str:
    """Give the digest of something, in hexadecimal."""
    return Digest(form, pieces).result()


def _hash(lane: Lane, views: list[memoryview]) -> None:
    at = 0
    for view in views:
        lane.update(view, at)
        at += len(view)
