"""The host's face of the wire protocol: what a call is to the loop, and reading and writing that ends in a ProtocolError.

The messages themselves are in `guest.wire`, since the supervisor, which has nothing of rlm_jupyter but the guest package,
reads and writes them with the same code.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from rlm_jupyter.errors import ProtocolError
from rlm_jupyter.kernels.guest import codec, wire
from rlm_jupyter.kernels.guest.fields import WireError
from rlm_jupyter.kernels.guest.frames import Header
from rlm_jupyter.kernels.text import plain
from rlm_jupyter.settings import BATCH_CAP, CHILDREN_CAP, PROMPT_CAP

MESSAGE_ROOM = 500 * 1024 * 1024
"""Bytes of all the answers to one request."""
DESCRIPTION_CAP = 20_000
"""Characters that are kept of what a kernel says of a context."""
TOLD_CAP = 256 * 1024
"""Bytes in which it says so: each character may take twelve of them."""


@dataclass(frozen=True, slots=True)
class Described:
    """What a kernel says of the context that it has left for a child, cut and without terminal sequences; nobody checks it.

    `own`: a context was given; else the child's context is its prompt.
    """

    own: bool
    type_name: str
    size: int
    text: str


@dataclass(frozen=True, slots=True)
class CallRequest:
    """LM calls that code in a kernel makes with one request; `call` is 32 hex digits, chosen in the kernel.

    With `contexts`, one for each prompt, child RLMs are asked; the contexts themselves are in the kernel's `parcel`.
    """

    kernel: int
    cell: int
    call: str
    batch: bool
    prompts: tuple[str, ...]
    model: str | None
    contexts: tuple[Described, ...] = ()
    parcel: int = 0


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """What became of one prompt: exactly one of the two is set, unless a child's answer was `brought` to the kernel."""

    text: str | None = None
    error: str | None = None
    brought: bool = False


OnCall = Callable[[CallRequest], Awaitable[Sequence[CallOutcome]]]
"""Given by the loop; awaited once for each call id."""


class Incoming:
    """The supervisor's messages in their order; anything else is a ProtocolError."""

    def __init__(self) -> None:
        self._number = 0

    def read(self, header: Header, body: bytes) -> wire.Message:
        self._number += 1
        if header.pop("n", None) != self._number:
            raise ProtocolError(f"the supervisor's message {self._number} is missing or came twice")
        try:
            return codec.decode(header, body, wire.TO_HOST)
        except WireError as error:
            raise ProtocolError(f"the supervisor sent {error}") from None


def call_request(message: wire.Call) -> CallRequest:
    """Read the prompts of a call; a ValueError says what is wrong with them, in words for the code that made the call."""
    if len(message.sizes) > BATCH_CAP:
        raise ValueError(f"a batch of {len(message.sizes):,} prompts; at most {BATCH_CAP:,}")
    if message.child and len(message.sizes) > CHILDREN_CAP:
        raise ValueError(f"a batch of {len(message.sizes):,} children; at most {CHILDREN_CAP:,}")
    if any(size > PROMPT_CAP for size in message.sizes):
        raise ValueError(f"a prompt above {PROMPT_CAP:,} bytes")
    sizes = (*message.sizes, *message.told)
    pieces = [message.data[end - size : end] for end, size in zip(accumulate(sizes), sizes, strict=True)]
    count = len(message.sizes)
    try:
        prompts = tuple(piece.decode("utf-8", "surrogatepass") for piece in pieces[:count])
    except UnicodeDecodeError:
        raise ValueError("a prompt that is not UTF-8") from None
    contexts = tuple(map(_described, pieces[count:]))
    return CallRequest(
        message.kernel, message.cell, message.call, message.batch, prompts, message.model, contexts, message.parcel
    )


def _described(data: bytes) -> Described:
    if len(data) > TOLD_CAP:
        raise ValueError("a description that is too long")
    try:
        told = json.loads(data.decode("ascii"))
        own, kind, size, text = (told[name] for name in ("own", "type", "size", "text"))
    except (ValueError, RecursionError, TypeError, KeyError):
        raise ValueError("a description that is none") from None
    if not (type(own) is bool and type(kind) is str and type(size) is int and type(text) is str and 0 <= size < 2**63):
        raise ValueError("a description that is none")
    return Described(own, plain(kind)[:200], size, plain(text)[:DESCRIPTION_CAP])


def reply(message: wire.Call, outcomes: Sequence[CallOutcome]) -> wire.Reply:
    """Write the answer to a call. Replies above the caps become errors in their places."""
    if len(outcomes) != len(message.sizes):
        raise ValueError(f"{len(outcomes)} outcomes for {len(message.sizes)} prompts")
    datas: list[bytes] = []
    errors: list[int] = []
    room = MESSAGE_ROOM
    for place, outcome in enumerate(outcomes):
        data = (outcome.text if outcome.error is None else outcome.error or "no reason given") or ""
        encoded = data.encode("utf-8", "surrogatepass")
        if len(encoded) > min(PROMPT_CAP, room):
            encoded, outcome = b"the reply is too large", CallOutcome(error="the reply is too large")
        room -= len(encoded)
        if outcome.error is not None:
            errors.append(place)
        datas.append(encoded)
    values = tuple(place for place, outcome in enumerate(outcomes) if outcome.brought)
    return wire.Reply(message.kernel, message.call, tuple(map(len, datas)), tuple(errors), b"".join(datas), values)


def failed(message: wire.Call, error: str) -> wire.Reply:
    """Answer every prompt of a call with the same error."""
    return reply(message, [CallOutcome(error=error)] * len(message.sizes))
