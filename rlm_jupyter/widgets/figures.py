"""Figures as the views write them: counts, durations, sizes, tokens, dollars, each in one way for all of them.

None of them raises because a figure is odd: a trace may have been cut off, or read back from a file that somebody edited.
"""

from __future__ import annotations

from typing import Any

from rlm_jupyter.events import Usage

MOST = 1e18
"""What no figure of a run comes near: one that is as large, or not a number, was never measured."""


def figure(value: Any) -> float:
    """Give `value` if it is a number from 0 on that may be meant, else 0."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < MOST else 0


def count(number: Any, noun: str) -> str:
    """Give `1 iteration`, `2 iterations`, `1,234 iterations`."""
    whole = int(figure(number))
    plural = _PLURALS.get(noun) or (noun[:-1] + "ies" if noun.endswith("ry") else noun + "s")
    return f"{whole:,} {noun if whole == 1 else plural}"


_PLURALS = {"llm_query": "llm_query", "rlm_query": "rlm_query", "child": "children"}


def duration(seconds: Any) -> str:
    """Give `50 ms`, `3.2 s`, `42 s`, `1 min 05 s`, `2 h 03 min`."""
    value = figure(seconds)
    if value < 0.0995:
        return f"{value * 1000:.0f} ms"
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60:02d} s" if whole % 60 else "")
    return f"{whole // 3600:,} h" + (f" {whole % 3600 // 60:02d} min" if whole % 3600 >= 60 else "")


def size(number: Any) -> str:
    """Give `512 bytes`, `5.2 KB`, `1.3 GB`."""
    value = figure(number)
    if value < 1000:
        return count(value, "byte")
    for unit in ("KB", "MB", "GB"):
        value /= 1000
        if value < 999.5 or unit == "GB":
            break
    return f"{value:,.1f} {unit}" if value < 99.95 else f"{value:,.0f} {unit}"


def tilde(usage: Usage) -> str:
    return "~" if getattr(usage, "estimated", False) else ""


def tokens(usage: Usage) -> str:
    """Give `1,234 tokens`, with a tilde where at least one figure is an estimate."""
    whole = int(figure(getattr(usage, "input_tokens", 0)) + figure(getattr(usage, "output_tokens", 0)))
    return tilde(usage) + count(whole, "token")


def dollars(amount: Any) -> str:
    """Give `$0.0123`, `$1.25`, `$0.00`, `under $0.0001`."""
    value = figure(amount)
    if value == 0 or value >= 1:
        return f"${value:,.2f}"
    return f"${value:.4f}" if value >= 0.0001 else "under $0.0001"


def money(cost: Any, cap: Any = None, usage: Usage | None = None) -> str:
    """Give `$0.0123 of $2.00`; `no price known` where there is none."""
    if cost is None:
        return "no price known"
    text = (tilde(usage) if usage is not None else "") + dollars(cost)
    return text if cap is None or figure(cap) == 0 else f"{text} of {dollars(cap)}"
