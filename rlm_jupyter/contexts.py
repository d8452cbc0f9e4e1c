"""A user's object -> the bytes that reach the kernel, and the description that the LM plans on.

The LM never sees the context, only its description: type, size, shape and a preview, which is never more than a quarter of
what it previews, so that a short context is not given away whole. The bytes are bound to a SHA-256
digest which the kernel checks, so that `context` arrives exact or not at all. What is not supported is refused by name and
place, before anything is started. Nothing here reads a file that the user did not name.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import fractions
import hashlib
import io
import itertools
import pickle
import uuid
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from rlm_jupyter.errors import SettingsError
from rlm_jupyter.settings import CONTEXT_CAP

PREVIEW_CHARACTERS = 500
PREVIEW_ITEMS = 5
PREVIEW_OF_ITEM = 100

_LEAVES = frozenset(
    {str, bytes, bytearray, int, float, complex, bool, type(None), datetime.date, datetime.datetime, datetime.time,
     datetime.timedelta, decimal.Decimal, fractions.Fraction, uuid.UUID}
)  # fmt: skip
_SEQUENCES = frozenset({list, tuple, set, frozenset, collections.deque})
_MAPPINGS = frozenset({dict, collections.OrderedDict, collections.Counter, collections.defaultdict})


@dataclasses.dataclass(frozen=True, slots=True)
class Payload:
    """A context as bytes.

    Attributes
    ----------
    form
        `text`: UTF-8, lone surrogates passed through. `pickle`: protocol 4, of built-in types only; it goes from the host
        to a kernel and never back.
    data
        The bytes.
    digest
        SHA-256 of `data`, in hex.
    """

    form: str
    data: bytes
    digest: str


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """A context ready to be sent: its payload and what is told of it. `size` is in `unit`s."""

    payload: Payload
    type_name: str
    size: int
    unit: str
    description: str


def prepare(value: Any, name: str = "context") -> Context:
    """Make `value` ready for a kernel.

    Parameters
    ----------
    value
        A str, list or dict; within list and dict anything that Python's built-in types can hold.
    name
        How the user calls it, for messages.

    Raises
    ------
    SettingsError
        The type is not supported, with the place where it was found; or the whole is above the cap.
    """
    if type(value) is str:
        payload = _payload("text", value.encode("utf-8", "surrogatepass"))
        return Context(payload, "str", len(value), "characters", _describe_text(value))
    if type(value) not in (list, dict):
        raise SettingsError(_refusal(name, value))
    _check_items(value, name)
    buffer = io.BytesIO()
    try:
        pickle.Pickler(buffer, protocol=4).dump(value)
    except RecursionError:
        raise SettingsError(f"{name} is nested too deeply to be sent; flatten it first") from None
    payload = _payload("pickle", buffer.getvalue())
    describe = _describe_dict if type(value) is dict else _describe_list
    return Context(payload, type(value).__name__, len(value), "items", describe(value))


def read_text_file(path: str) -> str:
    """Read one text file, byte for byte (line ends are kept); a `SettingsError` says what to type where it is none."""
    file = Path(path).expanduser()
    if file.is_dir():
        raise SettingsError(
            f"--context {path}: a folder; only one text file can be read for now. Read the files into a dict first"
        )
    try:
        size = file.stat().st_size
        if size > CONTEXT_CAP:
            raise SettingsError(f"--context {path}: {size:,} bytes is above the cap of {CONTEXT_CAP:,}")
        data = file.read_bytes()
    except FileNotFoundError:
        raise SettingsError(
            f"--context {path}: no such file; a variable of the notebook is named without quotes or slashes"
        ) from None
    except OSError as error:
        raise SettingsError(f"--context {path}: cannot be read ({error.strerror})") from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise SettingsError(
            f"--context {path}: not UTF-8 text; read it yourself, as in "
            f"text = open({path!r}, encoding='latin-1').read(), and use --context text"
        ) from None
    if "\x00" in text[:8192]:
        raise SettingsError(f"--context {path}: looks like a binary file; convert it to text first")
    return text


def _payload(form: str, data: bytes) -> Payload:
    if len(data) > CONTEXT_CAP:
        raise SettingsError(f"the context has {len(data):,} bytes, above the cap of {CONTEXT_CAP:,}")
    return Payload(form, data, hashlib.sha256(data).hexdigest())


def _refusal(where: str, value: Any) -> str:
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.split('.')[0]}.{kind.__name__}"
    hint = ""
    if name.endswith("DataFrame"):
        hint = f"; for now pass its text, as in text = {where}.to_csv(), and use --context text"
    elif where.isidentifier():
        hint = f"; for now pass its text, as in text = str({where}), and use --context text"
    return f"{where} is a {name}: a context can be a str, a list, a dict or one text file{hint}"


def _check_items(value: Any, name: str) -> None:
    """Walk the containers without recursion, and refuse the first thing that is not a plain value, by its place."""
    stack: list[tuple[str, Any]] = [(name, value)]
    seen: set[int] = set()
    while stack:
        where, item = stack.pop()
        kind = type(item)
        if kind in _LEAVES:
            continue
        if kind not in _MAPPINGS and kind not in _SEQUENCES:
            raise SettingsError(_refusal(where, item))
        if id(item) in seen:
            continue
        seen.add(id(item))
        if kind in _MAPPINGS:
            _check_factory(where, item)
            stack += [(f"a key of {where}", key) for key in item if type(key) not in _LEAVES]
            stack += [(f"{where}[{_short(key)}]", entry) for key, entry in item.items() if type(entry) not in _LEAVES]
        else:
            stack += [(f"{where}[{place}]", entry) for place, entry in enumerate(item) if type(entry) not in _LEAVES]


def _check_factory(where: str, item: Any) -> None:
    factory = getattr(item, "default_factory", None)
    if factory is not None and factory not in (list, dict, set, int, float, str, tuple):
        raise SettingsError(f"{where} is a defaultdict with a function of yours; pass dict({where}) instead")


def _short(value: Any, limit: int = PREVIEW_OF_ITEM) -> str:
    if isinstance(value, (str, bytes, bytearray)):
        return repr(value[:limit]) + ("..." if len(value) > limit else "")
    text = repr(value) if type(value) in _LEAVES else type(value).__name__
    return text if len(text) <= limit else text[:limit] + "..."


def _sized(value: Any) -> str:
    """Tell one item by its type and size, with a look at its beginning."""
    kind = type(value).__name__
    if isinstance(value, (str, bytes, bytearray)):
        unit = "characters" if isinstance(value, str) else "bytes"
        return f"{kind}, {len(value):,} {unit}: {_short(value, min(PREVIEW_OF_ITEM, len(value) // 4))}"
    if type(value) in _MAPPINGS or type(value) in _SEQUENCES:
        return f"{kind}, {len(value):,} items"
    return f"{kind}: {_short(value)}"


def _kinds(values: Iterable[Any]) -> str:
    counts = collections.Counter(type(value).__name__ for value in values)
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common(6))


def _describe_text(text: str) -> str:
    lines = text.count("\n") + 1
    head = f"`context` is a str of {len(text):,} characters in {lines:,} lines."
    shown = text[: min(PREVIEW_CHARACTERS, len(text) // 4)]
    return f"{head} It begins:\n{shown}" if shown else head


def _describe_list(items: list[Any]) -> str:
    shown = _shown(len(items))
    rows = [f"[{place}] {_sized(item)}" for place, item in enumerate(items[:shown])]
    return _table(f"`context` is a list of {len(items):,} items", items, rows)


def _describe_dict(items: Mapping[Any, Any]) -> str:
    shown = _shown(len(items))
    rows = [f"[{_short(key)}] {_sized(items[key])}" for key in itertools.islice(items, shown)]
    return _table(f"`context` is a dict of {len(items):,} items", items.values(), rows)


def _shown(count: int) -> int:
    return min(PREVIEW_ITEMS, (count + 1) // 2)


def _table(head: str, values: Collection[Any], rows: list[str]) -> str:
    size = sum(len(value) for value in values if isinstance(value, str))
    total = f"; {size:,} characters of text in all" if size else ""
    more = ["..."] if len(values) > len(rows) else []
    return "\n".join([f"{head} (values: {_kinds(values) or 'none'}{total}).", *rows, *more])
