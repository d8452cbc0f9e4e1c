"""A context's way into a sandbox: by Modal's file system interface, in pieces, so that a large one is never in memory twice.

The pieces are put together where they are, one after the other, so that the sandbox needs no room for two of the whole. That
what arrived is what was sent is checked by the kernel, against the digest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio.to_thread

from rlm_jupyter.errors import KernelError
from rlm_jupyter.kernels.client import cleaned
from rlm_jupyter.kernels.modal_stream import AGAIN_SECONDS, Finality
from rlm_jupyter.settings import MIB, size_text

if TYPE_CHECKING:
    import modal

    from rlm_jupyter.contexts import Payload

PIECE = 64 * MIB

_JOIN = """
import os, shutil, sys
whole, first, *rest = sys.argv[1:]
with open(first, "ab") as to:
    for path in rest:
        with open(path, "rb") as piece:
            shutil.copyfileobj(piece, to, 1 << 20)
        os.unlink(path)
os.rename(first, whole)
"""


class Upload:
    """One context on its way to the file `path`. `files` are those that may be left when it fails.

    `patience`: seconds for which a piece is tried again while the connection is gone.
    """

    def __init__(self, sandbox: modal.Sandbox, path: str, payload: Payload, patience: float) -> None:
        self._sandbox, self._path, self._payload, self._patience = sandbox, path, payload, patience
        count = max(1, -(-payload.size // PIECE))
        self._parts = [path] if count == 1 else [f"{path}-{part}" for part in range(count)]
        self.files = list(dict.fromkeys((path, *self._parts)))

    async def run(self, told: Callable[[str], None]) -> None:
        """Send it; `told` gets a line for each of several pieces.

        Raises
        ------
        KernelError
            When it could not be written; the text says why.
        """
        size = self._payload.size
        pieces = self._payload.pieces(PIECE) if size else iter((b"",))
        for number, part in enumerate(self._parts, 1):
            await self._put(await anyio.to_thread.run_sync(next, pieces), part)
            if len(self._parts) > 1:
                told(f"context: {size_text(min(number * PIECE, size))} of {size_text(size)} in the sandbox")
        if len(self._parts) > 1:
            await self._join()

    async def _put(self, data: bytes, path: str) -> None:
        """Write a file; again, when the SDK has given up and the connection may come back."""
        from modal.exception import SandboxFilesystemError

        loop, final = asyncio.get_running_loop(), Finality()
        until = loop.time() + self._patience
        while True:
            try:
                await self._sandbox.filesystem.write_bytes.aio(data, path)
                return
            except Exception as error:
                if isinstance(error, SandboxFilesystemError) or final(error) or loop.time() > until:
                    line = cleaned(str(error)).partition("\n")[0][:300]
                    raise KernelError(f"the context did not reach the sandbox: {line}") from None
            await asyncio.sleep(AGAIN_SECONDS)

    async def _join(self) -> None:
        process = await self._sandbox.exec.aio("python", "-P", "-c", _JOIN, self._path, *self._parts)
        if await process.wait.aio():
            lines = cleaned(await process.stderr.read.aio()).splitlines() or ["no reason was given"]
            raise KernelError(f"the context could not be put together in the sandbox: {lines[-1][:300]}")
