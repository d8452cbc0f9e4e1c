"""Every message between host and supervisor, as a type.

Each is a frozen dataclass whose fields are exactly the keys of the header; `data` is the body and stands in no header.
`decode` refuses what is not exactly one of them: unknown kinds, missing or further keys, other types (`fields`).
The supervisor's messages are numbered (`n` in the header), and every message that is about a kernel names it.

A field with a default may be left out of the header, and stands there only where it says something else.

Host to supervisor: Start Context Inherit FilePart Discard Execute Interrupt Reply GetValue LendValue Bring
Close Shutdown Alive.
Supervisor to host: Ready Started StartFailed Loaded Output Picture Call Dropped Done ValuePart ValueLent Died Closed
Heartbeat.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from . import fields
from .fields import WireError as WireError
from .fields import read_digest as read_digest
from .frames import Header

PROTOCOL = 2
VALUE_PIECE = 1024 * 1024
PICTURE_CAP = 8 * 1024 * 1024
PICTURES_OF_A_CELL = 20
STREAMS = ("stdout", "stderr", "result", "display", "error")
FORMS = ("text", "json", "typed", "pickle")
"""Of a final value. `pickle` is for a sibling kernel only, and never for the host."""
STATUSES = ("ok", "error", "interrupted")

FILE = re.compile(r"[a-z0-9-]{1,60}")
"""Names of files in the run's folder that the host may choose."""

_CALL = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Message:
    """Base of all messages."""

    kind: ClassVar[str]


@dataclass(frozen=True, slots=True)
class FinalInfo:
    """What FINAL_VAR handed over: `name` is '' when it was given by value; `form` is one of FORMS.

    `preview` is the beginning of a child's answer as text: the host fetches none of its bytes, its parent does.
    """

    number: int
    name: str
    type_name: str
    form: str
    size: int
    digest: str
    preview: str = ""


@dataclass(frozen=True, slots=True)
class Start(Message):
    """Start a kernel; Started or StartFailed follows.

    `parent` is the kernel whose child it is, or 0; `children` how many children may work at once in all, 0 where this kernel
    may have none.
    """

    kind = "start"
    kernel: int
    parent: int = 0
    children: int = 0


@dataclass(frozen=True, slots=True)
class Context(Message):
    """Set the global `name` from the file `path` of the run's folder; Loaded follows with the same `load`."""

    kind = "context"
    kernel: int
    load: int
    name: str
    path: str
    form: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Inherit(Message):
    """Set the global `context` of a child from the piece `place` of a parcel that its parent left; Loaded follows."""

    kind = "inherit"
    kernel: int
    load: int
    parcel: int
    place: int


@dataclass(frozen=True, slots=True)
class FilePart(Message):
    """Append `data` to the file `path` of the run's folder, whose size is `offset`: for hosts that have no other way to it."""

    kind = "file_part"
    path: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Append(Message):
    """Append the file `part` of the run's folder to the file `path` there, and remove it: they came another way."""

    kind = "append"
    path: str
    part: str


@dataclass(frozen=True, slots=True)
class Discard(Message):
    """Remove the file `path` of the run's folder; what a kernel has mapped stays mapped."""

    kind = "discard"
    path: str


@dataclass(frozen=True, slots=True)
class Execute(Message):
    """Run the code in `data` (UTF-8); Output and Call follow, then Done or Died."""

    kind = "execute"
    kernel: int
    cell: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Interrupt(Message):
    """Begin the ladder SIGINT, SIGINT, SIGKILL for what the kernel does now; nothing happens when it is idle."""

    kind = "interrupt"
    kernel: int


@dataclass(frozen=True, slots=True)
class Reply(Message):
    """Answer a call. `data` holds the texts one after another; `errors` are the places where the text is an error.

    `values` are the places where the answer is a value of a child, which the kernel fetches from the supervisor.
    """

    kind = "reply"
    kernel: int
    call: str
    sizes: tuple[int, ...]
    errors: tuple[int, ...]
    data: bytes
    values: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class LendValue(Message):
    """Ask under which descriptor the memory of a final value is held; ValueLent follows."""

    kind = "lend_value"
    kernel: int
    number: int


