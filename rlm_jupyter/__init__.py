"""Recursive Language Models in a notebook cell.

`%load_ext rlm_jupyter` gives the `%%rlm` magic; `RLM` is the same engine without a notebook. Everything heavy is imported
when it is first used, so that loading the extension costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from rlm_jupyter.errors import KernelDied, KernelError, LimitReached, LMError, RLMError, RunStopped, SettingsError
    from rlm_jupyter.kernels.modal_place import modal_image
    from rlm_jupyter.result import RLMResult
    from rlm_jupyter.rlm import RLM
    from rlm_jupyter.run import Run
    from rlm_jupyter.settings import RunSettings

__version__ = "0.1.0"

__all__ = [
    "RLM",
    "KernelDied",
    "KernelError",
    "LMError",
    "LimitReached",
    "RLMError",
    "RLMResult",
    "Run",
    "RunSettings",
    "RunStopped",
    "SettingsError",
    "load_ipython_extension",
    "modal_image",
    "unload_ipython_extension",
]

_HOMES = {"RLM": "rlm", "Run": "run", "RLMResult": "result", "RunSettings": "settings", "modal_image": "kernels.modal_place"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register `%rlm` and `%%rlm` (called by `%load_ext rlm_jupyter`)."""
    from rlm_jupyter.magics import load

    load(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Take the magics away and end what they keep (called by `%unload_ext rlm_jupyter`)."""
    from rlm_jupyter.magics import unload

    unload(shell)
