"""Names of variables in the user's namespace: as Python reads them, and which of them a result may be bound to.

A name that Python or IPython counts on is refused, so that nothing of the user's session breaks.
"""

from __future__ import annotations

import builtins
import keyword
import unicodedata
from collections.abc import Iterable

from rlm_jupyter.errors import SettingsError


def check_variable_name(name: str, reserved: Iterable[str] = ()) -> str:
    """Give `name`, as Python reads it, if it may be written to the user's namespace, else raise a `SettingsError`."""
    name = variable_name(name)
    if not name.isidentifier() or keyword.iskeyword(name):
        raise SettingsError(f"--out {name or repr(name)}: not a variable name; type a plain identifier, such as --out answer")
    if name in reserved or (name.startswith("_") and (name.endswith("__") or name.strip("_iho0123456789") == "")):
        owner = "Python" if getattr(getattr(builtins, name, None), "__module__", "") == "builtins" else "IPython"
        raise SettingsError(f"--out {name}: this name belongs to {owner}; choose another, such as --out answer")
    return name


def variable_name(name: str) -> str:
    """Give a name as Python reads it in code: letters that are written in two ways (NFKC) name one variable."""
    return unicodedata.normalize("NFKC", name)
