"""`%%rlm` runs a question, `%rlm` shows and steers: arguments in, one run out. No logic of its own.

Loading this module imports nothing heavy. Bad input is one `UsageError` line, before anything is started; a run that fails or
is stopped raises its `RLMError` after the view was drawn and `--out` was bound. Of the user's namespace only the variable
named by `--out` is written; of the environment and of files nothing but what the user named is read.
"""

from __future__ import annotations

import argparse
import builtins
import difflib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class, no_var_expand
from IPython.core.magic_arguments import MagicArgumentParser, argument, magic_arguments
from traitlets import Enum, Float, Int, TraitError, Unicode

from rlm_jupyter.steering import HELP, Steering

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from rlm_jupyter.engine import Engine
    from rlm_jupyter.events import Event
    from rlm_jupyter.panels import Aside, Panels
    from rlm_jupyter.result import RLMResult
    from rlm_jupyter.run import Run
    from rlm_jupyter.settings import RunSettings

FORMATS = ("text", "markdown")
VIEWS = ("auto", "live", "html", "text", "none")
PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_]\w*)\s*\}\}")
PLACEHOLDER_CAP = 100_000
PROGRESS_WIDTH = 120
CAPS = (
    "max_iterations",
    "max_calls",
    "max_tokens",
    "max_cost",
    "timeout",
    "max_consecutive_errors",
    "max_depth",
    "max_concurrent_children",
    "max_concurrency",
    "max_output_tokens",
)

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


def _whole(text: str) -> int:
    return int(text.replace("_", "").replace(",", ""))


def _whole_or_none(text: str) -> int | object:
    return NO_CAP if text.lower() == "none" else _whole(text)


def _number_or_none(text: str) -> float | object:
    return NO_CAP if text.lower() == "none" else float(text)


NO_CAP = object()
"""What `none` is read as: that an option was not given is told apart from it."""

