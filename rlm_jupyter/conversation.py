"""What a node and its LM have said to each other: a list of messages that only grows.

What stands in it is never changed once the LM has read it, so that a provider's prompt cache hits at each turn.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

from rlm_jupyter.lm.client import ImagePart, Message, TextPart
from rlm_jupyter.pictures import Picture

PICTURES_FOR_LM, PICTURE_FOR_LM = 4, 4 * 1024 * 1024
"""Pictures of one turn that an LM is sent at most, where it is sent any, and bytes of one."""


class Conversation:
    """The messages of one node, `system` the first of them."""

    def __init__(self, system: str) -> None:
        self.messages: list[Message] = [{"role": "system", "content": system}]

    def tell(self, text: str, pictures: Sequence[Picture] = ()) -> None:
        """Tell the LM something, with the last of the pictures that are not too large for it."""
        content: str | list[TextPart | ImagePart] = text
        if sent := [picture for picture in pictures if len(picture.data) <= PICTURE_FOR_LM][-PICTURES_FOR_LM:]:
            content = [{"type": "text", "text": text}, *map(_part, sent)]
        self.messages.append({"role": "user", "content": content})

    def tell_end(self, text: str) -> None:
        """Tell the end: in the last message where that is not answered yet, since some servers want turns to alternate."""
        last = self.messages[-1]
        if last["role"] == "user" and isinstance(last["content"], str):
            self.messages[-1] = {"role": "user", "content": f"{last['content']}\n\n{text}"}
        else:
            self.tell(text)

    def answered(self, text: str) -> None:
        """Take the LM's reply."""
        self.messages.append({"role": "assistant", "content": text})


def _part(picture: Picture) -> ImagePart:
    data = base64.b64encode(picture.data).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:{picture.media_type};base64,{data}"}}
