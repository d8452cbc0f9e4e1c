#!/usr/bin/env python3
"""What `Sandbox.filesystem` runs in a sandbox, with the commands and errors of Modal's own tool.

One JSON command as the only argument; file contents by standard input and output; an error as a JSON object on standard error.
It stands alone in the sandbox, on the standard library.
"""

import ctypes
import errno
import grp
import json
import os
import pwd
import select
import shutil
import stat
import struct
import sys
import time
from collections.abc import Callable

PIECE = 1 << 20
KINDS = {
    errno.ENOENT: "NotFound",
    errno.ENOTDIR: "NotDirectory",
    errno.EISDIR: "IsDirectory",
    errno.EEXIST: "PathAlreadyExists",
    errno.ENOTEMPTY: "DirectoryNotEmpty",
    errno.EACCES: "PermissionDenied",
    errno.EPERM: "PermissionDenied",
    errno.EROFS: "PermissionDenied",
}
CHANGES = {0x1: "Access", 0x2: "Modify", 0x4: "Modify", 0x40: "RenameFrom", 0x80: "RenameTo", 0x100: "Create", 0x200: "Remove"}
IS_FOLDER = 0x40000000


def read_file(path: str) -> None:
    """Send the contents of a file."""
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(PIECE):
            view = memoryview(piece)
            while view:
                view = view[os.write(1, view) :]


def write_file(path: str) -> None:
    """Receive the contents of a file, whose folders are made."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb", buffering=0) as file:
        while piece := os.read(0, PIECE):
            file.write(piece)


def remove(path: str, recursive: bool) -> None:
    """Remove a file, an empty folder, or everything."""
    if not os.path.isdir(path) or os.path.islink(path):
        os.remove(path)
    elif recursive:
        shutil.rmtree(path)
    else:
        os.rmdir(path)


def make_directory(path: str, parents: bool) -> None:
    """Make a folder."""
    if parents:
        os.makedirs(path, exist_ok=True)
    else:
        os.mkdir(path)


def entry(path: str) -> dict[str, object]:
    """Describe one entry, not what a link leads to."""
    info = os.lstat(path)
    link, folder = stat.S_ISLNK(info.st_mode), stat.S_ISDIR(info.st_mode)
    described: dict[str, object] = {
        "name": os.path.basename(path),
        "path": path,
        "type": "symlink" if link else "directory" if folder else "file",
        "size": info.st_size,
        "mode": info.st_mode,
        "permissions": stat.filemode(info.st_mode),
        "owner": _name(lambda: pwd.getpwuid(info.st_uid).pw_name, info.st_uid),
        "group": _name(lambda: grp.getgrgid(info.st_gid).gr_name, info.st_gid),
        "modified_time": info.st_mtime,
    }
    if link:
        described["symlink_target"] = os.readlink(path)
    return described


def _name(find: "Callable[[], str]", number: int) -> str:
    try:
        return find()
    except KeyError:
        return str(number)


def list_files(path: str) -> None:
    """Describe the entries of a folder."""
    print(json.dumps([entry(os.path.join(path, name)) for name in sorted(os.listdir(path))]))


def watch(path: str, recursive: bool, filter: "list[str] | None", timeout_secs: "int | None") -> None:
    """Tell what changes, a line each, until the time is over or standard input ends."""
    path = os.path.realpath(path)
    library = ctypes.CDLL(None, use_errno=True)
    fd = library.inotify_init()
    folders: dict[int, str] = {}

    def add(folder: str) -> None:
        number = library.inotify_add_watch(fd, folder.encode(), sum(CHANGES))
        if number < 0:
            raise OSError(ctypes.get_errno(), "cannot watch")
        folders[number] = folder

    add(path)
    for at, names, _ in os.walk(path) if recursive else ():
        for name in names:
            add(os.path.join(at, name))
    end = time.monotonic() + timeout_secs if timeout_secs is not None else None
    while end is None or time.monotonic() < end:
        readable, _, _ = select.select([fd, 0], [], [], None if end is None else max(0.0, end - time.monotonic()))
        if 0 in readable and not os.read(0, PIECE):
            return
        if fd not in readable:
            continue
        data = os.read(fd, PIECE)
        while data:
            number, mask, _, size = struct.unpack_from("iIII", data)
            name, data = data[16 : 16 + size].rstrip(b"\0").decode(errors="replace"), data[16 + size :]
            at = os.path.join(folders.get(number, path), name) if name else folders.get(number, path)
            kind = next((told for bit, told in CHANGES.items() if mask & bit), "Unknown")
            if recursive and kind == "Create" and mask & IS_FOLDER:
                add(at)
            if filter is None or kind in filter:
                print(json.dumps({"event_type": kind, "paths": [at]}), flush=True)


COMMANDS: "dict[str, Callable[..., None]]" = {
    "ReadFile": read_file,
    "WriteFile": write_file,
    "ListFiles": list_files,
    "Remove": remove,
    "MakeDirectory": make_directory,
    "Stat": lambda path: print(json.dumps(entry(path))),
    "Watch": watch,
}


def main() -> int:
    """Run one command; 1 where it failed."""
    [(name, arguments)] = json.loads(sys.argv[1]).items()
    try:
        COMMANDS[name](**arguments)
    except OSError as error:
        kind = KINDS.get(error.errno or 0, "Other")
        if name == "WriteFile" and kind == "PathAlreadyExists":
            kind = "AlreadyExists"  # a file where a folder must be
        told = {"error_kind": kind, "message": error.strerror or "failed", "detail": str(error)}
        print(json.dumps(told), file=sys.stderr)
        return 1
    return 0


sys.exit(main())
