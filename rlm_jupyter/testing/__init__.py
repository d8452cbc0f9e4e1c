"""Test helpers for users of rlm_jupyter, and for itself: a scripted LM server over real HTTP, and builders of events.

`ScriptedServer` speaks OpenAI's chat completions on a port of its own, from a thread of its own, so that the code under test
runs the real client: headers, streams, time-outs, lost connections. What it answers is a script: a list of replies, or a
function of the request. It keeps a log of requests and the most that were under way at once. `Story` builds a run's events.

>>> with ScriptedServer(["```repl\\nFINAL_VAR('42')\\n```"]) as server:
...     RLM(backend_kwargs={"model_name": "any", "base_url": server.url}).completion("what?")
"""

from rlm_jupyter.testing.dialects import FAILURES, PROFILES, Profile
from rlm_jupyter.testing.messages import Reply, Request, Script
from rlm_jupyter.testing.server import ScriptedServer
from rlm_jupyter.testing.story import Story

__all__ = ["FAILURES", "PROFILES", "Profile", "Reply", "Request", "Script", "ScriptedServer", "Story"]
