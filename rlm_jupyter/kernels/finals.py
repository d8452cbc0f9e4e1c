"""The answers that the code of one kernel gave: announced when their cell ends, fetched when somebody wants one.

An answer is bytes that stay beside the kernel. They are borrowed as memory where that is sealed and of this machine, and come
piece by piece elsewhere. What is refused: an answer above the cap or of a form that is for kernels only, bytes of another
size or digest than was announced, and pieces that nobody asked for.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlm_jupyter.errors import KernelDied, KernelError, ProtocolError
from rlm_jupyter.kernels.guest import wire
from rlm_jupyter.kernels.orders import Orders
from rlm_jupyter.kernels.text import plain
from rlm_jupyter.settings import VALUE_CAP
from rlm_jupyter.values import Value

if TYPE_CHECKING:
    from rlm_jupyter.kernels.environment import Environment

PART_SECONDS = 30.0
PARTS_AHEAD = 16


@dataclass(frozen=True, slots=True)
class Final:
    """An answer given with FINAL_VAR; `name` is '' when it was given by value. `Kernel.value` fetches it.

    That of a child stays beside the kernels: `preview` is its beginning as text, and `Kernel.bring` hands it to the parent.
    """

    number: int
    name: str
    type_name: str
    size: int
    preview: str = ""


class Finals:
    """The answers of the kernel `number`, a child of `parent` where that is not 0. `candidate`: the last of them."""

    def __init__(self, environment: Environment, orders: Orders, number: int, parent: int) -> None:
        self.candidate: Final | None = None
        self._environment = environment
        self._orders = orders
        self._number, self._parent = number, parent
        self._known: dict[int, wire.FinalInfo] = {}
        self._parts: deque[tuple[int, int, asyncio.Future[bytes]]] = deque()

    def announce(self, info: wire.FinalInfo) -> None:
        """Take note of an answer that a cell gave, however the cell ended."""
        if info.size > VALUE_CAP:
            raise ProtocolError("the supervisor announced a value above the cap")
        if info.form == "pickle" and not self._parent:
            raise ProtocolError("the supervisor announced a value that is for kernels only")
        self._known[info.number] = info
        self.candidate = Final(info.number, plain(info.name), plain(info.type_name), info.size, plain(info.preview))

    async def fetch(self, final: Final) -> Value:
        """Fetch an answer; bytes that travelled are checked against the digest that came with it."""
        self._orders.check()
        info = self._known.get(final.number)
        if info is None:
            raise KernelError("this answer is no longer kept by the kernel")
        data: bytes | memoryview | None = None
        try:
            if info.size > wire.VALUE_PIECE:
                data = await self._lent(info)
            if data is None:
                data = await self._travelled(info)
        except TimeoutError:
            raise self._orders.broken(
                KernelDied("The kernel's supervisor stopped answering; the variables are lost.")
            ) from None
        return Value(info.form, info.type_name, data)

    async def _lent(self, info: wire.FinalInfo) -> memoryview | None:
        """Give the memory itself in which the kernel left an answer, where that is sealed and of this machine."""
        if not self._environment.lends:
            return None
        message = await self._orders.give(wire.LendValue(self._number, info.number), PART_SECONDS)
        assert isinstance(message, wire.ValueLent)
        if message.number != info.number:
            raise self._orders.broken(ProtocolError("the supervisor lent another value than it was asked for"))
        return self._environment.borrow(message.descriptor, info.size) if message.descriptor else None

    async def _travelled(self, info: wire.FinalInfo) -> bytes:
        """Have an answer sent piece by piece."""
        pieces: list[bytes] = []
        digest = hashlib.sha256()
        offsets = deque(range(0, info.size, wire.VALUE_PIECE))
        under_way: deque[asyncio.Future[bytes]] = deque()
        hashed: asyncio.Future[None] | None = None
        while offsets or under_way:
            while offsets and len(under_way) < PARTS_AHEAD:
                under_way.append(self._ask_part(info.number, offsets.popleft()))
            part = under_way.popleft()
            if not await self._environment.answered(part, PART_SECONDS):
                raise TimeoutError
            pieces.append(part.result())
            if info.size <= wire.VALUE_PIECE:
                digest.update(pieces[-1])
                continue
            if hashed is not None:  # one piece after the other, in a thread, while the next one comes
                await hashed
            hashed = asyncio.get_running_loop().run_in_executor(None, digest.update, pieces[-1])
        if hashed is not None:
            await hashed
        data = b"".join(pieces)
        if len(data) != info.size or digest.hexdigest() != info.digest:
            raise KernelError("the answer arrived with another size or digest than it was sent with")
        return data

    def _ask_part(self, number: int, offset: int) -> asyncio.Future[bytes]:
        self._orders.check()
        part: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._parts.append((number, offset, part))
        self._environment.send(wire.GetValue(self._number, number, offset))
        return part

    def take_part(self, message: wire.ValuePart, *, late: bool) -> None:
        """Take a piece. `late`: the kernel is being closed, and nobody may want it any more."""
        if not self._parts and late:
            return
        if not self._parts:
            raise ProtocolError("the supervisor sent a value that nobody asked for")
        number, offset, part = self._parts.popleft()
        if (message.number, message.offset) != (number, offset):
            raise ProtocolError("the supervisor sent another piece of a value than it was asked for")
        if not part.done():
            part.set_result(message.data)

    def fail(self, error: Exception) -> None:
        """Tell whoever waits for a piece that none comes any more."""
        while self._parts:
            part = self._parts.popleft()[2]
            if not part.done():
                part.set_exception(error)
                part.exception()
