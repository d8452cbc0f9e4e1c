"""Where traces are kept: a file for each run, in a folder that only its owner can read (0700).

A file holds one event per line, as it comes, and stops growing at `FILE_CAP`; the end of the run is always in it. What is read
back from one is read by `Trace.from_file`, which takes nothing in it on trust; `salvage` reads what it can of one that is
damaged. `%rlm purge` deletes the folder's traces.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import platformdirs

from rlm_jupyter import events
from rlm_jupyter.events import Event
from rlm_jupyter.trace import END_CAP, FILE_CAP, LINE_CAP, PICTURES_CAP, PictureRoom, Trace

FOLDER_CAP = 1024 * 1024 * 1024


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


def salvage(path: Path) -> Trace:
    """Read a trace file; of one that is damaged what can be read, the rest counted. A ValueError where that is nothing."""
    try:
        trace = Trace.from_file(path)
    except ValueError:
        trace = _readable(path)
        if not trace.events:
            raise
    if not trace.events:
        raise ValueError("no event of a run is in it")
    return trace


def _readable(path: Path) -> Trace:
    with path.open("rb") as file:
        lines = file.read(FILE_CAP + END_CAP).split(b"\n")
    trace, lost = Trace(), 0
    for line in filter(None, lines):
        kept = len(trace.events)
        try:
            data: Any = json.loads(line.decode("utf-8-sig")) if len(line) <= LINE_CAP else None
            event = events.from_later(data) if events.is_later(data) else events.from_dict(data)
            if event is None:
                raise ValueError("not understood")
            if not kept and not isinstance(event, events.RunStarted):
                trace.add(_begun(event))
            trace.add(event)
        except (ValueError, RecursionError):
            del trace.events[kept:]
            lost += 1
    trace.unread = lost
    trace.notices.append(f"this trace file is damaged: {lost:,} of its lines cannot be read and are left out")
    return trace


def _begun(event: Event) -> Event:
    """Give what stands for the beginning of a run where that cannot be read, and `event` is the first that can."""
    return events.RunStarted(
        run=event.run, at=event.at, question="", settings={}, context_type="", context_size=0, context_digest="",
        context_description="", isolation="",
    )  # fmt: skip


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
