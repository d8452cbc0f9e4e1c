"""The options of a `%%rlm` line: each with its help and the reading of its value, and the reading of a whole line.

`%%rlm?`, completion and docs/options.md are made from this list. What is no option, or only the beginning of one, is refused in
one `UsageError` line. Defaults are not here: what was not given is None, and `none` is `NO_CAP`.
"""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from IPython.core.error import UsageError
from IPython.core.magic_arguments import MagicArgumentParser, argument

FORMATS = ("text", "markdown")
VIEWS = ("auto", "live", "html", "text", "none")

Method = TypeVar("Method", bound=Callable[..., Any])


IN_PYTHON = ("secrets", "volumes", "region", "idle_timeout")
"""What only `RLM(environment_kwargs={...})` takes, since it is written as objects of Modal's, or seldom."""
NO_CAP = object()
"""What `none` is read as: that an option was not given is told apart from it."""


def _whole(text: str) -> int:
    try:
        return int(text.replace("_", "").replace(",", ""))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, such as 100, not {text!r}") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, such as 2.5, not {text!r}") from None


def _whole_or_none(text: str) -> int | object:
    return NO_CAP if text.lower() == "none" else _whole(text)


def _number_or_none(text: str) -> float | object:
    return NO_CAP if text.lower() == "none" else _number(text)


OPTIONS = (
    argument(
        "--context",
        action="append",
        metavar="NAME",
        help="A variable of the notebook, or a path: a text file, a folder, a glob. Several make a dict by name.",
    ),
    argument(
        "--env",
        metavar="NAME",
        help="Where the code runs: local (not isolated), docker (a container) or modal (a sandbox in Modal's cloud). "
        "Default: local.",
    ),
    argument(
        "--model",
        metavar="MODEL",
        help="The root LM: gpt-5-mini, ollama/qwen3, demo (no key, a stand-in), a name at --base-url.",
    ),
    argument("--sub-model", metavar="MODEL", help="The LM of the sub-calls. Default: the root LM."),
    argument("--base-url", metavar="URL", help="An OpenAI-compatible server; model names are then taken literally."),
    argument("--api-key-env", metavar="NAME", help="The environment variable that holds the key. Never the key itself."),
    argument("--price-as", metavar="MODEL", help="The model whose price holds for names of your own, such as gpt-5-mini."),
    argument("-o", "--out", metavar="NAME", help="The variable that receives the result, also a partial one."),
    argument("--max-iterations", type=_whole, metavar="N", help="Turns of the root LM. Default: 30."),
    argument("--max-calls", type=_whole, metavar="N", help="LM requests of every kind, retries included. Default: 1000."),
    argument("--max-tokens", type=_whole_or_none, metavar="N", help="Tokens in and out of the whole run. Default: none."),
    argument(
        "--max-cost",
        type=_number_or_none,
        metavar="DOLLARS",
        help="Dollars for the whole run. Default: 2, if prices are known.",
    ),
    argument("--timeout", type=_number, metavar="SECONDS", help="Seconds for the whole run. Default: 1800."),
    argument(
        "--max-consecutive-errors",
        type=_whole_or_none,
        metavar="N",
        help="Cells that end in an error one after the other. Default: none.",
    ),
    argument("--max-concurrency", type=_whole, metavar="N", help="LM requests under way at once. Default: 32."),
    argument(
        "--max-depth",
        type=_whole,
        metavar="N",
        help="Levels of RLMs: with 1 sub-calls are plain, with 2 code may start child RLMs, and so on. Default: 1.",
    ),
    argument("--max-concurrent-children", type=_whole, metavar="N", help="Child RLMs that work at once. Default: 8."),
    argument("--max-output-tokens", type=_whole, metavar="N", help="Tokens of one reply. Default: 8192."),
    argument("--kernel", metavar="NAME", help="An installed kernelspec to run the code in. Default: this notebook's Python."),
    argument(
        "--image",
        metavar="NAME",
        help="The image to start from, by its name in a registry; with --env modal also a variable that holds a modal.Image. "
        "Default: python:X.Y-slim with --env docker, rlm_jupyter.modal_image() with --env modal.",
    ),
    argument("--docker-network", metavar="NAME", help="With --env docker: a network of the engine's. Default: no network."),
    argument(
        "--memory",
        metavar="SIZE",
        help="Memory, such as 8g. Default: 4g and three times the context with --env docker, what Modal gives else.",
    ),
    argument("--cpus", type=_number, metavar="N", help="With --env docker: processors. Default: 2."),
    argument("--gpus", metavar="GPUS", help="With --env docker: what `docker run --gpus` takes, such as all. Default: none."),
    argument("--app-name", metavar="NAME", help="With --env modal: the app the sandbox belongs to. Default: rlm-sandbox."),
    argument(
        "--sandbox-timeout",
        type=_whole,
        metavar="SECONDS",
        help="With --env modal: when Modal ends the sandbox, at most 86,400. Default: 600.",
    ),
    argument(
        "--reconnect",
        type=_number,
        metavar="SECONDS",
        help="With --env modal: after so long without a byte a connection is made again, for six times as long. Default: 15.",
    ),
    argument("--gpu", metavar="GPU", help="With --env modal: a GPU, such as T4, or A100:2 for two. Default: none."),
    argument("--cpu", type=_number, metavar="N", help="With --env modal: cores, such as 2. Default: what Modal gives."),
    argument(
        "--network",
        metavar="NETWORK",
        help="With --env modal: closed, open (code can send what it reads anywhere), or the domains that it may reach, such as "
        "pypi.org,files.pythonhosted.org. Default: closed.",
    ),
    argument(
        "--bridge",
        metavar="BRIDGE",
        help="With --env modal: how LM calls leave the sandbox: tunnel, or exec, which needs no port. Default: tunnel.",
    ),
    argument("--setup-code", metavar="CODE", help="Code to run first, or the name of a str variable that holds it."),
    argument("--show-pictures-to-model", action="store_true", help="Send the root LM the pictures that the code makes."),
    argument("--save-files", metavar="DIR", help="Write the files that the code made there, over none that exist."),
    argument(
        "--background",
        action="store_true",
        help="Give the prompt back at once: the cell gives a Run (wait, stop, result, status; await), and --out holds it.",
    ),
    argument(
        "--view",
        choices=VIEWS,
        help="What is shown. Default: auto (live in JupyterLab, else html in notebooks, text in terminals).",
    ),
    argument("--format", choices=FORMATS, help="How an answer that is a text is shown: text, or markdown. Default: text."),
    argument("--no-trace", action="store_true", help="Write no trace file."),
)
"""In the order in which the help lists them."""