for _read, _name in ((_whole, "whole number"), (_whole_or_none, "whole number"), (_number_or_none, "number")):
    _read.__name__ = _name  # argparse names the type in its message


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
    def _engine(self) -> Engine:
        from rlm_jupyter.engine import Engine

        return Engine()

    @no_var_expand
    @magic_arguments("%rlm")
    @argument(
        "--context",
        action="append",
        metavar="NAME",
        help="A variable of the notebook, or a path: a text file, a folder, a glob. Several make a dict by name.",
    )
    @argument(
        "--env",
        metavar="NAME",
        help="Where the code runs: local (not isolated), docker (a container) or modal (a sandbox in Modal's cloud). "
        "Default: local.",
    )
    @argument(
        "--model",
        metavar="MODEL",
        help="The root LM: gpt-5-mini, ollama/qwen3, demo (no key, a stand-in), a name at --base-url.",
    )
    @argument("--sub-model", metavar="MODEL", help="The LM of the sub-calls. Default: the root LM.")
    @argument("--base-url", metavar="URL", help="An OpenAI-compatible server; model names are then taken literally.")
    @argument("--api-key-env", metavar="NAME", help="The environment variable that holds the key. Never the key itself.")
    @argument("--price-as", metavar="MODEL", help="The model whose price holds for names of your own, such as gpt-5-mini.")
    @argument("-o", "--out", metavar="NAME", help="The variable that receives the result, also a partial one.")
    @argument("--max-iterations", type=_whole, metavar="N", help="Turns of the root LM. Default: 30.")
    @argument("--max-calls", type=_whole, metavar="N", help="LM requests of every kind, retries included. Default: 1000.")
    @argument("--max-tokens", type=_whole_or_none, metavar="N", help="Tokens in and out of the whole run. Default: none.")
    @argument(
        "--max-cost",
        type=_number_or_none,
        metavar="DOLLARS",
        help="Dollars for the whole run. Default: 2, if prices are known.",
    )
    @argument("--timeout", type=float, metavar="SECONDS", help="Seconds for the whole run. Default: 1800.")
    @argument(
        "--max-consecutive-errors",
        type=_whole_or_none,
        metavar="N",
        help="Cells that end in an error one after the other. Default: none.",
    )
    @argument("--max-concurrency", type=_whole, metavar="N", help="LM requests under way at once. Default: 32.")
    @argument(
        "--max-depth",
        type=_whole,
        metavar="N",
        help="Levels of RLMs: with 1 sub-calls are plain, with 2 code may start child RLMs, and so on. Default: 1.",
    )
    @argument("--max-concurrent-children", type=_whole, metavar="N", help="Child RLMs that work at once. Default: 8.")
    @argument("--max-output-tokens", type=_whole, metavar="N", help="Tokens of one reply. Default: 8192.")
    @argument("--kernel", metavar="NAME", help="An installed kernelspec to run the code in. Default: this notebook's Python.")
    @argument(
        "--image",
        metavar="NAME",
        help="The image to start from, by its name in a registry; with --env modal also a variable that holds a modal.Image. "
        "Default: python:X.Y-slim with --env docker, rlm_jupyter.modal_image() with --env modal.",
    )
    @argument("--docker-network", metavar="NAME", help="With --env docker: a network of the engine's. Default: no network.")
    @argument(
        "--memory",
        metavar="SIZE",
        help="Memory, such as 8g. Default: 4g and three times the context with --env docker, what Modal gives else.",
    )
    @argument("--cpus", type=float, metavar="N", help="With --env docker: processors. Default: 2.")
    @argument("--gpus", metavar="GPUS", help="With --env docker: what `docker run --gpus` takes, such as all. Default: none.")
    @argument("--app-name", metavar="NAME", help="With --env modal: the app the sandbox belongs to. Default: rlm-sandbox.")
    @argument(
        "--sandbox-timeout",
        type=_whole,
        metavar="SECONDS",
        help="With --env modal: when Modal ends the sandbox, at most 86,400. Default: 600.",
    )
    @argument("--gpu", metavar="GPU", help="With --env modal: a GPU, such as T4, or A100:2 for two. Default: none.")
    @argument("--cpu", type=float, metavar="N", help="With --env modal: cores, such as 2. Default: what Modal gives.")
    @argument(
        "--network",
        metavar="NETWORK",
        help="With --env modal: closed, open (code can send what it reads anywhere), or the domains that it may reach, such as "
        "pypi.org,files.pythonhosted.org. Default: closed.",
    )
    @argument(
        "--bridge",
        metavar="BRIDGE",
        help="With --env modal: how LM calls leave the sandbox: tunnel, or exec, which needs no port. Default: tunnel.",
    )
    @argument("--setup-code", metavar="CODE", help="Code to run first, or the name of a str variable that holds it.")
    @argument("--show-pictures-to-model", action="store_true", help="Send the root LM the pictures that the code makes.")
    @argument("--save-files", metavar="DIR", help="Write the files that the code made there, over none that exist.")
    @argument(
        "--background",
        action="store_true",
        help="Give the prompt back at once: the cell gives a Run (wait, stop, result, status; await), and --out holds it.",
    )
    @argument(
        "--view",
        choices=VIEWS,
        help="What is shown. Default: auto (live in JupyterLab, else html in notebooks, text in terminals).",
    )
    @argument("--format", choices=FORMATS, help="How an answer that is a text is shown: text, or markdown. Default: text.")
    @argument("--no-trace", action="store_true", help="Write no trace file.")
    @cell_magic("rlm")  # type: ignore[arg-type]  # IPython types these two as taking nothing
    def ask(self, line: str, cell: str) -> Run | None:
        """Ask a question about a long input: a language model writes Python to examine it, and you watch.

        The cell's body is the question. The input, which the model never sees whole, is the variable `context` of a Python
        kernel in which the model's code runs.
        """
        progress = _Progress()
        try:
            run, options = self._read(line, cell, progress.say)
        finally:
            progress.clear()
        if options.background:
            return self._begin(run, options.view or self.view, options.out, options.format or self.format)
        result = self._watch(run, options.view or self.view, options.out, options.format or self.format)
        if options.save_files is not None:
            print(self._save_files(result, options.save_files))
        if result.error is not None:
            raise result.error
        return None

    def _read(self, line: str, cell: str, told: Callable[[str], None]) -> tuple[Run, argparse.Namespace]:
        """Read a cell and make its run, or say in a UsageError what to type instead; `told` hears what takes long."""
        from rlm_jupyter.errors import SettingsError

        try:
            options = self._parse(RLMMagics.ask, line)
            settings = self._settings(options)
            prompt, question = self._task(options, cell)
            self._check_out(options.out)
            if options.background and options.save_files is not None:
                raise UsageError("--save-files waits for the end: leave it out, then call NAME.result.save_files(DIR)")
            return self._make(settings, prompt, question, told), options
        except SettingsError as error:
            raise UsageError(str(error)) from None

    def _begin_aside(self, line: str, cell: str, told: Callable[[str], None]) -> Aside:
        """Begin a cell's run for somebody else to watch; give it, its `--out`, and what the cell would do at its end."""
        from rlm_jupyter.background import RESULT_WITHIN
        from rlm_jupyter.widgets.view import Face

        if self._parse(RLMMagics.ask, line).background:
            raise UsageError("--background: the runs of a panel are in the background as it is; leave it out")
        run, options = self._read(line, cell, told)
        self.runs[run.id] = run
        run.begin()

        def finish() -> tuple[str, Face]:
            result = run.future.result(RESULT_WITHIN)
            if options.out is not None:
                self._shell.user_ns[options.out] = result
            try:
                line = self._save_files(result, options.save_files) if options.save_files is not None else ""
            except UsageError as error:
                line = str(error)
            return line, Face(result.value, options.format or self.format)

        return run, options.out, finish

    def _begin(self, run: Run, view_name: str, out: str | None, answer_format: str) -> Run:
        """Begin a run in the background, bound to `out` from now on."""
        from rlm_jupyter.background import begin

        self.runs[run.id] = run
        begin(run, view_name, answer_format)
        if out is not None:
            self._shell.user_ns[out] = run
        return run

    def _parse(self, function: Callable[..., Any], line: str) -> argparse.Namespace:
        """Read the magic's line as a shell would, so that quotes are not part of a value; full names of options only."""
        parser: MagicArgumentParser = function.parser  # type: ignore[attr-defined]
        parser.allow_abbrev = False
        try:
            words = shlex.split(line, posix=True)
        except ValueError as error:
            raise UsageError(f"cannot read the options: {error}") from None
        known = [option for action in parser._actions for option in action.option_strings]
        for word in words:
            name = word.partition("=")[0]
            if name.startswith("-") and name not in known and not re.fullmatch(r"-[\d.]+(e-?\d+)?", name):
                close = difflib.get_close_matches(name, known, n=1)
                raise UsageError(f"%%rlm has no option {name}; {f'did you mean {close[0]}?' if close else '%%rlm? lists them'}")
        options, rest = parser.parse_known_args(words)
        if rest:
            raise UsageError(f"what is {rest[0]!r}? The question goes below the %%rlm line; options begin with --")
        return options

    def _settings(self, options: argparse.Namespace) -> RunSettings:
        from rlm_jupyter.settings import RunSettings

        def chosen(name: str) -> Any:
            given = getattr(options, name)
            return getattr(self, name) if given is None else None if given is NO_CAP else given

        environment = chosen("env")
        return RunSettings(
            model=chosen("model"),
            sub_model=chosen("sub_model") or None,
            base_url=chosen("base_url") or None,
            api_key_env=chosen("api_key_env") or None,
            price_as=chosen("price_as") or None,
            environment=environment,
            **self._place(options, environment),
            setup_code=self._setup_code(options.setup_code),
            cost_is_explicit=options.max_cost not in (None, NO_CAP),
            keep_trace=not options.no_trace,
            show_pictures=options.show_pictures_to_model,
            **{name: chosen(name) for name in CAPS},
        )

    def _place(self, options: argparse.Namespace, environment: str) -> dict[str, Any]:
        """Give the settings that are of some environments only: in another one a default does not count, an option does."""
        from rlm_jupyter.settings import PLACES

        found: dict[str, Any] = {}
        for name in PLACES.keys() & vars(options):
            given = getattr(options, name)
            found[name] = given if given is not None or environment not in PLACES[name] else getattr(self, name) or None
        if environment == "modal" and found["image"] in self._shell.user_ns:
            found["image"], found["objects"] = self._image(found["image"])
        return found

    def _image(self, name: str) -> tuple[str, dict[str, Any]]:
        """Give what settings hold of the image in a variable: text as it is, a `modal.Image` by the variable's name."""
        value, modal = self._shell.user_ns[name], sys.modules.get("modal")
        if isinstance(value, str):
            return value, {}
        if modal is None or not isinstance(value, modal.Image):
            raise UsageError(f"--image {name}: the variable {name} is a {type(value).__name__}, not a modal.Image")
        return f"<{name}>", {f"<{name}>": value}

    def _setup_code(self, code: str | None) -> str | None:
        value = self._shell.user_ns.get(code) if code and code.isidentifier() else None
        return value if isinstance(value, str) else code

    def _task(self, options: argparse.Namespace, cell: str) -> tuple[Any, str | None]:
        """Give the context and the question; without `--context` the body is both."""
        if not cell.strip():
            raise UsageError("the cell is empty: write the question below the %%rlm line")
        question = PLACEHOLDER.sub(self._placeholder, cell.strip())
        if not options.context:
            return question, None
        from rlm_jupyter.contexts import Named

        return Named({name: self._context(name) for name in options.context}), question

    def _placeholder(self, match: re.Match[str]) -> str:
        text = str(self._variable(match[1], f"{{{{{match[1]}}}}}"))
        if len(text) > PLACEHOLDER_CAP:
            raise UsageError(f"{match[0]} has {len(text):,} characters: too long for a question, use --context {match[1]}")
        return text

    def _context(self, name: str) -> Any:
        from rlm_jupyter.contexts import read_path

        return self._variable(name, f"--context {name}") if name.isidentifier() else read_path(name)

    def _variable(self, name: str, told: str) -> Any:
        space = self._shell.user_ns
        if name in space:
            return space[name]
        own = [known for known in space if not known.startswith("_") and known not in self._shell.user_ns_hidden]
        close = difflib.get_close_matches(name, own, n=1)
        hint = f"did you mean {close[0]}?" if close else "assign it in a cell above"
        if not close and os.path.exists(name) and told.startswith("--"):
            hint = f"for the file or folder of that name type --context ./{name}"
        raise UsageError(f"{told}: no variable is named {name}; {hint}")

    def _check_out(self, name: str | None) -> None:
        from rlm_jupyter.settings import check_variable_name

        if name is not None:
            check_variable_name(name, {*self._shell.user_ns_hidden, *dir(builtins)})

    def _make(self, settings: RunSettings, prompt: Any, question: str | None, told: Callable[[str], None]) -> Run:
        from rlm_jupyter.run import check, make

        def progress(size: int) -> None:
            told(f"preparing the context: {size / 1e6:,.0f} MB")

        check(settings)
        return make(settings, prompt, question, self._engine, progress=progress, told=told)

    def _watch(self, run: Run, view_name: str, out: str | None, answer_format: str) -> RLMResult:
        """Begin a run, show it until it ends, bind `out`, and give the result; an interrupt stops the run."""
        from rlm_jupyter.trace import Trace
        from rlm_jupyter.widgets.view import Face, open_view

        view, trace, feed = open_view(view_name, on_stop=run.stop), Trace(), run.feed()
        result: RLMResult | None = None

        def show(events: Iterable[Event | None]) -> None:
            for event in events:
                if event is not None:
                    trace.add(event)
                view.update(event)

        def bind(result: RLMResult) -> RLMResult:
            if out is not None:
                self._shell.user_ns[out] = result
            return result

        try:
            try:
                self.runs[run.id] = run
                view.start(trace)
                run.begin()
                show(feed)
                result = bind(run.future.result())
            except KeyboardInterrupt:  # of a run that has ended meanwhile it gives the result, too
                stopped = run.interrupted()
                assert stopped.result is not None
                result = bind(stopped.result)
            except BaseException:
                run.stop()
                raise
            show(feed.rest())
        finally:
            view.finish(Face(result.value if result is not None else None, answer_format))
        return result

    def _save_files(self, result: RLMResult, folder: str) -> str:
        from rlm_jupyter.errors import SettingsError

        try:
            saved = result.save_files(folder)
        except SettingsError as error:
            raise UsageError(str(error)) from None
        names = ", ".join(str(path) for path in saved[:10]) + (", ..." if len(saved) > 10 else "")
        return f"{len(saved)} files saved: {names}" if saved else "no files were written by the code, so none are saved"

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


class _Progress:
    """One line that tells what is made ready before a run and how far it is, and is wiped away at the end."""

    def __init__(self) -> None:
        self._width = 0

    def say(self, text: str) -> None:
        text = text[:PROGRESS_WIDTH]
        print(f"\r{text:{self._width}}", end="", flush=True)
        self._width = len(text)

    def clear(self) -> None:
        if self._width:
            print(f"\r{' ' * self._width}\r", end="", flush=True)


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
