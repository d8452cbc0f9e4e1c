"""The reference implementation's column: `rlms` with its IPython environment in a subprocess, as its users run it.

Runs inside `.bench-venv`. What it does not let its users set (16 sub-calls at a time) stays as it is. Each batch has a
run of its own, since a second one on the same client fails with openai 3.x.
"""

from __future__ import annotations

import json
import time
from typing import Any

from measures import (
    LARGE_CELL,
    ROOT,
    SUB,
    Answer,
    Server,
    Task,
    batch_answer,
    batch_cell,
    block,
    calls_cell,
    checked_gaps,
    gap_script,
    handed_over,
    interrupted,
    serve,
)
from rlm import RLM  # type: ignore[import-not-found,unused-ignore]
from rlm.environments.ipython_repl import IPythonREPL  # type: ignore[import-not-found,unused-ignore]

FINAL = '\nimport json\nanswer["content"] = json.dumps(measured)\nanswer["ready"] = True'


IPYTHON = {"environment": "ipython", "environment_kwargs": {"kernel_mode": "subprocess"}}


def rlm(url: str, **place: Any) -> Any:
    def kwargs(model: str) -> dict[str, str]:
        return {"model_name": model, "base_url": url + "/v1", "api_key": "none"}

    return RLM(
        backend="openai",
        backend_kwargs=kwargs(ROOT),
        other_backends=["openai"],
        other_backend_kwargs=[kwargs(SUB)],
        **(place or IPYTHON),
    )


def measured(task: Task, cell: str) -> tuple[Server, list[float]]:
    """Run one scripted cell and give what it left in `measured`."""
    server = Server(task.url)
    server.script([block(cell + FINAL)], task.latency)
    numbers: list[float] = json.loads(rlm(task.url).completion("A text.").response)
    return server, numbers


def cold(task: Task) -> Answer:
    began = time.monotonic()
    environment = IPythonREPL(kernel_mode="subprocess", lm_handler_address=("127.0.0.1", 9))
    environment.execute_code("pass")
    seconds = time.monotonic() - began
    environment.cleanup()
    return Answer([seconds])


def gap(task: Task) -> Answer:
    server = Server(task.url)
    server.script(gap_script('answer["content"] = "done"\nanswer["ready"] = True'))
    rlm(task.url).completion("A text.")
    return checked_gaps(server)


def calls(task: Task) -> Answer:
    return Answer(measured(task, calls_cell())[1])


def batch(task: Task) -> Answer:
    return batch_answer(*measured(task, batch_cell(task.size)))


def large(task: Task) -> Answer:
    environment = IPythonREPL(kernel_mode="subprocess", lm_handler_address=("127.0.0.1", 9))
    try:
        environment.execute_code(LARGE_CELL)
        cell = 'answer["content"] = made\nanswer["ready"] = True'
        return handed_over(lambda: environment.execute_code(cell).final_answer)
    finally:
        environment.cleanup()


def interrupt(task: Task) -> Answer:
    def run(cell: str) -> None:
        Server(task.url).script([block(cell)])
        rlm(task.url).completion("A text.")

    return interrupted(run)


if __name__ == "__main__":
    serve({"cold": cold, "gap": gap, "calls": calls, "batch": batch, "large": large, "interrupt": interrupt})
