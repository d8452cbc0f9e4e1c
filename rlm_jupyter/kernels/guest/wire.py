"""Every message between host and supervisor, as a type.

They stand in one list, since together they are the protocol: those of the host to the supervisor (`TO_SUPERVISOR`), then those
of the supervisor to the host (`TO_HOST`). Each is frozen and has no behaviour; how one is written, and all that is refused when
one is read, is in `codec`. Every message that is about a kernel names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

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
"""Kinds, and their types: what one end is ready to read."""

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
