"""A real JupyterLab and a real Chromium for the tests of what a user sees.

Both run for as long as the `with` block, with folders of their own: the server tells by its own log when it is ready, the
browser keeps a log of every request and every dialog. Nothing leaves this machine: what would is refused, and in the log.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import BrowserContext, Dialog, Page, Route, sync_playwright

READY = re.compile(r"http://127\.0\.0\.1:(\d+)/lab\?token=")
DEADLINE = 90.0
"""Seconds that a server or a page may take on a slow machine."""
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
KERNEL = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def browser_path() -> str:
    """Give the Chromium of this machine; `make system-deps` installs it on Debian."""
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    raise FileNotFoundError("no Chromium on the PATH: make system-deps installs it on Debian")


OPEN = """async path => {
  const app = window.jupyterapp;
  await app.restored;
  const panel = await app.commands.execute('docmanager:open', {path});
  await Promise.all([panel.context.ready, panel.revealed, panel.sessionContext.ready]);
  await panel.sessionContext.session.kernel.info;
  window.__panel = panel;
}"""
THE_ONE = """async () => {
  const app = window.jupyterapp;
  await app.restored;
  const panel = app.shell.currentWidget;
  await Promise.all([panel.context.ready, panel.revealed, panel.sessionContext.ready]);
  await panel.sessionContext.session.kernel.info;
  window.__panel = panel;
}"""
START = """async index => {
  const {commands, shell} = window.jupyterapp, panel = window.__panel;
  shell.activateById?.(panel.id);
  panel.content.activeCellIndex = index;
  const begun = new Promise(resolve => panel.sessionContext.iopubMessage.connect(
    (_, message) => message.header.msg_type === 'execute_input' && resolve()));
  window.__ended = commands.execute('notebook:run-cell');
  await begun;
}"""
END = "async () => [await window.__ended, window.__panel.content.activeCell.model.executionCount]"
SAVE = """async () => {
  const {commands, shell} = window.jupyterapp, panel = window.__panel;
  shell.activateById(panel.id);
  await commands.execute('docmanager:save');
  return panel.context.model.dirty;
}"""
IN_TIME = """argument => Promise.race([(%s)(argument), new Promise((_, refuse) =>
  setTimeout(() => refuse(new Error('JupyterLab did not answer within %d s')), 1000 * %d))])"""


class OpenNotebook:
    """A notebook that is open in JupyterLab, its kernel connected.

    It is driven by the commands that keys and buttons are bound to, through `window.jupyterapp`, and each tells when it is
    done: a key that is pressed a moment too early is lost, and nobody hears of it.
    """

    def __init__(self, page: Page, path: Path) -> None:
        self.page, self.path = page, path

    def run(self, cell: int) -> None:
        """Run the cell of this index to its end; fail if it ends with an error."""
        self.start(cell)
        assert self.ended() == "ok"

    def start(self, cell: int) -> None:
        """Start to run the cell of this index, and return when the kernel has begun with it."""
        self.ask(START, cell)

    def ended(self) -> str:
        """Wait for the end of the cell that was started last, and tell how it ended: `ok` or `error`."""
        well, count = self.ask(END)
        assert isinstance(well, bool)
        assert count, "a cell that ran has a number"
        return "ok" if well else "error"

    def save(self) -> Any:
        """Save the notebook and give it as it is on the disk."""
        assert self.ask(SAVE) is False, "the notebook still has changes that were not saved"
        return nbformat.read(self.path, as_version=4)

    def ask(self, script: str, argument: object = None) -> Any:
        """Give what the promise of an async JavaScript function comes to, or fail after `DEADLINE`."""
        return self.page.evaluate(IN_TIME % (script, DEADLINE, DEADLINE), argument)


class Lab:
    """A running JupyterLab: its address, its folder, its environment."""

    def __init__(self, port: int, token: str, folder: Path, environment: dict[str, str]) -> None:
        self.origin = f"http://127.0.0.1:{port}"
        self.token = token
        self.folder = folder
        self.environment = environment

    def url(self, path: str) -> str:
        """Give the address of a page of this server, such as `doc/tree/NOTEBOOK`."""
        return f"{self.origin}/{path}?token={self.token}"

    def open(self, browser: Browser, name: str) -> OpenNotebook:
        """Open a notebook of the folder in a new page, in a workspace of its own, and wait until its kernel has answered."""
        page = browser.open(self.url(f"lab/workspaces/{Path(name).stem}"))
        page.wait_for_function("() => window.jupyterapp !== undefined")
        opened = OpenNotebook(page, self.folder / name)
        opened.ask(OPEN, name)
        return opened

    def open_in_notebook(self, browser: Browser, name: str) -> OpenNotebook:
        """Open a notebook of the folder in Notebook 7, which the same server serves, and wait until its kernel has answered."""
        page = browser.open(self.url(f"notebooks/{name}"))
        page.wait_for_function("() => window.jupyterapp !== undefined")
        opened = OpenNotebook(page, self.folder / name)
        opened.ask(THE_ONE)
        return opened

    def set_theme(self, name: str) -> None:
        """Choose the theme of pages that are opened later."""
        folder = Path(self.environment["JUPYTERLAB_SETTINGS_DIR"]) / "@jupyterlab" / "apputils-extension"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "themes.jupyterlab-settings").write_text(json.dumps({"theme": name}), encoding="utf-8")

    def save(self, name: str, cells: list[Any], trusted: bool) -> Path:
        """Write a notebook with outputs to the server's folder, signed with the server's key if it is to be trusted."""
        path = self.folder / name
        path.write_text(notebook(cells), encoding="utf-8")
        if trusted:
            subprocess.run(
                [sys.executable, "-m", "jupyter", "trust", name], cwd=self.folder, env=self.environment, check=True, timeout=60
            )
        return path


def output_cell(*bundles: dict[str, str], source: str = "%%rlm") -> Any:
    """Give a code cell that holds `bundles` as its displayed outputs, as a notebook saves them."""
    outputs = [nbformat.v4.new_output("display_data", data=data) for data in bundles]
    return nbformat.v4.new_code_cell(source, outputs=outputs, execution_count=1)


def notebook(cells: list[Any]) -> str:
    """Give the text of a notebook, as it is saved."""
    book = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL})
    text: str = nbformat.writes(book)
    return text


def private_environment(base: Path) -> dict[str, str]:
    """Give an environment whose Jupyter and IPython folders all lie in `base`."""
    environment = dict(os.environ)
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTERLAB_SETTINGS_DIR",
                 "JUPYTERLAB_WORKSPACES_DIR", "RLM_JUPYTER_TRACES"):  # fmt: skip
        folder = base / name.lower()
        folder.mkdir(parents=True, exist_ok=True)
        environment[name] = str(folder)
    quiet = base / "jupyterlab_settings_dir" / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True, exist_ok=True)
    settings = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}
    (quiet / "notification.jupyterlab-settings").write_text(json.dumps(settings))
    return environment


def _drain(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        lines.put(line)
    lines.put(None)


@contextlib.contextmanager
def jupyter_lab(base: Path, variables: Mapping[str, str] | None = None) -> Iterator[Lab]:
    """Run a JupyterLab server in `base`, with these variables in its environment, until the block ends."""
    folder = base / "notebooks"
    folder.mkdir(parents=True)
    environment = private_environment(base) | dict(variables or {})
    token = secrets.token_hex(16)
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0", f"--ServerApp.root_dir={folder}",
               f"--IdentityProvider.token={token}", "--LabApp.extension_manager=readonly",
               "--LabApp.expose_app_in_browser=True", "--JupyterNotebookApp.expose_app_in_browser=True"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_drain, args=(process, lines), daemon=True)
    reader.start()
    try:
        yield Lab(_ready(lines), token, folder, environment)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)
        reader.join(20)


def _ready(lines: queue.Queue[str | None]) -> int:
    told = []
    while (line := lines.get(timeout=DEADLINE)) is not None:
        told.append(line)
        if match := READY.search(line):
            return int(match[1])
    raise RuntimeError("JupyterLab ended before it was ready:\n" + "".join(told[-20:]))


class Browser:
    """A Chromium that writes down what a page asks for and every dialog it opens; other hosts than ours are refused."""

    def __init__(self, context: BrowserContext) -> None:
        self._context = context
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        self.popups: list[str] = []
        context.set_default_timeout(DEADLINE * 1000)
        context.on("request", lambda request: self.requests.append(request.url))
        context.on("page", lambda page: self._watch(page))
        context.route(re.compile(r"^(?!(https?|wss?)://127\.0\.0\.1[:/]|file:|data:|blob:|about:)"), self._refuse)

    def open(self, url: str) -> Page:
        page = self._context.new_page()
        page.goto(url, wait_until="domcontentloaded")
        return page

    def foreign(self) -> list[str]:
        """Give the requests that went, or would have gone, to another host than this machine."""
        return [url for url in self.requests if not re.match(r"(https?|wss?)://127\.0\.0\.1[:/]|file:|data:|blob:|about:", url)]

    def _watch(self, page: Page) -> None:
        page.on("dialog", self._dismiss)
        page.on("popup", lambda popup: self.popups.append(popup.url))

    def _dismiss(self, dialog: Dialog) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    @staticmethod
    def _refuse(route: Route) -> None:
        route.abort()


@contextlib.contextmanager
def chromium(dark: bool = False) -> Iterator[Browser]:
    """Run a headless Chromium until the block ends."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=list(ARGUMENTS))
        try:
            yield Browser(
                browser.new_context(viewport={"width": 1100, "height": 900}, color_scheme="dark" if dark else "light")
            )
        finally:
            browser.close()
