"""`make demo`: ask the sources of this Python's standard library a question, in a terminal, with no key and no network.

It does what the quickstart notebook does, through the same magic: read the sources into a dict, ask, look at the answer.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from IPython.core.interactiveshell import InteractiveShell

QUESTION = "Which file defines the class JSONDecodeError?"


def read_sources() -> dict[str, str]:
    """Give path to text of every module of the standard library, packages installed beside it left out."""
    folder = Path(sysconfig.get_path("stdlib"))
    paths = (path for path in sorted(folder.rglob("*.py")) if "site-packages" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8", errors="replace") for path in paths}


def main() -> int:
    question = " ".join(sys.argv[1:]).strip() or QUESTION
    sources = read_sources()
    size = sum(map(len, sources.values())) / 1e6
    print(
        f"context   {len(sources):,} files of Python {sys.version.split()[0]}'s standard library, {size:.1f} million characters"
    )
    print(f"question  {question}\n", flush=True)
    shell = InteractiveShell.instance()
    shell.user_ns["sources"] = sources
    shell.run_line_magic("load_ext", "rlm_jupyter")
    shell.run_cell_magic("rlm", "--context sources --model demo --out result --view text", question)
    result = shell.user_ns["result"]
    iterations, calls = result.iterations, len(result.trace.calls)
    print(f"\n{iterations} iterations, {calls} sub-calls, {result.seconds:.1f} s. The answer:\n\n    {result.response}")
    return 0 if result.status == "answered" else 1


if __name__ == "__main__":
    raise SystemExit(main())
