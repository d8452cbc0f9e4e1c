"""From the names of remote procedures to the functions that serve them, on the stubs that the `modal` package ships.

A room is an object with methods named as the procedures are: `async def AppGetOrCreate(self, request, call)` gives the
answer, an async generator gives the answers of a stream. What no room serves is refused by name, and the plane remembers it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from grpclib import GRPCError, Status
from grpclib.const import Cardinality, Handler

Metadata = Mapping[str, Any]
Check = Callable[[str, Metadata], None]
"""Raises for a call that is to be refused, by its name and metadata."""
LOST = "lost"
"""What a handler's task is cancelled with when its worker is taken away."""


class Routes:
    """One service: what grpclib asks for its handlers."""

    def __init__(self, base: type, rooms: list[object], unknown: set[str], allowed: Check) -> None:
        self._base, self._rooms, self._unknown, self._allowed = base, rooms, unknown, allowed

    def __mapping__(self) -> dict[str, Handler]:
        stubs = type("Stubs", (self._base,), dict.fromkeys(self._base.__abstractmethods__))  # type: ignore[attr-defined]
        return {path: self._handler(path, handler) for path, handler in stubs().__mapping__().items()}

    def _handler(self, path: str, known: Handler) -> Handler:
        name = path.rsplit("/", 1)[1]
        serve = next((getattr(room, name) for room in self._rooms if hasattr(room, name)), None)

        async def answer(stream: Any) -> None:
            try:
                await respond(stream)
            except asyncio.CancelledError as error:
                if error.args == (LOST,):
                    raise GRPCError(Status.UNAVAILABLE, "the worker is gone") from None
                raise

        async def respond(stream: Any) -> None:
            self._allowed(name, stream.metadata)
            if serve is None:
                self._unknown.add(name)
                raise GRPCError(Status.UNIMPLEMENTED, f"the local control plane does not serve {name}")
            if known.cardinality is Cardinality.STREAM_UNARY:
                await stream.send_message(await serve(_messages(stream), stream.metadata))
                return
            request = await stream.recv_message()
            if inspect.isasyncgenfunction(serve):
                async for message in serve(request, stream.metadata):
                    await stream.send_message(message)
            else:
                await stream.send_message(await serve(request, stream.metadata))

        return known._replace(func=answer)


async def _messages(stream: Any) -> AsyncIterator[Any]:
    while (message := await stream.recv_message()) is not None:
        yield message
