"""A user's object -> the bytes that reach the kernel, and the description that the LM plans on.

Any object of the notebook can be a context; its type, exact to the byte, is what the code in the kernel finds in `context`.
The LM never sees the context, only its description (`kernels.guest.describing`, which kernels use for what they give to their
children). The bytes (`payload`, `pickling`) are bound to a SHA-256
digest which the kernel checks, so that `context` arrives exact or not at all. What cannot be sent is refused by name and
place, before anything is started. Nothing here reads a file that the user did not name (`paths`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from rlm_jupyter.contexts import pickling
from rlm_jupyter.contexts.paths import Read, read_path, read_text_file
from rlm_jupyter.contexts.payload import Payload, Progress, Writer
from rlm_jupyter.errors import SettingsError
from rlm_jupyter.kernels.guest import describing

__all__ = ["TEXT_PIECE", "Context", "Named", "Payload", "Progress", "prepare", "read_path", "read_text_file"]

TEXT_PIECE = 32 * 1024
"""Characters that are encoded at once: few enough that the same memory is used again and again."""


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """A context ready to be sent: its payload and what is told of it. `size` is in `unit`s."""

    payload: Payload
    type_name: str
    size: int
    unit: str
    description: str


@dataclasses.dataclass(frozen=True, slots=True)
class Named:
    """Inputs by the names under which the user gave them: one is the context itself, several are a dict."""

    inputs: Mapping[str, Any]


def prepare(value: Any, name: str = "context", progress: Progress | None = None) -> Context:
    """Make `value` ready for a kernel: a snapshot of it.

    Parameters
    ----------
    value
        Any object; `Named` inputs; what `read_path` gave.
    name
        How the user calls it, for messages.
    progress
        Called with the bytes that are ready, when it takes longer than a second.

    Raises
    ------
    SettingsError
        Some part cannot be sent, with the place where it was found; or the whole is above the cap.
    """
    if isinstance(value, Named):
        if len(value.inputs) != 1:
            return _prepare_several(value.inputs, progress)
        ((name, value),) = value.inputs.items()
    value, note = (value.value, value.note) if isinstance(value, Read) else (value, "")
    if isinstance(value, PurePath):
        place = f"./{value}" if str(value).isidentifier() else value
        raise SettingsError(f"{name} is a path, not what it leads to; type --context {place}, or pass {name}.read_text()")
    payload = _text(value, progress) if type(value) is str else pickling.write(value, name, progress)
    size, unit = describing.size(value)
    return Context(payload, describing.type_name(value), size, unit, describing.describe(value, note))


def _prepare_several(inputs: Mapping[str, Any], progress: Progress | None) -> Context:
    values = {name: value.value if isinstance(value, Read) else value for name, value in inputs.items()}
    notes = {name: value.note for name, value in inputs.items() if isinstance(value, Read)}
    payload = pickling.write(values, "context", progress)
    return Context(payload, "dict", len(values), "items", describing.describe_named(values, notes))


def _text(text: str, progress: Progress | None) -> Payload:
    writer = Writer("text", progress)
    for at in range(0, len(text), TEXT_PIECE):
        writer.write(text[at : at + TEXT_PIECE].encode("utf-8", "surrogatepass"))
    return writer.payload()
