"""The LM calls that one kernel has under way, from the guest's message to the reply.

Each id is answered once, however often it comes; only calls of the cell that runs are handed on. What goes wrong on the host
becomes an error in the kernel that says no more than the kind of failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio

from rlm_jupyter.kernels import messages
from rlm_jupyter.kernels.guest import wire
from rlm_jupyter.kernels.guest.frames import MESSAGE_CAP
from rlm_jupyter.kernels.messages import OnCall

END_SECONDS = 3.0


class Calls:
    """Await the loop's answers, side by side, and send them."""

    def __init__(self, send: Callable[[wire.Message], None], answer: OnCall) -> None:
        self._send = send
        self._answer = answer
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._bytes = 0
        self._seen: set[str] = set()

    def take(self, message: wire.Call, cell: int) -> None:
        """Begin to answer a call, if it belongs to `cell`, the one that runs, and was not made before."""
        if message.cell != cell or message.call in self._seen:
            self._send(messages.failed(message, "no cell is running, or this call was made before"))
        elif self._bytes + len(message.data) > MESSAGE_CAP:
            self._send(messages.failed(message, "too much is being asked at once"))
        else:
            self._seen.add(message.call)
            self._bytes += len(message.data)
            task = asyncio.get_running_loop().create_task(self._work(message))
            task.add_done_callback(lambda task: self._over(message, task))
            self._tasks[message.call] = task

    def drop(self, message: wire.Dropped) -> None:
        """Cancel a call that nobody waits for any more."""
        if task := self._tasks.get(message.call):
            _cancel(task)

    def cancel(self) -> None:
        for task in self._tasks.values():
            _cancel(task)

    async def end(self) -> None:
        """Cancel what is still being asked for a cell that is over, and wait for it."""
        self.cancel()
        if self._tasks:
            with anyio.CancelScope(shield=True):
                await asyncio.wait(list(self._tasks.values()), timeout=END_SECONDS)

    async def _work(self, message: wire.Call) -> None:
        self._send(await self._reply(message))

    def _over(self, message: wire.Call, task: asyncio.Task[None]) -> None:
        self._tasks.pop(message.call, None)
        self._bytes -= len(message.data)
        if task.cancelled():
            self._send(messages.failed(message, "the call was cancelled"))

    async def _reply(self, message: wire.Call) -> wire.Reply:
        try:
            request = messages.call_request(message)
        except ValueError as error:
            return messages.failed(message, str(error))
        try:
            return messages.reply(message, await self._answer(request))
        except Exception as error:  # code in the kernel waits for a reply, also to a bug of ours
            return messages.failed(message, f"the call failed on the host ({type(error).__name__})")


def _cancel(task: asyncio.Task[None]) -> None:
    """Cancel a task once: a second time would break off its tidying up, such as the closing of a child's kernel."""
    if not task.cancelling():
        task.cancel()
