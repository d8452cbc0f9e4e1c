"""Events folded into a tree: what the views draw and what `result.trace` is; JSONL out and in.

The root of the tree is the run; what else it is made of is in `tree`. It is built from the host's own events, never from what
a REPL says about itself. The context is in it by digest and description only. A text that is read back may have been written
by anybody: it is bounded and typed, and its pictures are what a view checks again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rlm_jupyter import events
from rlm_jupyter.events import CallEnded, CellOutput, CellPicture, ChildStarted, Event, ReplyEnded
from rlm_jupyter.tree import Branch, Call, Cell, Child, Iteration, Output

PICTURES_KEPT = 20
"""The last pictures of a run that are at hand to be shown."""
PICTURES_CAP = 16 * 1024 * 1024
"""Characters of base64 of all pictures that the events of a run, and so its file, hold, and of those at hand to be shown."""
FILE_CAP = 64 * 1024 * 1024
LINE_CAP = 12 * 1024 * 1024
"""Bytes of the longest line that is read: a little more than one picture takes."""
END_CAP = 2 * 1024 * 1024
"""Bytes that a full file may still take for its end."""
DEPTH_CAP = 16
"""Levels of children below the root that a trace can have."""


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


@dataclasses.dataclass(slots=True, kw_only=True)
class Trace(Branch):
    """A run as a tree. Feed it events with `add`, in order; read its fields at any time."""

    run: str = ""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    context_digest: str = ""
    isolation: str = ""
    step: str = ""
    machine: str = ""
    machine_started: float = 0.0
    machine_seconds: float | None = None
    pictures: dict[int, CellPicture] = dataclasses.field(default_factory=dict)
    notices: list[str] = dataclasses.field(default_factory=list)
    retries: int = 0
    unread: int = 0
    events: list[Event] = dataclasses.field(default_factory=list, repr=False)
    _children: dict[str, Child] = dataclasses.field(default_factory=dict, repr=False)
    _cells: dict[tuple[str, int], Cell] = dataclasses.field(default_factory=dict, repr=False)
    _calls: dict[tuple[str, str], Call] = dataclasses.field(default_factory=dict, repr=False)
    _room: PictureRoom = dataclasses.field(default_factory=PictureRoom, repr=False)
    _pictured: int = 0

    @property
    def calls(self) -> list[Call]:
        """Every sub-call of the tree, in the order in which they were made."""
        return list(self._calls.values())

    @property
    def children(self) -> list[Child]:
        """Every child RLM of the tree, in the order in which they began."""
        return list(self._children.values())

    def add(self, event: Event) -> None:
        """Fold one event in. A ValueError where it speaks of a node, a cell or a call that never began."""
        try:
            self._add(event)
        except KeyError as unknown:
            key = unknown.args[0]
            name = key[-1] if isinstance(key, tuple) else key
            raise ValueError(f"{type(event).__name__} speaks of {name!r:.80}, which never began") from None

    def _add(self, event: Event) -> None:
        if not isinstance(event, events.LIVE_ONLY):
            self.events.append(self._room.keep(event))
        branch = self._branch(event.node) if not isinstance(event, ChildStarted) else self
        match event:
            case events.RunStarted():
                self.run, self.question, self.settings = event.run, event.question, event.settings
                self.context_type, self.context_size = event.context_type, event.context_size
                self.context_digest, self.context_description = event.context_digest, event.context_description
                self.isolation, self.started = event.isolation, event.at
            case events.KernelStarted():
                branch.kernel = event.how
            case events.StepTold():
                self.step = event.text
            case events.SandboxStarted():
                self.machine, self.machine_started = event.machine, event.at - event.seconds
            case events.SandboxEnded():
                self.machine_seconds = event.seconds
            case events.IterationStarted():
                self.step, branch.max_iterations = "", event.of
                if branch.iterations:
                    branch.iterations[-1].state = "ended"
                branch.iterations.append(Iteration(event.iteration, event.at, last=event.last))
            case events.ReplyPart():
                branch.iteration(event.iteration, event.at).reply += event.text
            case events.ReplyRestarted():
                branch.iteration(event.iteration, event.at).reply = ""
            case ReplyEnded():
                turn = branch.iteration(event.iteration, event.at)
                turn.reply, turn.state, turn.attempts = event.text, "running", event.attempts
                turn.usage, turn.cost, turn.seconds = event.usage, event.cost, event.seconds
                self._count(branch, event)
            case events.CellStarted():
                cell = self._cells[event.node, event.cell] = Cell(event.cell, event.code, event.at)
                branch.iteration(event.iteration, event.at).cells.append(cell)
            case events.CellOutput():
                self._output(self._cells[event.node, event.cell], event)
            case CellPicture():
                self._picture(self._cells[event.node, event.cell], event)
            case events.CellEnded():
                cell = self._cells[event.node, event.cell]
                cell.status, cell.error, cell.omitted = event.status, event.error, event.omitted
                cell.seconds = event.seconds
            case events.CallStarted():
                call = Call(event.call, event.batch, event.model, event.prompt, event.at)
                self._cells[event.node, event.cell].calls.append(call)
                self._calls[event.node, event.call] = call
            case CallEnded():
                call = self._calls[event.node, event.call]
                call.state, call.reply, call.error = ("failed" if event.error else "ok"), event.reply, event.error
                call.usage, call.cost, call.attempts = event.usage, event.cost, event.attempts
                call.seconds = event.seconds
                self._count(branch, event)
            case ChildStarted():
                self._begin(event)
            case events.ChildEnded() | events.RunEnded():
                self.step = ""
                branch.end(event)
            case events.RequestRetried():
                self.retries += 1
            case events.Notice():
                self.notices.append(event.text)

    def _branch(self, node: str) -> Branch:
        return self if node == self.node else self._children[node]

    def _begin(self, event: ChildStarted) -> None:
        """Put a child below the cell that began it."""
        parent = self._branch(event.parent)
        depth = parent.depth + 1 if isinstance(parent, Child) else 1
        if depth > DEPTH_CAP:
            raise ValueError(f"a child {depth} levels below the root; a trace has {DEPTH_CAP} at most")
        if event.node == self.node or event.node in self._children:
            raise ValueError(f"the child {event.node!r:.80} began twice")
        cell = self._cells[event.parent, event.cell]
        child = Child(
            node=event.node,
            parent=event.parent,
            call=event.call,
            batch=event.batch,
            model=event.model,
            depth=depth,
            question=event.question,
            context_type=event.context_type,
            context_size=event.context_size,
            context_description=event.context_description,
            started=event.at,
        )
        self._children[event.node] = child
        cell.children.append(child)

    def _count(self, branch: Branch, event: ReplyEnded | CallEnded) -> None:
        """Count what a request of a branch took for it and for all above it."""
        branch.count(event.usage, event.cost, event.attempts)
        while isinstance(branch, Child):
            branch = self._branch(branch.parent)
            branch.count(event.usage, event.cost, event.attempts)

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
        """Give the tree as plain JSON values, a child within the cell that began it; of a picture the words that tell it."""
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
        """Read a trace back. A last line that was cut off (the writer was killed) is left out; a bad one is a ValueError.

        Of a trace that a later version wrote, what can be read is read; the rest is counted in `unread`.
        """
        trace = cls()
        for data in _parse(text):
            if not events.is_later(data):
                trace.add(events.from_dict(data))
                continue
            try:
                event = events.from_later(data)
                if event is not None:
                    trace.add(event)
            except ValueError:  # what it speaks of is among what could not be read
                event = None
            trace.unread += event is None
        if trace.unread:
            text = f"a later version of rlm_jupyter wrote this: of its events {trace.unread:,} are not understood and left out"
            trace.notices.append(text)
        return trace

    @classmethod
    def from_file(cls, path: Path) -> Trace:
        """Read a trace file, which anybody may have written. A ValueError says in one line what is wrong with it."""
        with path.open("rb") as file:
            data = file.read(FILE_CAP + END_CAP + 1)
        if len(data) > FILE_CAP + END_CAP:
            raise ValueError(f"the trace file is larger than any of ours: over {FILE_CAP + END_CAP:,} bytes")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"the trace is not UTF-8 at byte {error.start:,}") from None
        return cls.from_jsonl(text)


def _parse(text: str) -> Iterator[Any]:
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        if len(line) > LINE_CAP:
            raise ValueError(f"line {number} of the trace is longer than {LINE_CAP:,} characters")
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                return
            raise ValueError(f"line {number} of the trace is not JSON") from None
