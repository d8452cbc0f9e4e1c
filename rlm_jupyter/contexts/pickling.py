"""Any other object than a str -> a pickle whose large buffers stay outside of it: how is in `kernels.guest.pickles`.

Here it becomes a payload, and what cannot be sent a `SettingsError`. Pickles go from the host to a kernel and never back:
nothing in this package reads one.
"""

from __future__ import annotations

from typing import Any

from rlm_jupyter.contexts.payload import Payload, Progress, Writer
from rlm_jupyter.errors import SettingsError
from rlm_jupyter.kernels.guest import pickles


def write(value: Any, name: str, progress: Progress | None = None) -> Payload:
    """Pickle `value`, which the user calls `name`; a `SettingsError` says which part of it cannot be sent, and why."""
    try:
        try:
            return _write(value, Writer("pickle", progress), by_value=False)
        except pickles.CANNOT_BY_NAME:
            return _write(value, Writer("pickle", progress), by_value=True)
    except (SettingsError, KeyboardInterrupt):
        raise
    except RecursionError:
        raise SettingsError(f"{name} is nested too deeply to be sent; flatten it first") from None
    except MemoryError:
        raise SettingsError(f"{name} does not fit into memory a second time; pass a part of it") from None
    except Exception as error:  # an object's own __reduce__ may raise anything
        raise SettingsError(pickles.refusal(value, name, error)) from None


def _write(value: Any, writer: Writer, *, by_value: bool) -> Payload:
    pickles.write(value, writer, by_value=by_value)
    return writer.payload()
