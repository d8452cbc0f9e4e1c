"""Words and figures of the views: one place, so that the page and the terminal say the same thing in the same words.

Everything here reads a trace and gives short strings. It refuses to know how they are drawn, and never raises because a
figure is odd: a trace may have been cut off, or read back from a file that somebody edited.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from rlm_jupyter.events import Usage
from rlm_jupyter.trace import Call, Cell, Iteration, Trace

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5"
    "\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\ud800-\udfff"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_JOINERS = "\u200c\u200d"


def visible(text: Any) -> str:
    """Give `text` with everything in it that hides, moves or reorders characters written out.

    Control characters are shown as `\\x1b`, so an ANSI sequence is text; bidirectional and zero-width characters, tags and
    lone surrogates as `\\u202e`. Newline and tab stay. Joiners stay inside
    words of the scripts, and inside the emoji, that need them.
    """
    if not isinstance(text, str):
        text = "" if text is None else str(text)
    return _UNSEEN.sub(_written_out, text.replace("\r\n", "\n"))


def _written_out(match: re.Match[str]) -> str:
    char = match[0]
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    if char in _JOINERS and _joinable(match.string, match.start() - 1) and _joinable(match.string, match.start() + 1):
        return char
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _joinable(text: str, index: int) -> bool:
    if not 0 <= index < len(text) or text[index] < "\u0300":
        return False
    return unicodedata.category(text[index]) in ("Lo", "Mn", "Mc", "So", "Sk") and not _UNSEEN.match(text[index])


def one_line(text: Any, cap: int = 100) -> str:
    """Give the first `cap` characters of `text` as one visible line."""
    if not isinstance(text, str):
        text = visible(text)
    line = " ".join(visible(text[: 4 * cap]).split())
    return line if len(line) <= cap else line[: cap - 1].rstrip() + "…"


def _figure(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return max(value, 0)
    return 0


def count(number: Any, noun: str) -> str:
    """Give `1 iteration`, `2 iterations`, `1,234 iterations`."""
    whole = int(_figure(number))
    plural = noun if whole == 1 or noun == "llm_query" else noun[:-1] + "ies" if noun.endswith("ry") else noun + "s"
    return f"{whole:,} {plural}"


def duration(seconds: Any) -> str:
    """Give `50 ms`, `3.2 s`, `42 s`, `1 min 05 s`, `2 h 03 min`."""
    value = _figure(seconds)
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
    value = _figure(number)
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
    whole = int(_figure(getattr(usage, "input_tokens", 0)) + _figure(getattr(usage, "output_tokens", 0)))
    return tilde(usage) + count(whole, "token")


def dollars(amount: Any) -> str:
    """Give `$0.0123`, `$1.25`, `$0.00`, `under $0.0001`."""
    value = _figure(amount)
    if value == 0 or value >= 1:
        return f"${value:,.2f}"
    return f"${value:.4f}" if value >= 0.0001 else "under $0.0001"


def money(cost: Any, cap: Any = None, usage: Usage | None = None) -> str:
    """Give `$0.0123 of $2.00`; `no price known` where there is none."""
    if cost is None:
        return "no price known"
    text = (tilde(usage) if usage is not None else "") + dollars(cost)
    return text if cap is None or _figure(cap) == 0 else f"{text} of {dollars(cap)}"


def spent(trace: Trace) -> str:
    """Give what the run cost, of what it may cost."""
    cost = 0.0 if trace.cost is None and not trace.requests else trace.cost
    return money(cost, setting(trace, "max_cost"), trace.usage)


def setting(trace: Trace, name: str) -> Any:
    """Give a setting of the run as its first event told it, or None."""
    return trace.settings.get(name) if isinstance(trace.settings, dict) else None


def elapsed(trace: Trace) -> float:
    """Give the seconds of a run; of one whose end is not recorded, up to its last event."""
    if trace.status != "running" or not trace.events:
        return trace.seconds
    return trace.events[-1].at - trace.started


def models(trace: Trace) -> str:
    """Give the names of the models of the run, the root's first."""
    root = one_line(setting(trace, "model") or "", 60) or "model not told"
    names = dict.fromkeys(one_line(call.model, 60) for call in trace.calls if call.model)
    if not names and setting(trace, "sub_model"):
        names = {one_line(setting(trace, "sub_model"), 60): None}
    others = [name for name in names if name != root]
    if not others:
        return root
    more = f" and {len(others) - 3:,} more" if len(others) > 3 else ""
    return f"{root}, sub-calls {', '.join(others[:3])}{more}"


_STATUS = {
    "running": "Running",
    "answered": "Answered",
    "unmarked": "Answered in prose",
    "limit": "Limit reached",
    "stopped": "Stopped",
    "failed": "Failed",
}


