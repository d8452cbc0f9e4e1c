"""A run as one file for a browser: the whole of it, interactive, with nothing to load and nothing that could be loaded.

The file holds the live view's own code, the messages that it would have been told as JSON in a script element that is not run,
and the totals as text. The policy at its head allows this code and this style by their digests, pictures as `data:` addresses,
and nothing else: no address, no form, no handler, no style of another's. Texts reach the page by `textContent` only.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import tempfile
from pathlib import Path

from rlm_jupyter.trace import Trace
from rlm_jupyter.widgets import text, words
from rlm_jupyter.widgets.live import SOURCES, source
from rlm_jupyter.widgets.teller import Message, Teller
from rlm_jupyter.widgets.wire import number

BOOT = """
const store = new Store(() => {});
const view = new View(store, document.getElementById("run"));
for (const message of JSON.parse(document.getElementById("messages").textContent)) store.take(message);
"""
STYLE = """
:root { color-scheme: light dark; }
body { margin: 0 auto; padding: 1.2em; max-width: 76rem; background: Canvas; color: CanvasText; }
body { font: 14px/1.5 system-ui, sans-serif; }
dl { display: grid; grid-template-columns: max-content 1fr; column-gap: 1.5em; margin: 1.5em 0; font-size: .92em; }
dt { opacity: .75; }
dd { margin: 0; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
"""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>A recursive run</title>
<style>{style}</style>
</head>
<body>
<main id="run"></main>
<noscript><pre>{plain}</pre></noscript>
<dl id="totals">{totals}</dl>
<script type="application/json" id="messages">{messages}</script>
<script type="module">{code}</script>
</body>
</html>
"""


def render(trace: Trace) -> str:
    """Give the text of the file for a run, as it stands."""
    code, style = source(*SOURCES) + BOOT, source("live.css") + STYLE
    policy = (
        f"default-src 'none'; script-src '{_digest(code)}'; style-src '{_digest(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    rows = [("question", words.one_line(trace.question, 600))] if trace.question else []
    rows += [*words.totals(trace), *(("notice", words.one_line(notice, 300)) for notice in trace.notices)]
    return PAGE.format(
        policy=policy,
        style=style,
        plain=html.escape(text.render(trace)),
        totals="".join(f"<dt>{html.escape(label)}</dt><dd>{html.escape(told)}</dd>" for label, told in rows),
        messages=_data(messages(trace)),
        code=code,
    )


def save(trace: Trace, name: str, force: bool = False) -> Path:
    """Write the file for a run. A ValueError says in one line why a file of that name is not written."""
    path = Path(name).expanduser()
    if path.suffix.lower() not in (".html", ".htm") or "\0" in name:
        raise ValueError(f"{name if name.isprintable() and name else ascii(name)}: the name of the file must end in .html")
    if not os.path.isdir(path.parent):
        raise ValueError(f"{name}: there is no folder {path.parent}")
    if os.path.isdir(path) or os.path.islink(path):
        raise ValueError(f"{name}: that is a {'link' if os.path.islink(path) else 'folder'}; choose another name")
    if os.path.exists(path) and not force:
        raise ValueError(f"{name} exists; --force writes over it")
    try:
        _write(path, render(trace), force)
    except FileExistsError:
        raise ValueError(f"{name} exists; --force writes over it") from None
    except OSError as error:
        raise ValueError(f"{name} cannot be written: {error.strerror or error}") from None
    return path


def _write(path: Path, page: str, force: bool) -> None:
    """Write a file as a whole or not at all; over another only where that is wanted."""
    if force:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    else:
        handle, name = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), str(path)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        if force:
            os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def messages(trace: Trace) -> list[Message]:
    """Give what the live view would have been told of a run, all of it."""
    told: list[Message] = []
    last = number(trace.events[-1].at) if trace.events else 0.0
    Teller(told.append, now=lambda: last).start(trace)
    return told


def _data(found: list[Message]) -> str:
    """Give JSON that is nothing else to an HTML parser either: no character of it can end the element, or begin a comment."""
    plain = json.dumps(found, separators=(",", ":"), allow_nan=False)
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(code: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode("ascii")
