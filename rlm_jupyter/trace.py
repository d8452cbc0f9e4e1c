"""Events folded into a tree: what the views draw and what `result.trace` is; JSONL out and in.

A trace file lies in a folder that only its owner can read (0700), holds one event per line and stops growing at `FILE_CAP`;
of the pictures of a run it holds `PICTURES_CAP`. The context is in it by digest and description only; `%rlm purge` deletes the
folder's traces. The tree is built from the host's own events, never from what a REPL says about itself. A file that is read
back may have been written by anybody: it is bounded and typed, and its pictures are what a view checks again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import platformdirs

from rlm_jupyter import events
from rlm_jupyter.events import CellOutput, CellPicture, Event, Usage

PICTURES_KEPT = 20
"""The last pictures of a run that are at hand to be shown."""
PICTURES_CAP = 16 * 1024 * 1024
"""Characters of base64 of all pictures that the events of a run, and so its file, hold, and of those at hand to be shown."""
FILE_CAP = 64 * 1024 * 1024
LINE_CAP = 12 * 1024 * 1024
"""Bytes of the longest line that is read: a little more than one picture takes."""
END_CAP = 2 * 1024 * 1024
"""Bytes that a full file may still take for its end."""
FOLDER_CAP = 1024 * 1024 * 1024


@dataclasses.dataclass(slots=True)
class Call:
    """A sub-call: one prompt to a sub-LM and its reply. `state`: running, ok or failed."""

    call: str
    batch: str
    model: str
    prompt: str
    started: float
    state: str = "running"
    reply: str = ""
    error: str = ""
    usage: Usage = dataclasses.field(default_factory=Usage)
    cost: float | None = None
    attempts: int = 0
    seconds: float = 0.0


@dataclasses.dataclass(slots=True)
class Output:
    """A piece of output, adjacent pieces of one stream joined.

    `picture` is 0, or the number of a picture in `Trace.pictures` (if it still is among them), which `text` tells in words.
    """

    stream: str
    text: str
    picture: int = 0


@dataclasses.dataclass(slots=True)
class Cell:
    """One piece of code that ran. `status`: running, ok, error, interrupted or died."""

    cell: int
    code: str
    started: float
    status: str = "running"
    outputs: list[Output] = dataclasses.field(default_factory=list)
    calls: list[Call] = dataclasses.field(default_factory=list)
    error: str = ""
    omitted: int = 0
    seconds: float = 0.0


@dataclasses.dataclass(slots=True)
class Iteration:
    """One turn of the loop: the root LM's reply and the cells that came of it. Iteration 0 is set-up code."""

    iteration: int
    started: float
    reply: str = ""
    state: str = "asking"
    usage: Usage = dataclasses.field(default_factory=Usage)
    cost: float | None = None
    attempts: int = 0
    seconds: float = 0.0
    cells: list[Cell] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class PictureRoom:
    """Room for the pictures of a run. They come first come, first served; one that does not fit is told without its data."""

    left: int = PICTURES_CAP

    def keep(self, event: Event) -> Event:
        """Give `event`, as it is to be kept."""
        if not isinstance(event, CellPicture):
            return event
        if len(event.data) > self.left:
            return dataclasses.replace(event, data="")
        self.left -= len(event.data)
        return event


