"""Files that the host writes into the run's folder over the stream, where it has no other way to it.

A file that does not fit is told when it is used, not when it arrives: the pieces come faster than the host could be asked.
"""

from __future__ import annotations

import contextlib
import os

from . import wire


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

    def failure(self, path: str) -> str:
        """Why a file is not whole; '' where it is."""
        return self._failures.get(path, "")

    def discard(self, order: wire.Discard) -> None:
        self._failures.pop(order.path, None)
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._folder, order.path))
