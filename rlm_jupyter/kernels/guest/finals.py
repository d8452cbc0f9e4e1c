"""The answers that FINAL_VAR left: files without a name, whose descriptors the kernel's code has handed over.

The value is encoded at the moment of the call, so that nothing that happens later changes it; the last few are kept for the
host to fetch piece by piece. What is handed over may be anything: it counts only if it is a regular file of the announced
size, in sealed memory or on the disk of the kernel's own folder, so that reading it cannot block. That its bytes are those of
the digest is for the host to check.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat

from . import codec, wire
from .fields import WireError
from .frames import Header

KEPT = 4

Held = tuple[wire.FinalInfo, int]


def is_sealed(fd: int) -> bool:
    """Tell whether a descriptor is of memory that nobody can write to, shorten or lengthen any more."""
    with contextlib.suppress(OSError, AttributeError):
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & seals == seals
    return False


class Finals:
    """The answers of one kernel."""

    def __init__(self, folder: str, cap: int) -> None:
        self.of_child = False
        self._folder = folder
        self._cap = cap
        self._count = 0
        self._kept: dict[int, Held] = {}

    def take(self, header: Header, fd: int | None) -> Held | None:
        """Take over the descriptor of an answer, or close it and give None where it is not what the code says."""
        if fd is None:
            return None
        self._count += 1
        values = {key: header.get(key) for key in ("name", "type_name", "form", "size", "digest")}
        if self.of_child:
            values["preview"] = header.get("preview")
        with contextlib.suppress(WireError, OSError):
            info = codec.read_final({"number": self._count, **values})
            status = os.fstat(fd)
            mine = info.form in (("text", "pickle") if self.of_child else ("text", "json", "typed"))
            good = mine and stat.S_ISREG(status.st_mode) and status.st_size == info.size <= self._cap
            if good and is_at_hand(fd, status, self._folder):
                return info, fd
        os.close(fd)
        return None

    def keep(self, held: Held) -> None:
        """Keep an answer that counts, and let go of the oldest above `KEPT`."""
        self._kept[held[0].number] = held
        while len(self._kept) > KEPT:
            os.close(self._kept.pop(min(self._kept))[1])

    def give_away(self, number: int) -> Held | None:
        """Give an answer up, to whoever gets its descriptor."""
        return self._kept.pop(number, None)

    def piece(self, number: int, offset: int) -> bytes:
        """Give at most VALUE_PIECE bytes of an answer; none where it is not kept."""
        held = self._kept.get(number)
        return os.pread(held[1], wire.VALUE_PIECE, offset) if held else b""

    def sealed(self, number: int) -> int:
        """Give the descriptor of an answer that is sealed memory; 0 where it is not, or not kept."""
        held = self._kept.get(number)
        return held[1] if held and is_sealed(held[1]) else 0

    def close(self) -> None:
        for _, fd in self._kept.values():
            os.close(fd)
        self._kept.clear()


def is_at_hand(fd: int, status: os.stat_result, folder: str, *, for_reading: bool = False) -> bool:
    """Tell whether a file is sealed memory, or on the disk of the kernel's folder: not one that its maker can stall.

    With `for_reading` that on the disk must be open for reading only.
    """
    if is_sealed(fd):
        return True
    if for_reading and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
        return False
    return status.st_dev == os.stat(folder).st_dev
