"""Prices: the user's first, the table's next, None where nobody knows; cached input and tiers as providers bill them."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from genai_prices import Usage as TableUsage
from genai_prices import calc_price

from rlm_jupyter.events import Usage
from rlm_jupyter.lm.prices import Price, cost_of, flat, price_of


@pytest.mark.parametrize("model", ["gpt-5-mini", "gpt-5", "gpt-4o-mini", "o3", "gpt-4.1"])
def test_costs_are_those_of_the_table(model: str) -> None:
    usage = Usage(12_345, 678, 2_000)
    expected = calc_price(
        TableUsage(input_tokens=12_345, cache_read_tokens=2_000, output_tokens=678), model, provider_id="openai"
    ).total_price
    assert cost_of(usage, price_of(model, {})) == pytest.approx(float(expected))
    assert price_of(f"openai/{model}", {}) == price_of(model, {})


def test_tiers_are_those_of_the_table_on_both_sides_of_the_step() -> None:
    price = price_of("google/gemini-2.5-pro", {})
    assert price is not None
    assert len(price.input) > 1
    for size in (1_000, 200_000, 200_001, 500_000):
        expected = calc_price(
            TableUsage(input_tokens=size, output_tokens=10), "gemini-2.5-pro", provider_id="google"
        ).total_price
        assert cost_of(Usage(size, 10), price) == pytest.approx(float(expected))


def test_a_reservation_reckons_with_the_highest_tier_that_can_be_reached() -> None:
    price = Price(((0, 1.0), (1000, 3.0)), ((0, 10.0), (1000, 20.0)), flat(0.1))
    assert price.worst(1000, 100) == pytest.approx((1000 * 3 + 100 * 20) / 1e6)
    assert price.worst(999, 100) == pytest.approx((999 * 1 + 100 * 10) / 1e6)
    for size in (0, 999, 1000, 1001, 5000):
        cost = cost_of(Usage(size, 100, size // 2), price)
        assert cost is not None
        assert cost <= price.worst(size, 100)


def test_the_users_price_goes_first_and_has_no_cheaper_cache() -> None:
    price = price_of("gpt-5-mini", {"gpt-5-mini": (7.0, 11.0)})
    assert cost_of(Usage(1_000_000, 1_000_000, 500_000), price) == pytest.approx(18.0)
    assert cost_of(Usage(100, 0), price_of("mine", {"mine": (1.0, 1.0)})) == pytest.approx(1e-4)


def test_what_nobody_knows_has_no_price_and_no_cost() -> None:
    for model in ("no-such-model", "nobody/gpt-5-mini-x", "", "/", "openai/"):
        assert price_of(model, {}) is None, model
    assert cost_of(Usage(10, 10), None) is None


def test_the_stand_in_costs_nothing_unless_it_is_the_name_on_a_server_of_the_users() -> None:
    assert cost_of(Usage(10**6, 10**6), price_of("demo", {})) == 0
    assert price_of("demo", {}, "http://localhost:8000/v1") is None


def test_behind_a_base_url_that_servers_own_list_counts() -> None:
    assert price_of("gpt-5-mini", {}, "http://localhost:8000/v1") == price_of("gpt-5-mini", {})
    there = price_of("deepseek-chat", {}, "https://api.deepseek.com/v1")
    assert there is not None
    assert price_of("deepseek-chat", {}, "http://localhost:8000/v1") is None


def test_the_network_is_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert price_of("gpt-5-nano", {}) is not None
    assert price_of("never-heard-of", {}) is None