@dataclass(frozen=True, slots=True)
class GetValue(Message):
    """Ask for a piece of a final value; ValuePart follows."""

    kind = "get_value"
    kernel: int
    number: int
    offset: int


@dataclass(frozen=True, slots=True)
class Bring(Message):
    """Hand the final value `number` of a child to its parent, as the answer to item `place` of its `call`."""

    kind = "bring"
    kernel: int
    number: int
    call: str
    place: int


@dataclass(frozen=True, slots=True)
class Close(Message):
    """Kill the kernel and all that it started; Closed follows."""

    kind = "close"
    kernel: int


@dataclass(frozen=True, slots=True)
class Shutdown(Message):
    """Kill everything, remove the run's folder, exit."""

    kind = "shutdown"


@dataclass(frozen=True, slots=True)
class Alive(Message):
    """The host is alive: its answer to each Heartbeat."""

    kind = "alive"


@dataclass(frozen=True, slots=True)
class Ready(Message):
    """The supervisor is there. `apart`: each of its kernels is a user of its own."""

    kind = "ready"
    protocol: int
    pid: int
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Started(Message):
    """The kernel takes code now. `how`: spare, forked or cold. `python` is its version."""

    kind = "started"
    kernel: int
    pid: int
    how: str
    python: str


@dataclass(frozen=True, slots=True)
class StartFailed(Message):
    """The kernel did not come up."""

    kind = "start_failed"
    kernel: int
    text: str


@dataclass(frozen=True, slots=True)
class Loaded(Message):
    """The context is there, or `error` says why not."""

    kind = "loaded"
    kernel: int
    load: int
    error: str


@dataclass(frozen=True, slots=True)
class Output(Message):
    """A piece of a cell's output as raw UTF-8. `omitted`: so many bytes of output before it were not kept."""

    kind = "output"
    kernel: int
    cell: int
    stream: str
    omitted: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Picture(Message):
    """A PNG or JPEG that a cell displays, after the output that came before it; the host checks what it is."""

    kind = "picture"
    kernel: int
    cell: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Call(Message):
    """Code asks the sub-LM. `data` holds the prompts one after another (UTF-8, lone surrogates passed).

    With `child` it asks a child RLM for each prompt. Their contexts are the pieces of the parcel `parcel`, which it has left
    at the supervisor before; what each is stands behind the prompts: JSON texts, whose sizes `told` has.
    """

    kind = "call"
    kernel: int
    cell: int
    call: str
    batch: bool
    model: str | None
    sizes: tuple[int, ...]
    data: bytes
    child: bool = False
    parcel: int = 0
    told: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Dropped(Message):
    """Nobody waits for this call any more."""

    kind = "dropped"
    kernel: int
    call: str


@dataclass(frozen=True, slots=True)
class Done(Message):
    """The cell is over, and so are its calls. `notes`: the steps of the kill ladder, if it was used.

    `final` is the answer that its code gave; where `status` is not ok it is a candidate only.
    """

    kind = "done"
    kernel: int
    cell: int
    status: str
    error: str
    omitted: int
    final: FinalInfo | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ValuePart(Message):
    """At most VALUE_PIECE bytes of a final value, from `offset` on."""

    kind = "value_part"
    kernel: int
    number: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ValueLent(Message):
    """The supervisor's descriptor of the sealed memory that holds a final value, or 0 where it is held otherwise."""

    kind = "value_lent"
    kernel: int
    number: int
    descriptor: int


@dataclass(frozen=True, slots=True)
class Died(Message):
    """The kernel's process is gone: by `signal`, or with `exit_code` where that is 0."""

    kind = "died"
    kernel: int
    exit_code: int
    signal: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Closed(Message):
    """The kernel and all that it started are gone."""

    kind = "closed"
    kernel: int


@dataclass(frozen=True, slots=True)
class Heartbeat(Message):
    """The supervisor is alive."""

    kind = "heartbeat"


Known = Mapping[str, type[Message]]

_TO_SUPERVISOR = (
    Start, Context, Inherit, FilePart, Append, Discard, Execute, Interrupt, Reply, GetValue, LendValue, Bring, Close,
    Shutdown, Alive,
)  # fmt: skip
_TO_HOST = (
    Ready, Started, StartFailed, Loaded, Output, Picture, Call, Dropped, Done, ValuePart, ValueLent, Died, Closed,
    Heartbeat,
)  # fmt: skip

