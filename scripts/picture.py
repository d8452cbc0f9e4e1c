"""Make the README's picture: the executed quickstart in a real JupyterLab, in Chromium. `python scripts/picture.py`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tests.browser.lab import chromium, jupyter_lab

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "run.png"
WIDTH, HEIGHT = 1180, 900


def main() -> int:
    with tempfile.TemporaryDirectory() as base, jupyter_lab(Path(base)) as lab, chromium() as browser:
        shutil.copy(ROOT / "notebooks" / "quickstart.ipynb", lab.folder)
        page = browser.open(lab.url("doc/tree/quickstart.ipynb"))
        page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
        magic = page.locator(".jp-CodeCell", has_text="Which file defines the class JSONDecodeError?").first
        magic.wait_for()
        third = magic.locator("details").nth(2)
        third.locator("summary").first.click()
        magic.evaluate("cell => cell.scrollIntoView({block: 'start'})")
        page.get_by_text("cut a piece").first.wait_for()
        PICTURE.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(PICTURE))
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
