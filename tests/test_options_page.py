"""docs/options.md tells what the options' own help tells."""

from __future__ import annotations

from rlm_jupyter.lm.table import PROVIDERS
from rlm_jupyter.magics import RLMMagics
from scripts.options import PAGE, page


def test_the_page_is_what_make_docs_writes() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run make docs"


def test_the_page_names_every_option_trait_and_provider() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for action in RLMMagics.ask.parser._actions:
        assert all(f"`{option}`" in text for option in action.option_strings)
    for name in RLMMagics.class_traits(config=True):
        assert f"`RLMMagics.{name}`" in text
        assert f"`RLM_JUPYTER_{name.upper()}`" in text
    for row in PROVIDERS.values():
        assert f"`{row.name}/`" in text