def with_options(method: Method) -> Method:
    """Give a magic all of them, for `magic_arguments` to make a parser of."""
    for option in reversed(OPTIONS):
        method = option(method)
    return method


def _instead(name: str, known: Sequence[str]) -> str:
    """Give what to type where there is no such option."""
    argument = next((one for one in IN_PYTHON if name.strip("-").replace("-", "_").rstrip("s") == one.rstrip("s")), "")
    if argument:
        return f'Python has it: RLM(..., environment="modal", environment_kwargs={{"{argument}": ...}})'
    if name == "--block-network":
        return "there is none unless --network opens one; with --bridge exec there is no tunnel, either"
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else "%%rlm? lists them"


def parse(parser: MagicArgumentParser, line: str) -> argparse.Namespace:
    """Read the magic's line as a shell would, so that quotes are not part of a value; full names of options only."""
    parser.allow_abbrev = False
    try:
        words = shlex.split(line, posix=True)
    except ValueError as error:
        advice = "; close the quote, or write a backslash before a quote that is meant as it is"
        raise UsageError(f"cannot read the options: {error}{advice if 'quotation' in str(error) else ''}") from None
    known = [option for action in parser._actions for option in action.option_strings]
    for word in words:
        name = word.partition("=")[0]
        if name in ("-h", "--help"):
            raise UsageError("%%rlm? in a cell of its own lists every option with its help")
        if name.startswith("-") and name not in known and not re.fullmatch(r"-[\d.]+(e-?\d+)?", name):
            raise UsageError(f"%%rlm has no option {name}; {_instead(name, known)}")
    given = [parser._option_string_actions.get(word.partition("=")[0]) for word in words]
    for action in given:
        if action is not None and action.dest != "context" and given.count(action) > 1:
            raise UsageError(f"{action.option_strings[-1]} is there {given.count(action)} times: type it once")
    try:
        options, rest = parser.parse_known_args(words)
    except UsageError as error:
        raise UsageError(_clear(parser, str(error))) from None
    if rest:
        raise UsageError(f"what is {rest[0]!r}? The question goes below the %%rlm line; options begin with --")
    return options


def _clear(parser: MagicArgumentParser, message: str) -> str:
    """Give what argparse says of one option as a line that says what to type."""
    from rlm_jupyter.settings import did_you_mean

    match = re.fullmatch(r"argument (\S+): (.*)", message, re.DOTALL)
    action = next((one for one in parser._actions if match and "/".join(one.option_strings) == match[1]), None)
    if match is None or action is None:
        return message
    name, told = action.option_strings[-1], match[2]
    if told.startswith("expected one argument"):
        return f"{name} needs a value: type {name} {action.metavar or ' or '.join(map(str, action.choices or ()))}"
    if told.startswith("ignored explicit argument"):
        return f"{name} takes no value: type {name} and nothing behind it"
    if action.choices and (odd := re.match(r"invalid choice: '(.*?)'", told)):
        return f"{name} {odd[1]}: there is no such {action.dest}{did_you_mean(odd[1], map(str, action.choices))}"
    return f"{name} {told}"
