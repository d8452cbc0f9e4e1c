"""Break one promise at a time in a copy of the tree: the test that proves the promise must fail there.

Each patch in tests/promises/mutants/ begins with a line `test: <path>::<name>`. The unbroken copy must pass all those tests.
A mutant may leave processes behind, that being what some of them break; whatever a test run has started is ended after it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from rlm_jupyter.kernels.guest import processes

ROOT = Path(__file__).resolve().parent.parent
PATCHES = ROOT / "tests" / "promises" / "mutants"
SECONDS = 300
END_SECONDS = 10.0


def test_of(patch: Path) -> str:
    """Give the test that a patch's first line names."""
    word, _, test = patch.read_text(encoding="utf-8").splitlines()[0].partition(": ")
    if word != "test" or not test:
        raise SystemExit(f"{patch.name} must begin with a line `test: <path>::<name>`")
    return test.strip()


def copy_tree(folder: Path) -> None:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def passes(folder: Path, tests: list[str], told: bool = False) -> bool:
    """Tell whether the tests pass in a copy; its package goes before the installed one. `told`: print what fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    finally:
        # What was left alone by its parent has become a child of ours, and we have no others.
        if processes.LINUX and not processes.kill_strangers((), END_SECONDS):
            print("some processes of the last test could not be ended", file=sys.stderr)
    if done.returncode not in (0, 1):
        raise SystemExit(f"the tests could not be run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    if told and done.returncode:
        print(done.stdout[-3000:])
    return done.returncode == 0


def main() -> int:
    chosen = [patch for patch in sorted(PATCHES.glob("*.patch")) if not sys.argv[1:] or patch.stem in sys.argv[1:]]
    processes.adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended then, too
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        whole = Path(name) / "whole"
        copy_tree(whole)
        if not passes(whole, sorted({test_of(patch) for patch in chosen}), told=True):
            raise SystemExit("these tests fail without any mutant: mend that first")
        survivors = []
        for patch in chosen:
            broken = Path(name) / patch.stem
            shutil.copytree(whole, broken)
            subprocess.run(["git", "apply", str(patch)], cwd=broken, check=True)
            survived = passes(broken, [test_of(patch)])
            print(f"{'SURVIVED' if survived else 'caught':<9} {patch.stem:<40} {test_of(patch)}", flush=True)
            survivors += [patch.stem] if survived else []
            shutil.rmtree(broken)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main())
