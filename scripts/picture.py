"""Make the README's pictures from real runs, in a real JupyterLab in Chromium. `python -m scripts.picture`.

Everything is as a user has it: the magic, the panel, a kernel, children in kernels of their own. Only the
models are scripts, which answer over real HTTP and take their time. Each picture is made on light and on dark: `live` while
children work, `run` and `timeline` of what is left of it in the notebook, `panel` of a form whose run has answered.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
from playwright.sync_api import Locator, Page

from rlm_jupyter.testing import Reply, Request, ScriptedServer
from tests.browser.lab import Browser, Lab, OpenNotebook, chromium, jupyter_lab

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "images"
WIDTH, HEIGHT = 1180, 900
SET_UP = """%load_ext rlm_jupyter
%config RLMMagics.base_url = {url!r}
%config RLMMagics.price_as = "gpt-5-mini"
cities = ["Lyon", "Porto", "Graz", "Turku", "Gent", "Brno", "Bilbao", "Split"]
clauses = {{3: "Change of Control", 11: "Assignment", 17: "Ownership of the Tenant", 23: "Change of Control"}}
contracts = {{}}
for number in range(48):
    heading = clauses.get(number, "Notices")
    text = f"LEASE {{number}}, {{cities[number % 8]}}\\n\\n14.1 {{heading}}. "
    text += "The Tenant shall give notice in writing. " * 400
    contracts[f"{{cities[number % 8].lower()}}/lease-{{number:02}}.txt"] = text"""
MAGIC = """%%rlm --context contracts --model {root} --sub-model {sub} --max-depth 2 --max-concurrency 6 --out answer
{question}"""
QUESTION = "Which contracts have a change-of-control clause, and what triggers it?"
LARGE, SMALL = "large-model", "small-model"
LOOK = """for path, text in list(contracts.items())[:4]:
    print(f"{path:24} {len(text):>7,} characters  {text[:18]!r}")
print(len(contracts), "contracts")"""
ASK = """question = "Does this clause deal with a change of control of the tenant? Answer yes or no.\\n\\n"
paths = list(contracts)
replies = llm_query_batched([question + contracts[path][:1200] for path in paths])
found = [path for path, reply in zip(paths, replies) if reply.startswith("Yes")]
print(len(found), "of", len(paths), "have one:", *found)"""
TASK = "Read this lease as a whole: what triggers its change-of-control clause, and what follows?"
KIN = """task = "TASK"
triggers = rlm_query_batched([task] * len(found), [contracts[path] for path in found])
for path, trigger in zip(found, triggers):
    print(path, "|", trigger)"""
PLOT = """import matplotlib.pyplot as plt
counts = {}
for path in found:
    counts[path.split("/")[0]] = counts.get(path.split("/")[0], 0) + 1
