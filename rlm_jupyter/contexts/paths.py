"""Paths -> text: one text file, or a folder or glob as a dict of relative path to text.

Only what the user named is read: no hidden files, no links that lead out of the folder, nothing that is not a regular file.
Files that hold no text are listed and not read; what is known to hold something else is refused with what to type instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import glob
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from rlm_jupyter.errors import SettingsError
from rlm_jupyter.settings import CONTEXT_CAP, many

FILES_CAP = 200_000
LISTED = 20
_SNIFF = 8192
NEITHER = "neither a variable nor a path; to ask about a value, assign it to a variable in a cell above and name that"

_CONVERSIONS = {
    ".pdf": (
        "a PDF",
        "from pypdf import PdfReader; text = '\\n'.join(page.extract_text() for page in PdfReader({path!r}).pages)",
    ),
    ".xlsx": ("an Excel file", "import pandas; text = pandas.read_excel({path!r}, sheet_name=None)"),
    ".xls": ("an Excel file", "import pandas; text = pandas.read_excel({path!r}, sheet_name=None)"),
    ".parquet": ("a Parquet file", "import pandas; text = pandas.read_parquet({path!r})"),
    ".feather": ("a Feather file", "import pandas; text = pandas.read_feather({path!r})"),
    ".arrow": ("an Arrow file", "import pyarrow; text = pyarrow.ipc.open_file({path!r}).read_all()"),
    ".npy": ("a NumPy file", "import numpy; text = numpy.load({path!r})"),
    ".docx": ("a Word file", "import docx; text = '\\n'.join(p.text for p in docx.Document({path!r}).paragraphs)"),
    ".gz": ("compressed", "import gzip; text = gzip.open({path!r}, 'rt').read()"),
    ".zip": ("an archive", "unpack it, and name the folder"),
}
_MAGIC = {
    b"%PDF-": ".pdf",
    b"PAR1": ".parquet",
    b"ARROW1": ".arrow",
    b"\x93NUMPY": ".npy",
    b"\x1f\x8b": ".gz",
    b"PK\x03\x04": ".zip",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Read:
    """What was read: a text, or texts by relative path; `note` tells the LM where it is from and what was left out."""

    value: str | dict[str, str]
    note: str


def read_path(path: str) -> Read:
    """Read a text file, a folder or a glob; a `SettingsError` says what to type where there is no text."""
    given = _given(path)
    if given.is_dir():
        return _read_files(path, given, sorted(_walk(given)))
    if glob.has_magic(path) and not os.path.lexists(given):
        return _read_glob(path, str(given))
    text = read_text_file(path)
    return Read(text, f"It is the text of the file {given.name}.")


def _given(path: str) -> Path:
    """Give the path that somebody typed, or the line that says what else it is."""
    if not path.strip():
        raise SettingsError("--context is empty: name a variable of the notebook, a text file, a folder or a glob")
    given = Path(path).expanduser()
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        try:
            given.lstat()
        except ValueError:
            raise SettingsError(f"--context {path[:60]!a}: {NEITHER}") from None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise SettingsError(f"--context {path[:60]}...: {NEITHER}") from None
            raise
    return given


def _hint(path: str) -> str:
    """Tell what else may have been meant by a path that is none."""
    if "://" in path:
        return "an address is not read: download what is there, and name the file or the variable"
    return NEITHER if set(path) & set("()[]{}$+= ") else "a variable of the notebook is named without quotes or slashes"


def read_text_file(path: str) -> str:
    """Read one text file, byte for byte (line ends are kept); a `SettingsError` says what to type where it is none."""
    file = Path(path).expanduser()
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise SettingsError(f"--context {path}: not a file with text in it")
        if status.st_size > CONTEXT_CAP:
            raise SettingsError(f"--context {path}: {status.st_size:,} bytes is above the cap of {CONTEXT_CAP:,}")
        data = file.read_bytes()
    except FileNotFoundError:
        raise SettingsError(f"--context {path}: no such file; {_hint(path)}") from None
    except OSError as error:
        raise SettingsError(f"--context {path}: cannot be read ({error.strerror})") from None
    if conversion := _conversion(str(file), data[:8]):
        kind, code = conversion
        raise SettingsError(
            f"--context {path}: {kind}, not text; type {code}" + ("" if code[:6] == "unpack" else ", and use --context text")
        )
    text = _text(data)
    if text is None:
        if b"\x00" in data[:_SNIFF]:
            raise SettingsError(f"--context {path}: looks like a binary file; convert it to text first")
        raise SettingsError(
            f"--context {path}: not UTF-8 text; read it yourself, as in "
            f"text = open({path!r}, encoding='latin-1').read(), and use --context text"
        )
    return text


def _conversion(path: str, head: bytes) -> tuple[str, str] | None:
    """Give what a file is and the line that makes text or data of it, by its first bytes, else None."""
    suffix = os.path.splitext(path)[1].lower()
    found = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")
    if found == ".zip" and suffix in (".xlsx", ".docx"):
        found = suffix
    if head.startswith(b"\xd0\xcf\x11\xe0") and suffix == ".xls":
        found = suffix
    if head.startswith(b"ARROW1") and suffix == ".feather":
        found = suffix
    if not found:
        return None
    kind, code = _CONVERSIONS[found]
    return kind, code.format(path=path)


def _text(data: bytes) -> str | None:
    """Give the text of a file's bytes, None where they are none."""
    if b"\x00" in data[:_SNIFF]:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        yield from (Path(place, name) for name in files if not name.startswith("."))


