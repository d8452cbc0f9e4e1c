"""Words and figures of the views: one place, so that the page and the terminal say the same thing in the same words.

Everything here reads a trace and gives short strings. It refuses to know how they are drawn, and never raises because a
figure is odd: a trace may have been cut off, or read back from a file that somebody edited.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rlm_jupyter.events import Usage
from rlm_jupyter.trace import Trace
from rlm_jupyter.tree import Branch, Call, Cell, Child, Iteration
from rlm_jupyter.widgets.figures import count, dollars, duration, figure, money, size, tilde, tokens
from rlm_jupyter.widgets.visible import last_line, one_line, visible

__all__ = [
    "batch", "call_figures", "cell_status", "child_figures", "count", "dollars", "duration", "elapsed", "ended", "figure",
    "headline", "iteration_figures", "kin", "last_line", "models", "money", "one_line", "opening", "outcome", "progress",
    "setting", "size", "spent", "state", "status", "sums", "tilde", "tokens", "totals", "trouble", "turns", "visible",
]  # fmt: skip


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
    every = [call.model for call in trace.calls] + [child.model for child in trace.children]
    names = dict.fromkeys(one_line(name, 60) for name in dict.fromkeys(every) if name)
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


def status(trace: Branch) -> str:
    """Give the state of a finished run, or child, in a word or two; a limit with its name."""
    word = _STATUS.get(trace.status, one_line(trace.status, 40) or "Unknown")
    return f"{word}: {one_line(trace.limit, 40)}" if trace.status == "limit" and trace.limit else word


def outcome(trace: Branch) -> str:
    """Say truthfully what the answer is and what happened; '' where the answer speaks for itself."""
    has, is_child = bool(trace.answer), isinstance(trace, Child)
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
            return (
                f"{'It' if is_child else 'The run'} ended because {one_line(trace.limit, 40) or 'a limit'} was used up. {kept}"
            )
        case "stopped":
            return f"{'It was stopped with the run' if is_child else 'You stopped the run'}. {kept}"
        case "failed":
            return f"{'It' if is_child else 'The run'} failed. {kept}"
        case "running":
            return f"{'It' if is_child else 'The run'} has not ended, or its end was not recorded."
    return kept


def headline(trace: Trace) -> list[str]:
    """Give the figures of the summary line."""
    return [
        count(len(turns(trace)), "iteration"),
        *([count(len(trace.children), "child")] if trace.children else []),
        count(trace.requests, "request"),
        tokens(trace.usage),
        spent(trace),
        duration(elapsed(trace)),
        models(trace),
    ]


def turns(trace: Branch) -> list[Iteration]:
    """Give the iterations without the set-up code, which is iteration 0, and without a last request for the answer."""
    return [iteration for iteration in trace.iterations if iteration.iteration != 0 and not iteration.last]


def totals(trace: Trace) -> list[tuple[str, str]]:
    """Give the totals of a run as pairs of a label and a text."""
    at_most = figure(trace.max_iterations or setting(trace, "max_iterations"))
    rows = [("iterations", f"{len(turns(trace)):,}" + (f" of at most {at_most:,.0f}" if at_most else ""))]
    requests = f"{int(figure(trace.requests)):,}"
    if cap := figure(setting(trace, "max_calls")):
        requests += f" of at most {cap:,.0f}"
    if trace.calls:
        requests += f"; {batch(trace.calls)}"
    if trace.retries:
        requests += f"; {count(trace.retries, 'retry')}"
    rows.append(("requests", requests))
    if trace.children:
        deepest = max(child.depth for child in trace.children)
        rows.append(("children", f"{kin(trace.children)}; {count(deepest, 'level')} below the root"))
    usage = trace.usage
    parts = [f"{figure(usage.input_tokens):,.0f} in", f"{figure(usage.output_tokens):,.0f} out"]
    if figure(usage.cached_tokens):
        parts.append(f"{figure(usage.cached_tokens):,.0f} cached")
    rows.append(("tokens", f"{tokens(usage)} ({', '.join(parts)})" + ("; ~ is our estimate" if usage.estimated else "")))
    rows.append(("cost", spent(trace)))
    limit = figure(setting(trace, "timeout"))
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


def ended(child: Branch) -> str:
    """Give how a child is or how it ended, in one word where its parent's row has room for no more."""
    word = one_line(child.status, 20) or "unknown"
    return f"{word} {one_line(child.limit, 40)}" if word == "limit" and child.limit else word


