"""How large a request is, as the budget counts it beforehand: in bytes, since no tokenizer makes more than one token of a byte.

Generous on purpose: what is reserved too much is given back when the provider has told what it was.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlm_jupyter.lm.client import Message

MESSAGE_BYTES, REQUEST_BYTES = 16, 64
"""What a server adds to the text of a message and of a request, generously, in bytes."""
PICTURE_BYTES = 6_000
"""What a picture is taken for: providers charge some hundreds to a few thousand tokens for one."""


def size_of(messages: Sequence[Message]) -> int:
    """Give the size of a request with these messages."""
    return REQUEST_BYTES + sum(_content_length(message["content"]) + MESSAGE_BYTES for message in messages)


def _byte_length(text: str) -> int:
    """Give the size of `text` in UTF-8, lone surrogates included."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _content_length(content: object) -> int:
    """Give the bytes of a message's content as the budget counts them: of its text, and `PICTURE_BYTES` for each picture."""
    if isinstance(content, list):
        return sum(_byte_length(part["text"]) if part["type"] == "text" else PICTURE_BYTES for part in content)
    return _byte_length(str(content))
