"""The package that is put into every kernel, as source: forked or cold, of this interpreter or another.

Its modules lie beside this one and import each other as they do here. `repl`, which imports the rest, is the package itself.
"""

from __future__ import annotations

import importlib.abc
import importlib.util

PACKAGE = "_rlm_repl"
"""Its name in the kernel's `sys.modules`."""
MODULES = (
    "describing", "shapes", "tables", "crossing", "pickles", "digests", "loading", "workfiles", "memfiles", "looks",
    "failures", "channel", "enqueue", "helper", "variables", "queries", "answer", "displays", "stdio", "quirks",
)  # fmt: skip
"""In the order in which they are executed: the later ones import the earlier."""
ROOT = "repl"


def program() -> str:
    """Give the code that makes the package in an interpreter, and leaves no other name there."""
    modules = "__import__('sys').modules"
    lines = [f"{modules}[{PACKAGE!r}] = __import__('types').ModuleType({PACKAGE!r})", f"{modules}[{PACKAGE!r}].__path__ = []"]
    for module in (*MODULES, ROOT):
        name = PACKAGE if module == ROOT else f"{PACKAGE}.{module}"
        if module != ROOT:
            lines.append(f"{modules}[{name!r}] = {modules}[{PACKAGE!r}].{module} = __import__('types').ModuleType({name!r})")
        lines.append(f"{modules}[{name!r}].__package__ = {PACKAGE!r}")
        lines.append(f"exec(compile({_source(module)!r}, '<rlm>', 'exec'), {modules}[{name!r}].__dict__)")
    return "\n".join(lines)


def _source(module: str) -> str:
    name = f"{__package__}.{module}"
    spec = importlib.util.find_spec(name)
    loader = spec.loader if spec is not None else None
    source = loader.get_source(name) if isinstance(loader, importlib.abc.InspectLoader) else None
    if source is None:
        raise ImportError(f"{name} has no source")
    return source
