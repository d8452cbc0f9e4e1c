"""What one types for a sandbox at Modal: every option reaches Modal, the run says what it is, and what cannot be is one line.

With the real SDK on the local control plane. That kernels behave there as anywhere else is shown by `conformance`, how a
sandbox is lost by `test_modal`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import modal
import pytest
from IPython.core.error import UsageError

from rlm_jupyter import RLM, KernelError, SettingsError, events, modal_image
from rlm_jupyter.errors import KernelDied, RLMError
from rlm_jupyter.kernels import launch, modal_launch
from rlm_jupyter.kernels.modal_place import tags
from rlm_jupyter.settings import RunSettings
from rlm_jupyter.testing import Reply, Request, Story
from rlm_jupyter.trace import Trace
from rlm_jupyter.trials import NOTE, OK, PROBLEM, TRIES
from rlm_jupyter.widgets import html, text, words
from tests.modal_local.plane import Created, LocalModal
from tests.models import answer, code, scripted, text_of
from tests.payloads import Page
from tests.shells import Shell, open_shell

pytestmark = pytest.mark.needs("bwrap")

CANARY = "hush-4f1c9e"


@pytest.fixture(autouse=True)
def plane(local_modal: LocalModal) -> Iterator[LocalModal]:
    """Every test leaves no sandbox running."""
    yield local_modal
    assert local_modal.running() == []


def made(plane: LocalModal, before: int) -> Created:
    """Give the one request for a sandbox that came since."""
    (created,) = plane.told().created[before:]
    return created


def count(plane: LocalModal) -> int:
    return len(plane.told().created)


@pytest.fixture
def shell() -> Iterator[Shell]:
    with open_shell() as shell:
        shell.run("docs = 'The answer is 42.'; number = 42; named = 'python:3.12-slim'")
        shell.run("import modal; mine = modal.Image.debian_slim(python_version='3.11').pip_install('numpy', 'dill', 'flask')")
        yield shell


def test_the_magic_runs_in_a_sandbox_of_the_users_image_with_what_was_typed(shell: Shell, plane: LocalModal) -> None:
    before = count(plane)
    shell.run("%config RLMMagics.app_name = 'from-a-trait'")
    shell.run("%config RLMMagics.cpus = 3")
    ran = shell.run(
        "%%rlm --env modal --image mine --cpu 0.5 --memory 2g --sandbox-timeout 900 --network pypi.org,*.example.com "
        "--model demo --context docs --out result --timeout 901\nWhat is the answer?"
    )
    assert ran.error is None, ran.output
    result = shell.namespace["result"]
    assert "42" in result.response
    created = made(plane, before)
    asked = created.definition
    assert (created.app, asked["timeout_secs"]) == ("from-a-trait", 900)
    assert (asked["resources"]["milli_cpu"], asked["resources"]["memory_mb"]) == (500, 2048)
    assert asked["network_access"]["allowed_domains"] == ["pypi.org", "*.example.com"]
    installed = [line for layer in plane.image(asked["image_id"]) for line in layer["dockerfile_commands"] if "pip" in line]
    assert any("flask" in line for line in installed)
    assert (
        "isolated: a sandbox at Modal (app from-a-trait), no way out but to pypi.org, *.example.com, one way in (port 8080"
        in ran.output
    )
    assert "the user of its image" not in ran.output
    assert "the sandbox ends after 900 s, the run may take 901 s: --sandbox-timeout 901" in ran.output
    assert 0 < result.sandbox_seconds <= result.seconds
    for shown in (ran.output, text.render(result.trace), Page(html.render(result.trace)).text):
        assert "0.5 CPU, 2048 MiB; billed by Modal, outside --max-cost" in shown
    settings = result.trace.settings
    assert (settings["image"], settings["app_name"]) == ("<mine>", "from-a-trait")
    assert "objects" not in settings
    again = RunSettings.from_dict(json.loads(json.dumps(settings)))
    with pytest.raises(SettingsError, match="these settings name <mine>, an object that is not kept in them"):
        modal_launch.place_of(again)
    image = shell.namespace["mine"]
    assert modal_launch.place_of(RunSettings.from_dict(settings, {"<mine>": image})).image is image


WORK = [
    code("numbers = (n for n in range(3)); next(numbers)\nprint(os.environ['WORD'], ready)"),
    code("print(llm_query('one'), llm_query_batched(['two', 'three']), next(numbers))"),
    code("import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()"),
    code("big = 'x' * 10_000_000\nFINAL_VAR(big)"),
]


def test_the_api_gives_a_sandbox_all_that_was_asked_for_and_tells_the_lm_of_it(plane: LocalModal) -> None:
    given: dict[str, str | None] = {"WORD": CANARY}
    arguments = {
        "gpu": "A100:2", "timeout": 1800, "idle_timeout": 120, "region": ["us-east", "eu-west"], "network": "open",
        "secrets": [modal.Secret.from_dict(given)], "bridge": "exec", "setup_code": "import os; ready = 'set up'",
        "volumes": {"/data": modal.Volume.from_name("tests-face", create_if_missing=True)},
        "image": modal_image().pip_install("polars").dockerfile_commands("USER 1000"),
    }  # fmt: skip
    before = count(plane)
    echo = lambda request: request.prompt.upper()  # noqa: E731
    with scripted(WORK, echo, environment="modal", environment_kwargs=arguments) as (rlm, server):
        result = rlm.completion("four", "How long?")
    assert result.value == "x" * 10_000_000
    assert [
        notice for notice in result.trace.notices if notice.startswith("all code in this sandbox runs as the user of its image")
    ]
    created = made(plane, before)
    asked = created.definition
    assert (created.backend, created.app) == ("V1", "rlm-sandbox")
    gpu = asked["resources"]["gpu_config"]
    assert (gpu["gpu_type"], gpu["count"]) == ("A100", 2)
    assert (asked["timeout_secs"], asked["idle_timeout_secs"]) == (1800, 120)
    assert asked["scheduler_placement"]["regions"] == ["us-east", "eu-west"]
    assert asked["volume_mounts"][0]["mount_path"] == "/data"
    assert asked.get("network_access", {}).get("network_access_type") != "BLOCKED"
    first = server.requests[0].messages[1]["content"]
    assert "Your code runs in a cloud sandbox with a network; 0.125 CPU, 128 MiB, GPU A100:2; it ends 1,800 s after" in first
    told = text_of(server.requests[-1])
    assert f"{CANARY} set up" in told
    assert "ONE ['TWO', 'THREE'] 1" in told
    assert len(result.trace.pictures) == 1
    assert not any("sandbox ends" in notice for notice in result.trace.notices)
    assert CANARY not in json.dumps(rlm.settings.to_dict())
    assert rlm.settings.to_dict()["secrets"] == ["<secret>"]
    assert RunSettings.from_json(rlm.settings.to_json()) == rlm.settings


def test_set_up_code_that_needs_a_network_says_which_option_gives_one(plane: LocalModal) -> None:
    shouts = "import sys; print('ERROR: No matching distribution found for polars', file=sys.stderr)"
    reaches = "import urllib.request\nurllib.request.urlopen('http://example.com')"
    place: dict[str, Any] = {"environment": "modal", "environment_kwargs": {"setup_code": reaches}}
    with scripted([answer()], **place) as (rlm, server), pytest.raises(KernelError) as failed:
        rlm.completion("c", "q")
    assert server.requests == []
    lines = str(failed.value).split("\n")
    assert lines[0].startswith("the set-up code failed, so nothing was asked: URLError")
    assert lines[1:] == [
        "the sandbox has no network: --network pypi.org,files.pythonhosted.org opens it to those, --network open to all"
    ]
    place["environment_kwargs"] = {"setup_code": f"{shouts}\nraise RuntimeError('pip ended with 1')"}
    with (
        scripted([answer()], **place) as (rlm, server),
        pytest.raises(KernelError, match=r"pip ended with 1\nthe sandbox has no"),
    ):
        rlm.completion("c", "q")
    place["environment_kwargs"] = {"setup_code": shouts, "network": ["example.com"]}
    with scripted([answer()], **place) as (rlm, server):
        result = rlm.completion("c", "q")
    (notice,) = [notice for notice in result.trace.notices if "set-up" in notice]
    assert "the sandbox reaches example.com only: add what it needs to --network" in notice


BAD = [
    ("--env modal --sandbox-timeout 86401", "--sandbox-timeout=86401: Modal lets a sandbox live 86,400 s"),
    ("--env modal --reconnect 20s", "--reconnect must be a number, such as 2.5, not '20s'"),
    ("--env modal --reconnect 0.5", "--reconnect=0.5: type seconds from 1 to 600"),
    ("--env docker --reconnect 20", "--reconnect is for --env modal; this run is --env docker: leave it out"),
    ("--env modal --sandbox-timeout 0", "--sandbox-timeout must be a whole number of seconds"),
    ("--env modal --network closd", "--network='closd' is neither 'closed' nor 'open' nor a list of domains"),
    (
        "--env modal --network Closed",
        "--network='Closed' is neither 'closed' nor 'open' nor a list of domains; did you mean closed?",
    ),
    ("--env modal --network https://pypi.org/", "--network: 'https://pypi.org/' is no domain"),
    ("--env modal --network 10.0.0.7,pypi.org", "--network: '10.0.0.7' is no domain"),
    ("--env modal --bridge exce", "--bridge='exce' is not known; did you mean exec?"),
    ("--env modal --app-name 'my app'", "--app-name='my app': type letters, digits"),
    ("--env modal --memory lots", "--memory must be a size, such as 4g or 512m"),
    ("--env modal --memory 1", "--memory 1: too little; type MiB, such as 4096, or a size, such as 4g"),
    ("--env modal --cpu -1", "--cpu=-1.0: type cores"),
    ("--env modal --cpu 1e9", "--cpu=1000000000.0: no machine has so much; type cores"),
    ("--env modal --image number", "--image number: the variable number is a int, not a modal.Image"),
    (
        "--env modal --image 'modal.Image.debian_slim()'",
        "--image 'modal.Image.debian_slim()': not an image's name; type one such as python:3.11-slim, or a variable",
    ),
    ("--env modal --setup-code nosuch", "--setup-code nosuch: no variable is named nosuch"),
    ("--env modal --setup-code number", "--setup-code number: the variable number is a int, not Python as a text"),
    ("--env modal --setup-code 'x = 1; def f(:'", "--setup-code: this is no Python in line 1: invalid syntax"),
    (
        "--env modal --secret key",
        '%%rlm has no option --secret; Python has it: RLM(..., environment="modal", environment_kwargs={"secr',
    ),
    ("--env modal --idle-timeout 9", "%%rlm has no option --idle-timeout; Python has it: RLM("),
    ("--env modal --block-network", "%%rlm has no option --block-network; there is none unless --network opens one"),
    ("--env modal --cpus 2", "--cpus is for --env docker; with --env modal type --cpu"),
    ("--env modal --gpus all", "--gpus is for --env docker; with --env modal type --gpu"),
    ("--env modal --docker-network x", "--docker-network is for --env docker; with --env modal type --network"),
    ("--env modal --kernel python3", "--kernel is for --env local; this run is --env modal: leave it out"),
    ("--env docker --gpu T4", "--gpu is for --env modal; with --env docker type --gpus"),
    ("--env docker --network open", "--network is for --env modal; with --env docker type --docker-network"),
    ("--env docker --app-name x", "--app-name is for --env modal; this run is --env docker: leave it out"),
    ("--env local --image mine", "--image is for --env docker or modal; this run is --env local: leave it out"),
    ("--env modl", "no environment is named 'modl'; did you mean modal?"),
]


def test_p24_what_cannot_be_typed_is_one_line_and_asks_modal_for_nothing(shell: Shell, plane: LocalModal) -> None:
    before = plane.told().requests
    for line, told in BAD:
        started = time.monotonic()
        ran = shell.run(f"%%rlm {line} --model demo --context docs\nWhat is the answer?")
        assert isinstance(ran.error, UsageError), line
        assert str(ran.error).startswith(told), line
        assert "\n" not in str(ran.error)
        assert time.monotonic() - started < 20
    assert plane.told().requests - before == {}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"app_nam": "x"}, "modal takes no 'app_nam'; did you mean app_name?"),
        ({"encrypted_ports": [8080]}, "ports follow from bridge here: 'tunnel' (the default) has one"),
        ({"workdir": "/data"}, "modal takes no 'workdir'; known: app_name, bridge, cpu"),
        ({"block_network": True, "bridge": "tunnel"}, "block_network: it is spelled network='closed' here"),
        ({"outbound_domain_allowlist": ["x.org"]}, "the domains that code may reach are network=[...] here"),
        ({"env": {"A": "b"}}, "variables are secrets=[modal.Secret.from_dict({...})] here"),
        ({"gpu": "A100:0"}, "gpu='A100:0': type a name of Modal's such as \"T4\""),
        ({"cpu": (2, 1)}, "cpu=(2, 1): the request, 2, is above the limit, 1"),
        ({"cpu": float("inf")}, "cpu=inf: type cores"),
        ({"memory": (4096, 2**40)}, "memory=(4096, 1099511627776): no machine has so much; type MiB"),
        ({"setup_code": "k = 1\nk = 'a\0b'"}, "--setup-code: this is no Python: source code string cannot contain null bytes"),
        ({"region": 5}, 'region=5: type one of Modal\'s such as "us-east", or a list of them'),
        ({"volumes": {"/tmp/": "data"}}, "volumes: nothing can be mounted at /tmp/; choose another path"),
        ({"secrets": [""]}, "secrets: give a list of modal.Secret objects or of their names"),
        ({"setup_code": 5}, "setup_code is Python as a str, not a int"),
        ({"lm_handler_address": "x"}, "lm_handler_address is set by RLM"),
        ({"context_payload": "x"}, "context_payload is set by RLM"),
        ({"name": "x"}, "modal has no argument 'name'"),
        ({"timeout": 10**6}, "timeout=1000000: Modal lets a sandbox live 86,400 s"),
        ({"reconnect": True}, "reconnect=True: type seconds from 1 to 600"),
        ({"reconnect": float("nan")}, "reconnect=nan: type seconds from 1 to 600"),
        ({"image": 5}, "image: give a modal.Image or a name in a registry, not a int"),
        ({"secrets": [5]}, "secrets: give modal.Secret objects or their names, not a int"),
        ({"volumes": {"/data": 5}}, "volumes: /data must be a modal.Volume or its name, not a int"),
        ({"network": "pypi.org"}, 'type network=["pypi.org"]'),
    ],
)
def test_p24_what_cannot_be_passed_is_one_line_and_asks_modal_for_nothing(
    plane: LocalModal, given: dict[str, Any], line: str
) -> None:
    before = plane.told().requests
    with pytest.raises(SettingsError) as refused:
        RLM("demo", environment="modal", environment_kwargs=given)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)
    assert plane.told().requests - before == {}


def test_p24_an_image_that_modal_cannot_build_is_told_in_its_words_and_nothing_is_made(shell: Shell, plane: LocalModal) -> None:
    before = count(plane)
    plane.fail("ImageGetOrCreate", "NOT_FOUND", "the registry has no image nobody/nothing:1", times=10)
    ran = shell.run("%%rlm --env modal --image nobody/nothing:1 --model demo --context docs --out kept\nWhat?")
    assert isinstance(ran.error, RLMError)
    assert str(ran.error) == "Modal refuses this sandbox: the registry has no image nobody/nothing:1"
    assert shell.namespace["kept"].status == "failed"
    assert count(plane) == before


CHECKS = """
import os, sys, time
real, sys.modules["modal"] = sys.modules.pop("modal", None), None
from rlm_jupyter import RLM, SettingsError
def tried(**variables):
    os.environ.update(variables)
    started = time.monotonic()
    try:
        RLM("demo", environment="modal")
    except SettingsError as error:
        print(time.monotonic() - started < 20, error)
