"""Paths -> text: one text file, or a folder or glob as a dict of relative path to text.

Only what the user named is read: no hidden files, no links that lead out of the folder, nothing that is not a regular file.
Files that hold no text are listed and not read; what is known to hold something else is refused with what to type instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import glob
import itertools
import os
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from rlm_jupyter.contexts.payload import PROGRESS_AFTER, PROGRESS_EVERY, Progress
from rlm_jupyter.errors import SettingsError
from rlm_jupyter.settings import CONTEXT_CAP, many

FILES_CAP = 200_000
LISTED = 20
_SNIFF = 8192
NEITHER = "neither a variable nor a path; to ask about a value, assign it to a variable in a cell above and name that"

_UNPACK = "unpack it, and name the folder"
_TEXT_BY_OFFICE = "save it as text first, as with soffice --headless --convert-to txt:Text {path}, and name that file"
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
    ".npz": ("an archive of NumPy's", "import numpy; text = dict(numpy.load({path!r}))"),
    ".docx": ("a Word file", "import docx; text = '\\n'.join(p.text for p in docx.Document({path!r}).paragraphs)"),
    ".gz": ("compressed", "import gzip; text = gzip.open({path!r}, 'rt').read()"),
    ".zip": ("an archive", _UNPACK),
    ".tar": ("an archive", _UNPACK),
    ".bz2": ("compressed", "import bz2; text = bz2.open({path!r}, 'rt').read()"),
    ".xz": ("compressed", "import lzma; text = lzma.open({path!r}, 'rt').read()"),
    ".zst": ("compressed", "unpack it with zstd -d {path}, and name the file that this gives"),
    ".pptx": ("a PowerPoint file", _TEXT_BY_OFFICE),
    ".doc": ("an old Word file", _TEXT_BY_OFFICE),
    ".odt": ("an OpenDocument file", _TEXT_BY_OFFICE),
    ".epub": ("an e-book, which is an archive of web pages", _UNPACK),
    ".db": (
        "an SQLite database",
        "import pandas, sqlite3; text = pandas.read_sql('SELECT * FROM NAME', sqlite3.connect({path!r}))",
    ),
    ".h5": ("an HDF5 file", "import pandas; text = pandas.read_hdf({path!r})"),
    ".pkl": ("a pickle", "import pandas; text = pandas.read_pickle({path!r})"),
    ".png": ("a picture", "from PIL import Image; text = Image.open({path!r})"),
}
_MAGIC = {
    b"%PDF-": ".pdf",
    b"PAR1": ".parquet",
    b"ARROW1": ".arrow",
    b"\x93NUMPY": ".npy",
    b"\x1f\x8b": ".gz",
    b"PK\x03\x04": ".zip",
    b"BZh91AY": ".bz2",
    b"\xfd7zXZ\x00": ".xz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"SQLite f": ".db",
    b"\x89HDF\r\n\x1a\n": ".h5",
    b"\x89PNG\r\n\x1a\n": ".png",
    b"\xff\xd8\xff": ".png",
    b"GIF87a": ".png",
    b"GIF89a": ".png",
    b"\xd0\xcf\x11\xe0": ".doc",
}
_EXCEL = (".xlsx", ".xlsm", ".xlsb", ".ods")
_BY_SUFFIX = {".zip": (*_EXCEL, ".npz", ".docx", ".pptx", ".odt", ".epub"), ".doc": (".xls",), ".arrow": (".feather",)}
"""What shares its first bytes with others, and is told from them by the end of its name."""
_WIDE = {b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


@dataclasses.dataclass(frozen=True, slots=True)
class Read:
    """What was read: a text, or texts by relative path; `note` tells the LM where it is from and what was left out."""

    value: str | dict[str, str]
    note: str


def read_path(path: str, progress: Progress | None = None) -> Read:
    """Read a text file, a folder or a glob; a `SettingsError` says what to type where there is no text.

    `progress` is called with the bytes of the files so far, when it takes longer than a second.
    """
    given = _given(path)
    if given.is_dir():
        return _read_files(path, given, sorted(itertools.islice(_walk(given), FILES_CAP + 1)), progress)
    if glob.has_magic(path) and not os.path.lexists(given):
        return _read_glob(path, str(given), progress)
    text = read_text_file(path)
    return Read(text, f"It is the text of the file {given.name}.")


def _given(path: str) -> Path:
    """Give the path that somebody typed, or the line that says what else it is."""
    if not path.strip():
        raise SettingsError("--context is empty: name a variable of the notebook, a text file, a folder or a glob")
    try:
        given = Path(path).expanduser()
    except RuntimeError:
        raise SettingsError(f"--context {path[:60]!a}: nobody of that name has a home folder here") from None
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
        raise SettingsError(f"--context {path}: {_missing(path)}") from None
    except OSError as error:
        raise SettingsError(f"--context {path[:200]}: cannot be read ({error.strerror})") from None
    if conversion := _conversion(str(file), data[:8], binary=b"\x00" in data[:_SNIFF]):
        kind, code = conversion
        raise SettingsError(
            f"--context {path}: {kind}, not text; " + (f"type {code}, and use --context text" if "text = " in code else code)
        )
    text = _text(data)
    if text is None:
        wide = next((name for mark, name in _WIDE.items() if data.startswith(mark)), None)
        if wide is None and b"\x00" in data[:_SNIFF]:
            raise SettingsError(f"--context {path}: looks like a binary file; convert it to text first")
        raise SettingsError(
            f"--context {path}: not UTF-8 text; read it yourself, as in "
            f"text = open({path!r}, encoding={wide or 'latin-1'!r}).read(), and use --context text"
        )
    return text


def _missing(path: str) -> str:
    """Say what to type where there is no file of a name."""
    file = Path(path).expanduser()
    if file.is_symlink():
        return f"a link to {os.readlink(file)}, where nothing is"
    with contextlib.suppress(OSError):
        if close := difflib.get_close_matches(file.name, os.listdir(file.parent), n=1, cutoff=0.75):
            return f"no such file; did you mean {file.with_name(close[0])}?"
    return f"no such file; {_hint(path)}"


def _conversion(path: str, head: bytes, *, binary: bool = False) -> tuple[str, str] | None:
    """Give what a file is and the line that makes text or data of it, by its first bytes, a `binary` one also by its name."""
    suffix = os.path.splitext(path)[1].lower()
    found = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")
    if suffix in _BY_SUFFIX.get(found, ()):
        found = ".xlsx" if suffix in _EXCEL else suffix
    if found in (".gz", ".bz2", ".xz", ".zst") and (path.lower().rpartition(".")[0].endswith(".tar") or suffix == ".tgz"):
        found = ".tar"
    if not found and suffix in (".pkl", ".pickle") and head.startswith(b"\x80"):
        found = ".pkl"
    if not found and binary and suffix in _CONVERSIONS:
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


def _read_glob(path: str, pattern: str, progress: Progress | None) -> Read:
    parts = Path(pattern).parts
    there = itertools.takewhile(lambda count: os.path.lexists(Path(*parts[:count])), range(1, len(parts)))
    fixed = Path(*parts[: max(there, default=0)])  # what is there is meant as it stands, also `notes [old]`
    rest = str(Path(*parts[len(fixed.parts) :]))
    found = _once(fixed / name for name in glob.iglob(rest, root_dir=fixed, recursive=True) if not (fixed / name).is_dir())
    if not found:
        raise SettingsError(f"--context {path}: no file matches" + (f"; {NEITHER}" if _hint(path) == NEITHER else ""))
    return _read_files(path, fixed, found, progress)


def _once(files: Iterable[Path]) -> list[Path]:
    """Give each file once, by its shortest path: a link that leads to a folder above it would show it again and again."""
    found: dict[tuple[str, str], Path] = {}
    folders: dict[Path, str] = {}
    for file in files:
        place = folders.get(file.parent) or folders.setdefault(file.parent, os.path.realpath(file.parent))
        known = found.setdefault((place, file.name), file)
        if len(file.parts) < len(known.parts):
            found[place, file.name] = file
    return sorted(found.values())


def _read_files(path: str, folder: Path, files: list[Path], progress: Progress | None) -> Read:
    if len(files) > FILES_CAP:
        raise SettingsError(
            f"--context {path}: more than {FILES_CAP:,} files, which is the cap. Name a smaller folder or a glob"
        )
    inside = folder.resolve()
    texts: dict[str, str] = {}
    others: list[tuple[str, int]] = []
    total = 0
    tell_at = time.monotonic() + PROGRESS_AFTER
    for file in files:
        if progress is not None and time.monotonic() >= tell_at:
            tell_at = time.monotonic() + PROGRESS_EVERY
            progress(total)
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
