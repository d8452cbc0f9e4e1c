"""`%%rlm` runs a question, `%rlm` shows and steers: arguments in, one run out. No logic of its own.

Loading this module imports nothing heavy. Bad input is one `UsageError` line, before anything is started; a run that fails or
is stopped raises its `RLMError` after the view was drawn and `--out` was bound. Of the user's namespace only the variable
named by `--out` is written; of the environment and of files nothing but what the user named is read.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class, no_var_expand
from IPython.core.magic_arguments import magic_arguments
from traitlets import Enum, Float, Int, TraitError, Unicode

from rlm_jupyter.options import FORMATS, VIEWS, parse, with_options
from rlm_jupyter.steering import HELP, Steering

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from rlm_jupyter.asked import Asked
    from rlm_jupyter.engine import Engine
    from rlm_jupyter.panels import Aside, Panels
    from rlm_jupyter.reading import Reader
    from rlm_jupyter.run import Run

EXAMPLES = """
Examples
--------
Ask about a variable of the notebook, and keep the result::

    %%rlm --context contracts --model gpt-5-mini --out result
    Which contracts have a change-of-control clause, and what triggers it?

Ask about a text file (or a folder, or a glob), the code in a container without a network, the model on a server of your own::

    %%rlm --context ./server.log --env docker --base-url http://localhost:8000/v1 --model qwen3 --max-calls 200
    When did the errors begin, and what came just before the first one?

Try it without a key; {{name}} puts a variable's text into the question::

    %%rlm --context sources --model demo
    Which file defines {{symbol}}?
