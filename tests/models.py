"""RLMs against the scripted server, for tests of whole runs: real HTTP, the real client, a real kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from rlm_jupyter import RLM
from rlm_jupyter.engine import Engine
from rlm_jupyter.testing import Request, Script, ScriptedServer


def code(*blocks: str) -> str:
    """Write a reply of the root LM that holds these blocks of code."""
    return "Let me see.\n" + "\n".join(f"```repl\n{block}\n```" for block in blocks)


def answer(value: str = "'done'") -> str:
    return code(f"answer = {value}\nFINAL_VAR(answer)")


def text_of(request: Request) -> str:
    """Give everything that one request told the LM."""
    return "\n".join(message["content"] for message in request.messages)


@contextlib.contextmanager
def scripted(
    root: Script, sub: Script = (), engine: Engine | None = None, **arguments: Any
) -> Iterator[tuple[RLM, ScriptedServer]]:
    """Give an RLM whose root LM `root` and sub-LM `sub` are scripts of one server."""
    profile = {name: arguments.pop(name) for name in ("strict", "old", "omit_usage", "latency") if name in arguments}
    with ScriptedServer(models={"root": root, "sub": sub}, **profile) as server:
        backend = {"model_name": "root", "base_url": server.url}
        rlm = RLM(backend_kwargs=backend, sub_model="sub", engine=engine, **arguments)
        try:
            yield rlm, server
        finally:
            if engine is None:
                rlm.close()
