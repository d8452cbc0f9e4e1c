"""Every word that the LM is told.

The system prompt is one constant, the same for every run, so that a provider's prompt cache hits and a change of it is a
decision (a test holds its digest). What differs from run to run comes in the first user message; what differs from turn to
turn in the message after each turn. The context itself is never in any of them: only its description.
"""

from __future__ import annotations

import dataclasses

from rlm_jupyter.kernels.cell import Output

OUTPUT_FOR_LM = 20_000
"""Characters of output that one turn's message holds, shared by its cells."""
LEAST_OF_A_CELL = 1_000

SYSTEM = """\
You answer a question about an input that is too long to be shown to you. The input is the variable `context` in a Python \
REPL: an IPython kernel that keeps all its state between your turns. You are asked turn by turn; in each turn you write a \
little reasoning and code, the code is run, and its output is shown to you.

Code: put it in a fence marked repl. It is run as a notebook cell: print what you want to see, or end with an expression. \
Several fences in one reply run in order and stop at the first error. Do not write what you think the output will be: \
stop after your code and wait for the real output.

```repl
print(type(context), len(context))
print(str(context)[:1000])
```

`context`: the input, with the type that you are told. You have not seen it: look at it before you answer anything.

Helpers, there in every turn:
- `llm_query(prompt, model=None) -> str`: asks another LM, which sees only this prompt (no context, no variables: put the \
text into the prompt). It raises LMError when it fails.
- `llm_query_batched(prompts, model=None) -> list[str]`: the same for many prompts at once, concurrently, answers in the \
same order. Far faster than a loop. An item that failed is a FailedReply: a str that starts with "Error: " and has `.error`.
- `SHOW_VARS() -> None`: lists your variables with types and sizes.
- `FINAL_VAR(var)`: gives the answer and ends the run.

How to finish: call FINAL_VAR in a repl fence; the run ends when that cell ends without an error. `FINAL_VAR(answer)` gives a \
value; `FINAL_VAR("answer")`, a string literal, gives the variable of that name, which must exist. Text, numbers, dates, \
bytes, nested lists and dicts, arrays, Series, DataFrames and pictures (matplotlib figures, PNG) keep their type: give the \
object itself, not its print. Anything else arrives as text. Call it when you have seen the real output that your answer \
rests on, not in the reply that first asks for it, and before the last turn. The answer should be complete in itself: the \
user sees it without your reasoning.

Limits: each message tells which turn this is and how many requests, seconds, dollars and tokens are left for all that you \
and the LMs you ask still do. When one is used up the run ends, answered or not: plan for it.

Truncation: output shown to you is cut in the middle beyond about 20,000 characters a turn, and what was left out is told. \
Print samples and counts, not everything, and never the whole context. Nothing in your variables is cut.

How to size sub-calls: a sub-LM reads some 100,000 characters at once. Cut the context into pieces of about that size at its \
own borders (documents, sections, lines); prefer few large pieces to many small ones, and one llm_query_batched to a loop. \
Give each prompt the question, the piece and the form of the answer you want. Do not ask an LM what Python can count or search.

How to work:
1. Look at the context first: its type, its size, some of its parts. Do not guess what it holds.
2. Choose a plan that fits its size and what is left. Search and count with Python; ask sub-LMs about what needs reading.
3. Keep results in variables with telling names of several letters, so that no later line overwrites them by accident.
4. Check what you found against the context before you answer: quote the place where it says so.
5. Finish with FINAL_VAR as soon as you have the answer.
"""

CHILDREN = """\
Further helpers, in this run:
- `rlm_query(prompt, context=None, model=None)`: asks a child that works as you do: it writes code in turns of its own, in a \
REPL of its own, where your `context` (any value; without it the prompt) is its variable `context`. It sees nothing else of \
yours. Its answer comes back as the value that it gave, with its type. It raises LMError when there is none.
- `rlm_query_batched(prompts, contexts=None, model=None) -> list`: the same for many at once, in the same order; up to \
{working} children work at the same time. A failed item is a FailedReply.
A child takes many requests, of what is left for all of you: give one a part that needs several steps of code and reading of \
its own, with the question and the form of the answer in the prompt and the data as `context`. For one reading, llm_query does.
"""

NUDGES = (
    "Your reply held no code, so nothing was run. Write code in a fence marked repl; to finish, call FINAL_VAR(answer) in it.",
    "Again no code. If your answer is ready, write exactly this, with your answer in the variable:\n"
    '```repl\nanswer = "..."\nFINAL_VAR(answer)\n```\n'
    "Another reply without code will be taken as your answer.",
)

CUT = (
    "Your reply was cut off by the limit of {limit:,} tokens before its code fence ended, so that code was not run. "
    "Write shorter code, or do it in several turns."
)

UNREAD = (
    "The answer was not taken: {error}. Give it in a plainer form: text, numbers, lists, dicts with text as keys, a DataFrame."
)