@dataclasses.dataclass(slots=True)
class Trace:
    """A run as a tree. Feed it events with `add`, in order; read its fields at any time.

    `status` is `running` until the end, then as `RLMResult.status`.
    """

    run: str = ""
    question: str = ""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    context_type: str = ""
    context_size: int = 0
    context_digest: str = ""
    context_description: str = ""
    isolation: str = ""
    kernel: str = ""
    started: float = 0.0
    seconds: float = 0.0
    status: str = "running"
    limit: str = ""
    answer: str = ""
    answer_type: str = ""
    error: str = ""
    max_iterations: int = 0
    iterations: list[Iteration] = dataclasses.field(default_factory=list)
    pictures: dict[int, CellPicture] = dataclasses.field(default_factory=dict)
    notices: list[str] = dataclasses.field(default_factory=list)
    retries: int = 0
    requests: int = 0
    usage: Usage = dataclasses.field(default_factory=Usage)
    cost: float | None = None
    events: list[Event] = dataclasses.field(default_factory=list, repr=False)
    _cells: dict[int, Cell] = dataclasses.field(default_factory=dict, repr=False)
    _calls: dict[str, Call] = dataclasses.field(default_factory=dict, repr=False)
    _room: PictureRoom = dataclasses.field(default_factory=PictureRoom, repr=False)
    _pictured: int = 0

    @property
    def calls(self) -> list[Call]:
        """Every sub-call, in the order in which they were made."""
        return list(self._calls.values())

    def add(self, event: Event) -> None:
        """Fold one event in. A ValueError where it speaks of a cell or a call that never began."""
        try:
            self._add(event)
        except KeyError as unknown:
            raise ValueError(f"{type(event).__name__} speaks of {unknown}, which never began") from None

    def _add(self, event: Event) -> None:
        if not isinstance(event, events.LIVE_ONLY):
            self.events.append(self._room.keep(event))
        match event:
            case events.RunStarted():
                self.run, self.question, self.settings = event.run, event.question, event.settings
                self.context_type, self.context_size = event.context_type, event.context_size
                self.context_digest, self.context_description = event.context_digest, event.context_description
                self.isolation, self.started = event.isolation, event.at
            case events.KernelStarted():
                self.kernel = event.how
            case events.IterationStarted():
                self.max_iterations = event.of
                self.iterations.append(Iteration(event.iteration, event.at))
            case events.ReplyPart():
                self._iteration(event).reply += event.text
            case events.ReplyRestarted():
                self._iteration(event).reply = ""
            case events.ReplyEnded():
                turn = self._iteration(event)
                turn.reply, turn.state, turn.attempts = event.text, "running", event.attempts
                turn.usage, turn.cost, turn.seconds = event.usage, event.cost, event.seconds
                self._count(event.usage, event.cost, event.attempts)
            case events.CellStarted():
                cell = self._cells[event.cell] = Cell(event.cell, event.code, event.at)
                self._iteration(event).cells.append(cell)
            case events.CellOutput():
                self._output(self._cells[event.cell], event)
            case CellPicture():
                self._picture(self._cells[event.cell], event)
            case events.CellEnded():
                cell = self._cells[event.cell]
                cell.status, cell.error, cell.omitted, cell.seconds = (
                    event.status,
                    event.error,
                    event.omitted,
                    event.seconds,
                )
            case events.CallStarted():
                call = self._calls[event.call] = Call(event.call, event.batch, event.model, event.prompt, event.at)
                self._cells[event.cell].calls.append(call)
            case events.CallEnded():
                call = self._calls[event.call]
                call.state, call.reply, call.error = ("failed" if event.error else "ok"), event.reply, event.error
                call.usage, call.cost, call.attempts, call.seconds = (
                    event.usage,
                    event.cost,
                    event.attempts,
                    event.seconds,
                )
                self._count(event.usage, event.cost, event.attempts)
            case events.RequestRetried():
                self.retries += 1
            case events.Notice():
                self.notices.append(event.text)
            case events.RunEnded():
                self.status, self.limit, self.error = event.status, event.limit, event.error
                self.answer, self.answer_type, self.seconds = event.answer, event.answer_type, event.seconds
                self.requests, self.usage, self.cost = event.calls, event.usage, event.cost
                if self.iterations:
                    self.iterations[-1].state = "ended"
        if isinstance(event, events.IterationStarted) and len(self.iterations) > 1:
            self.iterations[-2].state = "ended"

    def _iteration(self, event: Event) -> Iteration:
        number: int = event.iteration  # type: ignore[attr-defined]
        for iteration in reversed(self.iterations):
            if iteration.iteration == number:
                return iteration
        self.iterations.append(Iteration(number, event.at))
        return self.iterations[-1]

    def _count(self, usage: Usage, cost: float | None, attempts: int) -> None:
        self.usage += usage
        self.requests += attempts
        if cost is not None:
            self.cost = (self.cost or 0.0) + cost

    @staticmethod
    def _output(cell: Cell, event: CellOutput) -> None:
        last = cell.outputs[-1] if cell.outputs else None
        if last is not None and last.stream == event.stream and event.stream in ("stdout", "stderr"):
            last.text += event.text
        else:
            cell.outputs.append(Output(event.stream, event.text))

    def _picture(self, cell: Cell, event: CellPicture) -> None:
        """Put a picture in its place: at the words that the cell put out for it, else at words of our own."""
        self._pictured += 1
        sides = (event.width, event.height)
        told = f"[a picture of {sides[0]}x{sides[1]}]" if all(0 < side < 10**6 for side in sides) else "[a picture]"
        last = cell.outputs[-1] if cell.outputs else None
        if last is None or last.picture or last.stream != "display" or last.text.strip() != told:
            last = Output("display", told + "\n")
            cell.outputs.append(last)
        last.picture = self._pictured
        self.pictures[self._pictured] = event
        while len(self.pictures) > PICTURES_KEPT or sum(len(kept.data) for kept in self.pictures.values()) > PICTURES_CAP:
            del self.pictures[next(iter(self.pictures))]

    def to_dict(self) -> dict[str, Any]:
        """Give the tree as plain JSON values; of a picture the words that tell it."""
        fields = {field.name for field in dataclasses.fields(self) if not field.name.startswith("_")} - {"events", "pictures"}
        data: dict[str, Any] = {"version": events.VERSION}
        for name in sorted(fields - {"iterations", "usage"}):
            data[name] = getattr(self, name)
        data["usage"] = dataclasses.asdict(self.usage)
        data["iterations"] = [dataclasses.asdict(iteration) for iteration in self.iterations]
        return data

    def to_jsonl(self) -> str:
        """Give the trace as the text of a trace file: one event per line, pictures among them."""
        return "".join(event.to_json() + "\n" for event in self.events)

    @classmethod
    def from_events(cls, stream: Iterable[Event]) -> Trace:
        trace = cls()
        for event in stream:
            trace.add(event)
        return trace

    @classmethod
    def from_jsonl(cls, text: str) -> Trace:
        """Read a trace back. A last line that was cut off (the writer was killed) is left out; a bad one is a ValueError."""
        return cls.from_events(_parse(text))

    @classmethod
    def from_file(cls, path: Path) -> Trace:
        """Read a trace file, which anybody may have written. A ValueError says in one line what is wrong with it."""
        with path.open("rb") as file:
            data = file.read(FILE_CAP + END_CAP + 1)
        if len(data) > FILE_CAP + END_CAP:
            raise ValueError(f"the trace file is larger than any of ours: over {FILE_CAP + END_CAP:,} bytes")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"the trace is not UTF-8 at byte {error.start:,}") from None
        return cls.from_jsonl(text)


