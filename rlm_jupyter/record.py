"""What one run has told so far: every event without secrets, numbered, in its trace, its feeds and its trace file.

The run, its loop and its kernels tell their events in the worker thread; whoever watches reads them in any other. An event
that carries a secret of the environment never comes further than this.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from concurrent.futures import Future
from typing import Any

from rlm_jupyter import events
from rlm_jupyter.events import Event
from rlm_jupyter.feed import Feed
from rlm_jupyter.redaction import Redactor
from rlm_jupyter.trace import Trace
from rlm_jupyter.trace_file import FOLDER_CAP, TraceFile, purge, trace_folder


class Record:
    """The events of the run `run`, as they come. `trace`: the tree that they make; it belongs to the worker thread."""

    def __init__(self, run: str, redactor: Redactor) -> None:
        self.trace = Trace(run=run)
        self._run = run
        self._redactor = redactor
        self._lock = threading.Lock()
        self._feeds: list[Feed] = []
        self._number = 0
        self._file: TraceFile | None = None

    def emit(self, event: Event) -> None:
        """Tell an event, and what was held back before it: without secrets, numbered, to the trace, the feeds and the file."""
        for clean in self._redactor.events(event):
            with self._lock:
                numbered = dataclasses.replace(clean, run=self._run, number=self._number, at=time.time())
                self._number += 1
                self.trace.add(numbered)
                for feed in self._feeds:
                    feed.put(numbered)
            if self._file is not None:
                self._file.write(numbered)

    def feed(self, end: Future[Any]) -> Feed:
        """Give an iterator over the events, from the first on until `end` is done."""
        with self._lock:
            feed = Feed(list(self.trace.events), end)
            self._feeds.append(feed)
        return feed

    def events(self) -> list[Event]:
        """Give the events so far."""
        with self._lock:
            return list(self.trace.events)

    def open_file(self) -> None:
        """Write a trace file from now on; where that cannot be, it is told."""
        try:
            folder = trace_folder()
            purge(folder, FOLDER_CAP)
            self._file = TraceFile(folder, self._run)
        except OSError as error:
            self.emit(events.Notice(text=f"no trace file is kept: {error.strerror or error}"))

    def close(self) -> None:
        """Finish the trace file."""
        if self._file is not None:
            self._file.close()
