"""The files that code wrote in its working folder, to be handed over: no links, no devices, nothing hidden, and bounded."""

from __future__ import annotations

import os
import stat

_DEEPEST = 8


def written(folder: str, total: int, count: int) -> tuple[dict[str, bytes], int]:
    """Give the files of a folder by relative path, and how many were left out beyond `total` bytes and `count` files."""
    found: dict[str, bytes] = {}
    left_out = 0
    for place, folders, names in os.walk(folder, followlinks=False):
        deep = os.path.relpath(place, folder).count(os.sep) >= _DEEPEST - 1
        folders[:] = [] if deep else sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        for name in sorted(names):
            path = os.path.join(place, name)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError:
                continue
            with open(fd, "rb") as file:
                size = os.fstat(fd).st_size
                if name.startswith(".") or not stat.S_ISREG(os.fstat(fd).st_mode):
                    continue
                if size > total or len(found) >= count:
                    left_out += 1
                    continue
                data = file.read(size)
            found[os.path.relpath(path, folder)] = data
            total -= len(data)
    return found, left_out
