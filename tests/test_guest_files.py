"""Files that the host puts into the run's folder: whole and in order, or told when they are used; and those without a name."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from rlm_jupyter.kernels.guest import wire
from rlm_jupyter.kernels.guest.files import Files
from rlm_jupyter.kernels.guest.memfiles import unnamed


def test_pieces_that_came_as_files_are_put_together_and_removed(tmp_path: Path) -> None:
    files, pieces = Files(str(tmp_path)), [os.urandom(size) for size in (300_000, 1, 700_001)]
    for number, piece in enumerate(pieces):
        (tmp_path / f"context-1{f'-{number}' if number else ''}").write_bytes(piece)
        if number:
            files.append(wire.Append("context-1", f"context-1-{number}"))
            assert sorted(os.listdir(tmp_path)) == ["context-1"], "no room for two of the whole"
    assert (tmp_path / "context-1").read_bytes() == b"".join(pieces)
    assert files.failure("context-1") == ""


def test_a_piece_that_is_not_there_is_told_until_the_file_is_discarded(tmp_path: Path) -> None:
    files = Files(str(tmp_path))
    (tmp_path / "context-1").write_bytes(b"first")
    files.append(wire.Append("context-1", "context-1-1"))
    assert files.failure("context-1") == "it could not be put together (No such file or directory)"
    (tmp_path / "context-1-2").write_bytes(b"last")
    files.append(wire.Append("context-1", "context-1-2"))
    assert (tmp_path / "context-1").read_bytes() == b"first", "nothing is put behind a gap"
    files.discard(wire.Discard("context-1"))
    assert (files.failure("context-1"), os.listdir(tmp_path)) == ("", [])


def test_links_are_not_followed_when_pieces_are_put_together(tmp_path: Path) -> None:
    folder, outside = tmp_path / "run", tmp_path / "outside"
    folder.mkdir()
    outside.write_bytes(b"mine")
    for name, other in (("context-1", "context-1-1"), ("context-2-1", "context-2")):
        (folder / name).symlink_to(outside)
        (folder / other).write_bytes(b"theirs")
    files = Files(str(folder))
    for whole in ("context-1", "context-2"):
        files.append(wire.Append(whole, f"{whole}-1"))
        assert "could not be put together" in files.failure(whole)
    assert outside.read_bytes() == b"mine"
    assert (folder / "context-2").read_bytes() == b"theirs"


def test_an_answer_goes_by_the_disk_where_its_pages_cannot_be_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux refuses a seal with EBUSY while it moves a page, which comes to nothing a moment later."""
    pieces, before = [b"one", b"two" * 100_000], os.listdir("/proc/self/fd")

    def busy(fd: int, command: int, *rest: int) -> int:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(fcntl, "fcntl", busy)
    fd = unnamed(pieces, 300_003, str(tmp_path))
    monkeypatch.undo()
    try:
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        assert os.pread(fd, 1 << 20, 0) == b"".join(pieces)
    finally:
        os.close(fd)
    assert (os.listdir(tmp_path), os.listdir("/proc/self/fd")) == ([], before)
    fd = unnamed(pieces, 300_003, str(tmp_path))
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
    os.close(fd)
