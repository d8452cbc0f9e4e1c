"""What the tests of the LM side share: a handler against a scripted server, with its events and its budget."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from rlm_jupyter.budget import Budget
from rlm_jupyter.events import CallEnded, Event
from rlm_jupyter.kernels.messages import CallOutcome, CallRequest
from rlm_jupyter.lm import providers
from rlm_jupyter.lm.handler import LMHandler
from rlm_jupyter.settings import RunSettings
from rlm_jupyter.testing import ScriptedServer

MODEL = "gpt-5-mini"


@dataclass
class Side:
    """A handler, and what it did."""

    settings: RunSettings
    budget: Budget
    handler: LMHandler
    events: list[Event] = field(default_factory=list)
    ids: int = 0

    def request(
        self, *prompts: str, batch: bool | None = None, model: str | None = None, call: str | None = None
    ) -> CallRequest:
        self.ids += 1
        return CallRequest(1, 1, call or f"{self.ids:032x}", len(prompts) != 1 if batch is None else batch, prompts, model)

    async def call(self, *prompts: str, **options: Any) -> list[CallOutcome]:
        return await self.handler.answer(self.request(*prompts, **options))

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if type(event) is kind]

    @property
    def ended(self) -> list[CallEnded]:
        return self.of(CallEnded)


@asynccontextmanager
async def open_side(url: str | None, *, api_key: str | None = None, **options: Any) -> AsyncIterator[Side]:
    """Open a handler for the server at `url` (None: the model's own); `options` are settings."""
    settings = RunSettings(**{"model": MODEL, "base_url": url, **options})
    budget = Budget(settings)
    told: list[Event] = []
    handler = LMHandler(settings, budget, lambda model: providers.open_lm(model, settings, api_key=api_key), told.append)
    try:
        yield Side(settings, budget, handler, told)
    finally:
        await handler.aclose()


@asynccontextmanager
async def released(server: ScriptedServer, count: int) -> AsyncIterator[None]:
    """Let the held replies of a server go as soon as it has had `count` requests."""
    waiting = asyncio.ensure_future(asyncio.to_thread(server.wait_for, count))
    waiting.add_done_callback(lambda _: server.release())
    yield
    await waiting
