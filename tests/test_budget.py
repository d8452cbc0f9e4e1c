"""The budget: no cap is ever exceeded, nobody waits for nothing, and a cap that is reached stays reached."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_jupyter.budget import Budget, RequestTooLarge, Reservation
from rlm_jupyter.errors import LimitReached
from rlm_jupyter.events import Usage
from rlm_jupyter.lm.prices import Price, cost_of, flat, price_of
from rlm_jupyter.settings import RunSettings
from tests.deadlines import WAIT

pytestmark = pytest.mark.anyio

PRICE = Price(flat(1.0), flat(10.0), flat(0.1))


def budget_of(**options: Any) -> Budget:
    return Budget(RunSettings(**{"model": "m", "max_output_tokens": 1000, "max_cost": None, **options}))


async def reserve(budget: Budget, size: int = 100, price: Price | None = PRICE, model: str = "m") -> Reservation:
    with anyio.fail_after(WAIT):
        return await budget.reserve(model, price, size)


async def test_what_is_settled_is_counted_and_what_is_released_is_not() -> None:
    budget = budget_of()
    first, second = await reserve(budget), await reserve(budget)
    assert first.settle(Usage(10, 20)) == pytest.approx(10e-6 + 200e-6)
    second.release()
    assert (budget.calls, budget.usage, budget.in_flight) == (1, Usage(10, 20), 0)
    assert budget.cost == pytest.approx(210e-6)


async def test_a_reservation_counts_once() -> None:
    budget = budget_of()
    reservation = await reserve(budget)
    reservation.settle(Usage(1, 1))
    reservation.settle(Usage(1, 1))
    reservation.release()
    assert (budget.calls, budget.in_flight, budget.usage) == (1, 0, Usage(1, 1))


async def test_the_number_of_requests_is_capped_and_stays_so() -> None:
    budget = budget_of(max_calls=3)
    for _ in range(3):
        (await reserve(budget)).settle(Usage())
    for _ in range(2):
        with pytest.raises(LimitReached, match=r"all 3 requests .*--max-calls") as caught:
            await reserve(budget)
        assert caught.value.limit == "max_calls"
    assert budget.limit is not None


async def test_what_does_not_fit_waits_for_those_under_way() -> None:
    budget = budget_of(max_tokens=3000)
    first, second = await reserve(budget, 100), await reserve(budget, 100)
    order: list[str] = []

    async def later(name: str, size: int) -> None:
        reservation = await reserve(budget, size)
        order.append(name)
        reservation.settle(Usage(10, 10))

    async with anyio.create_task_group() as group:
        group.start_soon(later, "large", 1900)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(later, "small", 10)
        await anyio.wait_all_tasks_blocked()
        assert order == []
        first.settle(Usage(10, 10))
        await anyio.wait_all_tasks_blocked()
        assert order == []
        second.settle(Usage(10, 10))
    assert order == ["large", "small"]


async def test_what_never_fits_fails_when_none_is_under_way() -> None:
    budget = budget_of(max_tokens=3000)
    under_way = await reserve(budget, 100)
    failed: list[str] = []

    async def late() -> None:
        try:
            await reserve(budget, 1900)
        except LimitReached as limit:
            failed.append(limit.limit)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(late)
        await anyio.wait_all_tasks_blocked()
        assert failed == []
        under_way.settle(Usage(500, 1000))
    assert failed == ["max_tokens"] * 3


async def test_one_request_that_is_larger_than_a_whole_cap_ends_nothing() -> None:
    budget = budget_of(max_cost=0.5)
    with pytest.raises(RequestTooLarge, match=r"may cost 10\.01 dollars"):
        await reserve(budget, 10_000_000)
    assert budget.too_large("m", PRICE, 10_000_000) is not None
    assert budget.limit is None
    (await reserve(budget, 100)).release()


async def test_dollars_are_not_capped_where_no_price_is_known() -> None:
    budget = budget_of(max_cost=0.001)
    assert (await reserve(budget, 1_000_000, None)).settle(Usage(10**6, 10**6)) is None
    assert budget.cost is None


async def test_the_deadline_ends_those_who_wait() -> None:
    budget = Budget(RunSettings(model="m", timeout=1.0, max_calls=1), time.monotonic())
    under_way = await reserve(budget)
    with pytest.raises(LimitReached, match="--timeout") as caught:
        await reserve(budget)
    assert caught.value.limit == "timeout"
    under_way.settle(Usage())
    with pytest.raises(LimitReached):
        budget.check()
    assert budget.remaining() == 0


async def test_a_waiter_that_is_cancelled_leaves_no_trace() -> None:
    budget = budget_of(max_calls=1)
    under_way = await reserve(budget)
    with anyio.move_on_after(0.05):
        await budget.reserve("m", PRICE, 100)
    under_way.release()
    (await reserve(budget)).release()
    assert budget.in_flight == 0


async def test_a_waiter_that_is_cancelled_as_it_is_let_in_gives_its_room_back() -> None:
    budget = budget_of(max_calls=1)
    under_way = await reserve(budget)
    waiting = asyncio.get_running_loop().create_task(budget.reserve("m", PRICE, 100))
    await anyio.wait_all_tasks_blocked()
    under_way.release()
    waiting.cancel()
    await asyncio.wait([waiting])
    if not waiting.cancelled():
        waiting.result().release()
    assert budget.in_flight == 0
    (await reserve(budget)).release()


async def test_the_bound_tightens_to_the_tokens_per_byte_that_were_seen() -> None:
    budget = budget_of()
    first = await reserve(budget, 4000)
    assert first.need.tokens == 4000 + 1000
    first.settle(Usage(1000, 10))
    assert (await reserve(budget, 4000)).need.tokens == 1250 + 1000
    assert (await reserve(budget, 4000, model="other")).need.tokens == 4000 + 1000


async def test_the_bound_follows_the_worst_that_was_seen() -> None:
    budget = budget_of()
    (await reserve(budget, 4000)).settle(Usage(2000, 10))
    (await reserve(budget, 4000)).settle(Usage(500, 10))
    assert (await reserve(budget, 4000)).need.tokens == 2500 + 1000


async def test_estimates_and_short_requests_are_no_evidence() -> None:
    budget = budget_of()
    (await reserve(budget, 4000)).settle(Usage(10, 10, estimated=True))
    (await reserve(budget, 10)).settle(Usage(1, 1))
    assert (await reserve(budget, 4000)).need.tokens == 5000


async def test_an_estimate_uses_what_was_seen() -> None:
    budget = budget_of()
    assert budget.estimate("m", 1000, "x" * 100) == Usage(300, 30, estimated=True)
    (await reserve(budget, 1000)).settle(Usage(200, 10))
    assert budget.estimate("m", 1000, None) == Usage(200, 1000, estimated=True)


async def test_a_cheap_model_reaches_concurrency_32_with_two_dollars() -> None:
    """The defaults of a run: 2 dollars, 8,192 output tokens, 100 KB of prompt each."""
    budget = Budget(RunSettings(model="gpt-5-mini", max_cost=2.0))
    price = price_of("gpt-5-mini", {})
    held = [await reserve(budget, 100_000, price) for _ in range(32)]
    assert budget.in_flight == 32
    for reservation in held:
        reservation.settle(Usage(25_000, 500))
    assert budget.cost == pytest.approx(32 * (25_000 * 0.25 + 500 * 2) / 1e6)


async def test_what_is_kept_for_the_last_request_is_told_as_used() -> None:
    budget = budget_of(max_calls=10, max_tokens=100_000, max_cost=1.0)
    assert budget.left() == (10, 100_000, 1.0)
    (await budget.reserve("m", PRICE, 1000, keep=4000)).settle(Usage(500, 100))
    calls, tokens, dollars = budget.left()
    kept = 4000 * 0.5 * 1.25 + 1000
    assert (calls, tokens) == (8, 100_000 - 600 - kept)
    assert dollars == pytest.approx(1.0 - 1500e-6 - (2500 + 10_000) / 1e6)


async def test_the_first_turn_is_made_without_room_beside_it_and_the_second_is_not() -> None:
    budget = budget_of(max_calls=2)
    (await budget.reserve("m", PRICE, 100, keep=200)).settle(Usage(10, 10))
    with pytest.raises(LimitReached, match="but the one kept for the answer") as caught:
        await budget.reserve("m", PRICE, 100, keep=200)
    assert (caught.value.limit, caught.value.used, caught.value.cap) == ("max_calls", 1, 2)
    budget.reserve_last("m", PRICE, 150).settle(Usage(10, 10))
    with pytest.raises(LimitReached):
        budget.reserve_last("m", PRICE, 150)
    assert budget.calls == 2


@settings(max_examples=150, deadline=None)
@given(
    ratio=st.floats(0.05, 1),
    sizes=st.lists(st.tuples(st.integers(0, 4000), st.lists(st.integers(1, 30_000), max_size=4)), min_size=1, max_size=20),
    caps=st.fixed_dictionaries(
        {"max_calls": st.integers(2, 20), "max_tokens": st.integers(20_000, 90_000), "max_cost": st.floats(0.05, 0.5)}
    ),
)
def test_p07_whatever_reaches_a_cap_the_last_request_fits_within_it(
    ratio: float, sizes: list[tuple[int, list[int]]], caps: dict[str, Any]
) -> None:
    """Turns whose history grows by at most 4,000 bytes, sub-calls between them, until a cap is reached or there are no more."""
    budget, size = budget_of(**caps), 500

    def settle(reservation: Reservation) -> None:
        sent = min(math.floor(reservation.input_bytes * ratio), reservation.need.tokens - 1000)
        reservation.settle(Usage(sent, 1000))

    async def spend() -> None:
        nonlocal size
        for growth, subs in sizes:
            settle(await budget.reserve("m", PRICE, size, keep=size + 4000))
            size += growth
            for sub in subs:
                with contextlib.suppress(RequestTooLarge):
                    settle(await budget.reserve("m", PRICE, sub))

    with contextlib.suppress(LimitReached):
        anyio.run(spend)
    settle(budget.reserve_last("m", PRICE, size))
    assert budget.calls <= caps["max_calls"]
    assert budget.usage.total_tokens <= caps["max_tokens"]
    assert (budget.cost or 0) <= caps["max_cost"] * (1 + 1e-9)


REQUESTS = st.lists(
    st.tuples(
        st.integers(1, 20_000),  # bytes
        st.floats(0, 1),  # tokens per byte
        st.integers(0, 1000),  # output
        st.sampled_from(["settle", "settle", "estimate", "release", "cancel"]),
        st.booleans(),  # priced
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(
    requests=REQUESTS,
    max_calls=st.integers(1, 30),
    max_tokens=st.none() | st.integers(1000, 60_000),
    max_cost=st.none() | st.floats(0.01, 0.2),
    seed=st.integers(0, 2**32),
)
def test_no_interleaving_exceeds_a_cap_or_hangs(
    requests: list[tuple[int, float, int, str, bool]], max_calls: int, max_tokens: int | None, max_cost: float | None, seed: int
) -> None:
    """Any order of reserving, settling, releasing and cancelling: no cap is exceeded, all come to an end, nothing is left."""
    chance = random.Random(seed)
    budget = budget_of(max_calls=max_calls, max_tokens=max_tokens, max_cost=max_cost)
    true_ratio = max(ratio for _, ratio, *_ in requests)
    settled: list[Usage] = []
    peak = 0

    def check() -> None:
        assert budget.calls <= max_calls
        assert max_tokens is None or budget.usage.total_tokens <= max_tokens
        assert max_cost is None or (budget.cost or 0) <= max_cost * (1 + 1e-9)

    async def one(size: int, ratio: float, output: int, fate: str, priced: bool) -> None:
        nonlocal peak
        for _ in range(chance.randrange(4)):
            await anyio.lowlevel.checkpoint()
        try:
            reservation = await budget.reserve("m", PRICE if priced else None, size)
        except LimitReached:
            return
        peak = max(peak, budget.in_flight)
        try:
            for _ in range(chance.randrange(6)):
                await anyio.lowlevel.checkpoint()
        except BaseException:
            reservation.release()
            raise
        if fate == "release":
            reservation.release()
        else:
            # Whatever is reserved is enough, as a provider with the same tokenizer for all would bill it.
            sent = min(math.floor(size * min(ratio, true_ratio)), reservation.need.tokens - 1000)
            usage = Usage(sent, output) if fate == "settle" else Usage(sent, 1000, estimated=True)
            cost = reservation.settle(usage)
            assert cost == cost_of(usage, PRICE if priced else None)
            settled.append(usage)
        check()

    async def main() -> None:
        with anyio.fail_after(WAIT):
            async with anyio.create_task_group() as group:
                for request in requests:
                    if request[3] == "cancel":
                        group.start_soon(cancelled, request)
                    else:
                        group.start_soon(one, *request)

    async def cancelled(request: tuple[int, float, int, str, bool]) -> None:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(one, *request[:3], "release", request[4])
                for _ in range(chance.randrange(8)):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()

    anyio.run(main)
    check()
    assert budget.calls == len(settled)
    assert budget.usage == sum(settled, Usage())
    assert budget.in_flight == 0
    assert peak <= max_calls
