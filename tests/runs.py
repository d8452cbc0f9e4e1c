"""Runs for the tests of the views: hand-made streams of events, realistic and odd."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from rlm_jupyter import events
from rlm_jupyter.events import Event, Usage

SETTINGS: dict[str, Any] = {
    "model": "gpt-5",
    "sub_model": "gpt-5-mini",
    "environment": "local",
    "max_iterations": 30,
    "max_calls": 1000,
    "max_cost": 2.0,
    "timeout": 1800.0,
}
ISOLATION = "not isolated: the code runs with your own rights on this machine"
DIGEST = "a3" * 32

Make = Callable[..., Event]


class Script:
    """Builds a stream of events, numbering them and moving the clock by what each took."""

    def __init__(
        self, question: str = "Which contracts have a change-of-control clause, and what triggers it?", **settings: Any
    ) -> None:
        self.events: list[Event] = []
        self.at = 1_760_000_000.0
        self.iteration = self.cell = 0
        self.node = "0"
        self._above: list[tuple[str, int, int]] = []
        self._ids = itertools.count(1)
        self.calls, self.usage, self.cost = 0, Usage(), 0.0
        self.add(
            events.RunStarted,
            question=question,
            settings=SETTINGS | settings,
            context_type="dict",
            context_size=5_243_911,
            context_digest=DIGEST,
            context_description="dict of 412 str, keys such as 'acme/lease.txt'",
            isolation=ISOLATION,
        )
        self.add(events.KernelStarted, kernel=1, how="spare", seconds=0.006)

    def add(self, kind: type[Event], /, after: float = 0.01, **fields: Any) -> Script:
        self.at += after
        self.events.append(kind(run="r" * 32, number=len(self.events), at=self.at, node=self.node, **fields))
        return self

    def ask(self, reply: str, finish_reason: str = "stop", usage: Usage | None = None, cost: float | None = 0.0123) -> Script:
        self.iteration += 1
        usage = usage or Usage(2100 + 40 * self.iteration, 180, 1024)
        self.add(events.IterationStarted, iteration=self.iteration, of=30)
        for word in reply.split(" ")[:3]:
            self.add(events.ReplyPart, iteration=self.iteration, text=word + " ")
        self._spend(usage, cost)
        return self.add(
            events.ReplyEnded,
            after=3.2,
            iteration=self.iteration,
            text=reply,
            finish_reason=finish_reason,
            usage=usage,
            cost=cost,
            attempts=1,
            seconds=3.2,
        )

    def run(self, code: str, *outputs: tuple[str, str]) -> Script:
        """Start a cell and let it print; end it with `done`."""
        self.cell += 1
        self.add(events.CellStarted, iteration=self.iteration, cell=self.cell, code=code)
        for stream, text in outputs:
            self.add(events.CellOutput, cell=self.cell, stream=stream, text=text)
        return self

    def done(self, status: str = "ok", error: str = "", omitted: int = 0, seconds: float = 0.42) -> Script:
        return self.add(
            events.CellEnded, after=seconds, cell=self.cell, status=status, error=error, omitted=omitted, seconds=seconds
        )

    def child(self, question: str = "Which clauses of this lease deal with it?", batch: str = "") -> Script:
        """Begin a child RLM in the cell that runs: what follows is the child's, until `answered`."""
        parent, cell, number = self.node, self.cell, next(self._ids)
        self._above.append((self.node, self.iteration, self.cell))
        self.node, self.iteration, self.cell = f"{parent}.{number}", 0, 0
        self.add(
            events.ChildStarted,
            parent=parent,
            cell=cell,
            call=f"{number:032x}",
            batch=batch,
            model="gpt-5",
            question=question,
            context_type="str",
            context_size=48_211,
            context_description="str of 48,211 characters",
        )
        return self.add(events.KernelStarted, kernel=number, how="spare", seconds=0.006)

    def answered(self, answer: str = "Clause 14.2.", status: str = "answered", error: str = "") -> Script:
        """End the child that `child` began; what follows is its parent's again."""
        self.add(
            events.ChildEnded,
            status=status,
            limit="",
            answer=answer,
            answer_type="str" if answer else "",
            error=error,
            calls=self.iteration,
            usage=Usage(900, 80),
            cost=0.0123,
            seconds=4.0,
        )
        self.node, self.iteration, self.cell = self._above.pop()
        return self

    def call(self, number: int = 0, batch: str = "", ends: str = "ok", prompt: str = "", reply: str = "") -> Script:
        """Make one sub-call; `ends`: ok, failed or running."""
        call = f"{next(self._ids):032x}"
        question = "Does this clause deal with a change of control? Answer yes or no, then quote it."
        prompt = prompt or f"{question}\n\n14.{number} of contract {number} ..."
        self.add(events.CallStarted, after=0.001, call=call, batch=batch, cell=self.cell, model="gpt-5-mini", prompt=prompt)
        if ends != "running":
            failed = ends == "failed"
            usage = Usage() if failed else Usage(812, 64)
            self._spend(usage, 0.0003)
            self.add(
                events.CallEnded,
                after=0.001,
                call=call,
                cell=self.cell,
                reply="" if failed else reply or f'Yes. "upon a Change of Control of the Tenant" (clause 14.{number})',
                error="LMUnavailable: 429 Too Many Requests, after 5 attempts" if failed else "",
                usage=usage,
                cost=None if failed else 0.0003,
                attempts=5 if failed else 1,
                seconds=1.2,
            )
        return self

    def batch(self, number: int, failed: int = 0, running: int = 0) -> Script:
        name = f"{next(self._ids):032x}"
        for index in range(number):
            ends = "failed" if index % 97 == 41 and failed > 0 else "running" if index >= number - running else "ok"
            failed -= ends == "failed"
            self.call(index + 1, name, ends)
        return self

    def end(
        self, status: str = "answered", answer: str = "", limit: str = "", error: str = "", answer_type: str = "str"
    ) -> Script:
        return self.add(
            events.RunEnded,
            status=status,
            limit=limit,
            answer=answer,
            answer_type=answer_type,
            error=error,
            calls=self.calls,
            usage=self.usage,
            cost=self.cost,
            seconds=self.at - 1_760_000_000.0,
        )

    def _spend(self, usage: Usage, cost: float | None) -> None:
        self.calls += 1
        self.usage += usage
        self.cost += cost or 0.0


