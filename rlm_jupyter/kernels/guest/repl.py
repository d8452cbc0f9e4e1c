"""What the code of the LM finds in its kernel: context, llm_query, rlm_query, both of them batched, FINAL_VAR, SHOW_VARS.

They are put there before every cell, whatever the last one made of them. In the kernel this is the package `_rlm_repl`, and
what it imports are its modules (see `sources`): their sources are executed in every kernel, also of another interpreter, so
they import the standard library and the kernel's own IPython only. Code in the kernel can change all of this; it only deceives
itself.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from . import loading, quirks
from .answer import Answer, NameArguments
from .channel import Channel
from .displays import Displays
from .enqueue import Enqueue
from .failures import LMError
from .queries import Queries
from .stdio import Stdio
from .variables import Variables


class Repl:
    """The helpers in one kernel, and the hooks that put them back before every cell.

    Parameters
    ----------
    ip
        The kernel's InteractiveShell.
    settings
        `address`, `token`, `enqueue` (where there is a broker: its `port` and another `token`), `finals` (a folder),
        `packages` (that the host has), and the caps `prompt`, `batch`, `children`, `context`, `message`, `value`, `output`,
        `picture`.
    """

    def __init__(self, ip: Any, settings: dict[str, Any]) -> None:
        self.ip = ip
        self.channel = Channel(settings["address"], settings["token"])
        self.asks: Channel | Enqueue = Enqueue(**settings["enqueue"]) if "enqueue" in settings else self.channel
        self.queries = Queries(self.channel, self.asks, settings)
        self.answer = Answer(self.channel, settings, lambda: {*self.names, *self.contexts})
        self.variables = Variables(ip, lambda: {*self.names, *ip.user_ns_hidden} - {*self.contexts})
        self.names: dict[str, Any] = {
            "llm_query": self.queries.llm_query,
            "llm_query_batched": self.queries.llm_query_batched,
            "rlm_query": self.queries.rlm_query,
            "rlm_query_batched": self.queries.rlm_query_batched,
            "FINAL_VAR": self.answer.FINAL_VAR,
            "SHOW_VARS": self.variables.SHOW_VARS,
            "LMError": LMError,
        }
        self.contexts: dict[str, Any] = {}
        self._displays = Displays(self.channel, settings["output"], settings["picture"])
        self._stdio = Stdio()
        self._transformer = NameArguments()

    def install(self) -> None:
        """Take over streams and displays, set the globals, and tell the supervisor that the kernel is ready."""
        ip = self.ip
        self._stdio.take_over()
        ip.displayhook.session = ip.display_pub.session = self._displays.outlet()
        quirks.mend(ip)
        for event, hook in (("pre_run_cell", self.before_cell), ("post_run_cell", self.after_cell)):
            ip.events.register(event, hook)
        for name in ("FORCE_COLOR", "CLICOLOR_FORCE"):
            os.environ.pop(name, None)
        self.put_back()
        ip.user_ns_hidden.update(self.names)
        self.channel.ask({"kind": "ready", "pid": os.getpid(), "python": sys.version.split()[0]})

    def put_back(self) -> None:
        """Set every global of ours, whatever a cell made of it."""
        self.ip.user_ns.update(self.names)
        self.ip.user_ns.update(self.contexts)
        if self._transformer not in self.ip.ast_transformers:
            self.ip.ast_transformers.append(self._transformer)

    def before_cell(self, info: object = None) -> None:
        self.put_back()
        self._stdio.mend()
        quirks.wake_for_interrupts()

    def after_cell(self, result: object = None) -> None:
        self._stdio.mend()
        self._stdio.flush()

    def load(self, line: str) -> None:
        """Set a global from a file of the host's, if its bytes are exactly what the host wrote."""
        order = json.loads(line)
        self.contexts[order["name"]] = loading.load(order)
        self.put_back()

    def inherit(self) -> None:
        """Set `context` to what this kernel's parent has left for it: then it is a child, and its answer goes to the parent."""
        self.answer.for_parent = True
        self.contexts["context"] = self.queries.taken("", 0)
        self.put_back()

    def give_files(self, total: int, count: int) -> None:
        """Hand over the files of the kernel's own folder; the host asks for it, in a cell of its own, at the end."""
        self.answer.give_files(total, count)


def install(ip: Any, settings: dict[str, Any]) -> Repl:
    """Put the helpers into a kernel."""
    module: Any = sys.modules[__name__]
    repl = module.repl = Repl(ip, settings)
    repl.install()
    return repl
