"""The answers that FINAL_VAR left: files of the kernel's private folder, held open and unlinked.

The value is encoded at the moment of the call, so that nothing that happens later changes it; the last few are kept for the
host to fetch piece by piece.
"""

from __future__ import annotations

import os
import re
import stat

from . import wire
from .frames import Header

KEPT = 4
_NAME = re.compile(r"[0-9a-f]{32}")

Held = tuple[wire.FinalInfo, int]


class Finals:
    """The answers of one kernel."""

    def __init__(self, folder: str, cap: int) -> None:
        self._folder = folder
        self._cap = cap
        self._count = 0
        self._kept: dict[int, Held] = {}

    def take(self, header: Header) -> Held | None:
        """Take hold of the file that the kernel's code has written, or give None where it is not what the code says."""
        path = header.get("path")
        if not isinstance(path, str) or not _NAME.fullmatch(path):
            return None
        self._count += 1
        values = {key: header.get(key) for key in ("name", "type_name", "form", "size", "digest")}
        full = os.path.join(self._folder, path)
        try:
            info = wire.read_final({"number": self._count, **values})
            fd = os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            os.unlink(full)
        except (wire.WireError, OSError):
            return None
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_size == info.size <= self._cap:
            return info, fd
        os.close(fd)
        return None

    def keep(self, held: Held) -> None:
        """Keep an answer that counts, and let go of the oldest above `KEPT`."""
        self._kept[held[0].number] = held
        while len(self._kept) > KEPT:
            os.close(self._kept.pop(min(self._kept))[1])

    def piece(self, number: int, offset: int) -> bytes:
        """Give at most VALUE_PIECE bytes of an answer; none where it is not kept."""
        held = self._kept.get(number)
        return os.pread(held[1], wire.VALUE_PIECE, offset) if held else b""

    def close(self) -> None:
        for _, fd in self._kept.values():
            os.close(fd)
        self._kept.clear()