PROBE = "print(type(context), len(context))\nfor name in list(context)[:3]:\n    print(name, len(context[name]))"
SPLIT = """import re

clauses = []
for name, text in context.items():
    # a clause begins at a number such as "14.2" at the head of a line
    for part in re.split(r"\\n(?=\\d+\\.\\d+ )", text):
        if "control" in part.lower():
            clauses.append((name, part))
print(f"{len(clauses)} clauses to ask about")"""
ASK = """prompts = [f"Does this clause deal with a change of control?\\n\\n{text}" for _, text in clauses]
replies = llm_query_batched(prompts)
yes = [(name, reply) for (name, _), reply in zip(clauses, replies) if reply.startswith("Yes")]
len(yes)"""
TRACEBACK = """NameError                                 Traceback (most recent call last)
Cell In[2], line 8
      6     for part in re.split(r"\\n(?=\\d+\\.\\d+ )", text):
      7         if "control" in part.lower():
----> 8             clause.append((name, part))

NameError: name 'clause' is not defined"""
ANSWER = """Eleven of the 412 contracts have a change-of-control clause.

Nine are triggered when more than 50 % of the voting shares change hands; two (acme/lease.txt, globex/supply.txt) already when \
a competitor acquires 25 %. In acme/lease.txt the landlord may end the lease within 90 days (clause 14.2)."""


def fenced(words: str, *codes: str, language: str = "repl") -> str:
    return words + "".join(f"\n\n```{language}\n{code}\n```" for code in codes)


def short_run(number: int = 300, failed: int = 2, running: int = 0) -> Script:
    """A run as one would show it: probe, split, ask, answer."""
    script = Script()
    script.ask(fenced("Let me look at the shape of the context first.", PROBE))
    script.run(
        PROBE, ("stdout", "<class 'dict'> 412\nacme/lease.txt 12044\nacme/nda.txt 4310\nglobex/supply.txt 33102\n")
    ).done()
    script.ask(
        fenced(
            "The contracts are numbered by clause. I will cut them up and keep the clauses that mention control.\n\n"
            "Then I can ask about each of them separately.",
            SPLIT.replace("clauses.append", "clause.append"),
        )
    )
    script.run(
        SPLIT.replace("clauses.append", "clause.append"),
        (
            "error",
            TRACEBACK,
        ),
    ).done("error", "NameError: name 'clause' is not defined")
    script.ask(fenced("A typo: the list is called `clauses`.", SPLIT))
    script.run(SPLIT, ("stdout", "300 clauses to ask about\n")).done()
    script.ask(fenced("Now one question per clause, in a batch.", ASK))
    script.run(ASK).batch(number, failed, running)
    script.add(
        events.CellOutput,
        cell=script.cell,
        stream="stderr",
        text=f"llm_query_batched: {failed} of {number} failed: items 42, 139\n",
    )
    script.add(events.CellOutput, cell=script.cell, stream="result", text="11")
    script.done(seconds=14.2)
    script.ask(fenced("I have what I need.", "answer = summarize(yes)\nFINAL_VAR(answer)"))
    script.run("answer = summarize(yes)\nFINAL_VAR(answer)").done()
    return script


def long_run(iterations: int = 30) -> Script:
    """Thirty iterations, one of them with a batch of 300."""
    script = Script()
    for number in range(1, iterations + 1):
        code = f"part = pages[{number * 20}:{number * 20 + 20}]\nfor page in part:\n    print(page.title)"
        script.ask(fenced(f"Iteration {number}: read the next twenty pages and note what they are about.", code))
        script.run(code, ("stdout", "".join(f"Page {number * 20 + n}: a title of ordinary length\n" for n in range(20))))
        if number == 12:
            script.batch(300, failed=3)
        elif number % 5 == 0:
            for single in range(3):
                script.call(single)
        script.done()
    return script


def finished(script: Script, **fields: Any) -> Iterator[Event]:
    yield from script.end(**fields).events
