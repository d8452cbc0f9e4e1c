"""README, docs/environments.md and the help tell of environments what the code does; their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlm_jupyter.kernels import client, docker, images, packages
from rlm_jupyter.kernels.modal import LEASE, PATIENCE, RECONNECT_SECONDS
from rlm_jupyter.kernels.modal_files import PIECE, WHOLE
from rlm_jupyter.kernels.modal_launch import DEFAULT_CPU, DEFAULT_MEMORY
from rlm_jupyter.kernels.modal_place import LONGEST, ModalPlace
from rlm_jupyter.magics import EXAMPLES, RLMMagics
from rlm_jupyter.settings import ENVIRONMENTS, MIB, MODAL_NAMES, PLACES, size_text

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
TOLD = {
    "docker": ("no network", "read-only root", "no capabilities", "not root"),
    "modal": ("no network unless", "nothing of your", "bills it by the second"),
}
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def rows(text: str, head: str) -> dict[str, str]:
    """Give the rows of the table whose head begins so, by what stands in backticks in the first column."""
    lines = text[text.index(f"| {head} |") :].partition("\n\n")[0].split("\n")[2:]
    return {match[1]: line for line in lines if (match := re.match(r"\| `([^`]+)`", line))}


@pytest.mark.parametrize("text", [PAGE, README], ids=["docs", "README"])
def test_p02_the_tables_name_every_environment_and_tell_its_isolation(text: str) -> None:
    table = rows(text, "`--env`")
    assert set(table) == set(ENVIRONMENTS)
    for name, isolation in ENVIRONMENTS.items():
        if isolation.startswith("not isolated"):
            assert re.search(r"\*\*non-isolated\*\*|\*\*none:", table[name])
            assert "your own rights on this machine" in table[name]
        else:
            assert re.search(r"\*\*isolated\*\*|\*\*a container\*\*|\*\*a cloud sandbox\*\*", table[name])
            for what in TOLD[name]:
                assert what in table[name]


def test_the_page_has_every_option_of_a_box_with_its_default() -> None:
    table = rows(PAGE, "option")
    assert {name.partition(" ")[0] for name in table} == {
        "--" + name.replace("_", "-") for name, places in PLACES.items() if "docker" in places
    }
    assert f"{size_text(docker.MEMORY)} and three times the context" in table["--memory SIZE"]
    assert f"| {docker.PROCESSORS}, as far as" in table["--cpus N"]
    assert "3.11" in table["--image NAME"]
    helps = {option: action.help or "" for action in RLMMagics.ask.parser._actions for option in action.option_strings}
    assert f"Default: {docker.PROCESSORS}." in helps["--cpus"]
    assert f"Default: {docker.MEMORY // MIB // 1024}g and three times the context with --env docker" in helps["--memory"]


def test_the_page_tells_the_sizes_and_names_that_hold() -> None:
    told = " ".join(PAGE.split())
    assert f"needs at least {size_text(docker.LEAST_MEMORY)} and twice its context" in told
    assert f"holds {size_text(docker.SCRATCH)} besides the context" in told
    assert docker.LEASE_SECONDS == 60
    assert "after a minute without a sign of life" in told
    for name in (*packages.LEAST, *packages.DATA, *packages.ALSO):
        assert name in told
    assert f"docker images {images.REPOSITORY} " in PAGE
    assert f"--filter label={docker.LABEL} " in PAGE
    assert f"`{client.CHOICE}` names" in told


def test_docker_is_in_the_help_and_among_the_first_examples() -> None:
    assert "--env docker" in EXAMPLES
    assert "With `--env docker`" in README.partition("## The first cell")[2].partition("\n## ")[0]


def test_links_between_the_pages_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in LINK.findall(page.read_text(encoding="utf-8"))
        if not re.match(r"https?:|mailto:", target) and not (page.parent / target).exists()
    ]
    assert broken == []
    named = [
        path for page in pages for path in re.findall(r"`(tests/[\w/.]+|notebooks/[\w.]+)`", page.read_text(encoding="utf-8"))
    ]
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_page_of_modal_has_every_option_and_argument_with_its_default() -> None:
    text = (ROOT / "docs" / "modal.md").read_text(encoding="utf-8")
    table = text[text.index("| option |") :].partition("\n\n")[0]
    asked = {name for name, places in PLACES.items() if "modal" in places} | {"setup_code"}
    typed = {option for action in RLMMagics.ask.parser._actions for option in action.option_strings if action.dest in asked}
    assert set(re.findall(r"^\| `(--[\w-]+)", table, re.MULTILINE)) == typed
    assert set(re.findall(r"^\|[^|]*\| `(\w+)`", table, re.MULTILINE)) == {MODAL_NAMES.get(name, name) for name in asked}
    place = ModalPlace()
    kept = (f"`{place.app_name}`", f"| {place.timeout} |", f"at most {LONGEST:,} s", f"`{place.network}`", f"`{place.bridge}`")
    assert [value for value in kept if value not in table] == []
    assert f"{DEFAULT_CPU} cores" in table
    assert f"{DEFAULT_MEMORY} MiB" in table
    told = " ".join(text.split())
    assert (
        f"after {RECONNECT_SECONDS:.0f} s without a byte; after {PATIENCE * RECONNECT_SECONDS:.0f} s the sandbox is given"
        in told
    )
    assert f"ends itself after {LEASE * RECONNECT_SECONDS:.0f} s" in told
    assert f"above {size_text(WHOLE)} in pieces of {size_text(PIECE)}" in told
    assert "Nothing here was ever run at the real Modal" in told
