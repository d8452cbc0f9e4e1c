"""A context as bytes: written once, hashed while it is written, and handed to a kernel without another copy.

Small contexts stay in memory. Larger ones go to an unnamed temporary file, which nobody else can open and which is gone with
the process, however that ends; a kernel on this machine gets a link to it and maps it. What is written is a snapshot: what
the user does to the object afterwards changes nothing.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO

from rlm_jupyter.errors import SettingsError
from rlm_jupyter.kernels.guest import digests
from rlm_jupyter.settings import CONTEXT_CAP, MIB

SMALL = MIB
PIECE = 8 * MIB
BUFFERS = 8
"""Buffers of the size `SMALL` that small pieces are gathered in: so far may the hashing lag behind on a busy machine."""
PROGRESS_AFTER = 1.0
PROGRESS_EVERY = 0.25

Progress = Callable[[int], None]
"""Called with the number of bytes that are ready, when preparing a context takes longer than a second."""


class Spool:
    """The bytes of a large context, in an unnamed temporary file."""

    def __init__(self) -> None:
        self._file: IO[bytes] = _unnamed_file()
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise SettingsError(
                f"the context does not fit into {tempfile.gettempdir()} ({error.strerror}); "
                "set the environment variable TMPDIR to a folder with more room"
            ) from None
        self.size += len(data)

    def place(self, path: str) -> None:
        """Make the file appear at `path`: a link where the file system gives one, else a copy. Mode 0600."""
        self._file.flush()
        if not _link(self._file.fileno(), path):
            self._file.seek(0)
            with _create(path) as target:
                shutil.copyfileobj(self._file, target, PIECE)

    def __fspath__(self) -> str:
        """Give a path by which this process, and no other, can open the file anew while this object is there."""
        self._file.flush()
        return f"/proc/self/fd/{self._file.fileno()}"

    def opens_anew(self) -> bool:
        """Whether the path is one: not on every system."""
        try:
            with open(self, "rb") as again:
                return os.path.sameopenfile(again.fileno(), self._file.fileno())
        except OSError:
            return False

    def read(self) -> bytes:
        self._file.flush()
        return os.pread(self._file.fileno(), self.size, 0) if self.size <= PIECE else b"".join(self.pieces(PIECE))

    def pieces(self, size: int) -> Iterator[bytes]:
        self._file.flush()
        return (os.pread(self._file.fileno(), size, at) for at in range(0, self.size, size))


@dataclasses.dataclass(frozen=True, slots=True)
class Payload:
    """A context as bytes.

    Attributes
    ----------
    form
        `text`: UTF-8, lone surrogates passed through. `pickle`: a pickle, the buffers that it leaves outside, and an index;
        it goes from the host to a kernel and never back.
    data
        The bytes: in memory, or in an unnamed file.
    digest
        SHA-256 of the bytes, in hex; of a pickle that of two lanes, see `kernels.guest.digests`.
    """

    form: str
    data: bytes | Spool
    digest: str

    @property
    def size(self) -> int:
        return len(self.data) if isinstance(self.data, bytes) else self.data.size

    def read(self) -> bytes:
        """Give all bytes; for a large context that is a copy."""
        return self.data if isinstance(self.data, bytes) else self.data.read()

    def pieces(self, size: int) -> Iterator[bytes]:
        """Give the bytes in pieces of `size`, the last one shorter; none of an empty context."""
        if isinstance(self.data, bytes):
            return (self.data[at : at + size] for at in range(0, len(self.data), size))
        return self.data.pieces(size)

    def file(self) -> os.PathLike[str] | None:
        """Give the file of the bytes, to be opened anew by whoever holds it; None where there is none to be had."""
        return self.data if isinstance(self.data, Spool) and self.data.opens_anew() else None

    def place(self, path: str) -> None:
        """Put the bytes into a new file that only this user can read."""
        if isinstance(self.data, bytes):
            with _create(path) as file:
                file.write(self.data)
        else:
            self.data.place(path)


class Writer:
    """Takes the bytes of a context in order; `payload` gives the whole. What is large is hashed beside the writing.

    The buffers grow once: memory that is new to a process costs more than all that is done with it here.
    """

    def __init__(self, form: str, progress: Progress | None = None) -> None:
        self.size = 0
        self._form = form
        self._buffers = [bytearray() for _ in range(BUFFERS)]
        self._filled = 0
        self._spool: Spool | None = None
        self._lanes = digests.lanes_of(form)
        self._helpers: list[ThreadPoolExecutor] = []
        self._hashing: deque[list[Future[None]]] = deque()
        self._progress = progress
        self._told = time.monotonic() + PROGRESS_AFTER - PROGRESS_EVERY

    def write(self, data: bytes | bytearray | memoryview) -> int:
        view = memoryview(data).cast("B")
        if self.size + len(view) > CONTEXT_CAP:
            raise SettingsError(f"the context has more than {CONTEXT_CAP:,} bytes, which is the cap")
        self.size += len(view)
        at = 0
        while len(view) - at > SMALL - self._filled:
            if self._filled == 0 and len(view) - at >= SMALL:
                at = self._write_directly(view, at)
            else:
                at = self._gather(view, at)
                self._write_gathered()
        self._gather(view, at)
        return len(view)

    def payload(self) -> Payload:
        if self._spool is None:
            data = bytes(memoryview(self._buffers[0])[: self._filled])
            return Payload(self._form, data, digests.digest_of(self._form, [data]))
        self._write_gathered()
        self._settle(0)
        for helper in self._helpers:
            helper.shutdown()
        return Payload(self._form, self._spool, digests.joined(self._lanes))

    def _gather(self, view: memoryview, at: int) -> int:
        """Take what fits into the buffer; give where the rest begins."""
        end = min(len(view), at + SMALL - self._filled)
        self._buffers[0][self._filled : self._filled + end - at] = view[at:end]
        self._filled += end - at
        return end

    def _write_gathered(self) -> None:
        self._put(memoryview(self._buffers[0])[: self._filled])
        self._settle(BUFFERS - 1)  # the one that comes next must have been hashed
        self._buffers.append(self._buffers.pop(0))
        self._filled = 0

    def _write_directly(self, view: memoryview, at: int) -> int:
        """Write what is large from where it is, which may change or go afterwards."""
        try:
            for start in range(at, len(view), PIECE):
                self._put(view[start : start + PIECE])
        finally:
            self._settle(0)
        return len(view)

    def _put(self, view: memoryview) -> None:
        """Write a piece to the file and hash it meanwhile."""
        if self._spool is None:
            self._spool = Spool()
            self._helpers = [ThreadPoolExecutor(1, "rlm-digest") for _ in self._lanes]
        at = self._spool.size
        self._hashing.append(
            [helper.submit(lane.update, view, at) for helper, lane in zip(self._helpers, self._lanes, strict=True)]
        )
        self._spool.write(view)
        if self._progress is not None and time.monotonic() - self._told > PROGRESS_EVERY:
            self._told = time.monotonic()
            self._progress(self.size)

    def _settle(self, left: int) -> None:
        """Wait until at most `left` pieces are still to be hashed."""
        while len(self._hashing) > left:
            for lane in self._hashing.popleft():
                lane.result()


def _unnamed_file() -> IO[bytes]:
    folder = tempfile.gettempdir()
    if hasattr(os, "O_TMPFILE"):
        try:
            # Not tempfile.TemporaryFile: it adds O_EXCL, and then the file can never be linked.
            return os.fdopen(os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), "w+b")
        except OSError:
            pass  # a file system without unnamed files
    return tempfile.TemporaryFile()


def _link(fd: int, path: str) -> bool:
    """Give an unnamed file a name, as `man 2 open` tells it; False where that cannot be."""
    try:
        folder = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.link(str(fd), path, src_dir_fd=folder, follow_symlinks=True)
    except OSError:
        return False
    finally:
        os.close(folder)
    return True


def _create(path: str) -> IO[bytes]:
    return open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600))