def _parse(text: str) -> Iterator[Event]:
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        if len(line) > LINE_CAP:
            raise ValueError(f"line {number} of the trace is longer than {LINE_CAP:,} characters")
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                return
            raise ValueError(f"line {number} of the trace is not JSON") from None
        yield events.from_dict(data)


def trace_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """Make and give the folder of the traces: `folder`, `$RLM_JUPYTER_TRACES`, or the user's data folder; mode 0700."""
    chosen = folder or os.environ.get("RLM_JUPYTER_TRACES") or platformdirs.user_data_path("rlm_jupyter") / "traces"
    path = Path(chosen)
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    return path


IN_A_CELL: tuple[type[Event], ...] = (events.CallStarted, events.CallEnded, events.RequestRetried)
"""Events that come by the hundred and stand between a call and its reply: they reach the disk with the next other one."""


class TraceFile:
    """Appends a run's events to `<folder>/<run>.jsonl`, at most `cap` bytes; the end of the run is always written.

    A host that is killed loses at most the calls of the cell that ran.
    """

    def __init__(self, folder: Path, run: str, cap: int = FILE_CAP) -> None:
        self.path = folder / f"{run}.jsonl"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        self._file = os.fdopen(descriptor, "w", encoding="utf-8")
        self._left = cap
        self._full = self._crowded = False
        self._room = PictureRoom()

    def write(self, event: Event) -> None:
        if isinstance(event, events.LIVE_ONLY) or self._file.closed:
            return
        kept = self._room.keep(event)
        line = kept.to_json() + "\n"
        if kept is not event and not self._crowded:
            self._crowded = True
            text = f"the trace file holds {PICTURES_CAP // 1024**2} MiB of pictures: those that do not fit are not in it"
            line = events.Notice(run=event.run, number=event.number, at=event.at, text=text).to_json() + "\n" + line
        self._left -= len(line)
        if self._left < 0 and not isinstance(event, events.RunEnded):
            if self._full:
                return
            self._full = True
            text = "the trace file is full: what follows is not in it"
            line = events.Notice(run=event.run, number=event.number, at=event.at, text=text).to_json() + "\n"
        self._file.write(line)
        if not isinstance(event, IN_A_CELL):
            self._file.flush()

    def close(self) -> None:
        self._file.close()


def purge(folder: Path, keep_bytes: int = 0) -> int:
    """Delete traces, the oldest first, until at most `keep_bytes` are left; give the number deleted."""
    files = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True)
    total = deleted = 0
    for path in files:
        total += path.stat().st_size
        if total > keep_bytes:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
                deleted += 1
    return deleted
