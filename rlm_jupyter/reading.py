"""A `%%rlm` cell read: options and defaults become settings, names become the variables and files that they mean.

What cannot be read is one `UsageError` line, or a `SettingsError`, that says what to type instead. Nothing is started here, and
of the namespace nothing is written.
"""

from __future__ import annotations

import argparse
import builtins
import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

from rlm_jupyter.contexts import Named, read_path
from rlm_jupyter.names import check_variable_name, variable_name
from rlm_jupyter.options import NO_CAP
from rlm_jupyter.settings import PLACES, RunSettings

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

PLACEHOLDER = re.compile(r"\{\{\s*([^\s{}]+)\s*\}\}")
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


class Reader:
    """Reads cells of one shell; `defaults` gives those in force, by the names of their traits."""

    def __init__(self, shell: InteractiveShell, defaults: Callable[[], Mapping[str, Any]]) -> None:
        self._shell = shell
        self._defaults = defaults

    def settings(self, options: argparse.Namespace) -> RunSettings:
        """Give the settings of a run: what an option says, else the default in force."""
        defaults = self._defaults()

        def chosen(name: str) -> Any:
            given = getattr(options, name)
            return defaults[name] if given is None else None if given is NO_CAP else given

        environment = chosen("env")
        return RunSettings(
            model=chosen("model"),
            sub_model=chosen("sub_model") or None,
            base_url=chosen("base_url") or None,
            api_key_env=chosen("api_key_env") or None,
            price_as=chosen("price_as") or None,
            environment=environment,
            **self._place(options, environment, defaults),
            setup_code=self._setup_code(options.setup_code),
            cost_is_explicit=options.max_cost not in (None, NO_CAP),
            keep_trace=not options.no_trace,
            show_pictures=options.show_pictures_to_model,
            **{name: chosen(name) for name in CAPS},
        )

    def _place(self, options: argparse.Namespace, environment: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Give the settings that are of some environments only: in another one a default does not count, an option does."""
        found: dict[str, Any] = {}
        for name in PLACES.keys() & vars(options):
            given = getattr(options, name)
            found[name] = given if given is not None or environment not in PLACES[name] else defaults[name] or None
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
        """Give the code itself, or what is in the variable of that name; a name alone would do nothing as code."""
        if not code or not code.isidentifier():
            return code
        value = self._variable(code, f"--setup-code {code}")
        if not isinstance(value, str):
            raise UsageError(f"--setup-code {code}: the variable {code} is a {type(value).__name__}, not Python as a text")
        return value

    def task(
        self, options: argparse.Namespace, cell: str, progress: Callable[[int], None] | None = None
    ) -> tuple[Any, str | None]:
        """Give the context and the question; without `--context` the body is both."""
        if not cell.strip():
            raise UsageError("the cell is empty: write the question below the %%rlm line")
        question = PLACEHOLDER.sub(self._placeholder, cell.strip())
        if not options.context:
            return question, None
        return Named({name: self._context(name, progress) for name in options.context}), question

    def _placeholder(self, match: re.Match[str]) -> str:
        if not match[1].isidentifier():
            return match[0]
        text = str(self._variable(match[1], f"{{{{{match[1]}}}}}"))
        if len(text) > PLACEHOLDER_CAP:
            raise UsageError(f"{match[0]} has {len(text):,} characters: too long for a question, use --context {match[1]}")
        return text

    def _context(self, name: str, progress: Callable[[int], None] | None) -> Any:
        return self._variable(name, f"--context {name}") if name.isidentifier() else read_path(name, progress)

    def _variable(self, name: str, told: str) -> Any:
        space, name = self._shell.user_ns, variable_name(name)
        if name in space:
            return space[name]
        own = [known for known in space if not known.startswith("_") and known not in self._shell.user_ns_hidden]
        close = difflib.get_close_matches(name, own, n=1)
        hint = f"did you mean {close[0]}?" if close else "assign it in a cell above"
        if not close and os.path.exists(name) and told.startswith("--context"):
            hint = f"for the file or folder of that name type --context ./{name}"
        raise UsageError(f"{told}: no variable is named {name}; {hint}")

    def check_folder(self, folder: str | None) -> None:
        """Refuse a name for `--save-files` that is none, or a file's: nothing could be saved there at the end."""
        if folder is not None and (not folder.strip() or "\0" in folder):
            raise UsageError("--save-files needs the name of a folder, such as ./made")
        if folder is not None and folder.startswith("~") and os.path.expanduser(folder) == folder:
            raise UsageError(f"--save-files {folder}: nobody of that name has a home folder here")
        if folder is None:
            return
        there = os.path.abspath(os.path.expanduser(folder))
        if os.path.exists(there) and not os.path.isdir(there):
            raise UsageError(f"--save-files {folder}: that is a file; name a folder, which is made where there is none")
        while not os.path.exists(there):
            there = os.path.dirname(there)
        if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
            raise UsageError(f"--save-files {folder}: nothing can be made in {there}; name another folder, such as ./made")

    def out(self, name: str | None) -> str | None:
        """Give the name for `--out` as Python reads it; one that is no name, or not free to be written, is refused."""
        return None if name is None else check_variable_name(name, {*self._shell.user_ns_hidden, *dir(builtins)})


class Progress:
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
