"""The files that code wrote in its working folder: names made safe, sizes bounded, saved only where the user says.

They come from the kernel as an answer does, as names and bytes, and names are the kernel's to choose: here they lose whatever
could lead elsewhere. `save` creates files and never overwrites one, and follows no link below the folder that the user named.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlm_jupyter.errors import SettingsError
from rlm_jupyter.settings import FILES_CAP, FILES_COUNT_CAP

_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"|?*\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]')
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)")
_LONGEST = 120
_DEEPEST = 8
_TRIES = 1000


def safe_name(name: str) -> str:
    """Give a relative path in which every part is a plain, visible name; "" where nothing is left."""
    parts = []
    for part in re.split(r"[/\\]", name):
        plain = _UNSAFE.sub("_", part).strip().rstrip(".")
        if not plain.strip("."):
            continue
        if plain.startswith((".", "-", "~")):
            plain = "_" + plain[1:]
        stem, suffix = os.path.splitext(plain)
        plain = stem[: _LONGEST - len(suffix[:20])] + suffix[:20]
        while len(plain.encode()) > 2 * _LONGEST:
            plain = plain[1:]
        parts.append("_" + plain if _RESERVED.match(plain) else plain)
    return "/".join(parts[-_DEEPEST:])


def clean(given: Any) -> dict[str, bytes]:
    """Give the files by safe names, within the caps; what is not a name with bytes is left out."""
    files: dict[str, bytes] = {}
    total = 0
    for name, data in given.items() if isinstance(given, dict) else ():
        if not isinstance(name, str) or not isinstance(data, bytes) or len(files) >= FILES_COUNT_CAP:
            continue
        safe = safe_name(name)
        total += len(data)
        if safe and total <= FILES_CAP:
            files[next(other for other in _numbered(safe) if other not in files)] = data
    return files


def save(files: Mapping[str, bytes], folder: str | os.PathLike[str]) -> list[Path]:
    """Write files below `folder`, which is made if need be; give their paths.

    A name that is taken gets a number; nothing is overwritten and no link is followed.

    Raises
    ------
    SettingsError
        The folder cannot be written.
    """
    base = Path(os.path.expanduser(folder))
    try:
        base.mkdir(parents=True, exist_ok=True)
        root = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise SettingsError(f"files cannot be saved in {folder}: {error.strerror}") from None
    try:
        return [base / _save_one(root, safe_name(name), data) for name, data in files.items() if safe_name(name)]
    except OSError as error:
        raise SettingsError(f"files cannot be saved in {folder}: {error.strerror}") from None
    finally:
        os.close(root)


def _save_one(root: int, name: str, data: bytes) -> str:
    *folders, last = name.split("/")
    place = os.dup(root)
    try:
        for number, part in enumerate(folders):
            try:
                place = _enter(place, part)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                    raise
                # A link or a file is in the way: go into a folder of another name.
                folders[number] = part + "_files"
                place = _enter(place, folders[number])
        for tried in _numbered(last):
            try:
                fd = os.open(tried, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=place)
            except FileExistsError:
                continue
            with os.fdopen(fd, "wb") as file:
                file.write(data)
            return "/".join([*folders, tried])
    finally:
        os.close(place)
    raise OSError(errno.EEXIST, "every name is taken")


def _enter(place: int, part: str) -> int:
    """Make the folder `part` in `place` if it is not there, and give it; `place` is closed when that went well."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(part, dir_fd=place)
    inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=place)
    os.close(place)
    return inner


def _numbered(name: str) -> Iterator[str]:
    stem, suffix = os.path.splitext(name)
    yield name
    yield from (f"{stem}-{number}{suffix}" for number in range(2, _TRIES))
