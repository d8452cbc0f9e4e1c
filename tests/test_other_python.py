"""`--kernel NAME` of a real second Python: plain data crosses, objects that only one minor version can read are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlm_jupyter import RLMError
from rlm_jupyter.testing import ScriptedServer
from tests.conftest import other_python
from tests.models import answer
from tests.shells import open_shell

pytestmark = [pytest.mark.needs("python"), pytest.mark.timeout(600)]

OURS = f"{sys.version_info.major}.{sys.version_info.minor}"
SIZE = "import sys\nfound = ['%d.%d' % sys.version_info[:2], type(context).__name__, context['a']]\nFINAL_VAR(found)"


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Give a folder with the kernelspec `other`, and the minor version of its Python, which has ipykernel beside it."""
    python, _ = other_python()
    version = subprocess.run(
        [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.strip()
    folder = tmp_path_factory.mktemp("other")
    packages = folder / "packages"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(packages)]
    subprocess.run(
        [*install, "--python-version", version, "--only-binary=:all:", "--no-compile", "ipykernel"], check=True, timeout=300
    )
    (folder / "kernels" / "other").mkdir(parents=True)
    argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "other", "language": "python", "env": {"PYTHONPATH": str(packages)}}
    (folder / "kernels" / "other" / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    return folder, version


def test_p17_a_class_of_the_notebook_is_refused_by_another_python_before_anything_is_spent(
    specs: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, version = specs
    assert version != OURS
    monkeypatch.setenv("JUPYTER_PATH", str(folder))
    with open_shell() as shell, ScriptedServer([answer("1")]) as server:
        shell.run("class Point:\n    def __init__(self, x): self.x = x\n    def twice(self): return 2 * self.x")
        shell.run("held = [Point(1)]; made = {'f': lambda: 1}")
        magic = f"%%rlm --base-url {server.url} --model root --kernel other --view none"
        for name in ("held", "made"):
            error = shell.run(f"{magic} --context {name} --out result\nWhat is it?").error
            assert isinstance(error, RLMError)
            line = str(error)
            assert f"which only Python {OURS} can read, and the kernel runs {version}" in line
            assert f"use a kernel of Python {OURS}" in line
            assert "\n" not in line
            assert shell.namespace["result"].status == "failed"
            assert server.requests == []
    with open_shell() as shell, ScriptedServer([f"```repl\n{SIZE}\n```"]) as server:
        shell.run("plain = {'a': 5}")
        ran = shell.run(
            f"%%rlm --base-url {server.url} --model root --kernel other --view none --context plain --out result\nq"
        )
        assert ran.error is None, ran.output
        assert shell.namespace["result"].value == [version, "dict", 5]
