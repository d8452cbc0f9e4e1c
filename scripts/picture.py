"""Make the README's pictures from real runs, in a real JupyterLab in Chromium. `python -m scripts.picture`.

`run.png` and `run-dark.png` are the executed quickstart as it is saved; `timeline.png` is what a run of this moment leaves,
whose model is a script that answers over real HTTP and takes its time.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import Locator, Page

from rlm_jupyter.testing import Reply
from rlm_jupyter.widgets import html
from tests.browser.lab import Browser, Lab, chromium, jupyter_lab, output_cell
from tests.models import answer, code, scripted

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "images"
WIDTH, HEIGHT = 1180, 900
ASKED = "Which file defines the class JSONDecodeError?"
ASK = "replies = llm_query_batched([f'Does clause {n} deal with it?' for n in range(24)])\nlen(replies)"
THEME = "@jupyterlab/apputils-extension"


def main() -> int:
    PICTURES.mkdir(parents=True, exist_ok=True)
    for dark in (False, True):
        with tempfile.TemporaryDirectory() as base, jupyter_lab(Path(base)) as lab, chromium(dark) as browser:
            set_theme(lab, "JupyterLab Dark" if dark else "JupyterLab Light")
            shutil.copy(ROOT / "notebooks" / "quickstart.ipynb", lab.folder)
            page = open_document(lab, browser, "quickstart.ipynb")
            run(page)
            page.screenshot(path=str(PICTURES / f"run{'-dark' if dark else ''}.png"))
            if not dark:
                lab.save("timeline.ipynb", [output_cell(timed())], trusted=True)
                strips(open_document(lab, browser, "timeline.ipynb")).screenshot(path=str(PICTURES / "timeline.png"))
    for picture in sorted(PICTURES.glob("*.png")):
        print(f"{picture.relative_to(ROOT)}: {picture.stat().st_size:,} bytes")
    return 0


def set_theme(lab: Lab, name: str) -> None:
    folder = Path(lab.environment["JUPYTERLAB_SETTINGS_DIR"]) / THEME
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "themes.jupyterlab-settings").write_text(json.dumps({"theme": name}), encoding="utf-8")


def open_document(lab: Lab, browser: Browser, name: str) -> Page:
    page = browser.open(lab.url(f"doc/tree/{name}"))
    page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
    return page


def run(page: Page) -> None:
    """Show the first run of the quickstart, one of its rows open."""
    magic = page.locator(".jp-CodeCell", has_text=ASKED).first
    magic.wait_for()
    magic.locator("details").nth(2).locator("summary").first.click()
    magic.evaluate("cell => cell.scrollIntoView({block: 'start'})")
    page.get_by_text("cut a piece").first.wait_for()


def timed() -> dict[str, str]:
    """Run a question whose model takes its time, and give what is left of it."""
    turns: list[Reply | str] = [
        Reply(code("print(len(context))"), delay=0.9),
        Reply(code(ASK), delay=0.7),
        Reply(code("clause"), delay=0.4),
        Reply(answer("len(replies)"), delay=0.6),
    ]
    delays = iter([0.4, 0.9, 0.6, 1.3, 0.5, 1.0] * 4)
    with scripted(turns, lambda request: Reply("yes", delay=next(delays)), max_concurrency=6) as (rlm, _):
        return html.bundle(rlm.completion("clauses", root_prompt="How many clauses are there?").trace)


def strips(page: Page) -> Locator:
    """Give the timeline of the run on a page."""
    legend = page.get_by_text("asking the model").first
    legend.wait_for()
    return legend.locator("xpath=ancestor::div[2]")


if __name__ == "__main__":
    raise SystemExit(main())
