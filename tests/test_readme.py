"""The README's code runs as it is printed: the first cells, and the same in plain Python."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlm_jupyter import RLMResult
from rlm_jupyter.testing import ScriptedServer
from tests.models import answer
from tests.proxy import behind_a_proxy
from tests.shells import open_shell

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(?:python)?\n(.*?)^```", re.DOTALL | re.MULTILINE)
KEY = "sk-0123456789abcdef0123456789abcdef"


def test_the_readmes_code_runs_as_it_is_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_traces: Path) -> None:
    blocks = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert [block.split()[0] for block in blocks] == ["%load_ext", "%%rlm", "from"]
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = ScriptedServer([answer("context[1]['text']")] * 2, dialect="openai", key=KEY)
    with server, behind_a_proxy(monkeypatch, tmp_path, {"api.openai.com": server.port}) as proxy, open_shell() as shell:
        shell.namespace["contracts"] = [{"text": "none"}, {"text": "§ 7: change of control"}]
        for block in blocks:
            ran = shell.run(block)
            assert ran.error is None, ran.output
        kept, result = shell.namespace["answer"], shell.namespace["result"]
        shell.run("rlm.close()")
    assert set(proxy.asked) == {"api.openai.com:443"}
    for one in (kept, result):
        assert isinstance(one, RLMResult)
        assert (one.status, one.value, str(one)) == ("answered", "§ 7: change of control", "§ 7: change of control")
        assert one.cost is not None
        assert one.trace.question.startswith("Which contracts have a change-of-control clause")
    assert [request.model for request in server.requests] == ["gpt-5-mini", "gpt-5-mini"]
