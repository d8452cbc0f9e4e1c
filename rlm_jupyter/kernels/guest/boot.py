"""Start the supervisor where none of its files are: in a container, the host writes the sources on standard input.

Run as `python -P -c TEXT-OF-THIS-FILE`. Standard input begins with 16 hex digits, the length of a JSON object of module names
and sources; the supervisor's own settings follow. The sources stay in memory: code in a kernel finds no file that it could
change before it is imported.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

NAME = "rlm_guest"


class Sources(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports the package `NAME` and its modules from their sources."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self._sources = sources

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._sources:
            return None
        return importlib.util.spec_from_loader(fullname, self, origin="<rlm>", is_package=fullname == NAME)

    def get_source(self, fullname: str) -> str:
        return self._sources[fullname]


def read(count: int) -> bytes:
    """Read exactly so many bytes of standard input: what follows is not ours."""
    data = b""
    while len(data) < count:
        piece = os.read(0, count - len(data))
        if not piece:
            sys.exit(0)
        data += piece
    return data


if __name__ == "__main__":
    with contextlib.suppress(OSError):
        os.chmod("/tmp", 0o1777)  # runc gives a tmpfs the mode of the folder that the image has there
    sys.meta_path.insert(0, Sources(json.loads(read(int(read(16), 16)))))
    importlib.import_module(f"{NAME}.supervisor").main()
