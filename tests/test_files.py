"""Files of the code come back with safe names, and are saved only where the user says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_jupyter import RLM
from rlm_jupyter.errors import SettingsError
from rlm_jupyter.events import Notice
from rlm_jupyter.files import clean, safe_name, save
from rlm_jupyter.settings import FILES_CAP, FILES_COUNT_CAP
from rlm_jupyter.testing import ScriptedServer
from tests.shells import open_shell

WRITE = """
import os
open("table.csv", "w").write("a,b\\n1,2\\n")
os.makedirs("plots"); open("plots/one.txt", "wb").write(b"\\x00one")
os.symlink("/etc/hostname", "link.txt"); os.mkfifo("pipe"); open(".hidden", "w").write("x")
os.chdir("/")
FINAL_VAR(1)
"""


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("table.csv", "table.csv"),
        ("a/b.txt", "a/b.txt"),
        ("../../etc/passwd", "etc/passwd"),
        ("/etc/passwd", "etc/passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("C:\\x", "C_/x"),
        (".bashrc", "_bashrc"),
        ("a/./../b", "a/b"),
        ("..", ""),
        ("", ""),
        ("nul\x00\n\u202etxt.exe", "nul___txt.exe"),
        ("CON", "_CON"),
        ("-rf", "_rf"),
        ("x" * 500 + ".png", "x" * 116 + ".png"),
    ],
)
def test_names_are_made_safe(name: str, safe: str) -> None:
    assert safe_name(name) == safe


@given(st.text(max_size=300) | st.lists(st.sampled_from(["..", ".", "/", "\\", "~", "a", "\x00", "é" * 300])).map("".join))
def test_no_name_leads_elsewhere(name: str) -> None:
    safe = safe_name(name)
    assert not os.path.isabs(safe)
    assert all(part not in ("", ".", "..") and not part.startswith((".", "~")) for part in safe.split("/") if safe)
    assert all(len(part.encode()) <= 255 for part in safe.split("/"))
    assert safe_name(safe) == safe


def test_what_is_no_file_is_left_out_and_the_caps_hold() -> None:
    assert clean([("a", b"x")]) == {}
    assert clean({1: b"x", "a": "text", "b": b"y", "..": b"z"}) == {"b": b"y"}
    assert clean({"a": b"1", "./a": b"2"}) == {"a": b"1", "a-2": b"2"}
    assert len(clean({str(n): b"" for n in range(2 * FILES_COUNT_CAP)})) == FILES_COUNT_CAP
    big = bytes(FILES_CAP // 2 + 1)
    assert list(clean({"one": big, "two": big})) == ["one"]


def test_saving_overwrites_nothing_and_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "a.txt").write_text("mine")
    (folder / "sub").symlink_to(outside)
    (folder / "b.txt").symlink_to(outside / "b.txt")
    paths = save({"a.txt": b"new", "sub/x.txt": b"x", "b.txt": b"b", "../c.txt": b"c"}, folder)
    assert (folder / "a.txt").read_text() == "mine"
    assert [path.relative_to(folder).as_posix() for path in paths] == ["a-2.txt", "sub_files/x.txt", "b-2.txt", "c.txt"]
    assert [path.read_bytes() for path in paths] == [b"new", b"x", b"b", b"c"]
    assert list(outside.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="files cannot be saved in"):
        save({"a": b""}, tmp_path / "file")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer([f"```repl\n{WRITE}\n```"]) as server:
        yield server


def test_a_run_gives_the_files_of_its_folder(server: ScriptedServer, tmp_path: Path) -> None:
    with RLM(backend_kwargs={"model_name": "scripted", "base_url": server.url}) as rlm:
        result = rlm.completion("text", "question?")
    assert dict(result.files) == {"table.csv": b"a,b\n1,2\n", "plots/one.txt": b"\x00one"}
    assert result.save_files(tmp_path / "new")[0].read_text() == "a,b\n1,2\n"


def test_files_beyond_the_cap_are_told(tmp_path: Path) -> None:
    code = "for n in range(1_002):\n    open(f'{n}.txt', 'w').close()\nopen('.hidden', 'w').close()\nFINAL_VAR(1)"
    with (
        ScriptedServer([f"```repl\n{code}\n```"]) as server,
        RLM(backend_kwargs={"model_name": "scripted", "base_url": server.url}) as rlm,
    ):
        result = rlm.completion("text", "question?")
    assert len(result.files) == 1_000
    told = [event.text for event in result.trace.events if isinstance(event, Notice) and "left out" in event.text]
    assert told == ["left out of what the code wrote: 2 files; at most 1,000 files and 256 MiB are kept"]


def test_the_magic_saves_files_where_it_is_told(server: ScriptedServer, tmp_path: Path) -> None:
    with open_shell() as shell:
        shell.run("text = 'text'")
        line = f"%%rlm --context text --model m --base-url {server.url} --view none --save-files {tmp_path / 'out'}"
        ran = shell.run(f"{line}\nquestion?")
    assert ran.error is None
    assert ran.output.startswith("2 files saved: ")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["one.txt", "plots", "table.csv"]
