"""What is kept of a cell's output: the head, sent live; the tail, sent at the end; an exact count of the rest.

The cut is made here, beside the kernel, so that a cell that prints gigabytes costs the host a quarter of a MiB.
"""

from __future__ import annotations

from collections import deque

Piece = tuple[str, bytes]

HALF = 128 * 1024


class Keeper:
    """Collect the output of one cell. Cuts fall between characters of UTF-8 wherever the bytes are UTF-8."""

    def __init__(self, half: int = HALF) -> None:
        self._half = half
        self._room = half
        self._fresh: list[Piece] = []
        self._tail: deque[Piece] = deque()
        self._tail_size = 0
        self._omitted = 0

    def add(self, stream: str, data: bytes) -> None:
        """Take bytes of a stream, in the order in which they were written."""
        if self._room:
            cut = data if len(data) <= self._room else data[: _boundary(data, self._room)]
            self._room = self._room - len(cut) if len(cut) == len(data) else 0
            if cut:
                self._fresh.append((stream, cut))
            data = data[len(cut) :]
        if not data:
            return
        if len(data) > self._half:
            self._omitted += len(data) - self._half
            data = data[-self._half :]
        self._tail.append((stream, data))
        self._tail_size += len(data)
        while self._tail_size - len(self._tail[0][1]) >= self._half:
            self._drop(len(self._tail[0][1]))

    def skip(self, count: int) -> None:
        """Count bytes that the writer itself left out; what goes before them is either head or omitted."""
        self._room = 0
        self._omitted += count
        while self._tail:
            self._drop(len(self._tail[0][1]))

    def take(self) -> list[Piece]:
        """Give what belongs to the head and was not given yet, neighbours of one stream joined."""
        fresh, self._fresh = _join(self._fresh), []
        return fresh

    def finish(self) -> tuple[list[Piece], int, list[Piece]]:
        """Give the rest of the head, the number of bytes left out, and the tail."""
        excess = max(self._tail_size - self._half, 0)
        if self._tail and (excess or self._omitted):
            first = self._tail[0][1]
            while excess < len(first) and excess < self._half and first[excess] & 0xC0 == 0x80:
                excess += 1
            self._drop(excess)
        return self.take(), self._omitted, _join(list(self._tail))

    def _drop(self, count: int) -> None:
        stream, first = self._tail.popleft()
        if count < len(first):
            self._tail.appendleft((stream, first[count:]))
        self._tail_size -= count
        self._omitted += count


def _boundary(data: bytes, cut: int) -> int:
    """Step back from the middle of a character, three bytes at most."""
    for back in range(min(4, cut + 1)):
        if data[cut - back] & 0xC0 != 0x80:
            return cut - back
    return cut


def _join(pieces: list[Piece]) -> list[Piece]:
    joined: list[tuple[str, list[bytes]]] = []
    for stream, data in pieces:
        if joined and joined[-1][0] == stream:
            joined[-1][1].append(data)
        else:
            joined.append((stream, [data]))
    return [(stream, b"".join(datas)) for stream, datas in joined]
