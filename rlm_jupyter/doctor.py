"""`%rlm doctor`: what is here, what is ready, and what to type where something is missing. One table, or JSON.

It looks at this Python and its packages, the front end, each environment (it runs one cell there, for real), the providers, the
proxy, and the folder of traces. It spends nothing, downloads nothing, asks no other machine but the one that `DOCKER_HOST` may
name, and never shows the value of a key.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from rlm_jupyter import settings
from rlm_jupyter.errors import SettingsError
from rlm_jupyter.redaction import Redactor
from rlm_jupyter.trials import NOTE, OK, PROBLEM, TRIES

CONNECT_SECONDS = 1.0
LOOPBACK = ("localhost", "127.0.0.1", "::1")
LEAST_DISK = 1024 * settings.MIB
"""Free bytes under which the folders of traces and kernels are told as short."""
PACKAGES = (
    "rlm-jupyter",
    "ipython",
    "ipykernel",
    "jupyter-client",
    "pyzmq",
    "traitlets",
    "anyio",
    "openai",
    "aiohttp",
    "genai-prices",
)
USERS_PACKAGES = ("jupyterlab", "notebook", "numpy", "pandas", "pyarrow", "polars", "matplotlib", "dill", "modal")
WIDTH = 92
"""Columns of the table, as a notebook shows them without wrapping."""
PROXY_VARIABLES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One line: `state` is ok, note (nothing is wrong) or problem; `advice` says what to type."""

    section: str
    name: str
    value: str
    state: str = OK
    advice: str = ""


def examine(defaults: Mapping[str, Any] | None = None, shell: object = None) -> list[Finding]:
    """Look at everything. `defaults` are the magic's, by name; `shell` is IPython's."""
    redactor = Redactor(os.environ)
    defaults = defaults or {}
    found = [
        *_python(shell), *_packages(), *_environments(defaults), *_providers(), *_model(defaults), *_network(), *_disk()
    ]  # fmt: skip
    return [
        dataclasses.replace(one, **{name: redactor.text(getattr(one, name)) for name in ("value", "advice")}) for one in found
    ]


def _python(shell: object) -> Iterator[Finding]:
    python = f"{platform.python_implementation()} {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("Python", "version", python)
    yield Finding("Python", "sys.executable", sys.executable)
    if sys.platform == "win32":
        yield Finding("Python", "platform", "Windows", PROBLEM, "the local environment needs Linux or macOS: use WSL")
    yield Finding("Python", "front end", front_end(shell))


def front_end(shell: object) -> str:
    """Name what shows the output, as far as it can be known from here."""
    kind = type(shell).__name__
    if "google.colab" in sys.modules:
        return "Google Colab (shown as HTML; not tried by us)"
    if kind != "ZMQInteractiveShell":
        return "a terminal (shown as text)" if shell is not None else "none: plain Python"
    if "VSCODE_PID" in os.environ or "VSCODE_CWD" in os.environ:
        return "a notebook in VS Code (shown as HTML; not tried by us)"
    return "a notebook (shown as HTML)"


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        version = version_of(name)
        advice = "" if version else "%pip install rlm-jupyter in this notebook's Python"
        yield Finding("Packages", name, version or "not installed", OK if version else PROBLEM, advice)
    there = [f"{name} {version}" for name in USERS_PACKAGES if (version := version_of(name))]
    yield Finding("Packages", "yours", ", ".join(there) or "none of " + ", ".join(USERS_PACKAGES), NOTE)


def _environments(defaults: Mapping[str, Any]) -> Iterator[Finding]:
    for name in settings.ENVIRONMENTS:
        trial = TRIES[name](defaults)
        yield Finding("Environments", name, trial.value, trial.state, trial.advice)
        if trial.engine:
            yield Finding("Environments", f"{name} engine", trial.engine)


def _providers() -> Iterator[Finding]:
    from rlm_jupyter.lm.table import PROVIDERS

    for row in PROVIDERS.values():
        try:
            address, state, advice = row.address(), OK, ""
        except SettingsError as error:
            told = bool(os.environ.get(row.address_variable or ""))
            address, state, advice = "no address", PROBLEM if told else NOTE, str(error)
        if row.key_variable is None:
            key = "needs no key"
        elif os.environ.get(row.key_variable, "").strip():
            key = f"{row.key_variable} is set"
        else:
            key = f"{row.key_variable} is not set" + (", nor needed" if row.free else "")
            state = NOTE if state == OK and row.needs_key else state
        if row.name == "azure" and os.environ.get("AZURE_OPENAI_AD_TOKEN", "").strip():
            key += ", AZURE_OPENAI_AD_TOKEN is set"
        if row.free and state == OK and listens(address) is False:
            address, state, advice = f"{address}: nobody listens there", NOTE, row.dialect.not_running
        yield Finding("Providers", row.name, f"{key} ({address})", state, advice if state == PROBLEM or row.free else "")


