"""What happens in a run, as facts: typed, frozen, numbered, append-only.

Events are the seam between doing and showing: the loop, the LM handler and the kernels only ever emit them; the trace and
the views only ever read them. Their shape is versioned (`VERSION`), since they are also what a trace file holds.

An event never holds the context or a provider key, and, pictures aside, never more than `TEXT_CAP` characters of any text:
longer texts are cut in the middle by `clip`, and say by how much. All texts are untrusted: whoever shows one escapes it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

VERSION = 1
TEXT_CAP = 64 * 1024


def clip(text: str, cap: int = TEXT_CAP) -> str:
    """Cut `text` to about `cap` characters, head and tail kept, saying how many characters were left out."""
    if len(text) <= cap:
        return text
    half = cap // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half:,} characters left out ...]\n{text[-half:]}"


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one or more requests. `estimated`: at least one figure is ours, not the provider's."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    estimated: bool = False

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.estimated or other.estimated,
        )

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One fact. `run` and `number` name it for good; `at` is in seconds since the epoch; `node` is the RLM it belongs to."""

    run: str = ""
    number: int = 0
    at: float = 0.0
    node: str = "0"

    def to_dict(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in _NAMES[type(self)]}  # dataclasses.asdict would copy every value
        if isinstance(usage := fields.get("usage"), Usage):
            fields["usage"] = {name: getattr(usage, name) for name in _NAMES[Usage]}
        return {"kind": type(self).__name__, "version": VERSION, **fields}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), separators=(",", ":"))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """A run begins. `settings` is `RunSettings.to_dict()`; the context is told by type, size, digest and description only."""

    question: str
    settings: dict[str, Any]
    context_type: str
    context_size: int
    context_digest: str
    context_description: str
    isolation: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KernelStarted(Event):
    """A kernel is ready. `how`: spare, forked or cold."""

    kernel: int
    how: str
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepTold(Event):
    """What a step that takes longer than a moment is doing before the first iteration. Live only: never in a trace file."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SandboxStarted(Event):
    """A sandbox that somebody bills by the second runs, since `seconds` ago. `machine`: its processors, memory, GPU."""

    machine: str
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SandboxEnded(Event):
    """It is over, after so many seconds of the host's clock."""

    seconds: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class IterationStarted(Event):
    """The root LM is about to be asked for the `iteration`-th time (from 1) of at most `of`.

    `last`: a cap is used up, and this is the one request more that was kept for its answer.
    """

    iteration: int
    of: int
    last: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReplyPart(Event):
    """A piece of the root LM's reply as it streams in. Live only: never in a trace file."""

    iteration: int
    text: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReplyRestarted(Event):
    """What streamed in so far is void: the request is being sent again. Live only."""

    iteration: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReplyEnded(Event):
    """The root LM's whole reply, with what it took. `cost` is in dollars, None where no price is known."""

    iteration: int
    text: str
    finish_reason: str
    usage: Usage
    cost: float | None
    attempts: int
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CellStarted(Event):
    """Code begins to run in the kernel. `cell` counts the cells of the node, from 1; `iteration` 0 is set-up code."""

    iteration: int
    cell: int
    code: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CellOutput(Event):
    """A piece of a cell's output. `stream`: stdout, stderr, result, display or error (a traceback). No ANSI codes."""

    cell: int
    stream: str
    text: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CellPicture(Event):
    """A checked PNG or JPEG that a cell displays, base64 in `data`; that is '' where a trace had no room for it.

    Its checks are the kernel's; who reads it from a file, or from anybody else, checks it again before it shows it.
    """

    cell: int
    media_type: str
    width: int
    height: int
    data: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CellEnded(Event):
    """A cell came to its end. `status`: ok, error, interrupted or died. `omitted`: bytes of output that were not kept."""

    cell: int
    status: str
    error: str
    omitted: int
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CallStarted(Event):
    """A sub-call is made now; that it waited for its turn among all of the tree is over.

    `call` is its id; `batch` the id it shares with the others of one batch, or ''.
    """

    call: str
    batch: str
    cell: int
    model: str
    prompt: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CallEnded(Event):
    """A sub-call has its reply, or its `error` ('' where it went well)."""

    call: str
    cell: int
    reply: str
    error: str
    usage: Usage
    cost: float | None
    attempts: int
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChildStarted(Event):
    """A child RLM begins; `node` is the child's own. Its events follow under that node.

    `parent` is the node whose `cell` made the call, `call` that call's id, `batch` the id it shares with the others of one
    batch, or ''. `question` is what it was asked, its context told as in `RunStarted`.
    """

    parent: str
    cell: int
    call: str
    batch: str
    model: str
    question: str
    context_type: str
    context_size: int
    context_description: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChildEnded(Event):
    """A child RLM has ended: as `RunEnded`, with the totals of the child and all below it."""

    status: str
    limit: str
    answer: str
    answer_type: str
    error: str
    calls: int
    usage: Usage
    cost: float | None
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RequestRetried(Event):
    """One attempt failed and another follows after `wait` seconds. `call` is '' for the root LM."""

    call: str
    attempt: int
    error: str
    wait: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Notice(Event):
    """A line that the user should read: no price known, a nudge, a refused call, a kernel that had to be killed."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Event):
    """The end, with the totals of the whole tree as the host's ledger has them. `answer` is text, '' where there is none."""

    status: str
    limit: str
    answer: str
    answer_type: str
    error: str
    calls: int
    usage: Usage
    cost: float | None
    seconds: float


