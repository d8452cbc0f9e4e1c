"""How what changes while it is shown reaches a notebook: as a display with an id, under which it is put anew.

A bundle is shown as it is (raw): IPython's own `HTML` or `Markdown` would open a file or an address that a text names.
"""

from __future__ import annotations

from typing import Any, Protocol


class Publish(Protocol):
    """How a bundle of media types reaches the front end."""

    def __call__(self, bundle: dict[str, Any], *, display_id: str, update: bool) -> None:
        """Show `bundle`, or put it in the place of what was shown under `display_id`."""


def publish(bundle: dict[str, Any], *, display_id: str, update: bool) -> None:
    """Show a bundle in the cell that runs, or put it in the place of what has that id, wherever it is."""
    from IPython.display import display, update_display

    if update:
        update_display(bundle, display_id=display_id, raw=True)  # type: ignore[no-untyped-call]
    else:
        display(bundle, display_id=display_id, raw=True)  # type: ignore[no-untyped-call]
