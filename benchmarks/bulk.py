"""What the container's columns measure beyond `measures.py`: 100 MB in, kept, and printed. Standard library only.

The memory is that of the process that holds the notebook's side, as Linux counts it: its highest point is reset first.
"""

from __future__ import annotations

import gc
import re
from pathlib import Path

SIZE = 100_000_000
HOLD = f"held = 'x' * {SIZE}"
PRINT = f"for _ in range({SIZE // 100_000}):\n    print('x' * 99_999)"
QUICK, SLOW = 20, 3
"""Trivial cells timed with the state, where one takes milliseconds and where it takes seconds."""


def text() -> str:
    """Give a context of 100 MB whose lines differ, in ASCII."""
    return "".join(f"{number:09d}\n" for number in range(SIZE // 10))


def reset_peak() -> int:
    """Forget this process's highest memory so far and give what it uses now, in bytes."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return _of("VmRSS")


def peak() -> int:
    """Give this process's highest memory since `reset_peak`, in bytes."""
    return _of("VmHWM")


def _of(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"no {name} in /proc/self/status")
    return int(found[1]) * 1024
