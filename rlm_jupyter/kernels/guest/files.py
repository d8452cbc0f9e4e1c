"""Files that the host writes into the run's folder over the stream, where it has no other way to it.

A file that does not fit is told when it is used, not when it arrives: the pieces come faster than the host could be asked.
"""

from __future__ import annotations

import contextlib
import os
import shutil

from . import wire

_STEP = 256 * 1024


class Files:
    """Names are checked by `wire`; every file is new, in the run's own folder, and readable by nobody else."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._failures: dict[str, str] = {}

    def add(self, part: wire.FilePart) -> None:
        if part.path in self._failures:
            return
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | (0 if part.offset else os.O_CREAT | os.O_EXCL)
        try:
            fd = os.open(os.path.join(self._folder, part.path), flags, 0o600)
            try:
                if os.fstat(fd).st_size != part.offset:
                    raise OSError(0, "a piece of it is missing")
                rest = memoryview(part.data)
                offset = part.offset
                while rest:
                    written = os.pwrite(fd, rest, offset)
                    rest, offset = rest[written:], offset + written
            finally:
                os.close(fd)
        except OSError as error:
            self._failures[part.path] = f"it could not be written ({error.strerror})"

    def append(self, order: wire.Append) -> None:
        """Put one file at the end of another, and remove it, so that there is never room needed for two of the whole."""
        whole, part = (os.path.join(self._folder, name) for name in (order.path, order.part))
        try:
            if order.path not in self._failures:
                with (
                    open(_opened(whole, os.O_WRONLY | os.O_APPEND), "wb", 0) as to,
                    open(_opened(part, os.O_RDONLY), "rb", 0) as piece,
                ):
                    shutil.copyfileobj(piece, to, _STEP)
        except OSError as error:
            self._failures[order.path] = f"it could not be put together ({error.strerror})"
        finally:
            with contextlib.suppress(OSError):
                os.unlink(part)

    def failure(self, path: str) -> str:
        """Why a file is not whole; '' where it is."""
        return self._failures.get(path, "")

    def discard(self, order: wire.Discard) -> None:
        self._failures.pop(order.path, None)
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._folder, order.path))


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
