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
    if size <= _IN_MEMORY and hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):  # EBUSY of sealing: the machine is just moving one of the pages
            return _sealed(pieces)
    return _on_disk(pieces, folder)


def _sealed(pieces: list[Any]) -> int:
    fd = os.memfd_create("final", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.writelines(pieces)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _on_disk(pieces: list[Any], folder: str) -> int:
    os.makedirs(folder, mode=0o700, exist_ok=True)
    path = os.path.join(folder, secrets.token_hex(16))
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        reading = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.unlink(path)
            file.writelines(pieces)
            file.flush()
        except BaseException:
            os.close(reading)
            raise
    return reading
