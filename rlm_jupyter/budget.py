"""The caps of a run on requests, tokens, dollars and time, held for the whole tree and before the money is spent.

Each request reserves the most it can cost and settles for what it did cost: so the caps hold however many requests are under
way at once, and a cap ends a run even if the code swallows every exception. The most it can cost: for the input its bytes (no
tokenizer makes more than one token of a byte), tightened by the tokens per byte seen for that model, with a margin; for the
output `max_output_tokens`. What does not fit waits, first come, first served, for requests under way, whose settling may make
room, and fails only when none is.

From its first turn on, the root LM has room kept for one last request, in which it gives its answer when a cap is used up: a
request, tokens and dollars for its history as long as it can be after the turn, and a little time. Nobody else may take that.

A budget belongs to one event loop. It never asks a clock for anything but the deadline, and nothing of it sleeps.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field

import anyio

from rlm_jupyter.errors import LimitReached
from rlm_jupyter.events import Usage
from rlm_jupyter.lm.prices import Price, cost_of
from rlm_jupyter.settings import RunSettings

MARGIN = 1.25
"""On the most tokens per byte seen for a model."""
WITNESS = 256
"""Bytes that a request must have for its tokens per byte to say something."""
GUESS = 0.3
"""Tokens per byte of English and code, where nothing was seen: for estimates only, never for a reservation."""
LAST_SECONDS, LAST_SHARE = 30.0, 0.25
"""Seconds kept for the last request, and the most of a run's time that they may be."""


class RequestTooLarge(LimitReached):
    """One request could cost more than the whole cap: no waiting helps, but a smaller one may do."""


@dataclass(slots=True)
class _Seen:
    """Tokens per byte of a model's inputs: the most, and over all."""

    most: float = 0.0
    tokens: int = 0
    size: int = 0


@dataclass(slots=True)
class _Need:
    """What a request may take at most."""

    tokens: int
    dollars: float


_NONE = _Need(0, 0.0)


@dataclass(slots=True, eq=False)
class _Waiter:
    model: str
    price: Price | None
    input_bytes: int
    keep: int = 0
    turn: anyio.Event = field(default_factory=anyio.Event)
    granted: Reservation | None = None
    error: LimitReached | None = None


class Reservation:
    """Room for one request. Settle it with what the request cost, or release it if it was never sent; once."""

    __slots__ = ("_budget", "_open", "input_bytes", "model", "need", "price")

    def __init__(self, budget: Budget, model: str, price: Price | None, input_bytes: int, need: _Need) -> None:
        self._budget, self._open = budget, True
        self.model, self.price, self.input_bytes, self.need = model, price, input_bytes, need

    def settle(self, usage: Usage) -> float | None:
        """Count what the request took, make room for others, and give its cost in dollars (None: no price known)."""
        cost = cost_of(usage, self.price)
        if self._open:
            self._open = False
            self._budget._settle(self, usage, cost)
        return cost

    def release(self) -> None:
        """Give everything back: the request was never sent."""
        if self._open:
            self._open = False
            self._budget._release(self)

    def estimate(self, output: str | None) -> Usage:
        """Estimate a request whose usage nobody tells: by its bytes and its reply; None: by the most it can have been."""
        return self._budget.estimate(self.model, self.input_bytes, output)


