"""`make demo`: ask the sources of this Python's standard library a question, in a terminal, with no key and no network.

It does what the quickstart notebook does, through the same magic: read the sources into a dict, ask, look at the answer.
The exit code is 0 only if there is an answer that names a file and a line.
"""

from __future__ import annotations

import re
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
    if size < 5:
        print("          (less than 5: this Python comes without a part of its standard library)")
    print(f"question  {question}\n", flush=True)
    shell = InteractiveShell.instance()
    shell.user_ns |= {"sources": sources, "question": question}  # so that nothing in the question is a placeholder itself
    shell.run_line_magic("load_ext", "rlm_jupyter")
    ran = shell.run_cell("%%rlm --context sources --model demo --out result --view text\n{{question}}")
    if not ran.success:
        return 1
    result = shell.user_ns["result"]
    iterations, calls = result.iterations, len(result.trace.calls)
    print(f"\n{iterations} iterations, {calls} sub-calls, {result.seconds:.1f} s. The answer:\n\n    {result.response}")
    place = re.match(r"(.+?):\d+: ", result.response)
    return 0 if place and place[1] in sources else 1


if __name__ == "__main__":
    raise SystemExit(main())