"""


@magics_class
class RLMMagics(Magics):
    """Recursive Language Models in a notebook: `%%rlm` and `%rlm`. These are the defaults of their options."""

    model = Unicode(
        "", help="The root LM: gpt-5-mini, provider/model, demo (no key, a stand-in), or any name at --base-url."
    ).tag(config=True)
    sub_model = Unicode("", help="The LM of the sub-calls; empty: the root LM.").tag(config=True)
    base_url = Unicode("", help="An OpenAI-compatible server, such as http://localhost:8000/v1; empty: the provider's.").tag(
        config=True
    )
    api_key_env = Unicode("", help="The name of the environment variable that holds the key.").tag(config=True)
    price_as = Unicode(
        "", help="The model whose price holds for names of your own: deployments of Azure, models behind base_url."
    ).tag(config=True)
    env = Unicode(
        "local", help="Where the code runs: local (not isolated), docker (a container) or modal (a sandbox in Modal's cloud)."
    ).tag(config=True)
    kernel = Unicode("", help="An installed kernelspec to run the code in; empty: this notebook's Python.").tag(config=True)
    view = Enum(VIEWS, "auto", help="What is shown: live, html, text, none; auto chooses.").tag(config=True)
    format = Enum(FORMATS, "text", help="How an answer that is a text is shown: text, or markdown drawn without links.").tag(
        config=True
    )
    image = Unicode(
        "", help="The image to start from; empty: python:X.Y-slim with --env docker, modal_image() with --env modal."
    ).tag(config=True)
    docker_network = Unicode("", help="With --env docker: a network of the engine's; empty: none.").tag(config=True)
    memory = Unicode(
        "",
        help="Memory, such as 8g; empty: with --env docker 4g and three times the context, with --env modal what Modal gives.",
    ).tag(config=True)
    cpus = Float(None, allow_none=True, help="With --env docker: processors; none: 2.").tag(config=True)
    gpus = Unicode("", help="With --env docker: what `docker run --gpus` takes; empty: none.").tag(config=True)
    app_name = Unicode("", help="With --env modal: the app that the sandbox belongs to; empty: rlm-sandbox.").tag(config=True)
    sandbox_timeout = Int(None, allow_none=True, help="With --env modal: seconds until Modal ends the sandbox; none: 600.").tag(
        config=True
    )
    reconnect = Float(
        None, allow_none=True, help="With --env modal: seconds until a silent connection is made again; none: 15."
    ).tag(config=True)
    gpu = Unicode("", help="With --env modal: a GPU, such as T4, or A100:2 for two; empty: none.").tag(config=True)
    cpu = Float(None, allow_none=True, help="With --env modal: cores, such as 2; none: what Modal gives.").tag(config=True)
    network = Unicode("", help="With --env modal: closed, open, or domains with commas between them; empty: closed.").tag(
        config=True
    )
    bridge = Unicode("", help="With --env modal: how LM calls leave the sandbox; empty: the default.").tag(config=True)
    max_iterations = Int(30, help="Turns of the root LM.").tag(config=True)
    max_calls = Int(1000, help="LM requests of every kind, retries included.").tag(config=True)
    max_tokens = Int(None, allow_none=True, help="Tokens in and out of the whole run; none: no cap.").tag(config=True)
    max_cost = Float(2.0, allow_none=True, help="Dollars, where prices are known; none: no cap.").tag(config=True)
    timeout = Float(1800.0, help="Seconds for the whole run.").tag(config=True)
    max_consecutive_errors = Int(
        None, allow_none=True, help="Cells that end in an error one after the other; none: no cap."
    ).tag(config=True)
    max_concurrency = Int(32, help="LM requests under way at once.").tag(config=True)
    max_depth = Int(1, help="Levels of RLMs: with 1 sub-calls are plain, with 2 code may start child RLMs, and so on.").tag(
        config=True
    )
    max_concurrent_children = Int(8, help="Child RLMs that work at once.").tag(config=True)
    max_output_tokens = Int(8192, help="Tokens of one reply.").tag(config=True)

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self._shell = shell
        self.runs: dict[str, Run] = {}
        self.matcher: Any = None
        self._steering = Steering(shell, self.runs, self._defaults, self._open_panel)
        for name, trait in self.traits(config=True).items():
            variable = f"RLM_JUPYTER_{name.upper()}"
            if variable in os.environ and name not in self.config.get("RLMMagics", {}):
                try:
                    setattr(self, name, trait.from_string(os.environ[variable]))
                except (TraitError, ValueError):
                    print(f"{variable} is not used: {os.environ[variable]!r} is not a value for {name}", file=sys.stderr)

    def _defaults(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.trait_names(config=True)}

    def _open_panel(self) -> None:
        self._engine  # noqa: B018  made here once, not by the threads of several panels
        self.panels.open()

    @cached_property
    def panels(self) -> Panels:
        from rlm_jupyter.panels import Panels

        factory = {name: trait.default_value for name, trait in self.class_traits(config=True).items()}
        return Panels(self._shell, self._begin_aside, self._defaults, factory)

    @cached_property
    def reader(self) -> Reader:
        from rlm_jupyter.reading import Reader

        return Reader(self._shell, self._defaults)

    @cached_property
    def _engine(self) -> Engine:
        from rlm_jupyter.engine import Engine

        return Engine()

    @no_var_expand
    @magic_arguments("%rlm")
    @with_options
    @cell_magic("rlm")  # type: ignore[arg-type]  # IPython types these two as taking nothing
    def ask(self, line: str, cell: str) -> Run | None:
        """Ask a question about a long input: a language model writes Python to examine it, and you watch.

        The cell's body is the question. The input, which the model never sees whole, is the variable `context` of a Python
        kernel in which the model's code runs.
        """
        from rlm_jupyter.reading import Progress

        progress = Progress()
        try:
            options = parse(RLMMagics.ask.parser, line)
            asked = self._make(options, cell, progress.say)
        finally:
            progress.clear()
        if options.background:
            return asked.begin()
        result = asked.watch()
        if asked.folder is not None:
            print(asked.save_files(result))
        if result.error is not None:
            raise result.error
        return None

    def _begin_aside(self, line: str, cell: str, told: Callable[[str], None]) -> Aside:
        """Begin a cell's run for a panel to watch."""
        options = parse(RLMMagics.ask.parser, line)
        if options.background:
            raise UsageError("--background: the runs of a panel are in the background as it is; leave it out")
        return self._make(options, cell, told).begin_aside()

    def _make(self, options: argparse.Namespace, cell: str, told: Callable[[str], None]) -> Asked:
        """Make the run of a cell, or say in a UsageError what to type instead; `told` hears what takes long."""
        from rlm_jupyter.asked import Asked
        from rlm_jupyter.errors import SettingsError
        from rlm_jupyter.run import check, make

        def progress(size: int) -> None:
            told(f"preparing the context: {size / 1e6:,.0f} MB")

        try:
            settings = self.reader.settings(options)
            prompt, question = self.reader.task(options, cell, progress)
            out = self.reader.out(options.out)
            if options.background and options.save_files is not None:
                raise UsageError("--save-files waits for the end: leave it out, then call NAME.result.save_files(DIR)")
            self.reader.check_folder(options.save_files)
            check(settings)
            run = make(settings, prompt, question, self._engine, progress=progress, told=told)
        except SettingsError as error:
            raise UsageError(str(error)) from None
        view, shown_as = options.view or self.view, options.format or self.format
        return Asked(run, view, shown_as, out, options.save_files, self.runs, self._shell.user_ns)

    @no_var_expand
    @line_magic("rlm")  # type: ignore[arg-type]
    def steer(self, line: str) -> None:
        """Show and steer recursive runs."""
        self._steering.steer(line)

    def close(self) -> None:
        """End the worker thread and what it keeps, and the panels."""
        if "panels" in self.__dict__:
            self.panels.close()
        if "_engine" in self.__dict__:
            self._engine.close()


RLMMagics.ask.__doc__ = (RLMMagics.ask.__doc__ or "") + EXAMPLES
RLMMagics.steer.__doc__ = (RLMMagics.steer.__doc__ or "") + HELP


def load(shell: InteractiveShell) -> None:
    """Register the magics and their completion with a shell."""
    from rlm_jupyter.completion import Completion

    magics = RLMMagics(shell)
    shell.register_magics(magics)
    magics.matcher = Completion(shell, RLMMagics.ask.parser, magics.runs).matcher
    shell.Completer.custom_matchers.append(magics.matcher)


def unload(shell: InteractiveShell) -> None:
    """Take the magics away again."""
    magics = shell.magics_manager.registry.pop("RLMMagics", None)
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("rlm", None)
    if magics is not None:
        shell.Completer.custom_matchers.remove(magics.matcher)
        if magics in shell.configurables:
            shell.configurables.remove(magics)
        magics.close()