class Budget:
    """What a run may spend, what it has spent, and what requests under way may still take.

    Parameters
    ----------
    settings
        The caps: `max_calls`, `max_tokens`, `max_cost`, `timeout`, and `max_output_tokens` of one reply.
    started
        When the run began, as `time.monotonic()` has it; now if left out.
    """

    def __init__(self, settings: RunSettings, started: float | None = None) -> None:
        self._settings = settings
        self.started = time.monotonic() if started is None else started
        self.deadline = self.started + settings.timeout
        self._last_seconds = min(LAST_SECONDS, settings.timeout * LAST_SHARE)
        self._last: tuple[str, Price | None, int] | None = None
        self.calls = 0
        self.usage = Usage()
        self.cost: float | None = None
        self.limit: LimitReached | None = None
        self._held = _Need(0, 0.0)
        self._in_flight = 0
        self._waiters: deque[_Waiter] = deque()
        self._seen: dict[str, _Seen] = {}

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return self._in_flight

    def remaining(self, *, last: bool = False) -> float:
        """Give the seconds that are left for requests, of which the `last` one has more; never below 0."""
        return max(0.0, self.deadline - (0.0 if last else self._last_seconds) - time.monotonic())

    def left(self) -> tuple[int, int | None, float | None]:
        """Give the requests, tokens and dollars that are left, without what is kept for the last request."""
        settings, kept = self._settings, self._kept()
        calls = settings.max_calls - self.calls - (kept is not None)
        tokens = None if settings.max_tokens is None else settings.max_tokens - self.usage.total_tokens - (kept or _NONE).tokens
        dollars = None if settings.max_cost is None else settings.max_cost - (self.cost or 0.0) - (kept or _NONE).dollars
        return max(0, calls), tokens, dollars

    async def reserve(self, model: str, price: Price | None, input_bytes: int, keep: int = 0) -> Reservation:
        """Wait for room for a request and take it.

        `keep` is of the root LM's turns: the most bytes that its last request can have after this one. Room for that is kept
        from now on. The first turn is made also where the caps have no such room.

        Raises
        ------
        RequestTooLarge
            The request alone could cost more than a cap; others may still be made.
        LimitReached
            A cap is used up, and stays so: `limit` holds it from now on and every later call fails with it.
        """
        self.check()
        waiter = _Waiter(model, price, input_bytes, keep)
        if not self._waiters and self._grant(waiter):
            return self._taken(waiter)
        self._waiters.append(waiter)
        try:
            with anyio.move_on_after(self.remaining()):
                await waiter.turn.wait()
        except BaseException:  # a cancelled waiter, too, must give back what it was granted
            self._forget(waiter)
            raise
        if not waiter.turn.is_set():
            self._forget(waiter)
            self.reach(self.out_of_time())
            self.check()
        return self._taken(waiter)

    def reserve_last(self, model: str, price: Price | None, input_bytes: int) -> Reservation:
        """Take the room that was kept for the last request, after a cap was reached; LimitReached where there is none.

        It is kept with a margin and taken without: the tokens per byte may have turned out to be a little more since.
        """
        need, self._last = self._bound(model, price, input_bytes, 1.0), None
        lacking = self._lacking(need, None) if self.remaining(last=True) else self.out_of_time()
        if lacking is not None:
            raise lacking
        return self._hold(_Waiter(model, price, input_bytes), need)

    def check(self) -> None:
        """Raise the `LimitReached` of a cap that is used up, also by the clock."""
        if self.limit is None and not self.remaining():
            self.reach(self.out_of_time())
        if self.limit is not None:
            raise self.limit

    def reach(self, limit: LimitReached) -> None:
        """Remember the first cap that was reached and fail all who wait, and all who ask from now on."""
        if self.limit is None:
            self.limit = limit
        while self._waiters:
            waiter = self._waiters.popleft()
            waiter.error = self.limit
            waiter.turn.set()

    def out_of_time(self) -> LimitReached:
        """Give the error of a run whose time is used up."""
        timeout, used = self._settings.timeout, time.monotonic() - self.started
        text = f"the time of the run is used up (--timeout {timeout:g})"
        return LimitReached("timeout", text, used=used, cap=timeout)

    def too_large(self, model: str, price: Price | None, input_bytes: int) -> RequestTooLarge | None:
        """Give the error of a request that could cost more than a whole cap, None where it would fit."""
        return self._alone(self._bound(model, price, input_bytes))

    def estimate(self, model: str, input_bytes: int, output: str | None) -> Usage:
        """Estimate the usage of a request from the size of its input and its reply (None: from the most it may be)."""
        seen = self._seen.get(model)
        per_byte = seen.tokens / seen.size if seen else GUESS
        received = (
            self._settings.max_output_tokens if output is None else math.ceil(len(output.encode("utf-8", "replace")) * GUESS)
        )
        return Usage(math.ceil(input_bytes * per_byte), received, estimated=True)

    def _bound(self, model: str, price: Price | None, input_bytes: int, margin: float = MARGIN) -> _Need:
        seen = self._seen.get(model)
        per_byte = min(seen.most * margin, max(1.0, seen.most)) if seen else 1.0
        sent, received = math.ceil(input_bytes * per_byte), self._settings.max_output_tokens
        return _Need(sent + received, price.worst(sent, received) if price else 0.0)

    def _grant(self, waiter: _Waiter) -> bool:
        """Decide on a waiter if that can be done now: it gets its reservation or its error."""
        need = self._bound(waiter.model, waiter.price, waiter.input_bytes)
        refusal = self._alone(need)
        if refusal is not None:
            waiter.error = refusal
            return True
        kept = self._bound(waiter.model, waiter.price, waiter.keep) if waiter.keep else self._kept()
        lacking = self._lacking(need, kept)
        if lacking is not None and self._in_flight == 0 and waiter.keep and self._last is None:
            lacking = self._lacking(need, None)
        if lacking is None:
            if waiter.keep:
                self._last = (waiter.model, waiter.price, waiter.keep)
            waiter.granted = self._hold(waiter, need)
            return True
        if self._in_flight == 0:
            self.reach(lacking)
            waiter.error = self.limit
            return True
        return False

    def _hold(self, waiter: _Waiter, need: _Need) -> Reservation:
        self._in_flight += 1
        self._held = _Need(self._held.tokens + need.tokens, self._held.dollars + need.dollars)
        return Reservation(self, waiter.model, waiter.price, waiter.input_bytes, need)

    def _kept(self) -> _Need | None:
        """Give what is kept for the last request, by what is known of its model now."""
        return self._bound(*self._last) if self._last is not None else None

    def _alone(self, need: _Need) -> RequestTooLarge | None:
        """Refuse what would not fit if nothing else had ever been spent."""
        tokens, dollars = self._settings.max_tokens, self._settings.max_cost
        if tokens is not None and need.tokens > tokens:
            return RequestTooLarge(
                "max_tokens",
                f"this request alone may take {need.tokens:,} tokens; --max-tokens is {tokens:,}",
                used=self.usage.total_tokens,
                cap=tokens,
            )
        if dollars is not None and need.dollars > dollars:
            return RequestTooLarge(
                "max_cost",
                f"this request alone may cost {need.dollars:.2f} dollars; --max-cost is {dollars:g}",
                used=self.cost or 0.0,
                cap=dollars,
            )
        return None

    def _lacking(self, need: _Need, kept: _Need | None) -> LimitReached | None:
        """Name the cap that `need` does not fit under now, counting what is under way at its most, and what is `kept`."""
        calls, tokens, dollars = self._settings.max_calls, self._settings.max_tokens, self._settings.max_cost
        about = "~" if self.usage.estimated else ""
        aside = " beside what is kept for the answer" if kept is not None else ""
        if self.calls + self._in_flight + 1 + (kept is not None) > calls:
            but = " but the one kept for the answer" if kept is not None else ""
            text = f"all {calls:,} requests of the run{but} are used up (--max-calls)"
            if calls == 1:
                text = "the one request of the run is used up (--max-calls 1)"
            return LimitReached("max_calls", text, used=self.calls, cap=calls)
        kept = kept or _NONE
        spent = self.usage.total_tokens
        if tokens is not None and spent + self._held.tokens + need.tokens + kept.tokens > tokens:
            return LimitReached(
                "max_tokens",
                f"{about}{spent:,} of {tokens:,} tokens are used, a request may take more than is left{aside} (--max-tokens)",
                used=spent,
                cap=tokens,
            )
        paid = self.cost or 0.0
        if dollars is not None and need.dollars > 0 and paid + self._held.dollars + need.dollars + kept.dollars > dollars:
            return LimitReached(
                "max_cost",
                f"{about}{paid:.4f} of {dollars:g} dollars are spent, a request may cost more than is left{aside} (--max-cost)",
                used=paid,
                cap=dollars,
            )
        return None

    def _taken(self, waiter: _Waiter) -> Reservation:
        if waiter.granted is None:
            assert waiter.error is not None
            raise waiter.error
        return waiter.granted

    def _forget(self, waiter: _Waiter) -> None:
        """Let a waiter go that gave up; what it was granted in the same moment is given back."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            self._admit()
        elif waiter.granted is not None:
            waiter.granted.release()

    def _settle(self, reservation: Reservation, usage: Usage, cost: float | None) -> None:
        self.calls += 1
        self.usage += usage
        if cost is not None:
            self.cost = (self.cost or 0.0) + cost
        if not usage.estimated and usage.input_tokens and reservation.input_bytes >= WITNESS:
            seen = self._seen.setdefault(reservation.model, _Seen())
            seen.most = max(seen.most, usage.input_tokens / reservation.input_bytes)
            seen.tokens += usage.input_tokens
            seen.size += reservation.input_bytes
        self._release(reservation)

    def _release(self, reservation: Reservation) -> None:
        self._in_flight -= 1
        need, held = reservation.need, self._held
        empty = self._in_flight == 0
        self._held = _Need(0, 0.0) if empty else _Need(held.tokens - need.tokens, max(0.0, held.dollars - need.dollars))
        self._admit()

    def _admit(self) -> None:
        """Let in those who wait, in their order, until one does not fit."""
        while self._waiters and self._grant(self._waiters[0]):
            if self._waiters:  # a cap that was reached has emptied the queue
                self._waiters.popleft().turn.set()
