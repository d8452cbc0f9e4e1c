"""The modules that are put into every kernel, as source: forked or cold, of this interpreter or another."""

from __future__ import annotations

import importlib.abc
import importlib.util

MODULES = (
    ("_rlm_describing", "describing"),
    ("_rlm_pickles", "pickles"),
    ("_rlm_crossing", "crossing"),
    ("_rlm_repl", "repl"),
)
"""Names in the kernel's `sys.modules`, and modules beside this one; the later ones use the earlier."""


def sources() -> list[tuple[str, str]]:
    """Give each module's name and source, from wherever this package was loaded."""
    return [(name, _source(f"{__package__}.{module}")) for name, module in MODULES]


def _source(name: str) -> str:
    spec = importlib.util.find_spec(name)
    loader = spec.loader if spec is not None else None
    source = loader.get_source(name) if isinstance(loader, importlib.abc.InspectLoader) else None
    if source is None:
        raise ImportError(f"{name} has no source")
    return source
