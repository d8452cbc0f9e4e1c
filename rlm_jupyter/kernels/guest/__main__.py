"""Start the supervisor from files: `python -P .../guest/__main__.py`.

The package is loaded from its own folder under the name `rlm_guest`, so that it works without an installed rlm_jupyter and
puts no folder of ours on `sys.path`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys

NAME = "rlm_guest"


def load() -> None:
    """Import the package that this file lies in under its own name."""
    folder = os.path.dirname(os.path.abspath(__file__))
    if sys.path and sys.path[0] == folder:
        del sys.path[0]
    spec = importlib.util.spec_from_file_location(
        NAME, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"no package in {folder}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    load()
    importlib.import_module(f"{NAME}.supervisor").main()
