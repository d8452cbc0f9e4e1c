"""What comes back from a kernel -> a value of the host: JSON and text, never pickle.

The kernel says of its value only a form and a type's name; both are checked here, and the bytes are decoded by the form
alone. So data cannot imitate a type, and nothing that a kernel sends is evaluated, imported or followed.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from rlm_jupyter.errors import ProtocolError
from rlm_jupyter.settings import VALUE_CAP


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """A value as it came: `form` is `text` (UTF-8, surrogates passed through) or `json`; `type_name` is only for showing."""

    form: str
    type_name: str
    data: bytes


def decode(value: Value) -> Any:
    """Give the host's object for a kernel's value; a `ProtocolError` where the bytes are not what the form says."""
    if len(value.data) > VALUE_CAP:
        raise ProtocolError(f"a value of {len(value.data):,} bytes is above the cap of {VALUE_CAP:,}")
    try:
        if value.form == "text":
            return value.data.decode("utf-8", "surrogatepass")
        if value.form == "json":
            return json.loads(value.data)
    except (ValueError, RecursionError):
        raise ProtocolError(f"the kernel sent a value that is not valid {value.form}") from None
    raise ProtocolError(f"the kernel sent a value of unknown form {value.form[:40]!r}")


def as_text(value: Any) -> str:
    """Give the text of an answer: a str as it is, other values as indented JSON."""
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