def _read_glob(path: str, pattern: str) -> Read:
    parts = Path(pattern).parts
    fixed = Path(*parts[: next(n for n, part in enumerate(parts) if glob.has_magic(part))])
    found = sorted(Path(name) for name in glob.iglob(pattern, recursive=True) if not os.path.isdir(name))
    if not found:
        raise SettingsError(f"--context {path}: no file matches" + (f"; {NEITHER}" if _hint(path) == NEITHER else ""))
    return _read_files(path, fixed, found)


def _read_files(path: str, folder: Path, files: list[Path]) -> Read:
    if len(files) > FILES_CAP:
        raise SettingsError(f"--context {path}: {len(files):,} files; at most {FILES_CAP:,}. Name a smaller folder or a glob")
    inside = folder.resolve()
    texts: dict[str, str] = {}
    others: list[tuple[str, int]] = []
    total = 0
    for file in files:
        name = Path(os.path.relpath(file, folder)).as_posix()
        try:
            status = file.stat()
            if not stat.S_ISREG(status.st_mode) or (file.is_symlink() and not file.resolve().is_relative_to(inside)):
                continue
            total += status.st_size
            if total > CONTEXT_CAP:
                raise SettingsError(f"--context {path}: the files hold more than the cap of {CONTEXT_CAP:,} bytes")
            text = _read_if_text(file)
        except OSError:
            text, status = None, None
        if text is None:
            others.append((name, status.st_size if status else 0))
        else:
            texts[name] = text
    if not texts:
        held = f"{many(len(others), 'file')}, none of them text" if others else "no files"
        raise SettingsError(f"--context {path}: no readable text in it ({held}); name a folder or a glob of text files")
    return Read(texts, _note(folder, texts, others))


def _read_if_text(file: Path) -> str | None:
    with open(file, "rb") as opened:
        head = opened.read(_SNIFF)
        if b"\x00" in head or _conversion(str(file), head[:8]):
            return None
        return _text(head + opened.read())


def _note(folder: Path, texts: dict[str, str], others: list[tuple[str, int]]) -> str:
    note = f"Its keys are paths in the folder {folder.name or '.'}, its values the texts of {many(len(texts), 'file')}."
    if others:
        listed = ", ".join(f"{name[:100]} ({size:,} bytes)" for name, size in others[:LISTED])
        more = ", ..." if len(others) > LISTED else ""
        note += (
            f" {len(others):,} files that hold no text were not read: {listed}{more}."
            if len(others) > 1
            else f" 1 file that holds no text was not read: {listed}."
        )
    return note