def kin(children: Sequence[Child]) -> str:
    """Give `8 rlm_query: 6 answered, 1 running, 1 failed`."""
    states = {"answered": 0, "running": 0, "failed": 0}
    for child in children:
        state = one_line(child.status, 20) or "unknown"
        name = state if state in states or len(states) < 9 else "otherwise"
        states[name] = states.get(name, 0) + 1
    told = ", ".join(f"{number:,} {state}" for state, number in states.items() if number)
    return f"{count(len(children), 'rlm_query')}: {told or '0 answered'}"


def child_figures(child: Child, model: bool = True) -> list[str]:
    """Give what a child and all below it took: iterations, requests, tokens, cost, time, its model."""
    parts = [count(len(turns(child)), "iteration"), count(child.requests, "request"), tokens(child.usage)]
    if child.cost is not None:
        parts.append(money(child.cost, None, child.usage))
    if child.status != "running":
        parts.append(duration(child.seconds))
    if model and child.model:
        parts.append(one_line(child.model, 60))
    return parts


def call_figures(call: Call, model: bool = True) -> list[str]:
    """Give what one sub-call took: time, tokens, cost, attempts where there were several, its model."""
    parts = [] if call.state == "running" else [duration(call.seconds), tokens(call.usage)]
    if call.cost is not None:
        parts.append(money(call.cost, None, call.usage))
    if figure(call.attempts) > 1:
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
    """Give what an iteration took, its sub-calls and children included."""
    calls = [call for cell in iteration.cells for call in cell.calls]
    children = [child for cell in iteration.cells for child in cell.children]
    made = [(one.usage, one.cost) for several in (calls, children) for one in several]
    usage, cost = sums([(iteration.usage, iteration.cost), *made])
    parts = ([batch(calls)] if calls else []) + ([kin(children)] if children else [])
    if shown := sum(output.picture > 0 for cell in iteration.cells for output in cell.outputs):
        parts.append(count(shown, "picture"))
    parts += [tokens(usage)] + ([money(cost, None, usage)] if cost is not None else [])
    return [*parts, duration(figure(iteration.seconds) + sum(figure(cell.seconds) for cell in iteration.cells))]


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
    caps = [dollars(setting(trace, "max_cost"))] if figure(setting(trace, "max_cost")) else []
    caps += [count(setting(trace, "max_calls"), "request")] if figure(setting(trace, "max_calls")) else []
    caps += [duration(setting(trace, "timeout"))] if figure(setting(trace, "timeout")) else []
    parts = [models(trace) if trace.run else "", one_line(setting(trace, "environment") or "", 40)]
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
        if any(child.status == "running" for child in cell.children):
            return "Waiting for children"
        return "Waiting for sub-calls" if any(call.state == "running" for call in cell.calls) else "Running code"
    return "Working"


def progress(trace: Trace, seconds: float) -> list[str]:
    """Give the figures of the status line of a running run."""
    parts = []
    if trace.iterations:
        last, of = int(figure(trace.iterations[-1].iteration)), int(figure(trace.max_iterations))
        told = "set-up code" if last == 0 else f"iteration {last:,} of {of:,}" if of else f"iteration {last:,}"
        parts.append("a last request, for the answer" if trace.iterations[-1].last else told)
    if trace.calls:
        parts.append(batch(trace.calls))
    if trace.children:
        parts.append(kin(trace.children))
    parts += [tokens(trace.usage), spent(trace)]
    parts.append(duration(seconds) if seconds >= 59.5 else f"{int(seconds)} s")
    if machine := sandbox(trace, seconds):
        parts.append(f"sandbox {machine} (outside --max-cost)")
    return [*parts, models(trace)] if trace.run else parts
