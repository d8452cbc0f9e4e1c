"""The calls that a broker holds: who waits, what the host has been handed, what it has answered.

A call is known by its kernel and its 128-bit id, and bound to the digest of all it says. It is numbered when it comes, handed
to the host's one reader, kept until the host has told that it read so far, and answered once. The same call again (its
connection was lost) waits for, or gets, the same answer; the same id with another body gets none. A call for which nobody
waits any more is given up. A kernel's calls are taken while its gate is open, which is while it runs a cell. A host that is
not heard of for `lease` seconds is taken for gone, and nobody waits for it.

Everything is bounded: calls that wait, events that the host has not read, replies kept for whoever lost one, ids remembered.
Nothing here knows HTTP. All methods may be called from any thread.
"""

from __future__ import annotations

import hashlib
import itertools
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from . import wire
from .lines import Asked, GivenUp, digest_of

WAITING_CAP = 1024
EVENTS_CAP = 100_000
IDS_CAP = 100_000
KEPT_CAP = 64 * 1024 * 1024
TAKEN, AGAIN, GONE, CONFLICT = "taken", "again", "gone", "conflict"


class Refused(Exception):
    """A call that is not answered; the text says why, in words for the code that made it."""


@dataclass(slots=True)
class Entry:
    """One call. `call` is dropped as soon as it is settled: its prompts are large."""

    call: wire.Call | None
    digest: str
    prompts: int
    number: int
    waiters: dict[object, Callable[[wire.Reply], object]] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)
    sent: bool = False
    reply: wire.Reply | None = None
    answer: bytes = b""
    why: str = ""


def _later(offered: Asked | wire.Reply) -> bool:
    """Refuse what is offered: it will be fetched."""
    return False