def listens(address: str) -> bool | None:
    """Tell whether a server of this machine listens; None where the address is elsewhere, which is not asked."""
    parts = urlsplit(address)
    if parts.hostname not in LOOPBACK:
        return None
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _model(defaults: Mapping[str, Any]) -> Iterator[Finding]:
    """Tell whether the default model could be asked."""
    from rlm_jupyter.lm.providers import check_models

    model = defaults.get("model")
    if not model:
        yield Finding("Default", "model", "none", NOTE, '%config RLMMagics.model = "gpt-5-mini", or --model in each cell')
        return
    names = ("sub_model", "base_url", "api_key_env", "price_as")
    told = {"model": model, **{name: defaults[name] for name in names if defaults.get(name)}}
    try:
        check_models(settings.RunSettings.from_dict(told))
    except SettingsError as error:
        yield Finding("Default", "model", model, PROBLEM, str(error))
    else:
        yield Finding("Default", "model", f"{model} (not asked: that would cost)")


def _network() -> Iterator[Finding]:
    names = [name for name in PROXY_VARIABLES if os.environ.get(name) or os.environ.get(name.lower())]
    told = ", ".join(f"{name}={os.environ.get(name) or os.environ[name.lower()]}" for name in names)
    yield Finding("Network", "proxy", told or "none", OK if told else NOTE)
    for name in CERTIFICATE_VARIABLES:
        path = os.environ.get(name)
        if path and not os.path.exists(path):
            yield Finding("Network", name, f"{path}: not there", PROBLEM, f"correct {name}, or take it away")
        elif path:
            yield Finding("Network", name, path)


def _disk() -> Iterator[Finding]:
    import tempfile

    from rlm_jupyter.trace_file import trace_folder

    for name, folder in (("traces", str(trace_folder())), ("kernels", tempfile.gettempdir())):
        try:
            there = folder
            while not os.path.exists(there) and os.path.dirname(there) != there:
                there = os.path.dirname(there)
            free = shutil.disk_usage(there).free
            writable = os.access(there, os.W_OK)
        except OSError as error:
            yield Finding("Disk", name, f"{folder}: {error.strerror}", PROBLEM, "make it readable for yourself")
            continue
        value = f"{folder}, {free / 2**30:.1f} GiB free"
        if not writable:
            mend = "RLM_JUPYTER_TRACES names another folder" if name == "traces" else "TMPDIR names another folder"
            yield Finding("Disk", name, f"{value}, not writable", PROBLEM, mend)
        else:
            short = free < LEAST_DISK
            yield Finding("Disk", name, value, NOTE if short else OK, "%rlm purge deletes traces" if short else "")


def render(findings: list[Finding]) -> str:
    """Write the findings as a table of text: what is wrong is marked, and its advice stands below it."""
    width = max(len(one.name) for one in findings)
    lines, section = [], ""
    for one in findings:
        if one.section != section:
            lines += ["", one.section] if section else [one.section]
            section = one.section
        mark = {OK: " ", NOTE: "-", PROBLEM: "!"}[one.state]
        first, *rest = _wrapped(one.value, WIDTH - width)
        lines.append(f" {mark} {one.name:<{width}}  {first}")
        advice = (
            [f"{'  ' if n else '->'} {line}" for n, line in enumerate(_wrapped(one.advice, WIDTH - width - 3))]
            if one.advice
            else []
        )
        lines += [f"   {'':<{width}}  {line}" for line in (*rest, *advice)]
    problems = sum(one.state == PROBLEM for one in findings)
    told = f"{problems} to mend, marked with !" if problems else "nothing to mend"
    return "\n".join([*lines, "", told])


def to_json(findings: list[Finding]) -> str:
    """Write the findings as JSON, to be pasted into an issue or read by a program."""
    return json.dumps([dataclasses.asdict(one) for one in findings], indent=1)


def _wrapped(text: str, width: int) -> list[str]:
    """Give one-line text in lines of that width, words and addresses whole."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    return textwrap.wrap(printable, width, break_long_words=False, break_on_hyphens=False) or [""]
