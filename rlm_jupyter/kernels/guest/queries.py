"""`llm_query`, `rlm_query`, and both of them batched: calls of the host, which the code makes as calls of a function.

Prompts are checked here, so that the code hears of a wrong one at once, with the sentence that says what to give; the host
checks again. Contexts of children do not pass through the host: they are left at the supervisor, and the host is told of them.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
from typing import Any

from . import crossing, describing, loading, pickles
from .channel import Channel
from .digests import digest_of
from .enqueue import Enqueue
from .failures import FailedReply, LMError, warn_of_failures
from .helper import Helper
from .looks import shortened
from .memfiles import unnamed


class Queries(Helper):
    """The four helpers.

    Parameters
    ----------
    channel
        To the supervisor.
    asks
        Where calls of the host are made: the same, or the broker of a sandbox.
    caps
        `prompt`, `batch`, `children`, `context`, `message`, and `finals` (a folder).
    """

    part = "queries"

    def __init__(self, channel: Channel, asks: Channel | Enqueue, caps: dict[str, Any]) -> None:
        self._channel = channel
        self._asks = asks
        self._caps = caps

    def taken(self, call: str, place: int) -> Any:
        """Give the value that lies ready for this kernel at the supervisor."""
        piece, fd = self._channel.take({"kind": "take", "call": call, "place": place})
        return loading.load(piece, fd)

    def llm_query(self, prompt: str, model: str | None = None) -> str:
        """Ask a sub-LM one thing and give its reply.

        Raises
        ------
        LMError
            When there is no reply; the text says why.
        """
        __tracebackhide__ = True
        text, failed = self._ask([prompt], model, batch=False)[0]
        if failed:
            raise LMError(text)
        return text

    def llm_query_batched(self, prompts: list[str], model: str | None = None) -> list[str]:
        """Ask a sub-LM many things at once; the replies come in the order of the prompts.

        The place of a failed item holds a `FailedReply`, a str that starts with `Error: ` and has the reason as `.error`.
        """
        __tracebackhide__ = True
        if isinstance(prompts, str):
            raise TypeError("llm_query_batched takes a list of prompts; for one prompt there is llm_query")
        prompts = _listed(prompts, "llm_query_batched takes a list of prompts")
        if not prompts:
            return []
        outcomes = self._ask(prompts, model, batch=True)
        warn_of_failures(outcomes)
        return [FailedReply(text) if failed else text for text, failed in outcomes]

    def rlm_query(self, prompt: str, context: Any = None, model: str | None = None) -> Any:
        """Ask a child RLM, which writes code in turns of its own, in a kernel of its own; give its answer, with its type.

        `context` is what it finds as its own `context`: any value that can be copied to another kernel. Without it the prompt
        itself is. Where no deeper RLM is allowed this is an `llm_query` of the prompt, with the context below it as text.

        Raises
        ------
        LMError
            When there is no answer; the text says why.
        TypeError
            When the context cannot be copied; the text names the part.
        """
        __tracebackhide__ = True
        answer, failed = self._children([prompt], [context], model, batch=False)[0]
        if failed:
            raise LMError(answer)
        return answer

    def rlm_query_batched(self, prompts: list[str], contexts: list[Any] | None = None, model: str | None = None) -> list[Any]:
        """Ask many child RLMs at once; the answers come in the order of the prompts. `contexts`: one for each, or None.

        The place of a failed one holds a `FailedReply`, a str that starts with `Error: ` and has the reason as `.error`.
        """
        __tracebackhide__ = True
        if isinstance(prompts, str):
            raise TypeError("rlm_query_batched takes a list of prompts; for one prompt there is rlm_query")
        prompts = _listed(prompts, "rlm_query_batched takes a list of prompts")
        given = [None] * len(prompts)
        if contexts is not None:
            given = _listed(contexts, "contexts must be a list with one for each prompt")
        if len(given) != len(prompts):
            raise ValueError(f"{len(given):,} contexts for {len(prompts):,} prompts")
        outcomes = self._children(prompts, given, model, batch=True) if prompts else []
        warn_of_failures(outcomes)
        return [FailedReply(answer) if failed else answer for answer, failed in outcomes]

    def _children(self, prompts: list[str], contexts: list[Any], model: str | None, *, batch: bool) -> list[tuple[Any, bool]]:
        __tracebackhide__ = True
        allowed, _ = self._channel.ask({"kind": "children"})
        if "refused" in allowed:
            raise LMError(allowed["refused"])
        if not allowed["children"]:
            below = [_with_text(prompt, context) for prompt, context in zip(prompts, contexts, strict=True)]
            return list(self._ask(below, model, batch=batch))
        if blank := [place for place, prompt in enumerate(prompts) if isinstance(prompt, str) and not prompt.strip()]:
            which = f"prompts[{blank[0]}]" if batch else "prompt"
            raise ValueError(f"{which} is empty: say what the child is to find out")
        if len(prompts) > self._caps["children"]:
            raise ValueError(f"a batch of {len(prompts):,} children; at most {self._caps['children']:,}")
        datas = self._checked(prompts, model, batch=batch)
        parcel, told = self._leave(prompts, contexts)
        call = secrets.token_hex(16)
        request = {"kind": "call", "call": call, "batch": batch, "model": model, "child": True, "parcel": parcel}
        request |= {"sizes": [len(data) for data in datas], "told": [len(text) for text in told]}
        outcomes, values = self._send_call(request, b"".join([*datas, *told]))
        for place in values:
            try:
                outcomes[place] = self.taken(call, place), False
            except Exception as error:  # a value's own code may raise anything
                outcomes[place] = f"the child's answer could not be read here ({type(error).__name__}: {error})"[:2000], True
        self._channel.ask({"kind": "forget", "parcel": parcel})
        return outcomes

    def _leave(self, prompts: list[str], contexts: list[Any]) -> tuple[int, list[bytes]]:
        """Leave the contexts of children at the supervisor; the number of the parcel, and what the host is told of each."""
        pieces, chunks, told, end = [], [], [], 0
        for place, (prompt, context) in enumerate(zip(prompts, contexts, strict=True)):
            value = prompt if context is None else context
            form, written = pickles.pack(value, f"contexts[{place}]" if len(prompts) > 1 else "context")
            gap = bytes(-end % mmap.ALLOCATIONGRANULARITY)
            digest = digest_of(form, written.pieces)
            pieces.append({"form": form, "offset": end + len(gap), "size": written.size, "digest": digest})
            chunks += [gap, *written.pieces]
            end += len(gap) + written.size
            if end > self._caps["context"]:
                raise ValueError(f"contexts of more than {self._caps['context']:,} bytes: give less of them")
            about = {"own": context is not None, "type": describing.type_name(value), "size": describing.size(value)[0]}
            about |= {"text": shortened(describing.describe(value))}
            told.append(json.dumps(about).encode("ascii"))
        fd = unnamed(chunks, end, self._caps["finals"])
        try:
            answer, _ = self._channel.ask({"kind": "parcel", "pieces": pieces}, fd=fd)
        finally:
            os.close(fd)
        if "refused" in answer:
            raise LMError(answer["refused"])
        return answer["parcel"], told

    def _ask(self, prompts: list[str], model: str | None, *, batch: bool) -> list[tuple[str, bool]]:
        __tracebackhide__ = True
        datas = self._checked(prompts, model, batch=batch)
        request = {"kind": "call", "call": secrets.token_hex(16), "batch": batch, "model": model}
        return self._send_call({**request, "sizes": [len(data) for data in datas]}, b"".join(datas))[0]

    def _checked(self, prompts: list[str], model: str | None, *, batch: bool) -> list[bytes]:
        """Give the bytes of prompts that can be asked."""
        __tracebackhide__ = True
        if model is not None and not isinstance(model, str):
            raise TypeError(f"model must be a model's name (a str), not {type(model).__name__}")
        if len(prompts) > self._caps["batch"]:
            raise ValueError(f"a batch of {len(prompts):,} prompts; at most {self._caps['batch']:,}")
        datas = []
        for place, prompt in enumerate(prompts):
            which = f"prompts[{place}]" if batch else "prompt"
            if not isinstance(prompt, str):
                raise TypeError(f"{which} must be a str, not {type(prompt).__name__}; make text of it first")
            datas.append(prompt.encode("utf-8", "surrogatepass"))
            if len(datas[-1]) > self._caps["prompt"]:
                raise ValueError(f"{which} has {len(datas[-1]):,} bytes; at most {self._caps['prompt']:,}")
        whole = sum(map(len, datas))
        if whole > self._caps["message"]:
            raise ValueError(f"a batch of {whole:,} bytes; at most {self._caps['message']:,}: use several batches")
        return datas

    def _send_call(self, request: dict[str, Any], data: bytes) -> tuple[list[tuple[Any, bool]], list[int]]:
        """Make a call and wait; its outcomes, and the places where a value of a child is to be fetched."""
        __tracebackhide__ = True
        answer, body = self._asks.ask(request, data)
        if "refused" in answer:
            raise LMError(answer["refused"])
        outcomes: list[tuple[Any, bool]] = []
        at, errors = 0, set(answer["errors"])
        for place, size in enumerate(answer["sizes"]):
            outcomes.append((body[at : at + size].decode("utf-8", "surrogatepass"), place in errors))
            at += size
        return outcomes, list(answer.get("values", ()))


def _listed(given: Any, what: str) -> list[Any]:
    """Make a list of what is given for one. What has parts that are not meant, such as a dict's keys, is refused."""
    __tracebackhide__ = True
    if isinstance(given, (str, bytes, bytearray, dict)) or hasattr(given, "columns") or not hasattr(given, "__iter__"):
        raise TypeError(f"{what}, not a {type(given).__name__}")
    return list(given)


def _with_text(prompt: str, context: Any) -> str:
    """Give what an LM reads in place of a child: the prompt, and the context as text."""
    if context is None or not isinstance(prompt, str):
        return prompt
    text = context if isinstance(context, str) else crossing.text_of(context)
    return f"{prompt}\n\nContext:\n{text}"
