"""Sealed memory that another process of this machine holds, mapped into this one instead of being sent.

A large answer of a local kernel lies in memory that was sealed against every change before it was handed over. Its bytes are
read where they are, and are nothing but bytes. What is no regular file of the announced size with all seals is refused, so
that it can neither change while it is read nor be cut off under the reader; opening it cannot block.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat

from rlm_jupyter.kernels.guest.finals import is_sealed


def borrow(pid: int, descriptor: int, size: int) -> memoryview | None:
    """Map the memory that `pid`, a child of this process, holds under `descriptor`; None where it is not as it should be."""
    with contextlib.suppress(OSError, ValueError):
        fd = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and status.st_size == size > 0 and is_sealed(fd):
                return memoryview(mmap.mmap(fd, size, mmap.MAP_PRIVATE, mmap.PROT_READ))
        finally:
            os.close(fd)
    return None