def status(trace: Trace) -> str:
    """Give the state of a finished run in a word or two; a limit with its name."""
    word = _STATUS.get(trace.status, one_line(trace.status, 40) or "Unknown")
    return f"{word}: {one_line(trace.limit, 40)}" if trace.status == "limit" and trace.limit else word


def outcome(trace: Trace) -> str:
    """Say truthfully what the answer is and what happened; '' where the answer speaks for itself."""
    has = bool(trace.answer)
    kept = "What is shown is the best there was, not a marked answer." if has else "There is no answer."
    match trace.status:
        case "answered" if not has:
            return "The answer is an empty text."
        case "answered" if trace.answer_type not in ("", "str"):
            return f"The answer is a {one_line(trace.answer_type, 60)}, shown as text."
        case "answered":
            return ""
        case "unmarked":
            return "The model never called FINAL_VAR: this is its last reply, taken as the answer."
        case "limit":
            return f"The run ended because {one_line(trace.limit, 40) or 'a limit'} was used up. {kept}"
        case "stopped":
            return f"You stopped the run. {kept}"
        case "failed":
            return f"The run failed. {kept}"
        case "running":
            return "The run has not ended, or its end was not recorded."
    return kept


def headline(trace: Trace) -> list[str]:
    """Give the figures of the summary line."""
    return [
        count(len(turns(trace)), "iteration"),
        count(trace.requests, "request"),
        tokens(trace.usage),
        spent(trace),
        duration(elapsed(trace)),
        models(trace),
    ]


def turns(trace: Trace) -> list[Iteration]:
    """Give the iterations without the set-up code, which is iteration 0."""
    return [iteration for iteration in trace.iterations if iteration.iteration != 0]


def totals(trace: Trace) -> list[tuple[str, str]]:
    """Give the totals of a run as pairs of a label and a text."""
    at_most = _figure(trace.max_iterations or setting(trace, "max_iterations"))
    rows = [("iterations", f"{len(turns(trace)):,}" + (f" of at most {at_most:,.0f}" if at_most else ""))]
    requests = f"{int(_figure(trace.requests)):,}"
    if cap := _figure(setting(trace, "max_calls")):
        requests += f" of at most {cap:,.0f}"
    if trace.calls:
        requests += f"; {batch(trace.calls)}"
    if trace.retries:
        requests += f"; {count(trace.retries, 'retry')}"
    rows.append(("requests", requests))
    usage = trace.usage
    parts = [f"{usage.input_tokens:,} in", f"{usage.output_tokens:,} out"]
    if usage.cached_tokens:
        parts.append(f"{usage.cached_tokens:,} cached")
    rows.append(("tokens", f"{tokens(usage)} ({', '.join(parts)})" + ("; ~ is our estimate" if usage.estimated else "")))
    rows.append(("cost", spent(trace)))
    limit = _figure(setting(trace, "timeout"))
    rows.append(("time", duration(elapsed(trace)) + (f" of at most {duration(limit)}" if limit else "")))
    if machine := sandbox(trace):
        rows.append(("sandbox", f"{machine}; billed by Modal, outside --max-cost"))
    environment = ", ".join(filter(None, (one_line(setting(trace, "environment") or "", 40), _isolation(trace))))
    if trace.kernel:
        environment += f" (kernel: {one_line(trace.kernel, 40)})"
    rows.append(("environment", environment or "not told"))
    rows.append(("model", models(trace)))
    if trace.context_type:
        described = one_line(trace.context_description, 200)
        rows.append(
            (
                "context",
                f"{one_line(trace.context_type, 40)}, {size(trace.context_size)}" + (f": {described}" * bool(described)),
            )
        )
    return rows


def sandbox(trace: Trace, seconds: float | None = None) -> str:
    """Give what a billed sandbox has taken so far; '' where there is none. `seconds`: since the run's start, where it runs."""
    if not trace.machine:
        return ""
    last = trace.started + (elapsed(trace) if seconds is None else seconds)
    taken = last - trace.machine_started if trace.machine_seconds is None else trace.machine_seconds
    return f"{duration(taken)}, {one_line(trace.machine, 120)}"


def batch(calls: Sequence[Call]) -> str:
    """Give `256 llm_query: 251 ok, 3 running, 2 failed`."""
    states = {"ok": 0, "running": 0, "failed": 0}
    for call in calls:
        states[call.state] = states.get(call.state, 0) + 1
    told = ", ".join(f"{number:,} {state}" for state, number in states.items() if number)
    return f"{count(len(calls), 'llm_query')}: {told or '0 ok'}"


