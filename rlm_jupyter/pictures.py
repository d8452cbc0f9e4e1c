"""PNG and JPEG pictures, checked: what code in a kernel calls a picture is believed only as far as its bytes show it.

`check` reads the structure (not the pixels), bounds dimensions and size, and gives the picture back without what a viewer
does not need: no text, no metadata, nothing after the end. No other format is ever taken.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib

from rlm_jupyter.settings import PICTURE_CAP

PIXELS_CAP = 64_000_000
SIDE_CAP = 16_384
_PNG = b"\x89PNG\r\n\x1a\n"
_KEPT_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"pHYs", b"IDAT", b"IEND")
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
"""Markers that begin a JPEG's frame, of the kinds that browsers show."""
_KEPT_MARKERS = frozenset({0xC4, 0xDA, 0xDB, 0xDD, 0xE0, 0xEE}) | _FRAMES


class NoPicture(ValueError):
    """The bytes are not a picture that is taken; the text says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """A checked picture: `media_type` is image/png or image/jpeg. A notebook shows it."""

    data: bytes
    media_type: str
    width: int
    height: int

    def __repr__(self) -> str:
        return f"<a picture of {self.width}x{self.height}, {self.media_type}, {len(self.data):,} bytes>"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, object]:
        return {self.media_type: self.data, "text/plain": repr(self)}


def check(data: bytes) -> Picture:
    """Give the picture in `data`, cleaned; `NoPicture` where it is none, or too large."""
    if len(data) > PICTURE_CAP:
        raise NoPicture(f"a picture of {len(data):,} bytes; at most {PICTURE_CAP:,}")
    try:
        if data.startswith(_PNG):
            return _check_png(data)
        if data.startswith(b"\xff\xd8\xff"):
            return _check_jpeg(data)
    except (struct.error, IndexError):
        raise NoPicture("a picture that is cut off") from None
    raise NoPicture("neither PNG nor JPEG")


def _check_size(width: int, height: int) -> None:
    if not (0 < width <= SIDE_CAP and 0 < height <= SIDE_CAP and width * height <= PIXELS_CAP):
        raise NoPicture(f"a picture of {width}x{height}: too large, or empty")


def _check_png(data: bytes) -> Picture:
    kept = [_PNG]
    names: list[bytes] = []
    width = height = 0
    at = len(_PNG)
    while not names or names[-1] != b"IEND":
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data) or zlib.crc32(data[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise NoPicture("a PNG that is cut off, or whose sums are wrong")
        if not names:
            if name != b"IHDR" or length != 13:
                raise NoPicture("a PNG without a header")
            width, height = struct.unpack_from(">II", data, at + 8)
            _check_size(width, height)
        elif name == b"IHDR":
            raise NoPicture("a PNG with two headers")
        if name in _KEPT_CHUNKS:
            kept.append(data[at:end])
        elif not name[0] & 0x20:
            raise NoPicture("a PNG with an unknown part that it needs")
        names.append(name)
        at = end
    if b"IDAT" not in names:
        raise NoPicture("a PNG without a picture")
    return Picture(b"".join(kept), "image/png", width, height)


def _check_jpeg(data: bytes) -> Picture:
    kept = [b"\xff\xd8"]
    width = height = 0
    at = 2
    while True:
        if data[at] != 0xFF:
            raise NoPicture("a JPEG with something between its parts")
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xD9:
            break
        (length,) = struct.unpack_from(">H", data, at + 2)
        end = at + 2 + length
        if length < 2 or end > len(data):
            raise NoPicture("a JPEG that is cut off")
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            _check_size(width, height)
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            raise NoPicture("a JPEG of a kind that browsers do not show")
        if marker in _KEPT_MARKERS:
            kept.append(data[at:end])
        at = end
        if marker == 0xDA:
            end = _end_of_scan(data, at)
            kept.append(data[at:end])
            at = end
    if not width or len(kept) < 3:
        raise NoPicture("a JPEG without a picture")
    return Picture(b"".join([*kept, b"\xff\xd9"]), "image/jpeg", width, height)


def _end_of_scan(data: bytes, at: int) -> int:
    """Give the place of the next marker after a scan's data: stuffed zeros and restarts belong to the data."""
    while True:
        at = data.find(b"\xff", at)
        if at < 0:
            raise NoPicture("a JPEG that is cut off")
        if data[at + 1] != 0 and not 0xD0 <= data[at + 1] <= 0xD7:
            return at
        at += 2