NO_NEXT_TURN = "This is the last turn: call FINAL_VAR with the best answer that you have now."


LAST = (
    "The run ends here: {limit}. This is the last request: give your final answer now, from what you have. If a variable holds "
    "it, reply with exactly this, with that variable's name in it:\n```repl\nFINAL_VAR(name)\n```\nElse write the answer as "
    "plain text without a fence: the whole text is taken as the answer. Where something is missing, say what. No LM can be "
    "asked any more."
)
LAST_WITHOUT_REPL = (
    "The run ends here: {limit}. This is the last request: give your final answer now, from what you have read. The REPL and "
    "its variables are gone: write the answer as plain text without a fence; the whole text is taken as the answer. Where "
    "something is missing, say what."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Left:
    """What is left of the caps, for the LM to plan on; None where there is no such cap."""

    iteration: int
    iterations: int
    calls: int
    seconds: float
    dollars: float | None = None
    tokens: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Ran:
    """A cell that ran, as it is told: its outputs in order, its status, the bytes of output that were not kept."""

    outputs: tuple[Output, ...]
    status: str
    omitted: int = 0
    notes: tuple[str, ...] = ()
    error: str = ""


def first_message(question: str | None, description: str, left: Left, place: str = "", children: int = 0) -> str:
    """Tell the question, the context's description, and where the code runs. Without a question, the context is the task.

    `children`: how many child RLMs may work at once; with 0 there can be none, and they are not spoken of.
    """
    task = f"Question:\n{question}" if question is not None else "The question or task is in `context` itself: print it first."
    runs = f"Your code runs {place}.\n\n" if place else ""
    below = CHILDREN.format(working=children) + "\n" if children else ""
    return f"{task}\n\nContext:\n{description}\n\n{runs}{below}{turn_line(left)}"


def turn_line(left: Left) -> str:
    """Tell which turn comes now, and what is left of each cap."""
    caps = [f"{left.calls:,} LM requests", f"{max(0, round(left.seconds)):,} s"]
    if left.dollars is not None:
        caps.append(f"${max(0.0, left.dollars):.2f}")
    if left.tokens is not None:
        caps.append(f"{max(0, left.tokens):,} tokens")
    line = f"Turn {left.iteration} of {left.iterations}. Left: {', '.join(caps)}."
    return f"{line} {NO_NEXT_TURN}" if left.iteration == left.iterations else line


def last_message(limit: str, *, alive: bool) -> str:
    """Tell that a cap is used up, and ask for the answer; `alive`: whether there still is a REPL."""
    return (LAST if alive else LAST_WITHOUT_REPL).format(limit=limit)


def outputs_message(cells: list[Ran], skipped: int, left: Left, *, cut: str = "") -> str:
    """Tell what the cells of a turn printed, and which were not run after an error."""
    cap = max(LEAST_OF_A_CELL, OUTPUT_FOR_LM // max(1, len(cells)))
    parts = []
    for number, cell in enumerate(cells, 1):
        name = "Output" if len(cells) + skipped == 1 else f"Output of block {number}"
        ended = "" if cell.status == "ok" else f" ({_STATUS[cell.status]})"
        text = shorten("".join(output.text for output in _separated(cell.outputs)), cap, cell.omitted)
        parts.append(f"{name}{ended}:\n{text}" if text.strip() else f"{name}{ended}: nothing was printed.")
        parts += cell.notes
    if skipped:
        parts.append(f"{skipped} more block(s) of your reply were not run, because of the error.")
    if cut:
        parts.append(cut)
    return "\n\n".join([*parts, turn_line(left)])


_STATUS = {"ok": "ok", "error": "ended with an error", "interrupted": "was interrupted", "died": "the kernel died"}


def _separated(outputs: tuple[Output, ...]) -> list[Output]:
    """Put each result, display and traceback on lines of its own, as a notebook shows them."""
    separated: list[Output] = []
    for output in outputs:
        previous = separated[-1] if separated else None
        apart = previous is not None and (previous.stream != output.stream or output.stream not in ("stdout", "stderr"))
        if previous is not None and apart and not previous.text.endswith("\n"):
            separated.append(Output(output.stream, "\n" + output.text))
        else:
            separated.append(output)
    return separated


def shorten(text: str, cap: int, omitted: int = 0) -> str:
    """Keep head and tail of `text`, and say exactly how much was left out; `omitted` bytes were never kept."""
    if len(text) <= cap and not omitted:
        return text
    half = min(cap // 2, (len(text) + 1) // 2)
    left_out = max(0, len(text) - 2 * half)
    told = [f"{left_out:,} characters"] if left_out else []
    told += [f"{omitted:,} bytes that were not kept"] if omitted else []
    return f"{text[:half]}\n[... left out here: {' and '.join(told)} ...]\n{text[len(text) - min(half, len(text) - half) :]}"
