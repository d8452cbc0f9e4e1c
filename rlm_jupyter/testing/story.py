"""A run as its events, built by hand, for tests of whatever shows or reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlm_jupyter import events
from rlm_jupyter.events import Event, Usage


class Story:
    """Builds the events of a run, numbered and timed, for tests of whatever shows or reads them.

    >>> story = Story("How many?").iteration("I count.", "len(context)", "3", calls=[("which?", "the first")]).answered("3")
    >>> Trace.from_events(story.events).answer
    '3'
    """

    def __init__(self, question: str = "What is it?", *, run: str = "0" * 32, **settings: Any) -> None:
        self.events: list[Event] = []
        self._run, self._at = run, 1_700_000_000.0
        self._iteration = self._cell = self._calls = 0
        self._usage, self._cost = Usage(), 0.0
        self.add(
            events.RunStarted(
                question=question,
                settings={"model": "demo", "environment": "local", **settings},
                context_type="str",
                context_size=1000,
                context_digest="0" * 64,
                context_description="a str of 1,000 characters",
                isolation="not isolated: the code runs with your own rights on this machine",
            )
        )

    def add(self, event: Event, seconds: float = 0.1) -> Story:
        """Append any event; run, number and time are filled in."""
        self._at += seconds
        stamped = events.from_dict(event.to_dict() | {"run": self._run, "number": len(self.events), "at": self._at})
        self.events.append(stamped)
        return self

    def iteration(
        self,
        reply: str,
        code: str | None = None,
        output: str = "",
        *,
        calls: Sequence[tuple[str, str]] = (),
        error: str = "",
        usage: Usage | None = None,
        cost: float | None = 0.001,
    ) -> Story:
        """One turn: the LM's reply, then (where there is `code`) a cell with its output and sub-calls of (prompt, reply)."""
        self._iteration += 1
        usage = usage or Usage(100, 20)
        self._count(usage, cost)
        self.add(events.IterationStarted(iteration=self._iteration, of=30))
        self.add(
            events.ReplyEnded(
                iteration=self._iteration, text=reply, finish_reason="stop", usage=usage, cost=cost, attempts=1, seconds=0.1
            )
        )
        if code is None:
            return self
        self._cell += 1
        self.add(events.CellStarted(iteration=self._iteration, cell=self._cell, code=code))
        for prompt, answer in calls:
            self.call(prompt, answer)
        if output:
            self.add(events.CellOutput(cell=self._cell, stream="stdout", text=output))
        status = "error" if error else "ok"
        return self.add(events.CellEnded(cell=self._cell, status=status, error=error, omitted=0, seconds=0.1))

    def call(self, prompt: str, reply: str = "", *, error: str = "", batch: str = "") -> Story:
        """A sub-call of the cell that came last."""
        self._calls += 1
        call, usage, cost = f"{self._calls:032x}", Usage(50, 10), 0.0005
        self._count(usage, cost)
        self.add(events.CallStarted(call=call, batch=batch, cell=self._cell, model="demo", prompt=prompt))
        return self.add(
            events.CallEnded(
                call=call, cell=self._cell, reply=reply, error=error, usage=usage, cost=cost, attempts=1, seconds=0.1
            )
        )

    def answered(self, answer: str, answer_type: str = "str") -> Story:
        """The end of a run that went well."""
        return self.ended("answered", answer=answer, answer_type=answer_type)

    def ended(self, status: str, *, answer: str = "", answer_type: str = "", error: str = "", limit: str = "") -> Story:
        """The end of a run, with the totals of what came before."""
        return self.add(
            events.RunEnded(
                status=status,
                limit=limit,
                answer=answer,
                answer_type=answer_type,
                error=error,
                calls=self._iteration + self._calls,
                usage=self._usage,
                cost=self._cost,
                seconds=self._at - 1_700_000_000.0,
            )
        )

    def _count(self, usage: Usage, cost: float | None) -> None:
        self._usage += usage
        self._cost += cost or 0.0
