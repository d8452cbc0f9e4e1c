"""What a supervisor is handed that finds no file of ours where it runs: the guest's sources and its settings, as bytes.

It is started as `python -P -c PROGRAM`, and reads the handover on its standard input, before the first frame.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_GUEST = Path(__file__).parent / "guest"


def program(name: str = "boot") -> str:
    """Give the text of one of the guest's modules that are run by themselves."""
    return (_GUEST / f"{name}.py").read_text(encoding="utf-8")


def handover(settings: Mapping[str, Any]) -> bytes:
    """Give what `boot` reads: the modules by the names under which it imports them, then the supervisor's settings."""
    sources = {f"rlm_guest.{path.stem}": path.read_text(encoding="utf-8") for path in sorted(_GUEST.glob("[a-z]*.py"))}
    sources = {"rlm_guest": program("__init__"), **sources}
    data = json.dumps(sources).encode()
    return f"{len(data):016x}".encode() + data + json.dumps(settings).encode() + b"\n"
