"""What a kernel was told to do and has not ended yet: each order with the message that ends it.

Whoever gives an order waits here. When the kernel is lost all who wait are told why, and so is everybody who comes later.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rlm_jupyter.kernels.guest import wire

if TYPE_CHECKING:
    from rlm_jupyter.kernels.environment import Environment

_ENDS: dict[type[wire.Message], tuple[type[wire.Message], ...]] = {
    wire.Start: (wire.Started, wire.StartFailed),
    wire.Context: (wire.Loaded,),
    wire.Inherit: (wire.Loaded,),
    wire.Execute: (wire.Done,),
    wire.LendValue: (wire.ValueLent,),
    wire.Close: (wire.Closed,),
}


class Orders:
    """The orders of one kernel. `ended`: why it takes no more; `over` is set then."""

    def __init__(self, environment: Environment) -> None:
        self.ended: Exception | None = None
        self.over = asyncio.Event()
        self._environment = environment
        self._waits: dict[asyncio.Future[wire.Message], tuple[type[wire.Message], ...]] = {}

    def check(self) -> None:
        """Raise why the kernel takes no more orders, where it is so."""
        if self.ended is not None:
            raise type(self.ended)(*self.ended.args)

    @contextlib.contextmanager
    def sent(self, order: wire.Message) -> Iterator[asyncio.Future[wire.Message]]:
        """Send an order; give the future of the message that ends it."""
        wait: asyncio.Future[wire.Message] = asyncio.get_running_loop().create_future()
        self._waits[wait] = _ENDS[type(order)]
        self._environment.send(order)
        try:
            yield wait
        finally:
            del self._waits[wait]

    async def give(self, order: wire.Message, seconds: float) -> wire.Message:
        """Give an order and wait for the message that ends it; TimeoutError after `seconds`."""
        with self.sent(order) as wait:
            if not await self._environment.answered(wait, seconds):
                raise TimeoutError
            return wait.result()

    def wait_for(self, message: wire.Message) -> asyncio.Future[wire.Message] | None:
        """Give the first future that is to have a message; None where nobody waits for it."""
        for wait, expected in self._waits.items():
            if isinstance(message, expected) and not wait.done():
                return wait
        return None

    def fail(self, error: Exception) -> None:
        """End all that is waited for. That the kernel is closed is told also of one that is lost."""
        if self.ended is None:
            self.ended = error
        self.over.set()
        for wait, expected in self._waits.items():
            if not wait.done() and not (wire.Closed in expected and self._environment.alive):
                wait.set_exception(error)
                wait.exception()

    def broken(self, error: Exception) -> Exception:
        """Give the supervisor up, which broke the protocol or answers no more; give the error, to be raised."""
        self._environment.kill(error)
        return error
