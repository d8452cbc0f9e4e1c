"""Completion of `%%rlm` and `%rlm`: options, their values, the notebook's variables.

A version-2 matcher of IPython that suppresses the others while it has something to offer, so that the list is exact. It
offers only variables whose type can be a context, and reads nothing but the namespace (for `--image`: what a Docker engine that
runs has; for `--kernel`: the installed kernelspecs; for a path: the names in that folder).
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher

from rlm_jupyter.steering import COMMANDS

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from rlm_jupyter.run import Run

_NO_CONTEXT = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, io.IOBase, Iterator)
"""What is never a context: code, and what can be read only once."""
IMAGES_SECONDS = 0.3
"""Within which an engine must have told its images; a Tab may not take longer."""
PATHS = 2000
"""Names of a folder that are looked at."""
GPUS = ("T4", "L4", "A10", "L40S", "A100", "A100-80GB", "H100", "H200", "B200")
"""As Modal's documentation names them; `:2` behind one asks for two."""
MODELS = ("demo", "gpt-5", "gpt-5-mini", "gpt-5-nano")


class Completion:
    """What can be typed next on a line of the magics. `runs` are the session's, by their ids."""

    def __init__(self, shell: InteractiveShell, parser: argparse.ArgumentParser, runs: Mapping[str, Run]) -> None:
        self._shell = shell
        self._runs = runs
        self._options = {option: action for action in parser._actions for option in action.option_strings}

        @context_matcher(identifier="rlm_jupyter")  # type: ignore[untyped-decorator]
        def matcher(context: CompletionContext) -> SimpleMatcherResult:
            return self._match(context)

        self.matcher = matcher

    def _match(self, context: CompletionContext) -> SimpleMatcherResult:
        line = context.text_until_cursor
        words = line.split()
        if not words or words[0] not in ("%%rlm", "%rlm") or (words[0] == "%%rlm" and context.cursor_line != 0):
            return {"completions": []}
        fragment = "" if line[-1:].isspace() else words.pop()
        name, equals, rest = fragment.partition("=")
        if equals and name in self._options:  # --env=d
            words, fragment = [*words, name], rest
        if not words:  # the magic's own name: IPython completes it
            return {"completions": []}
        found = self._candidates(words, fragment) if words[0] == "%%rlm" else self._commands(words)
        completions = [SimpleCompletion(text=text, type=kind) for text, kind in found if text.startswith(fragment)]
        return {"completions": completions, "suppress": bool(completions), "matched_fragment": fragment}

    def _commands(self, words: list[str]) -> Iterable[tuple[str, str]]:
        if len(words) == 1:
            return [(command, "keyword") for command in COMMANDS]
        if words[1:] == ["doctor"]:
            return [("--json", "option")]
        if words[1:2] == ["sandboxes"]:
            return [("all", "value")] if words[-1] == "--end" else [(option, "option") for option in ("--app-name", "--end")]
        if words[1:2] == ["export"] and len(words) > 2:
            return [] if "--force" in words else [("--force", "option")]
        if words[1:] in (["attach"], ["stop"]):
            return [(name, "run") for name, run in self._runs.items() if run.status == "running"]
        return [(name, "run") for name in self._runs] if words[1:] in (["show"], ["export"]) else []

    def _candidates(self, words: list[str], fragment: str) -> Iterable[tuple[str, str]]:
        action = self._options.get(words[-1]) if len(words) > 1 else None
        if action is not None and action.nargs != 0:
            at_modal = "--env modal" in " ".join(words)
            return [(value, "value") for value in self._values(action, fragment, at_modal)]
        taken = [
            self._options[word] for word in words if word in self._options and word != "--context"
        ]  # that one may come again
        return [(name, "option") for name, action in sorted(self._options.items()) if name[:2] == "--" and action not in taken]

    def _values(self, action: argparse.Action, fragment: str, at_modal: bool) -> Iterable[str]:
        if action.choices is not None:
            return [str(choice) for choice in action.choices]
        match action.dest:
            case "context":
                return _paths(fragment) if "/" in fragment else self._variables((object,), _NO_CONTEXT)
            case "save_files":
                return [path for path in _paths(fragment) if path.endswith("/")]
            case "setup_code":
                return self._variables((str,))
            case "out":
                return self._variables((object,))
            case "model" | "sub_model" | "price_as":
                return _models(fragment)
            case "env":
                from rlm_jupyter.settings import ENVIRONMENTS

                return sorted(ENVIRONMENTS)
            case "image":
                return self._modal_images() if at_modal else _images()
            case "network":
                return ["closed", "open"]
            case "bridge":
                from rlm_jupyter.kernels.modal_place import BRIDGES

                return BRIDGES
            case "gpu":
                return GPUS
            case "kernel":
                from jupyter_client.kernelspec import KernelSpecManager

                return sorted(KernelSpecManager().find_kernel_specs())
        return []

    def _modal_images(self) -> list[str]:
        package = sys.modules.get("modal")  # where it is not imported, nobody can have an image of its
        return [] if package is None else self._variables((package.Image,))

    def _variables(self, kinds: tuple[type[Any], ...], but: tuple[type[Any], ...] = ()) -> list[str]:
        hidden = self._shell.user_ns_hidden
        space = [
            (name, value) for name, value in self._shell.user_ns.items() if not name.startswith("_") and name not in hidden
        ]
        return sorted(name for name, value in space if isinstance(value, kinds) and not isinstance(value, but))


def _paths(fragment: str) -> list[str]:
    """Offer what is in the folder that a path names so far, hidden files left out; folders with a slash at the end."""
    folder, slash, start = fragment.rpartition("/")
    try:
        with os.scandir(os.path.expanduser(folder) + slash or ".") as found:
            shown = [entry for entry in itertools.islice(found, PATHS) if entry.name.startswith(start) and entry.name[0] != "."]
            return sorted(f"{folder}{slash}{entry.name}{'/' if entry.is_dir() else ''}" for entry in shown)
    except (OSError, ValueError):
        return []


def _images() -> list[str]:
    """Offer the images that a local Docker engine has, where it answers at once; nothing is ever started or pulled for it."""
    from rlm_jupyter.errors import RLMError
    from rlm_jupyter.kernels.client import find

    try:
        client = find()
        if client.name != "docker" or "ssh://" in os.environ.get("DOCKER_HOST", ""):
            return []
        out = client.run("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", seconds=IMAGES_SECONDS)
    except RLMError:
        return []
    names = out.decode("utf-8", "replace").split()
    return sorted({name for name in names if "<none>" not in name and not name.startswith("rlm-jupyter:")})


def _models(fragment: str) -> Iterable[str]:
    """Offer what a model may be called: OpenAI's, then `provider/`, then after that what the table of prices knows."""
    from rlm_jupyter.lm.table import PROVIDERS

    name, slash, _ = fragment.partition("/")
    if not slash or name not in PROVIDERS:
        return (*MODELS, *(f"{row}/" for row in PROVIDERS))
    from rlm_jupyter.lm.prices import models_known

    return [f"{name}/{model}" for model in models_known(PROVIDERS[name].prices[:1])]
