"""The file system of a sandbox as a file: what its processes wrote, as one tar archive.

Only what is written can differ from box to box (the rest is this machine's, read-only), so that is all an archive holds.
"""

from __future__ import annotations

import sys
from pathlib import Path, PurePosixPath

from tests.modal_local.boxes import Box, run

SHEBANG = f"#!{sys.base_prefix}/bin/python3 -IS"
_WHOLE = ("--acls", "--xattrs", "--numeric-owner")


async def pack(box: Box, folder: str, to: Path) -> None:
    """Write what is below a folder of the box into an archive."""
    inside = [at.relative_to(folder) for at in box.mounts() if at.is_relative_to(folder)]
    left_out = [f"--exclude=./{at}" for at in inside if at != PurePosixPath()]
    await run(["tar", "--create", *_WHOLE, f"--file={to}", f"--directory={box.root}{folder}", "--anchored", *left_out, "."])


async def unpack(box: Box, archive: Path, folder: str = "/") -> None:
    """Put the files of an archive below a folder of the box."""
    await run(["tar", "--extract", "--no-overwrite-dir", *_WHOLE, f"--file={archive}", f"--directory={box.root}{folder}"])
