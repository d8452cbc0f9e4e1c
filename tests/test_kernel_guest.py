"""The guest's small parts by themselves: what is kept of output, text from hostile bytes, who descends from whom."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_jupyter.kernels.guest import processes
from rlm_jupyter.kernels.guest.asks import HELD_MESSAGES, AskConnection, AskListener
from rlm_jupyter.kernels.guest.frames import Header, pack
from rlm_jupyter.kernels.guest.loop import Loop
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


class Supervisor:
    """What asking needs of a supervisor, whose host may be slow."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.slow = False
        self.waiting: list[Callable[[], None]] = []

    def pressed(self, resume: Callable[[], None]) -> bool:
        if self.slow:
            self.waiting.append(resume)
        return self.slow

    def run_beside(self, work: Callable[[], None]) -> None:
        """Run the loop until `work` has ended in another thread."""
        done, doing = os.pipe()
        self.loop.watch(done, self.loop.stop)

        def until_done() -> None:
            try:
                work()
            finally:
                os.write(doing, b"x")

        thread = threading.Thread(target=until_done)
        thread.start()
        self.loop.run()
        thread.join(10)
        for fd in (done, doing):
            os.close(fd)


def caller(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    connection.connect(str(path))
    connection.sendall(b"".join(pack({"kind": "hello", "token": "mine"})))
    return connection


def test_p08_what_a_kernel_is_in_the_middle_of_asking_is_bounded(tmp_path: Path) -> None:
    supervisor, path, cap = Supervisor(), tmp_path / "ask", 1024 * 1024
    most: list[int] = []
    listener = AskListener(
        supervisor, str(path), "mine", cap, lambda *request: None, lambda connection: most.append(listener.held)
    )
    callers: list[socket.socket] = []
    ended: list[bytes] = []

    def flood() -> None:
        for _ in range(10):
            callers.append(caller(path))
            try:
                callers[-1].sendall(struct.pack(">IB", 900 * 1024, 1) + bytes(900 * 1024 - 1))
                if len(callers) > HELD_MESSAGES:
                    ended.append(callers[-1].recv(1))
            except ConnectionError:
                ended.append(b"")

    supervisor.run_beside(flood)
    assert ended == [b""] * (10 - HELD_MESSAGES)
    assert listener.cut == 10 - HELD_MESSAGES
    assert max(most) <= HELD_MESSAGES * cap
    assert listener.held == HELD_MESSAGES * (900 * 1024 - 1)
    for connection in callers:
        connection.close()
    listener.close()
    assert listener.held == 0


def test_p08_nothing_is_read_of_a_kernel_while_the_host_is_slow(tmp_path: Path) -> None:
    supervisor, path = Supervisor(), tmp_path / "ask"
    asked: list[Header] = []

    def ask(connection: AskConnection, header: Header, body: bytes) -> None:
        asked.append(header)
        connection.answer({})

    listener = AskListener(supervisor, str(path), "mine", 1024, ask, lambda connection: None)
    seen: list[int] = []

    def talk() -> None:
        connection = caller(path)
        connection.sendall(b"".join(pack({"kind": "first"})))
        assert connection.recv(100)
        supervisor.slow = True
        connection.sendall(b"".join(pack({"kind": "second"})))
        connection.settimeout(0.3)
        try:
            connection.recv(100)
        except TimeoutError:
            seen.append(len(asked))
        supervisor.slow = False
        supervisor.loop.later(0, lambda: [resume() for resume in supervisor.waiting])
        caller(path).close()  # wakes the loop
        connection.settimeout(10)
        assert connection.recv(100)
        connection.close()

    supervisor.run_beside(talk)
    assert seen == [1]
    assert asked == [{"kind": "first"}, {"kind": "second"}]
    listener.close()
