"""A context's way into a sandbox: by Modal's file system interface, from its file or in pieces, so never in memory twice.

The SDK reads the file itself where it can: a piece is memory that is new, which takes a quarter as long as sending it. What is
larger than `WHOLE` goes in pieces, so that a connection that is lost for good costs no more than one of them.

The supervisor puts the pieces together, each when it has come and while the next one comes, so that the sandbox needs no room
for two of the whole, and no further process. That what arrived is what was sent is checked by the kernel, against the digest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from rlm_jupyter.errors import KernelError
from rlm_jupyter.kernels.client import cleaned
from rlm_jupyter.kernels.modal_stream import AGAIN_SECONDS, Finality
from rlm_jupyter.settings import MIB, size_text

if TYPE_CHECKING:
    import modal

    from rlm_jupyter.contexts import Payload

PIECE = 64 * MIB
WHOLE = 4 * PIECE
LOOK_SECONDS = 2.0
"""How often it is told how much of a file is sent."""
FILES = "/proc/self/fd"


class Upload:
    """One context on its way to the file `path`. `files` are those that may be left when it fails.

    `patience`: seconds for which it is tried again after the SDK has given up the first time, as the connection is gone.
    """

    def __init__(self, sandbox: modal.Sandbox, path: str, payload: Payload, patience: float) -> None:
        self._sandbox, self._payload, self._patience = sandbox, payload, patience
        self._file = payload.file() if payload.size <= WHOLE else None
        count = max(1, -(-payload.size // PIECE)) if self._file is None else 1
        self.files = [path, *(f"{path}-{part}" for part in range(1, count))]

    async def run(self, told: Callable[[str], None], arrived: Callable[[str], None]) -> None:
        """Send it; `told` gets a line now and then, `arrived` each further file that belongs to the first.

        Raises
        ------
        KernelError
            When it could not be written; the text says why.
        """
        size = self._payload.size
        if self._file is not None:
            looking = asyncio.ensure_future(self._look(self._file, told))
            try:
                await self._put(self._file, self.files[0])
            finally:
                looking.cancel()
            if size > PIECE:
                told(f"context: {size_text(size)} of {size_text(size)} in the sandbox")
            return
        pieces = self._payload.pieces(PIECE) if size else iter((b"",))
        for number, file in enumerate(self.files, 1):
            await self._put(await anyio.to_thread.run_sync(next, pieces), file)
            if number > 1:
                arrived(file)
            if len(self.files) > 1:
                told(f"context: {size_text(min(number * PIECE, size))} of {size_text(size)} in the sandbox")

    async def _look(self, file: os.PathLike[str], told: Callable[[str], None]) -> None:
        """Tell how far the SDK has come, for which it has no way of its own."""
        last = 0
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            sent = _read_so_far(file)
            if sent != last:
                last = sent
                told(f"context: {size_text(sent)} of {size_text(self._payload.size)} sent")

    async def _put(self, source: bytes | os.PathLike[str], path: str) -> None:
        """Write a file; again, when the SDK has given up and the connection may come back."""
        from modal.exception import SandboxFilesystemError

        files, final = self._sandbox.filesystem, Finality()
        until: float | None = None
        while True:
            try:
                if isinstance(source, bytes):
                    await files.write_bytes.aio(source, path)
                else:
                    await files.copy_from_local.aio(source, path)
                return
            except Exception as error:
                until = anyio.current_time() + self._patience if until is None else until
                if isinstance(error, SandboxFilesystemError) or final(error) or anyio.current_time() > until:
                    line = cleaned(str(error)).partition("\n")[0][:300]
                    raise KernelError(f"the context did not reach the sandbox: {line}") from None
            await asyncio.sleep(AGAIN_SECONDS)


def _read_so_far(file: os.PathLike[str]) -> int:
    """Give how far a file of ours has been read by whoever opened it anew in this process; 0 where that cannot be seen."""
    ours, found = os.fspath(file), 0
    with contextlib.suppress(OSError):
        same = os.stat(ours)
        for name in os.listdir(FILES):
            with contextlib.suppress(OSError, ValueError):  # one that was closed meanwhile
                if f"{FILES}/{name}" != ours and os.path.samestat(os.stat(f"{FILES}/{name}"), same):
                    with open(f"{FILES}info/{name}", "rb") as info:
                        found = max(found, int(info.readline().removeprefix(b"pos:")))
    return found
