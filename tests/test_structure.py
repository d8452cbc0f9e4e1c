"""The house keeps its shape: who may import whom, what is exported, what loading costs, what the host never does."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import rlm_jupyter
from rlm_jupyter.kernels.guest import sources
from rlm_jupyter.kernels.guest.shapes import PACKAGES

PACKAGE = Path(rlm_jupyter.__file__).parent

# A room may import from itself and from the rooms in its list. The direction as a whole:
# magics -> rlm -> run -> course -> loop -> {lm, repl -> kernels} -> {events, values, errors}; widgets read events and trace.
GROUND = {"errors", "events", "settings"}
MAY_IMPORT = {
    "errors": {"result"},
    "events": set(),
    "settings": {"errors"},
    "redaction": {"events"},
    "network": {"errors"},
    "tree": {"events"},
    "trace": {"events", "tree"},
    "trace_file": {"events", "trace"},
    "result": {"errors", "events", "files", "trace", "widgets"},
    "contexts": GROUND | {"kernels.guest.describing", "kernels.guest.digests", "kernels.guest.pickles"},
    "pictures": GROUND,
    "files": GROUND,
    "values": GROUND | {"pictures"},
    "replies": set(),
    "budget": GROUND | {"lm.prices"},
    "lm": GROUND | {"budget", "kernels.messages", "redaction", "network"},
    "kernels": GROUND | {"contexts", "network", "pictures", "values"},
    "kernels.guest": set(),
    "prompts": {"kernels.cell"},
    "conversation": {"lm.client", "pictures"},
    "repl": GROUND
    | {
        "contexts",
        "files",
        "kernels.cell",
        "kernels.environment",
        "kernels.finals",
        "kernels.kernel",
        "kernels.messages",
        "pictures",
        "values",
    },
    "loop": GROUND
    | {
        "budget",
        "contexts",
        "conversation",
        "kernels.environment",
        "kernels.finals",
        "kernels.messages",
        "lm.handler",
        "pictures",
        "prompts",
        "repl",
        "replies",
        "values",
    },
    "children": GROUND | {"budget", "kernels.messages", "lm.handler", "lm.providers", "loop", "values"},
    "engine": {"kernels"},
    "feed": {"events"},
    "record": {"events", "feed", "redaction", "trace", "trace_file"},
    "course": GROUND | {"budget", "children", "contexts", "engine", "kernels", "lm", "loop", "trace"},
    "run": GROUND
    | {
        "contexts",
        "course",
        "engine",
        "feed",
        "kernels",
        "lm",
        "loop",
        "record",
        "redaction",
        "result",
        "trace",
        "values",
        "widgets",
    },
    "rlm": GROUND | {"engine", "kernels.modal_place", "lm.table", "result", "run"},
    "widgets": {"events", "pictures", "trace", "tree"},
    "completion": {"errors", "kernels.client", "kernels.modal_place", "lm.prices", "lm.table", "run", "settings", "steering"},
    "trials": GROUND | {"kernels"},
    "doctor": GROUND | {"lm", "redaction", "trace_file", "trials"},
    "sandboxes": GROUND | {"kernels.modal", "kernels.modal_place", "kernels.modal_sandboxes", "run", "widgets.words"},
    "background": {"feed", "run", "trace", "widgets"},
    "steering": GROUND | {"background", "doctor", "run", "sandboxes", "trace", "trace_file", "widgets"},
    "panels": GROUND | {"completion", "lm.table", "run", "widgets"},
    "options": {"settings"},
    "names": {"errors"},
    "reading": GROUND | {"contexts", "names", "options"},
    "asked": GROUND | {"background", "result", "run", "trace", "widgets"},
    "magics": GROUND | {"asked", "completion", "engine", "options", "panels", "reading", "run", "steering"},
    "testing": GROUND,
    "": {"kernels.modal_place", "magics", "rlm", "run", "result", "settings", "errors"},
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def room_of(module: str) -> str:
    parts = module.split(".")
    return next((".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in MAY_IMPORT), parts[0])


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            yield from (f"{base}.{alias.name}" for alias in node.names)


def test_dependencies_point_one_way() -> None:
    known = {name for name, _ in modules()}
    wrong = []
    for name, tree in modules():
        room = room_of(name) if name else ""
        assert room in MAY_IMPORT, f"{name} belongs to no room"
        for target in imports(tree):
            if not target.startswith("rlm_jupyter."):
                continue
            target = target.removeprefix("rlm_jupyter.")
            while target and target not in known:
                target = target.rpartition(".")[0]
            if room == "kernels" and target.startswith("kernels.guest"):
                continue
            if target and room_of(target) != room and not any(f"{target}.".startswith(f"{to}.") for to in MAY_IMPORT[room]):
                wrong.append(f"{name or 'rlm_jupyter'} imports {target}")
    assert wrong == []


def test_the_guest_imports_nothing_of_ours() -> None:
    for name, tree in modules():
        if name.startswith("kernels.guest."):
            assert [target for target in imports(tree) if target.startswith("rlm_jupyter")] == [], name


def test_what_is_put_into_a_kernel_needs_only_what_every_kernel_has() -> None:
    """Each module by itself, and in an order in which none needs a later one."""
    there = set(sys.stdlib_module_names) | {"IPython", "ipykernel", "jupyter_client", "dill", *PACKAGES}
    for module in (*sources.MODULES, sources.ROOT):
        tree = ast.parse((PACKAGE / "kernels" / "guest" / f"{module}.py").read_text(encoding="utf-8"))
        assert {target.lstrip(".").partition(".")[0] for target in imports(tree)} <= there, module
        there.add(module)


def test_exported_members() -> None:
    for name in rlm_jupyter.__all__:
        assert getattr(rlm_jupyter, name) is not None
    with pytest.raises(AttributeError):
        rlm_jupyter.no_such_name  # noqa: B018


def test_loading_the_extension_imports_nothing_heavy() -> None:
    code = (
        "import json, sys; from IPython.core.interactiveshell import InteractiveShell as S; s = S.instance();"
        "before = set(sys.modules); s.run_line_magic('load_ext', 'rlm_jupyter');"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    loaded = json.loads(out.strip().splitlines()[-1])
    heavy = {
        "openai",
        "aiohttp",
        "anyio",
        "zmq",
        "jupyter_client",
        "numpy",
        "pandas",
        "genai_prices",
        "rich",
        "modal",
        "platformdirs",
        "markdown_it",
        "nh3",
        "ipywidgets",
        "anywidget",
    }
    assert heavy.isdisjoint(name.partition(".")[0] for name in loaded)
    assert len([name for name in loaded if name.startswith("rlm_jupyter")]) <= 5


def test_the_host_never_unpickles_or_evaluates() -> None:
    """P1: only what runs inside a kernel may."""
    forbidden = {
        ("pickle", "loads"),
        ("pickle", "load"),
        ("dill", "loads"),
        ("dill", "load"),
        ("marshal", "loads"),
        ("marshal", "load"),
    }
    for name, tree in modules():
        if name.startswith("kernels.guest"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                match node.func:
                    case ast.Name(id=called):
                        assert called not in ("eval", "exec", "__import__"), f"{name}:{node.lineno}"
                    case ast.Attribute(value=ast.Name(id=owner), attr=called):
                        assert (owner, called) not in forbidden, f"{name}:{node.lineno}"


def test_every_setting_can_be_reached_from_the_help() -> None:
    from rlm_jupyter.magics import RLMMagics

    text = RLMMagics.ask.__doc__ or ""
    parser = RLMMagics.ask.parser
    for action in parser._actions:
        assert action.help
        assert all(option in text for option in action.option_strings)
    assert len(re.findall(r"^    %%rlm ", text, re.MULTILINE)) == 3
    for name, trait in RLMMagics.class_traits(config=True).items():
        assert trait.help, name


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=PACKAGE.parent, check=True, timeout=60, capture_output=True)
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    held = {
        f"rlm_jupyter/{path.relative_to(PACKAGE).as_posix()}"
        for path in PACKAGE.rglob("*.*")
        if path.suffix in (".py", ".js", ".css")
    }
    assert {name for name in names if ".dist-info/" not in name} == held | {"rlm_jupyter/py.typed"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_changelog_names_the_version() -> None:
    assert f"## {rlm_jupyter.__version__}" in (PACKAGE.parent / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_promise_in_the_docs_has_its_tests() -> None:
    root = PACKAGE.parent
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (root / "tests").rglob("test_*.py"))
    rows = re.findall(r"^\| P\d+ \|.*\| ([^|]*) \|$", (root / "docs" / "security.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) >= 15
    for name in re.findall(r"`([^`]+)`", " ".join(rows)):
        assert (root / name).is_file() if name.endswith(".py") else f"def {name}" in sources, name


def test_every_decision_has_a_number_of_its_own() -> None:
    pages = sorted((PACKAGE.parent / "docs" / "decisions").glob("*.md"))
    assert [page.name[:3] for page in pages] == [f"{number:03}" for number in range(1, len(pages) + 1)]
    assert all(page.read_text(encoding="utf-8").startswith(f"# {page.name[:3]} ") for page in pages)


def test_every_mutant_still_meets_the_lines_that_it_breaks() -> None:
    root = PACKAGE.parent
    patches = sorted((root / "tests" / "promises" / "mutants").glob("*.patch"))
    assert len(patches) > 100
    missed, source = [], ""
    for patch in patches:
        for part in re.split(r"^(?=\+\+\+ |@@ )", patch.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            head, _, lines = part.partition("\n")
            if head.startswith("+++ "):
                source = (root / head.removeprefix("+++ b/")).read_text(encoding="utf-8")
                continue
            met = [line[1:] for line in lines.splitlines(keepends=True) if line[:1] in " -" and not line.startswith("--- a/")]
            if "".join(met) not in source:
                missed.append(patch.name)
    assert missed == []
