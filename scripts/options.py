"""Write docs/options.md from the options' own help and from the table of providers, so that it cannot tell anything else.

`make docs` runs it; a test holds that the page is what it writes. Nothing of this machine goes into the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from rlm_jupyter.lm.dialects import OLLAMA_WINDOW
from rlm_jupyter.lm.providers import AZURE_TOKEN, AZURE_VERSION
from rlm_jupyter.lm.table import PROVIDERS
from rlm_jupyter.magics import RLMMagics

PAGE = Path(__file__).resolve().parent.parent / "docs" / "options.md"

HEAD = """\
# Options, defaults and variables

*Written by `make docs` from the options' own help; change them there.*

An option of `%%rlm` holds for its cell. Its default is a trait, set for a session with `%config RLMMagics.model = "gpt-5-mini"`
or for good in an IPython configuration file (`c.RLMMagics.model = "gpt-5-mini"`); where no trait was set, an environment
variable (`RLM_JUPYTER_MODEL`) is the default. `%rlm status` shows the defaults in force, `%rlm doctor` what is ready. Nothing
is read from files of the folder that one happens to be in.
"""

KEYS = """\
`--model gpt-5-mini` is OpenAI's; `--model provider/model` picks a row; with `--base-url` the name is taken literally and the
key comes from `--api-key-env` only. A key goes to its own row's address and nowhere else (`OPENAI_BASE_URL` is not read);
`--api-key-env` without `--base-url` names the key of the run's own `--model`. Each row is tried in our tests against a scripted
server that behaves as that provider's documentation says; none of the paid services themselves was asked.
"""

OLLAMA = f"""\
Ollama is asked in its own form (`/api/chat`), since its OpenAI-compatible form takes no context window: models are loaded with
`num_ctx` {OLLAMA_WINDOW:,} (or `OLLAMA_CONTEXT_LENGTH`, or `backend_kwargs={{"num_ctx": ...}}`) and `truncate` false, so a
prompt that does not fit is an error; by default Ollama would drop its beginning without a word. `num_ctx` never changes within
a run, since each change loads the model anew. A version of Ollama that knows no `truncate` ignores it.
"""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def options() -> Iterator[list[str]]:
    for action in RLMMagics.ask.parser._actions:
        names = ", ".join(f"`{name}`" for name in action.option_strings)
        value = f" `{action.metavar}`" if action.metavar else " `" + "`, `".join(action.choices) + "`" if action.choices else ""
        yield [names + value, str(action.help).rstrip()]


def defaults() -> Iterator[list[str]]:
    for name, trait in sorted(RLMMagics.class_traits(config=True).items()):
        default = trait.default_value
        shown = "" if default in ("", None) else f"`{default}`"
        yield [f"`RLMMagics.{name}`", f"`RLM_JUPYTER_{name.upper()}`", shown, trait.help]


def providers() -> Iterator[list[str]]:
    for row in PROVIDERS.values():
        address = f"`{row.base_url}`" if row.base_url else ""
        told = f"`{row.address_variable}`" if row.address_variable else ""
        key = f"`{row.key_variable}`" if row.key_variable else "none"
        cost = (
            "nothing" if row.free else "the table of prices, or `--price-as`" if row.name == "azure" else "the table of prices"
        )
        yield [f"`{row.name}/`", key + (" (if there is one)" if row.free and row.key_variable else ""), address, told, cost]


def variables() -> Iterator[list[str]]:
    yield ["`RLM_JUPYTER_TRACES`", "The folder of trace files."]
    yield [f"`{AZURE_TOKEN}`", "A token of Entra for `azure/`, taken where there is no `AZURE_OPENAI_API_KEY`."]
    yield [f"`{AZURE_VERSION}`", "Asks for Azure's dated interface (`2024-10-21`); without it the v1 interface is used."]
    yield [
        "`OLLAMA_CONTEXT_LENGTH`",
        f"The context window, in tokens, that `ollama/` models are loaded with; {OLLAMA_WINDOW:,} if not set.",
    ]
    yield ["`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`", "Honoured for every server but those on this machine (loopback)."]
    yield [
        "`SSL_CERT_FILE`, `SSL_CERT_DIR`, `REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE`",
        "The certificates that are trusted, such as those of a firm's proxy; the first that is set counts.",
    ]


def page() -> str:
    parts = [
        HEAD,
        "## Options of `%%rlm`\n",
        table(("option", "meaning"), options()),
        "## Defaults\n",
        table(("trait", "variable", "default", "meaning"), defaults()),
        "## Providers\n",
        KEYS,
        table(("name", "key", "address", "another address", "cost"), providers()),
        OLLAMA,
        "## Further variables\n",
        table(("variable", "meaning"), variables()),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