def call_figures(call: Call, model: bool = True) -> list[str]:
    """Give what one sub-call took: time, tokens, cost, attempts where there were several, its model."""
    parts = [] if call.state == "running" else [duration(call.seconds), tokens(call.usage)]
    if call.cost is not None:
        parts.append(money(call.cost, None, call.usage))
    if _figure(call.attempts) > 1:
        parts.append(count(call.attempts, "attempt"))
    if model and call.model:
        parts.append(one_line(call.model, 60))
    return parts


def sums(usages: Iterable[tuple[Usage, float | None]]) -> tuple[Usage, float | None]:
    """Add up usage and cost; the cost is None where none is known."""
    total, cost = Usage(), None
    for usage, price in usages:
        total += usage
        if price is not None:
            cost = (cost or 0.0) + price
    return total, cost


def iteration_figures(iteration: Iteration) -> list[str]:
    """Give what an iteration took, its sub-calls included."""
    calls = [call for cell in iteration.cells for call in cell.calls]
    usage, cost = sums([(iteration.usage, iteration.cost), *((call.usage, call.cost) for call in calls)])
    parts = [batch(calls)] if calls else []
    if shown := sum(output.picture > 0 for cell in iteration.cells for output in cell.outputs):
        parts.append(count(shown, "picture"))
    parts += [tokens(usage)] + ([money(cost, None, usage)] if cost is not None else [])
    return [*parts, duration(_figure(iteration.seconds) + sum(_figure(cell.seconds) for cell in iteration.cells))]


def trouble(iteration: Iteration) -> str:
    """Name the first thing that went wrong in an iteration's cells, '' if nothing did."""
    for cell in iteration.cells:
        if cell.status not in ("ok", "running"):
            return one_line(cell.error or cell.status, 120)
    return ""


def cell_status(cell: Cell) -> str:
    """Give how a cell ended: `ok`, `error: NameError ...`, `interrupted`, `died`."""
    word = one_line(cell.status, 20)
    return f"{word}: {one_line(cell.error, 120)}" if cell.error else word


def _isolation(trace: Trace) -> str:
    """Give what separates the code from the machine: the sentence that must not be cut, also with a long image's name in it."""
    return one_line(trace.isolation, 500)


def opening(trace: Trace) -> list[str]:
    """Give what is worth knowing before the first request: models, place, caps, context."""
    caps = [dollars(setting(trace, "max_cost"))] if _figure(setting(trace, "max_cost")) else []
    caps += [count(setting(trace, "max_calls"), "request")] if _figure(setting(trace, "max_calls")) else []
    caps += [duration(setting(trace, "timeout"))] if _figure(setting(trace, "timeout")) else []
    parts = [models(trace), one_line(setting(trace, "environment") or "", 40)]
    parts[1] += f" ({_isolation(trace)})" if trace.isolation else ""
    parts.append(f"at most {', '.join(caps)}" if caps else "")
    parts.append(f"context {one_line(trace.context_type, 40)}, {size(trace.context_size)}" if trace.context_type else "")
    return [part for part in parts if part]


def state(trace: Trace) -> str:
    """Give what a running run is doing."""
    if trace.status != "running":
        return status(trace)
    if not trace.iterations:
        return f"Starting: {one_line(trace.step, 120)}" if trace.step else "Starting"
    last = trace.iterations[-1]
    if last.state == "asking":
        return "Reading the reply" if last.reply else "Asking the model"
    cell = last.cells[-1] if last.cells else None
    if cell is not None and cell.status == "running":
        return "Waiting for sub-calls" if any(call.state == "running" for call in cell.calls) else "Running code"
    return "Working"


def progress(trace: Trace, seconds: float) -> list[str]:
    """Give the figures of the status line of a running run."""
    parts = []
    if trace.iterations:
        last, of = trace.iterations[-1].iteration, trace.max_iterations
        parts.append("set-up code" if last == 0 else f"iteration {last:,} of {of:,}" if of else f"iteration {last:,}")
    if trace.calls:
        parts.append(batch(trace.calls))
    parts += [tokens(trace.usage), spent(trace)]
    parts.append(duration(seconds) if seconds >= 59.5 else f"{int(seconds)} s")
    if machine := sandbox(trace, seconds):
        parts.append(f"sandbox {machine} (outside --max-cost)")
    return [*parts, models(trace)]


def last_line(text: str, cap: int = 160) -> str:
    """Give the last line of a reply that is streaming in."""
    tail = text[-4 * cap :].rstrip()
    line = visible(tail[tail.rfind("\n") + 1 :]).strip()
    return line if len(line) <= cap else "…" + line[1 - cap :]