LIVE_ONLY: tuple[type[Event], ...] = (ReplyPart, ReplyRestarted, StepTold)

Emit = Callable[[Event], None]
"""How the loop, the handler and the kernels tell an event: run, number and time are filled in by the run."""

_KINDS: dict[str, type[Event]] = {
    cls.__name__: cls
    for cls in (
        RunStarted, KernelStarted, IterationStarted, ReplyPart, ReplyRestarted, ReplyEnded, CellStarted, CellOutput,
        CellPicture, CellEnded, CallStarted, CallEnded, ChildStarted, ChildEnded, RequestRetried, Notice, RunEnded, StepTold,
        SandboxStarted, SandboxEnded,
    )
}  # fmt: skip


_NAMES: dict[type, tuple[str, ...]] = {
    cls: tuple(field.name for field in dataclasses.fields(cls)) for cls in (*_KINDS.values(), Usage)
}


def from_dict(data: Any) -> Event:
    """Read an event back. A ValueError names what is missing, unknown, of another type or of another version."""
    fields = _object("an event", data)
    kind, version = fields.pop("kind", None), fields.pop("version", None)
    if version != VERSION:
        raise ValueError(f"an event of version {version!r}; this release reads version {VERSION}")
    cls = _KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ValueError(f"an event of unknown kind {kind!r}")
    return _read(cls, fields)


def from_later(data: dict[str, Any]) -> Event | None:
    """Read what this release knows of an event of a later version: fields new to it are left out; None where it cannot be."""
    cls = _KINDS.get(str(data.get("kind")))
    if cls is None:
        return None
    fields = {name: value for name, value in data.items() if name in _NAMES[cls]}
    if isinstance(usage := fields.get("usage"), dict):
        fields["usage"] = {name: value for name, value in usage.items() if name in _NAMES[Usage]}
    try:
        return _read(cls, fields)
    except ValueError:
        return None


def is_later(data: Any) -> bool:
    """Tell whether an event was written by a later version than this one."""
    version = data.get("version") if isinstance(data, dict) else None
    return type(version) is int and version > VERSION


def _object(name: str, data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError(f"{name} must be an object, not {type(data).__name__}")
    return dict(data)


_T = TypeVar("_T", Event, Usage)


def _read(cls: type[_T], fields: dict[str, Any]) -> _T:
    types = get_type_hints(cls)
    if unknown := fields.keys() - types.keys():
        raise ValueError(f"{cls.__name__} has unknown fields: {', '.join(sorted(map(str, unknown)))}")
    if missing := types.keys() - fields.keys():
        raise ValueError(f"{cls.__name__} lacks fields: {', '.join(sorted(missing))}")
    for name, kind in types.items():
        if kind is Usage:
            fields[name] = _read(Usage, _object(name, fields[name]))
        elif not isinstance(fields[name], _ACCEPTED[kind]):
            raise ValueError(f"{cls.__name__}: {name} cannot be {fields[name]!r:.80}")
        elif kind in (float, float | None) and isinstance(fields[name], int):
            try:
                float(fields[name])
            except OverflowError:
                raise ValueError(f"{cls.__name__}: {name} cannot be a number of so many digits") from None
    return cls(**fields)


_ACCEPTED: dict[Any, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    float: (int, float),
    bool: (bool,),
    float | None: (int, float, type(None)),
    dict[str, Any]: (dict,),
}
