"""The guest's small parts by themselves: what is kept of output, text from hostile bytes, who descends from whom."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_jupyter.kernels.guest import processes
from rlm_jupyter.kernels.guest.output import Keeper
from rlm_jupyter.kernels.text import TextDecoder, plain

PIECES = st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.text(alphabet="aé€😀\n", max_size=30)), max_size=30)


@given(pieces=PIECES, half=st.integers(4, 64), takes=st.booleans())
def test_head_and_tail_are_exact_and_the_rest_is_counted(pieces: list[tuple[str, str]], half: int, takes: bool) -> None:
    keeper = Keeper(half)
    taken: list[tuple[str, bytes]] = []
    for stream, text in pieces:
        keeper.add(stream, text.encode())
        if takes:
            taken += keeper.take()
    head, omitted, tail = keeper.finish()
    whole = b"".join(text.encode() for _, text in pieces)
    first, last = b"".join(data for _, data in taken + head), b"".join(data for _, data in tail)
    assert len(first) + omitted + len(last) == len(whole)
    assert whole.startswith(first)
    assert whole.endswith(last)
    assert len(first) <= half
    assert len(last) <= half
    if len(whole) <= half or (len(whole) <= 2 * half and first):
        assert omitted <= 6
    first.decode()
    last.decode()


def test_what_the_writer_left_out_is_counted_between() -> None:
    keeper = Keeper(10)
    keeper.add("result", b"0123456789")
    keeper.skip(1000)
    keeper.add("result", b"the end")
    assert keeper.finish() == ([("result", b"0123456789")], 1000, [("result", b"the end")])


SEQUENCES = [
    "\x1b[31m",
    "\x1b[0;1;38;5;200m",
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\x1b]8;;http://x\x1b\\",
    "\x9b1m",
    "\x1bc",
    "\x1b(B",
    "\x1bPq\x1b\\",
]


@pytest.mark.parametrize("sequence", SEQUENCES)
@pytest.mark.parametrize("cut", range(8))
def test_terminal_sequences_are_taken_out_wherever_the_stream_is_cut(sequence: str, cut: int) -> None:
    data = f"a{sequence}b".encode()
    decoder = TextDecoder()
    assert decoder.feed(data[:cut]) + decoder.feed(data[cut:]) + decoder.feed(b"", final=True) == "ab"


@given(data=st.binary(max_size=200), cut=st.integers(0, 200))
def test_no_control_character_survives(data: bytes, cut: int) -> None:
    decoder = TextDecoder()
    text = decoder.feed(data[:cut]) + decoder.feed(data[cut:]) + decoder.feed(b"", final=True)
    assert not {character for character in text if character < " " or "\x7f" <= character <= "\x9f"} - set("\n\t\r")
    text.encode()


def test_line_ends_become_one_character() -> None:
    decoder = TextDecoder()
    assert decoder.feed(b"a\r") + decoder.feed(b"\nb\rc\r\n") == "a\nb\rc\n"
    assert plain("x\r\ny") == "x\ny"


def test_an_endless_sequence_is_not_kept_for_ever() -> None:
    decoder = TextDecoder()
    shown = "".join(decoder.feed(b"\x1b]0;" + b"x" * 5000) for _ in range(3))
    assert len(shown) >= 5000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_descendants_are_found_through_generations() -> None:
    code = "import subprocess as s; p = s.Popen(['sleep', '60'], stdout=s.DEVNULL); print(p.pid, flush=True); p.wait()"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        grandchild = int(child.stdout.readline())
        assert set(processes.descendants([os.getpid()])) >= {child.pid, grandchild}
        assert processes.descendants([child.pid]) == [grandchild]
    finally:
        processes.kill([child.pid, *processes.descendants([child.pid])])
        child.wait()
        child.stdout.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_carries_a_folder_belongs_to_it(tmp_path: os.PathLike[str]) -> None:
    folder = os.fspath(tmp_path)
    child = subprocess.Popen(["sleep", "60"], cwd=folder)
    try:
        assert processes.belongs_to(child.pid, folder)
        assert not processes.belongs_to(child.pid, folder + "x")
        assert not processes.belongs_to(os.getpid(), folder)
    finally:
        child.kill()
        child.wait()