tried()
del sys.modules["modal"]
import modal
tried(MODAL_TOKEN_ID="", MODAL_TOKEN_SECRET="")
tried(MODAL_TOKEN_ID="ak-other", MODAL_TOKEN_SECRET="as-secret")
"""


BROKEN = """
from rlm_jupyter import RLM, SettingsError
from rlm_jupyter.trials import TRIES
try:
    RLM("demo", environment="modal")
except SettingsError as error:
    print(error)
print(TRIES["modal"]({"env": "modal"}).advice)
"""


def test_p24_without_package_token_or_way_to_modal_nothing_is_made(plane: LocalModal, tmp_path: Path) -> None:
    before = count(plane)
    gone = plane.environment["MODAL_SERVER_URL"].rpartition(":")[0] + ":9"
    unreachable = CHECKS.rpartition("tried(MODAL_TOKEN_ID")[0].rpartition("tried(MODAL_TOKEN_ID")[0] + "tried()"
    lines: list[str] = []
    for source, variables in ((CHECKS, {}), (unreachable, {"MODAL_SERVER_URL": gone})):
        done = subprocess.run(
            [sys.executable, "-c", source], capture_output=True, text=True, timeout=60,
            env={**os.environ, **plane.environment, **variables},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        lines += done.stdout.splitlines()
    broken = tmp_path / "modal.toml"
    broken.write_text("[default\ntoken_id =", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", BROKEN], capture_output=True, text=True, timeout=60,
        env={**os.environ, **plane.environment, "MODAL_CONFIG_PATH": str(broken)},
    )  # fmt: skip
    told = f"the package modal cannot be loaded: Error when reading the modal configuration from `{broken}`. Key group not on"
    ours = [line for line in done.stdout.splitlines() if not re.match("#|$", line)]  # Modal prints a banner of its own
    assert [line[: len(told)] for line in ours] == [told, told], done.stderr
    expected = [
        "the package modal is not installed: type pip install 'rlm_jupyter[modal]', then modal setup",
        "there is no token of Modal on this machine: type modal setup in a terminal, which makes one",
        "Modal does not accept this machine's token: type modal setup in a terminal (",
        "the package modal is not installed",
        "Modal cannot be reached within 4 s: is there a network, or a proxy? (",
    ]
    assert len(lines) == len(expected), lines
    for line, told in zip(lines, expected, strict=True):
        assert line.startswith(f"True {told}"), line
        assert "as-secret" not in line
    assert count(plane) == before


def test_the_doctor_tells_package_and_token_and_starts_nothing(plane: LocalModal, monkeypatch: pytest.MonkeyPatch) -> None:
    before = plane.told().requests
    tried = TRIES["modal"]({"env": "modal", "gpu": "T4", "network": "pypi.org"})
    assert (tried.state, tried.engine) == (OK, f"modal {modal.__version__}")
    assert "a token is there (MODAL_TOKEN_ID); not tried" in tried.value
    assert "no way out but to pypi.org, one way in (port 8080, for whoever holds this run's token), GPU T4" in tried.value
    assert TRIES["modal"]({"env": "local"}).state == NOTE
    assert TRIES["modal"]({"env": "modal", "bridge": "x"}).advice.startswith("--bridge='x' is not known")
    assert plane.told().requests - before == {}
    monkeypatch.setenv("MODAL_TOKEN_ID", "")
    assert TRIES["modal"]({"env": "local"}).state == NOTE
    missing = TRIES["modal"]({"env": "modal"})
    assert (missing.state, missing.value) == (PROBLEM, "not ready")
    assert missing.advice.startswith("there is no token of Modal on this machine: type modal setup")


@pytest.mark.filterwarnings("ignore")
def test_completion_offers_images_networks_and_gpus(shell: Shell) -> None:
    assert shell.complete("%%rlm --env modal --image m") == ["mine"]
    assert shell.complete("%%rlm --env modal --network ") == ["closed", "open"]
    assert "A100" in shell.complete("%%rlm --env modal --gpu A")
    assert "exec" in shell.complete("%%rlm --env modal --bridge ")
    assert shell.complete("%%rlm --env m") == ["modal"]
    assert shell.complete("%rlm sandboxes ") == ["--app-name", "--end"]
    assert shell.complete("%rlm sandboxes --end ") == ["all"]


def test_modal_image_is_exported_and_importing_us_does_not_import_modal() -> None:
    source = "import sys, rlm_jupyter; rlm_jupyter.RLM, rlm_jupyter.modal_image; print('modal' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"
    assert isinstance(modal_image(), modal.Image)


LEFT = """
import asyncio, sys
from rlm_jupyter.kernels.modal import ModalPlace, open_modal
async def main():
    for name in sys.argv[1:]:
        await open_modal(ModalPlace(app_name=name, reconnect=400))
