"""The modules that are put into every kernel, as source: forked or cold, of this interpreter or another."""

from __future__ import annotations

import os

MODULES = (("_rlm_crossing", "crossing.py"), ("_rlm_repl", "repl.py"))
"""Names in the kernel's `sys.modules`, and files; the later ones use the earlier."""


def sources() -> list[tuple[str, str]]:
    """Give each module's name and source."""
    folder = os.path.dirname(os.path.abspath(__file__))
    found = []
    for name, file in MODULES:
        with open(os.path.join(folder, file), encoding="utf-8") as opened:
            found.append((name, opened.read()))
    return found