plt.figure(figsize=(5, 1.6), dpi=100)
plt.barh(list(counts), list(counts.values()), color="#4c8bd8")
plt.xlabel("contracts with the clause"); plt.tight_layout(); plt.show()"""
END = """answer = "\\n".join(f"{path}: {trigger}" for path, trigger in zip(found, triggers))
FINAL_VAR(answer)"""
READ = """import re
parts = re.findall(r"14[.]\\d .{60}", context)
print(len(context), len(parts))
summaries = llm_query_batched([f"What triggers this clause? {context[at:at + 2000]}" for at in (0, 2000, 4000)])
print(*summaries, sep="\\n")"""
TRIGGERS = ("a transfer of more than half of the tenant's shares", "any assignment to a company outside of the group",
            "a new owner of the tenant, whoever it is", "a sale of the tenant's parent, with 30 days' notice")  # fmt: skip
PROSE = (
    "First, what is there: the names and the sizes, not the texts.",
    "Wording differs from lease to lease, so a search would miss some. I ask a sub-model about each, in one batch.",
    "Four contracts have the clause. Each is long, so a child reads it as a whole and tells me what triggers the clause.",
    "All four are known. A look at where they lie, for the reader.",
    "That answers the question.",
)


class Models:
    """What the scripted models say. Children whose number is in `held` say nothing more until the server releases them."""

    def __init__(self, held: Sequence[int] = (2, 3)) -> None:
        self._held = held
        self._delays = itertools.cycle([0.35, 0.8, 0.5, 1.1, 0.4, 0.95, 0.6])
        self._children: dict[str, int] = {}

    def large(self, request: Request) -> Reply:
        turn = sum(message["role"] == "assistant" for message in request.messages)
        asked = next(message["content"] for message in request.messages if message["role"] == "user")
        if TASK in asked:
            return self._of_a_child(asked, turn)
        block = (LOOK, ASK, KIN, PLOT, END)[turn].replace("TASK", TASK).replace("contracts", "context")
        return Reply(f"{PROSE[turn]}\n\n```repl\n{block}\n```", delay=0.5, pause=0.02)

    def _of_a_child(self, asked: str, turn: int) -> Reply:
        number = self._children.setdefault(asked, len(self._children))
        if turn == 0:
            told = f"The clause first, then what it refers to.\n\n```repl\n{READ}\n```"
            return Reply(told, delay=0.5 + next(self._delays) / 3)
        told = f"The clause stands in 14.1.\n\n```repl\ntrigger = {TRIGGERS[number % 4]!r}\nFINAL_VAR(trigger)\n```"
        return Reply(told, delay=0.4, hold=number in self._held)

    def small(self, request: Request) -> Reply:
        if "What triggers" in request.prompt:
            return Reply("a change in the ownership of the Tenant", delay=0.4 + next(self._delays))
        if "LEASE 30," in request.prompt:
            return Reply(status=400, error={"message": "the reply was filtered", "code": "content_filter"}, delay=0.3)
        has = any(f"14.1 {heading}" in request.prompt for heading in ("Change", "Assignment", "Ownership"))
        return Reply("Yes, in 14.1." if has else "No. The clause is about notices.", delay=next(self._delays))


def main() -> int:
    PICTURES.mkdir(parents=True, exist_ok=True)
    for dark in (True, False):
        with tempfile.TemporaryDirectory() as base, jupyter_lab(Path(base)) as lab, chromium(dark) as browser:
            lab.set_theme("JupyterLab Dark" if dark else "JupyterLab Light")
            of_a_run(lab, browser, "-dark" if dark else "")
            of_a_panel(lab, browser, "-dark" if dark else "")
    for picture in sorted(PICTURES.glob("*.png")):
        print(f"{picture.relative_to(ROOT)}: {picture.stat().st_size:,} bytes")
    return 0


def opened(lab: Lab, browser: Browser, server: ScriptedServer, name: str, *sources: str) -> OpenNotebook:
    """Open a notebook of these cells, the first of them run."""
    cells = [SET_UP.format(url=server.url), *sources]
    lab.save(name, [nbformat.v4.new_code_cell(source) for source in cells], trusted=True)
    book = lab.open(browser, name)
    book.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
    book.page.evaluate("() => { const {commands} = jupyterapp; return commands.execute('application:toggle-left-area'); }")
    book.run(0)
    return book


def save(where: Page | Locator, name: str) -> None:
    where.page.mouse.move(0, 0) if isinstance(where, Locator) else where.mouse.move(0, 0)
    where.screenshot(path=str(PICTURES / f"{name}.png"), animations="disabled")


def of_a_run(lab: Lab, browser: Browser, ending: str) -> None:
    models = Models()
    with ScriptedServer(models={LARGE: models.large, SMALL: models.small}) as server:
        magic = MAGIC.format(root=LARGE, sub=SMALL, question=QUESTION)
        book = opened(lab, browser, server, f"contracts{ending}.ipynb", magic)
        page = book.page
        book.start(1)
        live = page.locator(".rlm-live")
        live.get_by_text("2 ok, 2 running").first.wait_for()
        live.get_by_role("button", name="Timeline").click()
        live.locator(".rlm-group", has_text="4 × rlm_query").click()
        live.locator(".rlm-child").nth(1).click()
        live.locator(".rlm-child").nth(3).wait_for()
        page.locator(".jp-CodeCell").nth(1).evaluate("cell => cell.scrollIntoView({block: 'start'})")
        save(page, f"live{ending}")
        server.release()
        assert book.ended() == "ok"
        cell = page.locator(".jp-CodeCell").nth(1)
        rows = cell.locator("details")
        rows.first.wait_for()
        cell.locator("summary", has_text="Four contracts have the clause").first.click()
        cell.evaluate("cell => cell.scrollIntoView({block: 'start'})")
        save(page, f"run{ending}")
        legend = cell.get_by_text("asking the model").first
        save(legend.locator("xpath=ancestor::div[2]"), f"timeline{ending}")


def of_a_panel(lab: Lab, browser: Browser, ending: str) -> None:
    models = Models(held=())
    with ScriptedServer(models={LARGE: models.large, SMALL: models.small}) as server:
        book = opened(lab, browser, server, f"panel{ending}.ipynb", "%rlm panel")
        page = book.page
        book.run(1)
        page.get_by_label("Question").fill(QUESTION)
        page.get_by_label("Context").select_option(label="contracts: dict, 48 items")
        page.get_by_label("Result into variable").fill("answer")
        page.get_by_label("Model", exact=True).fill(LARGE)
        page.get_by_label("Model of sub-calls").fill(SMALL)
        page.get_by_role("form").get_by_role("button", name="Run", exact=True).click()
        page.get_by_text("Answered; the result is in answer").first.wait_for()
        page.locator(".jp-CodeCell").nth(1).evaluate("cell => cell.scrollIntoView({block: 'start'})")
        save(page, f"panel{ending}")


if __name__ == "__main__":
    raise SystemExit(main())
