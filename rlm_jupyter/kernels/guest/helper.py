"""What all helpers have in common: children of multiprocessing use them, too, and there they mean the kernel's own."""

from __future__ import annotations

import sys
from typing import Any, ClassVar


class Helper:
    """A part of the REPL, found again under its name: pickled, it is a reference, never a copy."""

    part: ClassVar[str]

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return installed, (self.part,)


def installed(part: str) -> Any:
    """Give a part of the REPL of this process."""
    module: Any = sys.modules[str(__package__)]
    return getattr(module.repl, part)