asyncio.run(main())
"""


def left_over(plane: LocalModal, *apps: str) -> list[str]:
    """Make sandboxes in these apps whose process is gone, and give their ids."""
    subprocess.run([sys.executable, "-c", LEFT, *apps], env={**os.environ, **plane.environment}, timeout=60, check=True)
    return [created.sandbox for created in plane.told().created[-len(apps) :]]


def test_sandboxes_that_were_left_over_are_listed_and_ended_and_no_others(
    shell: Shell, plane: LocalModal, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shell.run("%rlm sandboxes").output == "no sandbox of yours runs at Modal in the app rlm-sandbox\n"
    first, second, elsewhere = left_over(plane, "rlm-sandbox", "rlm-sandbox", "another")
    lookup = modal.App.lookup("rlm-sandbox", create_if_missing=True)
    theirs = modal.Sandbox.create(app=lookup)
    ours = tags()
    in_use = modal.Sandbox.create(app=lookup, tags=ours | {"process": str(os.getppid())})
    far = modal.Sandbox.create(app=lookup, tags=ours | {"host": "laptop", "process": "77", "begun": "soon"})
    listed = shell.run("%rlm sandboxes").output
    assert listed.startswith("4 of your sandboxes run at Modal in the app rlm-sandbox:\n")
    rows = {line.split()[0]: line for line in listed.splitlines() if line.startswith("  sb-")}
    assert set(rows) == {first, second, in_use.object_id, far.object_id}
    assert rows[first].endswith("left over: nothing uses it")
    assert rows[in_use.object_id].endswith(f"in use by process {os.getppid()}")
    assert rows[far.object_id].endswith("?  in use by process 77 on laptop, if that still runs")
    refused = shell.run(f"%rlm sandboxes --end {theirs.object_id}").error
    assert isinstance(refused, UsageError)
    assert f"no sandbox of yours has the id {theirs.object_id}" in str(refused)
    assert shell.run(f"%rlm sandboxes --end {first}").output == f"ended: {first}\n"
    assert shell.run("%rlm sandboxes --end all").output == f"ended: {second}\n"
    assert shell.run("%rlm sandboxes --end all").output.startswith("nothing was left over at Modal in the app rlm-sandbox")
    assert {state.id for state in plane.running()} == {theirs.object_id, in_use.object_id, far.object_id, elsewhere}
    assert shell.run("%rlm sandboxes --app-name another --end all").output == f"ended: {elsewhere}\n"
    for sandbox in (theirs, in_use, far):
        sandbox.terminate(wait=True)
    assert shell.run("%rlm sandboxes --app-name=another --end=all").output.startswith("nothing was left over")
    for wrong in ("--all", "--end", "--end=", "--end --app-name x", "all", "--end all --end all", "--end ''"):
        assert "takes --end ID, --end all and --app-name NAME" in str(shell.run(f"%rlm sandboxes {wrong}").error)
    assert str(shell.run("%rlm sandboxes --app-name 'my app'").error).startswith("app_name='my app': type letters, digits")
    plane.control.down()
    for asked in ("%rlm sandboxes", "%%rlm --env modal --model demo --context docs\nWhat?"):
        assert str(shell.run(asked).error).startswith("Modal cannot be reached within 4 s: is there a network, or a proxy? (")
    plane.control.restore()
    monkeypatch.setenv("MODAL_TOKEN_ID", "")
    assert "there is no token of Modal on this machine: type modal setup" in str(shell.run("%rlm sandboxes").error)


def test_what_an_rlm_of_this_process_uses_is_found_and_never_ended_as_left_over(shell: Shell, plane: LocalModal) -> None:
    place: dict[str, Any] = {"environment": "modal", "environment_kwargs": {"app_name": "by-an-rlm"}}
    with scripted([code("llm_query('one')"), answer()], [Reply("ONE", hold=True)], **place) as (rlm, server):
        run = rlm.start("c", "q")
        server.wait_for(2)
        plane.fail("SandboxTagsGetV2", "NOT_FOUND", "it has ended since it was listed")
        assert shell.run("%rlm sandboxes").output.startswith(
            "no sandbox of yours runs at Modal in the apps rlm-sandbox, by-an-rlm"
        )
        listed = shell.run("%rlm sandboxes").output
        assert listed.splitlines()[1].endswith("in use by this notebook"), listed
        assert shell.run("%rlm sandboxes --end all").output.startswith("nothing was left over")
        server.release()
        assert run.wait(60).value == "done"


def test_p11_a_sandbox_that_is_taken_away_while_the_lm_writes_is_told_at_once(plane: LocalModal) -> None:
    def root(request: Request) -> str | Reply:
        if len(request.messages) == 2:
            return code("print('kept')")
        plane.preempt(plane.told().created[-1].sandbox)
        return Reply(answer(), hold=True)  # nobody ever lets it go

    with (
        scripted(root, environment="modal") as (rlm, server),
        pytest.raises(KernelDied, match="was terminated: by Modal") as lost,
    ):
        rlm.completion("c", "q")
    assert len(server.requests) == 2
    assert lost.value.result is not None
    assert lost.value.result.sandbox_seconds is not None


def test_the_way_to_make_the_times_equal_is_one_that_modal_takes() -> None:
    def told(timeout: float, sandbox: int | None = None) -> str:
        settings = RunSettings(model="demo", environment="modal", timeout=timeout, sandbox_timeout=sandbox)
        (line,) = modal_launch.warnings(settings, modal_launch.place_of(settings))
        return line

    assert told(600.5).endswith("the run may take 601 s: --sandbox-timeout 601 makes them equal")
    assert told(90_000).endswith("the run may take 90,000 s: --sandbox-timeout 86400 is the longest at Modal")
    assert told(90_000, 86_400).endswith("the run may take 90,000 s: no sandbox lives longer")


def test_set_up_code_is_read_as_ipython_reads_it_and_by_the_image_where_that_has_a_python_of_its_own() -> None:
    for accepted in ("%pip install polars\n!ls\nawait f()", "%%bash\nif true; then ls; fi", "import re; re.compile('\\d')"):
        launch.check(RunSettings(model="demo", setup_code=accepted))
    newer = "def f[T](x: T) -> T: return x\ndef g(:"
    with pytest.raises(SettingsError, match="--setup-code: this is no Python in line"):
        launch.check(RunSettings(model="demo", setup_code=newer))
    place = RunSettings(model="demo", environment="modal", image="python:3.15-slim", setup_code=newer)
    launch.check_setup(place)


def test_views_tell_the_step_that_takes_long_and_the_sandbox_while_it_runs() -> None:
    story = Story("How many?", environment="modal")
    story.add(events.StepTold(text="Modal builds the image (once)\x1b[2J"))
    assert words.state(Trace.from_events(story.events)) == r"Starting: Modal builds the image (once)\x1b[2J"
    story.add(events.SandboxStarted(machine="2 CPU, 4096 MiB, GPU T4", seconds=0.1))
    story.iteration("I count.", "len(context)", "3")
    running = Trace.from_events(story.events)
    assert not words.state(running).startswith("Starting")
    assert "sandbox 12 s, 2 CPU, 4096 MiB, GPU T4 (outside --max-cost)" in words.progress(running, 12.1)
    ended = Trace.from_events(story.add(events.SandboxEnded(seconds=61.0)).answered("3").events)
    told = "1 min 01 s, 2 CPU, 4096 MiB, GPU T4; billed by Modal, outside --max-cost"
    assert ("sandbox", told) in words.totals(ended)
    assert told in text.render(ended)
    assert told in Page(html.render(ended)).text
    assert "sandbox" not in dict(words.totals(Trace.from_events(Story("How many?").answered("3").events)))
