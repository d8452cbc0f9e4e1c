"""Measure rlm_jupyter in a container beside the reference implementation in one, in one run, and print one table.

    python benchmarks/container.py [--quick] [--docs FILE]

Both start from the same base image (scripts/base-image). What each needs in it is put in before anything is measured: ours by
the product itself; for `rlms` pip, dill and requests, which its documentation has its users put in, so that the
`pip install` that it runs at each start finds them there and asks no index. Columns take turns as in run.py; without an
engine it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from columns import HERE, Turns, Worker, scripted_server
from measures import Task
from reference_venv import reference_python
from tables import FLOOR, OURS, THEIRS, Figure, Row, machine, ms, text, write_docs

NEEDED = ("dill", "requests", "pip")
IMAGE = "rlm-jupyter-bench-reference"
MEGABYTE = 1_000_000
PRINTED = 2 * MEGABYTE
"""What 100 MB printed in a cell may cost the notebook's process."""
PLAN = (
    ("ready", (OURS, THEIRS)),
    ("gap", (OURS, THEIRS)),
    ("calls", (OURS, THEIRS, FLOOR)),
    ("context", (OURS, THEIRS)),
    ("state", (OURS, THEIRS)),
    ("printed", (OURS, THEIRS)),
)
FRESH = "printed"
"""What is measured in a new process: one that has held 100 MB before has memory to spare that no count would show."""
SECONDS = 300


def docker(*arguments: str, data: bytes | None = None) -> str:
    """Run the client to its end; what it says when it fails is the last line of this program."""
    done = subprocess.run(["docker", *arguments], input=data, capture_output=True, timeout=SECONDS, check=False)
    if done.returncode:
        raise SystemExit(f"docker {arguments[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode().strip()


def base_image() -> str | None:
    """Give the base image's name, or None with a line that says why there is none."""
    environment = {**os.environ, "PYTHON": sys.executable}
    script = HERE.parent / "scripts" / "base-image"
    done = subprocess.run([script], stdout=subprocess.PIPE, env=environment, timeout=2 * SECONDS, check=False)
    return done.stdout.decode().strip() if done.returncode == 0 else None


def reference_image(base: str) -> str:
    """Make the image that `rlms` runs in, if it is not there, and give its name."""
    name = f"{IMAGE}:{docker('image', 'inspect', '--format', '{{.Id}}', base).removeprefix('sha256:')[:12]}"
    if docker("images", "--quiet", name):
        return name
    look = "import sys, sysconfig; print('%d.%d' % sys.version_info[:2], sysconfig.get_path('purelib'))"
    version, folder = docker("run", "--rm", "--network", "none", base, "python3", "-c", look).split()
    with tempfile.TemporaryDirectory() as packages:
        print(f"putting {', '.join(NEEDED)} into {name}", file=sys.stderr)
        options = ["--quiet", "--disable-pip-version-check", "--no-compile", "--only-binary=:all:", "--python-version", version]
        command = [str(reference_python()), "-m", "pip", "install", *options, "--target", packages, *NEEDED]
        subprocess.run(command, check=True, timeout=SECONDS)
        with container(base, "python3", "-m", "compileall", "-q", folder) as made:
            docker("cp", "-", f"{made}:/", data=layer(Path(packages), folder))
            docker("start", "--attach", made)
            # Nothing is looked for outside, and Debian's Python is not refused: what rlms runs finds all in place.
            settings = ["ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_BREAK_SYSTEM_PACKAGES=1", 'CMD ["python3"]']
            docker("commit", *(part for each in settings for part in ("--change", each)), made, name)
    return name


@contextmanager
def container(*arguments: str) -> Iterator[str]:
    made = docker("create", "--network", "none", *arguments)
    try:
        yield made
    finally:
        docker("rm", "--force", made)


def layer(packages: Path, folder: str) -> bytes:
    """Give a tar with the packages in `folder`, and the command `pip`."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        archive.add(packages, folder.lstrip("/"), filter=_of_root)
        script = b'#!/bin/sh\nexec python3 -m pip "$@"\n'
        entry = tarfile.TarInfo("usr/local/bin/pip")
        entry.size, entry.mode = len(script), 0o755
        archive.addfile(entry, io.BytesIO(script))
    return made.getvalue()


def _of_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    if entry.isdir():
        entry.mode = 0o755
    return entry


async def start(name: str, image: str) -> Worker:
    """Start a column's process; what it makes its containers from is in its environment."""
    os.environ["BENCH_IMAGE"] = image
    if name == THEIRS:
        return await Worker.start(reference_python(), "container_reference.py", name)
    return await Worker.start(sys.executable, "container_ours.py" if name == OURS else "floor.py", name)


async def measure(base: str, rounds: int) -> Turns:
    images = {OURS: base, THEIRS: reference_image(base), FLOOR: ""}
    server, url = await scripted_server()
    columns = {name: await start(name, image) for name, image in images.items()}
    turns = Turns(dict(PLAN), rounds)
    try:
        await columns[OURS].ask(Task("ready", url))  # makes its image, if it is not there
        for title, name in turns:
            if title == FRESH:
                await columns[name].close()
                columns[name] = await start(name, images[name])
            await turns.take(title, name, partial(columns[name].ask, Task(title, url)))
    finally:
        for worker in (*columns.values(), server):
            await worker.close()
    return turns


def rows(figures: dict[str, dict[str, Figure]]) -> list[Row]:
    """Set the figures side by side with the ratios and what they are to be."""
    table = [
        _beside("container ready, image there", figures["ready"], 0.7),
        _beside("gap per iteration", figures["gap"], 1 / 25),
    ]
    direct = figures["calls"][FLOOR].median
    ours, theirs = (figures["calls"][name].median - direct for name in (OURS, THEIRS))
    table += [
        Row("llm_query over a direct call", ms(ours), ms(theirs), "", "rlms", ours / theirs, 1.0, 1 / 2),
        _beside("100 MB of text usable as context", figures["context"], 1 / 8),
        _beside("trivial cell, 100 MB kept in the kernel", figures["state"], 1 / 300),
    ]
    mine, other = (max(count["memory"] for count in figures["printed"][name].counts) for name in (OURS, THEIRS))
    shown = [f"{number / MEGABYTE:.1f} MB" for number in (mine, other)]
    table.append(Row("100 MB printed, host memory", shown[0], shown[1], "", "2 MB", mine / PRINTED, other / PRINTED, 1.0))
    return table


def _beside(title: str, figure: dict[str, Figure], aim: float) -> Row:
    ours, theirs = figure[OURS], figure[THEIRS]
    return Row(title, str(ours), str(theirs), "", "rlms", ours.median / theirs.median, 1.0, aim)


def main() -> int:
    parser = argparse.ArgumentParser(description="rlm_jupyter and the reference implementation, each in a container")
    parser.add_argument("--quick", action="store_true", help="2 rounds instead of 5")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table into this page (docs/benchmarks.md)")
    options = parser.parse_args()
    base = base_image()
    if base is None:
        print("nothing was measured in a container: there is no engine, or no base image")
        return 0
    rounds = 2 if options.quick else 5
    turns = asyncio.run(measure(base, rounds))
    version = docker("version", "--format", "{{.Server.Version}}")
    drawn = text(rows(turns.figures), [*machine(rounds, turns.busy), f"Docker {version}, both columns from {base}"])
    print(drawn, end="")
    if options.docs:
        write_docs(options.docs, drawn, "containers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
