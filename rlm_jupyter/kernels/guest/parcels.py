"""What a kernel leaves for its children, and what lies ready for it: files without a name, held by descriptor.

A context goes from a parent to its child, and an answer back, without leaving the supervisor's side: one kernel hands over a
descriptor, another gets it. Which kernel gets what the host decides; a kernel names only what it has left itself, and takes
only what lies ready for itself. What it has left is let go when its cell ends, what lies ready when the next begins: a thread
may still take it. What is handed over may be anything: it counts only if reading it cannot block (see `finals`) and it is
sealed memory, or opened for reading only.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import stat

from .fields import WireError, read_digest
from .finals import is_at_hand
from .frames import Header

KEPT = 1024
"""Parcels that a kernel may have left at once, and pieces of one."""
CONTEXT = ("", 0)
"""The place on the shelf where a child finds its context."""


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """One value in a file: where it is, in what form, and the digest that who loads it compares."""

    form: str
    offset: int
    size: int
    digest: str

    def to_header(self) -> Header:
        return dataclasses.asdict(self)


class Parcels:
    """The parcels of one kernel, and its shelf.

    `late`: what a reply tells of may be laid ready after the reply has come, as each takes a way of its own.
    """

    def __init__(self, folder: str, cap: int, *, late: bool) -> None:
        self._folder = folder
        self._cap = cap
        self._late = late
        self._count = 0
        self._left: dict[int, tuple[int, tuple[Piece, ...]]] = {}
        self._shelf: dict[tuple[str, int], tuple[int, Piece]] = {}
        self._missing: set[tuple[str, int]] = set()

    def leave(self, header: Header, fd: int | None) -> int | None:
        """Take over a descriptor with one value for each child; its number, or None where it is not what the code says."""
        if fd is None:
            return None
        try:
            pieces = _pieces(header)
            status = os.fstat(fd)
            end = max(piece.offset + piece.size for piece in pieces)
            good = stat.S_ISREG(status.st_mode) and end <= status.st_size <= self._cap and len(self._left) < KEPT
            if good and is_at_hand(fd, status, self._folder, for_reading=True):
                self._count += 1
                self._left[self._count] = (fd, pieces)
                return self._count
        except (WireError, OSError):
            pass
        os.close(fd)
        return None

    def piece(self, parcel: int, place: int) -> tuple[int, Piece] | None:
        """Give a descriptor of its own, and what it holds for the child `place`; None where there is no such thing."""
        fd, pieces = self._left.get(parcel, (-1, ()))
        try:
            return (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3), pieces[place]) if place < len(pieces) else None
        except OSError:
            return None

    def put(self, place: tuple[str, int], thing: tuple[int, Piece]) -> None:
        """Lay something ready for this kernel; the descriptor is its own from now on."""
        if (old := self._shelf.pop(place, None)) is not None:
            os.close(old[0])
        self._shelf[place] = thing

    def miss(self, place: tuple[str, int]) -> None:
        """Take note that nothing will lie ready there."""
        self._missing.add(place)

    def take(self, header: Header) -> tuple[int, Piece] | None:
        """Give what lies ready, once; None where nothing does."""
        return self._shelf.pop(place, None) if (place := _place(header)) else None

    def may_come(self, header: Header) -> bool:
        """Whether what does not lie ready may still do so: only for a kernel that has left something for its children."""
        return self._late and bool(self._left) and _place(header) not in (None, CONTEXT, *self._missing)

    def forget(self, header: Header) -> None:
        """Let a parcel go whose call is over."""
        parcel = header.get("parcel")
        if type(parcel) is int and parcel in self._left:
            os.close(self._left.pop(parcel)[0])

    def clear_left(self) -> None:
        """Let go of what this kernel has left: its cell has ended."""
        while self._left:
            os.close(self._left.popitem()[1][0])

    def clear_shelf(self) -> None:
        """Let go of what lies ready and was not taken."""
        self._missing.clear()
        while self._shelf:
            os.close(self._shelf.popitem()[1][0])


def _place(header: Header) -> tuple[str, int] | None:
    call, place = header.get("call"), header.get("place")
    return (call, place) if type(call) is str and type(place) is int else None


def _pieces(header: Header) -> tuple[Piece, ...]:
    """Read what a kernel says of the values in a file of its own."""
    given = header.get("pieces")
    if type(given) is not list or not 1 <= len(given) <= KEPT:
        raise WireError("pieces that are none, or too many")
    return tuple(map(_piece, given))


def _piece(given: object) -> Piece:
    if type(given) is not dict or given.keys() != {"form", "offset", "size", "digest"}:
        raise WireError("a piece that is none")
    form, offset, size = given["form"], given["offset"], given["size"]
    if form not in ("text", "pickle") or not all(type(number) is int and 0 <= number < 2**53 for number in (offset, size)):
        raise WireError("a piece of unknown form or size")
    return Piece(form, offset, size, read_digest(given["digest"]))
