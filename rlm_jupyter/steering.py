"""The sub-commands of `%rlm`: what shows and steers the runs of a session.

One table, `COMMANDS`, has them all with their help; `%rlm?` and completion read it. Whatever cannot be done is one
`UsageError` line that says what to type. Nothing here starts a run, and nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from rlm_jupyter.run import Run
    from rlm_jupyter.trace import Trace

COMMANDS: Mapping[str, tuple[str, str]] = {
    "status": ("", "the defaults in force, and how to change them"),
    "list": ("", "the runs of this session, with how far they are"),
    "show": ("[id]", "a run's result again (the last one, or by its id; also from its trace file)"),
    "panel": ("", "a form: choose, run, stop; or copy what was chosen as a %%rlm cell"),
    "attach": ("[id]", "a run that is running, live in this cell (after the page was loaded anew; the one, or by its id)"),
    "stop": ("[id]", "stop a run in the background (the one that runs, or by its id); it keeps what there is"),
    "sandboxes": ("[--end ID]", "your sandboxes at Modal; --end ends one, --end all those that were left over"),
    "export": ("id file.html", "a run as one interactive file for a browser; --force writes over one that exists"),
    "purge": ("", "delete the trace files"),
    "doctor": ("", "what is here, what is ready, what to type where something is missing; --json"),
}
"""Each sub-command, with the words that it takes and what it does."""

MOST_WORDS: Mapping[str, int] = {"status": 0, "list": 0, "show": 1, "attach": 1, "stop": 1, "purge": 0}
"""How many words the sub-commands take that take only so many; the others read theirs themselves."""

OVERVIEW = (
    "".join(f"  {f'%rlm {name} {takes}'.rstrip():<27}{does}\n" for name, (takes, does) in COMMANDS.items())
    + "\nTo ask a question, write it in a cell that begins with %%rlm; %%rlm? tells how."
)
HELP = f"\n\n::\n\n{OVERVIEW}\n"


class Steering:
    """The sub-commands, over the runs of one session.

    Parameters
    ----------
    runs
        By id, the newest last.
    defaults
        Gives the defaults in force, by the names of their traits.
    open_panel
        Opens a panel in the cell that runs.
    """

    def __init__(
        self,
        shell: InteractiveShell,
        runs: Mapping[str, Run],
        defaults: Callable[[], Mapping[str, Any]],
        open_panel: Callable[[], None],
    ) -> None:
        self._shell, self._runs, self._defaults, self._open_panel = shell, runs, defaults, open_panel

    def steer(self, line: str) -> None:
        """Do what the line of a `%rlm` says."""
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise UsageError(f"cannot read the words after %rlm: {error}") from None
        if not words or words[0] in ("help", "--help", "-h"):
            print(OVERVIEW)
            return
        command, *rest = words
        if command not in COMMANDS:
            from rlm_jupyter.settings import did_you_mean

            raise UsageError(f"%rlm has no command {command!r}{did_you_mean(command, COMMANDS)}")
        if len(rest) > MOST_WORDS.get(command, len(rest)):
            takes, does = COMMANDS[command]
            told = f"no more than one word, {takes}" if takes else "no more words"
            raise UsageError(f"what is {rest[MOST_WORDS[command]]!r}? %rlm {command} takes {told}: {does}")
        getattr(self, f"_{command}")(rest)

    def _status(self, words: Sequence[str]) -> None:
        running = [run for run in self._runs.values() if run.status == "running"]
        print(f"{len(self._runs)} runs in this session, {len(running)} running. Defaults:")
        defaults = self._defaults()
        width = max(map(len, defaults))
        for name, value in defaults.items():
            print(f"  {name:<{width}} {'-' if value in ('', None) else value}")
        print('Change one with %config RLMMagics.model = "gpt-5-mini", or for one cell with its option, such as --model.')

    def _list(self, words: Sequence[str]) -> None:
        from rlm_jupyter.widgets.listing import bundle
        from rlm_jupyter.widgets.view import choose_view

        shown = bundle([run.trace for run in self._runs.values()])
        if choose_view(self._defaults()["view"]) in ("text", "none"):
            print(shown["text/plain"])
        else:
            from IPython.display import display

            display(shown, raw=True)  # type: ignore[no-untyped-call]

    def _show(self, words: Sequence[str]) -> None:
        from rlm_jupyter.widgets.view import Face, open_view

        if not words and not self._runs:
            raise UsageError("no run in this session yet; %rlm show ID shows one from its trace file")
        trace, run = self._trace(words[0] if words else list(self._runs)[-1], "shown")
        if run is not None and run.status == "running":
            print(f"{run.id} is running; this is how it stood just now. %rlm attach {run.id} shows it live")
        value = run.future.result().value if run is not None and run.future.done() else None
        view = open_view(self._defaults()["view"])
        view.start(trace)
        view.finish(Face(value, self._defaults()["format"]))

    def _export(self, words: Sequence[str]) -> None:
        from rlm_jupyter.widgets.export import save

        named = [word for word in words if word != "--force"]
        if len(named) != 2 or any(word.startswith("-") for word in named):
            raise UsageError(
                "type %rlm export ID file.html, with --force to write over a file that exists; %rlm list shows ids"
            )
        trace, _ = self._trace(named[0], "exported")
        try:
            path = save(trace, named[1], force="--force" in words)
        except ValueError as error:
            raise UsageError(str(error)) from None
        print(f"{path}: {path.stat().st_size:,} bytes; open it in a browser")

    def _trace(self, name: str, done: str) -> tuple[Trace, Run | None]:
        """Give what there is of a run, by its id: of this session, else from its trace file."""
        from rlm_jupyter.trace_file import salvage, trace_folder
        from rlm_jupyter.widgets.visible import one_line

        path = trace_folder() / f"{os.path.basename(name)}.jsonl"
        if name in self._runs or not os.path.isfile(path):
            run = self._named(name)
            return run.trace, run
        try:
            return salvage(path), None
        except OSError as error:
            raise UsageError(f"{path.name} cannot be {done}: {error.strerror or error}") from None
        except ValueError as error:  # it may quote the file, which anybody may have written
            raise UsageError(f"{path.name} cannot be {done}: {one_line(error, 300)}") from None

    def _sandboxes(self, words: Sequence[str]) -> None:
        from rlm_jupyter.errors import SettingsError
        from rlm_jupyter.sandboxes import sandboxes

        try:
            print(sandboxes(words, self._defaults().get("app_name") or "", list(self._runs.values())))
        except SettingsError as error:
            raise UsageError(str(error)) from None

    def _attach(self, words: Sequence[str]) -> None:
        from rlm_jupyter.background import attach
        from rlm_jupyter.widgets.view import choose_view

        run, view = self._running(words, "attach"), self._defaults()["view"]
        if choose_view(view) in ("text", "none"):
            print(f"{run.id} is running; only a notebook shows it live. Type %rlm show {run.id}, or .wait() for it")
        else:
            attach(run, view, self._defaults()["format"])

    def _stop(self, words: Sequence[str]) -> None:
        from rlm_jupyter.run import STOP_WITHIN
        from rlm_jupyter.widgets.words import headline, status

        run = self._running(words, "stop")
        run.stop()
        try:
            run.future.result(STOP_WITHIN)
        except (TimeoutError, KeyboardInterrupt):
            print(f"{run.id} was told to stop; what has not ended yet is being ended")
            return
        print(f"{status(run.trace)}: {run.id}; {', '.join(headline(run.trace)[:4])}; %rlm show {run.id}")

    def _running(self, words: Sequence[str], command: str) -> Run:
        """Give the run that is meant, if it is running."""
        running = [run for run in self._runs.values() if run.status == "running"]
        if not words:
            if len(running) == 1:
                return running[0]
            names = ", ".join(run.id for run in running)
            several = f"several runs are running: %rlm {command} ID with one of {names}"
            raise UsageError(several if running else "no run is running")
        run = self._named(words[0])
        if run.status != "running":
            raise UsageError(f"{run.id} has ended already ({run.status}); %rlm show {run.id} shows it")
        return run

    def _named(self, name: str) -> Run:
        if name not in self._runs:
            from rlm_jupyter.widgets.visible import one_line

            ends = [run for known, run in self._runs.items() if name and known.rpartition("-")[2] == name]
            if len(ends) == 1:
                return ends[0]
            close = difflib.get_close_matches(name, self._runs, n=1)
            hint = f"did you mean {close[0]}?" if close else "%rlm list shows those of this session"
            raise UsageError(f"no run has the id {one_line(name, 80) or repr(name)}; {hint}")
        return self._runs[name]

    def _panel(self, words: Sequence[str]) -> None:
        if words:
            raise UsageError(f"what is {words[0]!r}? %rlm panel takes no more words; its fields begin with %config RLMMagics")
        self._open_panel()

    def _purge(self, words: Sequence[str]) -> None:
        from rlm_jupyter.trace_file import purge, trace_folder

        folder = trace_folder()
        print(f"{purge(folder)} trace files deleted from {folder}")

    def _doctor(self, words: Sequence[str]) -> None:
        from rlm_jupyter.doctor import examine, render, to_json

        if words not in ([], ["--json"]):
            odd = next((word for word in words if word != "--json"), words[-1])
            raise UsageError(f"%rlm doctor has no option {odd}; there is --json, once")
        findings = examine(dict(self._defaults()), self._shell)
        print(to_json(findings) if words else render(findings))
