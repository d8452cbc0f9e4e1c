"""What tokens cost: the user's prices first, then the table of genai-prices as it is installed, never the network.

A model that neither knows has no price: None, and dollars are not capped. A price is found by the model's name in its
provider's list; behind a `--base-url` by that server's own list where the table has it, else by the name as OpenAI uses it.
Names that are the user's own (deployments of Azure, models behind a `--base-url`) are priced as `--price-as` says. The
user's own servers (ollama, vllm, lmstudio) cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from rlm_jupyter import settings
from rlm_jupyter.events import Usage
from rlm_jupyter.lm.table import provider_of

Rate = tuple[tuple[int, float], ...]
"""Dollars per million tokens by size: (from this many input tokens on, dollars), the first from 0 on, ascending."""

DEMO = "demo"


@dataclass(frozen=True, slots=True)
class Price:
    """What a model's tokens cost."""

    input: Rate
    output: Rate
    cached: Rate

    def worst(self, input_tokens: int, output_tokens: int) -> float:
        """Give the most dollars that up to so many tokens can cost: by the highest tier they reach, nothing cached."""
        sent, received = (max(d for start, d in rate if start <= input_tokens) for rate in (self.input, self.output))
        return (input_tokens * max(sent, 0.0) + output_tokens * max(received, 0.0)) / 1e6


def flat(dollars: float) -> Rate:
    """Give a rate that is the same for every size."""
    return ((0, float(dollars)),)


def price_for(model: str, chosen: settings.RunSettings) -> Price | None:
    """Find the price of a model of a run; None where nobody knows it."""
    return price_of(model, chosen.prices, chosen.base_url, chosen.price_as)


def price_of(
    model: str, prices: Mapping[str, settings.Price], base_url: str | None = None, price_as: str | None = None
) -> Price | None:
    """Find the price of `model`; None where nobody knows it.

    Parameters
    ----------
    model
        As the user names it: `gpt-5-mini`, `openai/gpt-5-mini`, `demo`.
    prices
        The user's own, which come first.
    base_url
        Of the server that the model is asked at, if that is not its provider's own.
    price_as
        The model whose price holds for names that are the user's own, and for those that the table does not know.
    """
    if model in prices:
        sent, received = prices[model]
        return Price(flat(sent), flat(received), flat(sent))
    row = provider_of(model)
    if base_url is None and (model == DEMO or (row is not None and row.free)):
        return Price(flat(0), flat(0), flat(0))
    own = base_url is not None or (row is not None and row.name == "azure")
    if price_as is not None and own:
        return price_of(price_as, prices)
    found = _from_table(model, base_url)
    return price_of(price_as, prices) if found is None and price_as is not None else found


def cost_of(usage: Usage, price: Price | None) -> float | None:
    """Give the dollars that `usage` costs, cached input by its own price; None where no price is known."""
    if price is None:
        return None
    size = usage.input_tokens
    fresh = size - usage.cached_tokens
    dollars = fresh * _at(price.input, size) + usage.cached_tokens * _at(price.cached, size)
    return (dollars + usage.output_tokens * _at(price.output, size)) / 1e6


def _at(rate: Rate, size: int) -> float:
    return next((dollars for start, dollars in reversed(rate) if size > start), rate[0][1])


def _from_table(model: str, base_url: str | None) -> Price | None:
    from genai_prices.data_snapshot import get_snapshot  # a late import: 0.3 s

    tries: list[tuple[str, str | None, str | None]] = []
    row = provider_of(model)
    provider, _, name = model.partition("/")
    ids = row.prices if row is not None else (provider,) if name else ()
    if base_url is not None:
        tries.append((model, None, base_url))
    tries += [(name or model, one, None) for one in ids]
    if base_url is not None:
        tries.append((model, "openai", None))
    for reference, provider_id, url in tries:
        try:
            _, found = get_snapshot().find_provider_model(reference, None, provider_id, url)
        except LookupError:
            continue
        return _read(found.get_prices(datetime.now(UTC)))
    return None


def models_known(providers: Sequence[str]) -> list[str]:
    """Name the models of these providers (by their names there) that the table knows."""
    from genai_prices.data_snapshot import get_snapshot  # a late import: 0.3 s

    return sorted(model.id for row in get_snapshot().providers if row.id in providers for model in row.models)


def _read(prices: Any) -> Price | None:
    """Read genai-prices' own object; a price by anything but input and output tokens is none that we can reckon with."""
    sent, received = _rate(prices.input_mtok), _rate(prices.output_mtok)
    if sent is None or received is None:
        return None
    return Price(sent, received, _rate(prices.cache_read_mtok) or sent)


def _rate(price: Any) -> Rate | None:
    if price is None:
        return None
    if isinstance(price, (int, float, Decimal)):
        return flat(float(price))
    tiers = sorted((int(tier.start), float(tier.price)) for tier in price.tiers)
    return ((0, float(price.base)), *tiers)