TO_SUPERVISOR: Known = {cls.kind: cls for cls in _TO_SUPERVISOR}
TO_HOST: Known = {cls.kind: cls for cls in _TO_HOST}
CALL: Known = {Call.kind: Call}


def encode(message: Message) -> tuple[Header, bytes]:
    """Give the header and the body of a message."""
    header: Header = {"kind": message.kind}
    body = b""
    for name, _, default in _FIELDS[type(message)]:
        value = getattr(message, name)
        if name == "data":
            body = value
        elif value != default:
            header[name] = dataclasses.asdict(value) if isinstance(value, FinalInfo) else value
    return header, body


def decode(header: Header, body: bytes, known: Known) -> Message:
    """Read a message of one of the `known` types; WireError for anything else."""
    kind = header.get("kind")
    cls = known.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise WireError(f"a message of unknown kind {str(kind)[:40]!r}")
    values = _read(cls, header, body, 1)
    message: Message = cls(**values)
    _check_meaning(message)
    return message


def _read(cls: type, header: Header, body: bytes, extra: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, read, default in _FIELDS[cls]:
        if name == "data":
            values[name] = body
            extra -= 1
        elif name in header:
            values[name] = read(header[name])
        elif default is dataclasses.MISSING:
            raise WireError(f"{cls.__name__} without {name}")
    if len(header) != len(values) + extra:
        raise WireError(f"{cls.__name__} with unknown keys")
    if body and "data" not in values:
        raise WireError(f"{cls.__name__} with a body")
    return values


def _check_meaning(message: Message) -> None:
    """Refuse values that no sender of ours writes."""
    if isinstance(message, Call | Reply | Dropped | Bring) and not _CALL.fullmatch(message.call):
        raise WireError("a call id that is not 32 hex digits")
    if isinstance(message, Call | Reply) and sum(message.sizes) + sum(getattr(message, "told", ())) != len(message.data):
        raise WireError("sizes that do not add up to the body")
    if isinstance(message, Call) and len(message.told) != len(message.sizes) * message.child:
        raise WireError("contexts that are not one for each child")
    if isinstance(message, Call) and not message.batch and len(message.sizes) != 1:
        raise WireError("a single call with several prompts")
    if isinstance(message, FilePart | Append | Discard) and not FILE.fullmatch(message.path):
        raise WireError("a file's name that is none")
    if isinstance(message, Append) and not FILE.fullmatch(message.part):
        raise WireError("a file's name that is none")
    if isinstance(message, Output) and message.stream not in STREAMS:
        raise WireError("output on an unknown stream")
    if isinstance(message, Done) and message.status not in STATUSES:
        raise WireError("an unknown status")
    if isinstance(message, Picture) and len(message.data) > PICTURE_CAP:
        raise WireError("a picture above its cap")
    if isinstance(message, ValuePart) and len(message.data) > VALUE_PIECE:
        raise WireError("a piece of a value above its cap")


def read_final(value: object) -> FinalInfo:
    """Read what FINAL_VAR says of its value."""
    if type(value) is not dict:
        raise WireError("a final value that is no object")
    final = FinalInfo(**_read(FinalInfo, value, b"", 0))
    if final.form not in FORMS:
        raise WireError("a final value of unknown form")
    read_digest(final.digest)
    return final


def _final(value: object) -> FinalInfo | None:
    return None if value is None else read_final(value)


_READERS: dict[str, Callable[[object], Any]] = {
    "int": fields.whole, "str": fields.text, "str | None": fields.text_or_none, "bool": fields.truth, "bytes": fields.whole,
    "tuple[int, ...]": fields.wholes, "tuple[str, ...]": fields.texts, "FinalInfo | None": _final,
}  # fmt: skip

_FIELDS: dict[type, tuple[tuple[str, Callable[[object], Any], Any], ...]] = {
    cls: tuple((field.name, _READERS[str(field.type)], field.default) for field in dataclasses.fields(cls))
    for cls in (*_TO_SUPERVISOR, *_TO_HOST, FinalInfo)
}
