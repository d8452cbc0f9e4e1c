"""A context's way into a sandbox: by Modal's file system interface, in pieces, so that a large one is never in memory twice.

The supervisor puts the pieces together, each when it has come and while the next one comes, so that the sandbox needs no room
for two of the whole, and no further process. That what arrived is what was sent is checked by the kernel, against the digest.
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


class Upload:
    """One context on its way to the file `path`. `files` are those that may be left when it fails.

    `patience`: seconds for which a piece is tried again while the connection is gone.
    """

    def __init__(self, sandbox: modal.Sandbox, path: str, payload: Payload, patience: float) -> None:
        self._sandbox, self._payload, self._patience = sandbox, payload, patience
        count = max(1, -(-payload.size // PIECE))
        self.files = [path, *(f"{path}-{part}" for part in range(1, count))]

    async def run(self, told: Callable[[str], None], arrived: Callable[[str], None]) -> None:
        """Send it; `told` gets a line for each of several pieces, `arrived` each further file that belongs to the first.

        Raises
        ------
        KernelError
            When it could not be written; the text says why.
        """
        size = self._payload.size
        pieces = self._payload.pieces(PIECE) if size else iter((b"",))
        for number, file in enumerate(self.files, 1):
            await self._put(await anyio.to_thread.run_sync(next, pieces), file)
            if number > 1:
                arrived(file)
            if len(self.files) > 1:
                told(f"context: {size_text(min(number * PIECE, size))} of {size_text(size)} in the sandbox")

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
