"""Pictures of a run as a view may show them: checked anew, whoever made the event that holds them.

A picture event may come from a file that anybody wrote. Its base64 is read strictly, its bytes are checked and cleaned as those
of a kernel are, and what it says of itself must be what its bytes say; else there are words and no picture. What a page holds
is written from the cleaned bytes, never from the event.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Container, Iterable, Mapping

from rlm_jupyter.events import CellPicture
from rlm_jupyter.pictures import NoPicture, Picture, check

BELOW_CAP = 12_000_000
"""Characters of base64 of all pictures that are outputs of their own below a run."""


def opened(event: CellPicture) -> Picture:
    """Give the picture that an event holds; `NoPicture` says why it is not to be shown."""
    if not event.data:
        raise NoPicture("the trace had no room for it")
    try:
        data = base64.b64decode(event.data, validate=True)
    except ValueError:
        raise NoPicture("what should hold it is not base64") from None
    picture = check(data)
    if (event.media_type, event.width, event.height) != (picture.media_type, picture.width, picture.height):
        raise NoPicture("it is not what it is said to be")
    return picture


def coded(picture: Picture) -> str:
    """Give a picture as base64."""
    return base64.b64encode(picture.data).decode("ascii")


def told(picture: Picture, cell: int) -> str:
    """Name a picture in words."""
    return f"picture of {picture.width}x{picture.height} made by cell {str(cell)[:12]}"


def below(pictures: Mapping[int, CellPicture]) -> dict[int, Picture]:
    """Give the pictures to be shown below a run, by their numbers: the last that fit into `BELOW_CAP`."""
    kept: dict[int, Picture] = {}
    left = BELOW_CAP
    for number, event in reversed(list(pictures.items())):
        if len(event.data) > left:
            continue
        try:
            kept[number] = opened(event)
        except NoPicture:
            continue
        left -= len(event.data)
    return dict(reversed(kept.items()))


@dataclasses.dataclass(frozen=True, slots=True)
class Album:
    """The pictures of one page by their numbers, each checked or with the reason why it is none.

    `below`: those that are also shown below the run. `live`: the run goes on.
    """

    pictures: Mapping[int, Picture | NoPicture]
    below: Container[int] = ()
    live: bool = False

    @classmethod
    def of(cls, events: Mapping[int, CellPicture], numbers: Iterable[int], below: Container[int], live: bool) -> Album:
        """Check those of `events` that are named by `numbers`."""
        found: dict[int, Picture | NoPicture] = {}
        for number in numbers:
            try:
                found[number] = opened(events[number])
            except NoPicture as reason:
                found[number] = reason
        return cls(found, below, live)

    def elsewhere(self, number: int) -> str:
        """Say where a picture is that its row has no room for."""
        if number in self.below:
            return "shown below the run"
        return "too large to be shown while the run goes on" if self.live else "too large to be shown here"
