"""One request to a language model, attempted until there is a reply, a refusal, or no retry left.

Each attempt waits its turn at the tree's limiter, is reserved in its budget, and is settled whatever comes of it: also one that
was stopped, whose cost nobody tells. A parameter that a model refuses is sent otherwise, which is no retry. Backing off never
goes past the run's deadline: then the failure is told at once.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence

import anyio

from rlm_jupyter import events
from rlm_jupyter.budget import Budget, Reservation
from rlm_jupyter.errors import LMError, LMRefused
from rlm_jupyter.events import Emit, Usage
from rlm_jupyter.lm.client import LM, Completion, Message
from rlm_jupyter.lm.failures import ParameterRefused, Spent
from rlm_jupyter.lm.outlay import Outlay, Tally
from rlm_jupyter.lm.parts import Parts
from rlm_jupyter.lm.prices import Price, price_for
from rlm_jupyter.settings import RunSettings

ATTEMPT_TIMEOUT = 600.0
"""Seconds that one request may take, as openai has it."""
BACKOFF, BACKOFF_CAP = 0.5, 30.0
"""Seconds before the first retry, doubled for each further one, and the most."""
UNREACHED = 1
"""Retries where no server was reached, and none has answered in this run: what was never there will hardly come."""
ADAPTATIONS = 3
"""Requests sent again because a parameter is now sent otherwise; they are no retries."""


class Attempts:
    """Makes the requests of a node; limiter, budget, clients and prices are those of the whole tree.

    Attributes
    ----------
    spent
        What this node and all below it have taken.
    """

    def __init__(self, settings: RunSettings, budget: Budget, open_lm: Callable[[str], LM], emit: Emit, node: str) -> None:
        self._settings, self._budget, self._open_lm, self._emit, self._node = settings, budget, open_lm, emit, node
        self._limiter = anyio.CapacityLimiter(settings.max_concurrency)
        self._lms: dict[str, LM] = {}
        self._prices: dict[str, Price | None] = {}
        self._reached: set[str] = set()
        self.spent = Outlay()

    def below(self, node: str, settings: RunSettings) -> Attempts:
        """Give those of a child, with its name and settings."""
        child = copy.copy(self)
        child._node, child._settings, child.spent = node, settings, Outlay(self.spent)
        return child

    async def aclose(self) -> None:
        """Close every client."""
        while self._lms:
            await self._lms.popitem()[1].aclose()

    def price(self, model: str) -> Price | None:
        """Give the price of a model of the run, None where none is known."""
        if model not in self._prices:
            self._prices[model] = price_for(model, self._settings)
        return self._prices[model]

    def lm(self, model: str) -> LM:
        """Give the client of a model, made at its first use; a SettingsError where it cannot be."""
        lm = self._lms.get(model)
        if lm is None:
            lm = self._lms[model] = self._open_lm(model)
        return lm

    async def complete(
        self,
        model: str,
        messages: Sequence[Message],
        size: int,
        tally: Tally,
        *,
        call: str = "",
        parts: Parts | None = None,
        keep: int = 0,
        last: bool = False,
    ) -> Completion:
        """Ask until there is a reply, a refusal, or no retry left; each attempt waits its turn, is reserved and settled."""
        failures = adaptations = 0
        told: LMError
        while True:
            try:
                async with self._limiter:
                    tally.turn()
                    if last:
                        reservation = self._budget.reserve_last(model, self.price(model), size)
                    else:
                        reservation = await self._budget.reserve(model, self.price(model), size, keep)
                    return await self._attempt(model, messages, reservation, tally, parts, last=last)
            except ParameterRefused as error:
                adaptations += 1
                if adaptations > ADAPTATIONS:
                    raise LMRefused(str(error)) from None
                wait, told = 0.0, error
            except LMError as error:
                failures += 1
                if last:
                    raise
                self._budget.check()
                wait, told = _backoff(failures, error), error
                most = self._settings.max_retries
                if error.unreached and model not in self._reached:
                    most = min(most, UNREACHED)
                if not error.retryable or failures > most:
                    raise _final(error, failures) from None
                if wait >= self._budget.remaining():
                    raise _final(error, failures, f"; waiting {wait:.0f} s for another try is past the deadline") from None
            retried = events.RequestRetried(node=self._node, call=call, attempt=tally.attempts, error=str(told), wait=wait)
            self._emit(retried)
            if parts is not None:
                parts.restart()
            if wait:
                await anyio.sleep(wait)

    async def _attempt(
        self,
        model: str,
        messages: Sequence[Message],
        reservation: Reservation,
        tally: Tally,
        parts: Parts | None,
        *,
        last: bool,
    ) -> Completion:
        """Make one request and settle it, whatever comes of it."""
        usage: Usage | None = None
        try:
            lm = self.lm(model)
            completion = await lm.complete(
                messages,
                max_output_tokens=self._settings.max_output_tokens,
                timeout=min(ATTEMPT_TIMEOUT, max(0.001, self._budget.remaining(last=last))),
                on_text=parts.add if parts is not None else None,
            )
            usage = completion.usage or reservation.estimate(completion.text)
            self._reached.add(model)
            return completion
        except LMError as error:
            usage = _usage_of_failure(error, reservation, parts.text if parts is not None else "")
            raise
        finally:
            if usage is None:  # aborted: what was generated and paid nobody tells
                usage = reservation.estimate(parts.text if parts is not None and parts.text else None)
            if parts is not None:
                tally.partial = parts.text
            self.spent.add(usage, tally.add(reservation, usage))


def _usage_of_failure(error: LMError, reservation: Reservation, partial: str) -> Usage:
    """Say what a failed request is to be counted as: nothing where the server took none of it."""
    cause = error.__cause__
    if not isinstance(cause, Spent):
        return Usage()
    return cause.usage or reservation.estimate(partial or None if cause.text is None else cause.text)


def _backoff(failures: int, error: LMError) -> float:
    """Give the seconds to wait: as the provider asks, else doubled each time, with jitter so that callers spread."""
    wait = min(BACKOFF_CAP, BACKOFF * 2.0 ** (failures - 1)) * random.uniform(0.5, 1.0)
    return wait if error.retry_after is None else max(error.retry_after, 0.0) + random.uniform(0.0, 0.1)


def _final(error: LMError, failures: int, why: str = "") -> LMError:
    """Give the error that the caller sees, which says how often was tried."""
    if failures == 1 and not why:
        return error
    return type(error)(f"{error} ({failures} attempts{why})", retry_after=error.retry_after)
