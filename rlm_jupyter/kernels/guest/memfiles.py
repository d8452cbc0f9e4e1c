"""Bytes for the supervisor in a file without a name, sealed in memory where they fit."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from typing import Any

_IN_MEMORY = 32 * 1024 * 1024
"""Bytes of an answer that is handed over in memory; a larger one goes by a file on disk."""


def unnamed(pieces: list[Any], size: int, folder: str) -> int:
    """Give a descriptor of a file without a name that holds `pieces`: in memory, and sealed, where they are not too large.

    Else it is one on disk, which is open for reading only.
    """
    fd = reading = -1
    if size <= _IN_MEMORY and hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):
            fd = os.memfd_create("final", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    sealed = fd >= 0
    if not sealed:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        path = os.path.join(folder, secrets.token_hex(16))
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        reading = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        os.unlink(path)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.writelines(pieces)
        if sealed:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except BaseException:
        os.close(fd)
        if reading >= 0:
            os.close(reading)
        raise
    if sealed:
        return fd
    os.close(fd)
    return reading
