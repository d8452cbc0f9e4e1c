"""What comes back from a kernel -> a value of the host, with its type: JSON, arrays, tables, pictures and text, never pickle.

The kernel says of its value only a form and a type's name; both are checked here, and the bytes are decoded by the form
alone. In the form `typed` a description of the structure stands beside the data (`typed`), so that data cannot imitate a
type. Nothing that a kernel sends is evaluated, imported or followed, and what is not exactly as it should be is an error.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from rlm_jupyter.errors import ProtocolError
from rlm_jupyter.settings import VALUE_CAP
from rlm_jupyter.values.typed import Malformed, OtherText, Record, read

__all__ = ["OtherText", "Record", "Unreadable", "Value", "as_text", "decode"]

_SHOWN = 20_000


class Unreadable(ProtocolError):
    """A value is refused: its bytes are not what their form says, or cannot be read on this side. The kernel goes on."""


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """A value as it came. `form`: `text` (UTF-8, surrogates passed through), `json` or `typed`; `type_name` is for showing."""

    form: str
    type_name: str
    data: bytes | memoryview


def decode(value: Value) -> Any:
    """Give the host's object for a kernel's value; `Unreadable` where the bytes are not what the form says."""
    if len(value.data) > VALUE_CAP:
        raise Unreadable(f"a value of {len(value.data):,} bytes is above the cap of {VALUE_CAP:,}")
    try:
        if value.form == "text":
            return str(value.data, "utf-8", "surrogatepass")
        if value.form == "json":
            return json.loads(str(value.data, "ascii"))
        if value.form == "typed":
            return read(value.data)
    except ModuleNotFoundError as error:
        raise Unreadable(f"the answer needs {error.name}, which is not installed here: %pip install {error.name}") from None
    except Malformed as error:
        raise Unreadable(f"the kernel sent a value that is not valid: {error}") from None
    except (ValueError, RecursionError):
        raise Unreadable(f"the kernel sent a value that is not valid {value.form}") from None
    raise Unreadable(f"the kernel sent a value of unknown form {value.form[:40]!r}")


def as_text(value: Any) -> str:
    """Give the text of an answer: a str as it is, what JSON holds as indented JSON, other values as Python shows them."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, (bool, int, float, list, dict)):
        try:
            return json.dumps(value, indent=2, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            pass
    try:
        text = str(value) if type(value).__module__.partition(".")[0] in ("pandas", "polars") else repr(value)
    except Exception as error:  # a number of more digits than Python writes out, and what packages raise of odd data
        told = f"<a {type(value).__name__} that cannot be shown as text: {error}>"
        text = hex(value) if type(value) is int else told
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