class Book:
    """All calls of one broker."""

    def __init__(self, lease: float) -> None:
        self.session = secrets.token_hex(16)
        self._lease = lease
        self._heard = time.monotonic()
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._entries: dict[tuple[int, str], Entry] = {}
        self._waiting = 0
        self._number = 0
        self._unread: dict[int, Entry | wire.Dropped] = {}
        self._fresh: dict[int, Entry | wire.Dropped] = {}
        self._reader = 0
        self._close_reader: Callable[[], None] = lambda: None
        self._hand: Callable[[Asked], bool] = _later
        self._idle = False
        self._kept = 0
        self._replies: deque[Entry] = deque()
        self._gates: dict[int, str] = {}
        self._open: Counter[int] = Counter()
        self._settling: dict[int, Callable[[], None]] = {}

    @property
    def waiting(self) -> int:
        return self._waiting

    # Kernels

    def ask(
        self,
        call: wire.Call,
        caller: object,
        left: Callable[[], bool] = lambda: False,
        hand: Callable[[wire.Reply], object] = _later,
    ) -> wire.Reply:
        """Wait for the reply to a call; `Refused` when there is none. `left` tells whether the caller is gone already.

        `hand` is offered a reply that comes meanwhile, by the thread that brings it, which spares the caller's turn; it never
        waits, and does nothing where it would have to.
        """
        digest = digest_of(call)
        with self._lock:
            entry = self._find(call, digest) or self._enter(call, digest)
            entry.waiters[caller] = hand
        if left():
            self.leave(call.kernel, call.call, caller)
        try:
            while not entry.done.wait(max(0.0, self._heard + self._lease - time.monotonic()) + 0.01):
                self._expire(entry, call)
            reply = entry.reply  # while somebody waits it is kept
        finally:
            self.leave(call.kernel, call.call, caller)
        if reply is None:
            raise Refused(entry.why or "this call was answered before and its reply is no longer kept")
        return reply

    def leave(self, kernel: int, call: str, caller: object) -> None:
        """Take note that a caller waits no more; the last one takes its call along."""
        with self._lock:
            entry = self._entries.get((kernel, call))
            if entry is None or caller not in entry.waiters:
                return
            del entry.waiters[caller]
            if not entry.waiters and not entry.done.is_set():
                self._give_up(entry, "this call was given up before")

    def release(self, kernel: int, why: str) -> None:
        """Give up every call of a kernel, and refuse what it asks from now on."""
        with self._lock:
            self._gates[kernel] = why
            for (number, _), entry in self._entries.items():
                if number == kernel and not entry.done.is_set():
                    self._give_up(entry, why)

    def admit(self, kernel: int) -> None:
        """Take what a kernel asks from now on."""
        with self._lock:
            self._gates.pop(kernel, None)

    def settle(self, kernel: int, why: str, then: Callable[[], None]) -> None:
        """Refuse what a kernel asks from now on, and call `then` as soon as none of its calls waits. The last `then` counts."""
        with self._lock:
            self._gates[kernel] = why
            if self._open[kernel]:
                self._settling[kernel] = then
            else:
                then()

    def _find(self, call: wire.Call, digest: str) -> Entry | None:
        entry = self._entries.get((call.kernel, call.call))
        if entry is not None and entry.digest != digest:
            raise Refused("this call id was used before, for another call")
        return entry

    def _enter(self, call: wire.Call, digest: str) -> Entry:
        if call.kernel in self._gates:
            raise Refused(self._gates[call.kernel])
        if self._waiting >= WAITING_CAP:
            raise Refused(f"{self._waiting:,} calls wait already; use llm_query_batched, or fewer threads")
        if len(self._unread) >= EVENTS_CAP:
            raise Refused("too many calls were made that the host has not read")
        while len(self._entries) >= IDS_CAP:
            self._forget_oldest()
        self._number += 1
        self._waiting += 1
        self._open[call.kernel] += 1
        entry = self._entries[call.kernel, call.call] = Entry(call, digest, len(call.sizes), self._number)
        self._tell(self._number, entry)
        return entry

    def _forget_oldest(self) -> None:
        """Forget an id whose call is over: the host, which remembers them all, is the one that refuses it then."""
        key = next(key for key, entry in self._entries.items() if entry.done.is_set())
        self._free(self._entries.pop(key))

    def _expire(self, entry: Entry, call: wire.Call) -> None:
        with self._lock:
            silent = time.monotonic() - self._heard
            if silent >= self._lease and not entry.done.is_set():
                self._give_up(entry, f"the host was not heard of for {silent:.0f} s; the call was given up")

    def _give_up(self, entry: Entry, why: str) -> None:
        call = entry.call
        assert call is not None
        self._settle(entry)
        entry.why = why
        if entry.sent:
            self._number += 1
            self._tell(self._number, wire.Dropped(call.kernel, call.call))
        entry.done.set()

    def _settle(self, entry: Entry) -> None:
        assert entry.call is not None
        kernel, entry.call = entry.call.kernel, None
        self._waiting -= 1
        self._open[kernel] -= 1
        if not self._open[kernel] and kernel in self._settling:
            self._settling.pop(kernel)()
        self._unread.pop(entry.number, None)
        self._fresh.pop(entry.number, None)

    def _tell(self, number: int, event: Entry | wire.Dropped) -> None:
        self._unread[number] = event
        if self._idle and isinstance(event, Entry) and event.call is not None:
            if self._hand(Asked(number, event.call, event.digest)):
                event.sent = True
                return
            self._idle = False
        self._fresh[number] = event
        self._news.notify_all()

    # The host

    def heard(self, after: int | None = None) -> bool:
        """Take note that the host lives, and that it has read up to `after`; whether that can be."""
        with self._lock:
            self._heard = time.monotonic()
            if after is None:
                return True
            if not 0 <= after <= self._number:
                return False
            for number in list(itertools.takewhile(lambda number: number <= after, self._unread)):
                del self._unread[number]
            return True

    def open(self, close: Callable[[], None], hand: Callable[[Asked], bool] = _later) -> int:
        """Make the caller the one reader; `close` is called when another one comes.

        `hand` is offered a call while the reader waits for one, by the thread that asks, which spares the reader's turn. Where
        that would take time it refuses, and the reader reads it.
        """
        with self._lock:
            self._close_reader()
            self._close_reader, self._hand, self._idle = close, hand, False
            self._reader += 1
            self._fresh = dict(self._unread)
            self._news.notify_all()
            return self._reader

    def shut(self, reader: int) -> None:
        """Take note that a reader is gone."""
        with self._lock:
            if reader == self._reader:
                self._reader += 1
                self._close_reader, self._hand, self._idle = lambda: None, _later, False
                self._news.notify_all()

    def read(self, reader: int, seconds: float) -> list[Asked | GivenUp] | None:
        """Wait for events; an empty list after `seconds`, None when this reader is not the one any more."""
        with self._lock:
            self._idle = reader == self._reader and not self._fresh
            self._news.wait_for(lambda: reader != self._reader or self._fresh, timeout=seconds)
            if reader != self._reader:
                return None
            self._idle = False
            events: list[Asked | GivenUp] = []
            for number, event in self._fresh.items():
                if isinstance(event, wire.Dropped):
                    events.append(GivenUp(number, event))
                elif event.call is not None:
                    event.sent = True
                    events.append(Asked(number, event.call, event.digest))
            self._fresh = {}
            return events

    def answer(self, reply: wire.Reply, digest: str) -> str:
        """Take a reply of the host's: TAKEN, AGAIN (it had come before), GONE (nobody waits), CONFLICT (it fits no call)."""
        seal = hashlib.sha256(repr((reply.sizes, reply.errors, reply.values)).encode() + reply.data).digest()
        with self._lock:
            entry = self._entries.get((reply.kernel, reply.call))
            if entry is None:
                return GONE
            if entry.digest != digest or not entry.sent or not _fits(reply, entry):
                return CONFLICT
            if entry.done.is_set():
                if entry.answer:
                    return AGAIN if entry.answer == seal else CONFLICT
                return GONE
            self._settle(entry)
            entry.reply, entry.answer = reply, seal
            self._keep(entry)
            for hand in entry.waiters.values():
                hand(reply)
            entry.done.set()
            return TAKEN

    def _keep(self, entry: Entry) -> None:
        assert entry.reply is not None
        self._kept += len(entry.reply.data)
        self._replies.append(entry)
        for _ in range(len(self._replies)):
            if self._kept <= KEPT_CAP:
                return
            old = self._replies.popleft()
            if old.waiters:  # somebody is about to take it
                self._replies.append(old)
            else:
                self._free(old)

    def _free(self, entry: Entry) -> None:
        if entry.reply is not None:
            self._kept -= len(entry.reply.data)
            entry.reply = None


def _fits(reply: wire.Reply, entry: Entry) -> bool:
    return len(reply.sizes) == entry.prompts and all(place < entry.prompts for place in (*reply.errors, *reply.values))
