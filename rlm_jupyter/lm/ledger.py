"""The ledger of a run's calls: what each call id was answered, so that no id is ever asked, or paid, twice.

An id is bound to the hash of its call's body: the same id with another body is refused. Replies are kept for the case that one
got lost on its way, the latest `LEDGER_CAP` characters of them; of older ones only the ids stay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio

from rlm_jupyter.errors import ProtocolError
from rlm_jupyter.kernels.messages import CallOutcome, CallRequest
from rlm_jupyter.settings import MIB

LEDGER_CAP = 64 * MIB


@dataclass(slots=True)
class Entry:
    """A call: the hash of its body, and its outcomes once it has them (None again when they were dropped).

    `asked` is whether a request was made for it: code that tries in vain without end must not fill the ledger.
    """

    digest: bytes
    done: anyio.Event = field(default_factory=anyio.Event)
    outcomes: Sequence[CallOutcome] | None = None
    size: int = 0
    asked: bool = False


class Ledger:
    """The calls of one run."""

    def __init__(self) -> None:
        self._entries: dict[tuple[int, str], Entry] = {}
        self._kept = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, request: CallRequest) -> Entry | None:
        """Give the entry of a call that came before. A ProtocolError if its id belongs to another call."""
        entry = self._entries.get((request.kernel, request.call))
        if entry is not None and entry.digest != digest_of(request):
            raise ProtocolError("this call id was used before, for another call")
        return entry

    def begin(self, request: CallRequest) -> Entry:
        """Enter a call that is about to be made."""
        entry = self._entries[request.kernel, request.call] = Entry(digest_of(request))
        return entry

    def finish(self, request: CallRequest, entry: Entry, outcomes: Sequence[CallOutcome]) -> None:
        """Enter what became of a call, for whoever asks for it again."""
        entry.outcomes, entry.size = outcomes, sum(len(outcome.text or "") for outcome in outcomes)
        entry.done.set()
        if not entry.asked:
            del self._entries[request.kernel, request.call]
            return
        self._kept += entry.size
        if self._kept > LEDGER_CAP:
            self._drop_old()

    def _drop_old(self) -> None:
        for entry in self._entries.values():
            if entry.size:
                self._kept -= entry.size
                entry.outcomes, entry.size = None, 0
                if self._kept <= LEDGER_CAP:
                    return


def digest_of(request: CallRequest) -> bytes:
    """Hash a call's body, every part with its length so that no two bodies give one text."""
    hasher = hashlib.blake2b(digest_size=16)
    contexts = (f"{request.parcel} {request.contexts!r}",) if request.contexts else ()
    for part in (str(request.cell), str(request.batch), repr(request.model), *request.prompts, *contexts):
        data = part.encode("utf-8", "surrogatepass")
        hasher.update(b"%d:" % len(data))
        hasher.update(data)
    return hasher.digest()
