"""The course of one run: an environment and models are taken, the root of the tree answers, all is given back.

It belongs to the engine's worker thread and can be cancelled at any moment. What went wrong comes with the outcome instead of
being raised, and so does the best answer that there was; only a cancellation goes through.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import time

import anyio

from rlm_jupyter import events
from rlm_jupyter.budget import Budget
from rlm_jupyter.children import Family
from rlm_jupyter.contexts import Context
from rlm_jupyter.engine import CLOSE_WITHIN, Engine
from rlm_jupyter.errors import KernelStartError, LimitReached, RLMError
from rlm_jupyter.kernels.environment import Environment
from rlm_jupyter.kernels.launch import Launch
from rlm_jupyter.lm import prices, providers
from rlm_jupyter.lm.handler import LMHandler
from rlm_jupyter.loop import Answer, Node
from rlm_jupyter.settings import RunSettings
from rlm_jupyter.trace import Trace

BEST_WITHIN = 2.0
"""Seconds for fetching the best answer that there is from the kernel of a run that was stopped or failed."""
TOO_LATE = f"an answer that code gave could not be fetched within {BEST_WITHIN:g} s"
KILLED = "the kernel did not come back from the interrupt within 2 s and was killed"


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """What a run is about: a prepared context, the question (None: the context is it), and where the code will run."""

    context: Context
    question: str | None
    place: Launch


class Course:
    """What a run does, once.

    Parameters
    ----------
    settings, task, engine, api_key
        As of `Run`.
    emit, trace
        Where its events go, and the tree that they make.

    Attributes
    ----------
    budget
        What was spent; None where it never came so far.
    files
        What the code wrote.
    """

    def __init__(
        self, settings: RunSettings, task: Task, engine: Engine, emit: events.Emit, trace: Trace, api_key: str | None
    ) -> None:
        self.budget: Budget | None = None
        self.files: dict[str, bytes] = {}
        self._settings, self._task, self._engine = settings, task, engine
        self._emit, self._trace, self._api_key = emit, trace, api_key
        self._best: Answer | None = None
        self._healthy = False

    async def outcome(self) -> tuple[Answer, RLMError | None]:
        """Do it all; give the answer, and the error where there is one."""
        try:
            return await self._within_time(), None
        except LimitReached as reached:
            return Answer("limit", limit=reached), None
        except RLMError as failure:
            return Answer("failed"), failure
        except Exception as failure:  # a bug of ours must end the run as a result too, or its trace would be lost
            error = RLMError(f"internal error: {type(failure).__name__}: {failure}")
            error.__cause__ = failure
            return Answer("failed"), error

    def completed(self, answer: Answer) -> Answer:
        """Give an answer without a value that of the best there was, where the run was stopped, failed or came to a limit."""
        if self._best is None or answer.type_name or answer.status not in ("stopped", "failed", "limit"):
            return answer
        return dataclasses.replace(answer, value=self._best.value, type_name=self._best.type_name)

    async def _within_time(self) -> Answer:
        with anyio.move_on_after(self._settings.timeout) as clock:
            return await self._in_environment()
        assert clock.cancelled_caught
        if self._best is not None and self._best.status != "candidate":
            return self._best  # it came in time, only the files did not
        seconds = self._settings.timeout
        text = f"no answer within {seconds:g} s (--timeout {seconds:g})"
        return Answer("limit", limit=LimitReached("timeout", text, used=seconds, cap=seconds))

    async def _in_environment(self) -> Answer:
        settings = self._settings
        asyncio.get_running_loop().run_in_executor(None, providers.warm_up, settings)
        environment = await self._engine.lease(self._task.place, lambda line: self._emit(events.StepTold(text=line)))
        if machine := self._task.place.machine:
            self._emit(events.SandboxStarted(machine=machine, seconds=time.monotonic() - environment.began))
        for notice in environment.notices:
            self._emit(events.Notice(text=notice))
        try:
            return await self._with_models(environment)
        except RLMError:
            self._healthy = False
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await self._engine.give_back(self._task.place, environment, healthy=self._healthy)
            if machine:
                self._emit(events.SandboxEnded(seconds=time.monotonic() - environment.began))

    async def _with_models(self, environment: Environment) -> Answer:
        settings = self._settings
        budget = self.budget = Budget(settings)
        open_lm = functools.partial(providers.open_lm, settings=settings, api_key=self._api_key)
        handler = LMHandler(settings, budget, open_lm, self._emit)
        family = Family(settings, budget, self._emit)
        node = family.root(handler)
        self._tell_unknown_prices()
        try:
            await node.open(environment, self._task.context)
            return await self._work(node)
        except BaseException as error:
            with anyio.move_on_after(BEST_WITHIN, shield=True) as clock:
                self._best = self._best or await node.best()
            if clock.cancelled_caught:
                self._emit(events.Notice(text=TOO_LATE))
            if node.repl.killed and isinstance(error, anyio.get_cancelled_exc_class()):
                self._emit(events.Notice(text=KILLED))
            raise
        finally:
            self._healthy = node.repl.alive
            with anyio.move_on_after(CLOSE_WITHIN, shield=True):
                await family.aclose()
            with anyio.move_on_after(CLOSE_WITHIN, shield=True):
                await handler.aclose()

    async def _work(self, node: Node) -> Answer:
        if self._settings.setup_code:
            try:
                await node.repl.set_up(self._settings.setup_code)
            except ValueError as failure:
                # What a command could not reach is in its output, its error says only that it failed.
                advice = self._task.place.advice(f"{failure}\n{self._set_up_output()}")
                told = f"the set-up code failed, so nothing was asked: {failure}" + (f"\n{advice}" if advice else "")
                raise KernelStartError(told) from None
            if advice := self._task.place.advice(self._set_up_output()):
                self._emit(events.Notice(text=f"the set-up code seems to have missed something: {advice}"))
        self._best = await node.run(self._task.question, self._task.context.description, self._task.place.limits)
        self.files = await node.repl.files()
        return self._best

    def _set_up_output(self) -> str:
        """Give what the set-up code put out: a shell command that fails raises nothing."""
        cells = [cell for turn in self._trace.iterations if turn.iteration == 0 for cell in turn.cells]
        return "".join(output.text for cell in cells for output in cell.outputs)

    def _tell_unknown_prices(self) -> None:
        settings = self._settings
        unknown = [m for m in dict.fromkeys((settings.model, settings.sub())) if prices.price_for(m, settings) is None]
        if unknown:
            self._emit(
                events.Notice(text=f"no price known for {' and '.join(unknown)}: dollars are not counted, the other caps hold")
            )
