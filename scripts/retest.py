"""Run the tests that failed in the last `make test` once more, alone: for CI, which shares a machine with others.

A test that drives a browser, an engine or a signal can fail because of what else the machine did in that minute. One that
fails again fails; one that passes is named in the last line, to be mended. It refuses where more than `AT_MOST` tests failed,
and where the run before did not get to its end.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CACHE = Path(".pytest_cache/v")
AT_MOST = 3
TESTS_FAILED = 1
"""The exit status of a run that got to its end and in which tests failed."""


def cached(name: str) -> Any:
    """Give what the last run has left under `name`, None where there is nothing."""
    path = CACHE / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def main() -> int:
    failed = sorted(cached("cache/lastfailed") or ())
    if cached("rlm_jupyter/exitstatus") != TESTS_FAILED or not failed:
        print("nothing to run again: the tests before did not get to their end, or none of them failed", file=sys.stderr)
        return 1
    if len(failed) > AT_MOST:
        print(f"{len(failed)} tests failed: too many to be a matter of the moment, none is run again", file=sys.stderr)
        return 1
    print(f"once more, alone: {', '.join(failed)}", flush=True)
    status = subprocess.run([sys.executable, "-m", "pytest", "--lf", "--lfnf", "none"], check=False).returncode
    if status == 0:
        print(f"passed at the second try, to be made steady: {', '.join(failed)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
