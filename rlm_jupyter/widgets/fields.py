"""The fields of the panel's form, of ipywidgets: what they are called, what they hold, how a `Form` is read out of them.

All text in them is the user's own or ours, and the front end treats it as text: labels of a list, values of an input.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets
import traitlets

from rlm_jupyter.widgets.form import CAPS, Form, Variable

NO_CONTEXT, A_PATH = "none: the question is all there is", "a path, a folder or a glob"
GONE = "not there any more"
_PLAIN: Mapping[str, Any] = {"continuous_update": False}


class Fields:
    """The fields by their names, which are those of `Form` and of the caps.

    Parameters
    ----------
    defaults
        What they hold at first, by the names of the magic's traits.
    environments, models
        What is offered.

    Attributes
    ----------
    changed
        Called when a field has another value.
    """

    def __init__(self, defaults: Mapping[str, Any], environments: Sequence[str], models: Sequence[str]) -> None:
        self.changed: Callable[[], None] = lambda: None
        self._contexts: dict[str, str] = {NO_CONTEXT: ""}
        self._offering = False
        self.widgets: dict[str, Any] = _question_and_context() | _models_and_place(defaults, environments, models)
        self._caps = {name: cap.choices(defaults[name]) for name, cap in CAPS.items() if name in defaults}
        for name, choices in self._caps.items():
            chosen = next(label for label, value in choices.items() if value == defaults[name])
            self.widgets[name] = ipywidgets.SelectionSlider(
                description=CAPS[name].label, options=list(choices), value=chosen, **_PLAIN
            )
        self.widgets["other"] = ipywidgets.Text(
            description="Other options", placeholder="as in %%rlm: --price-as gpt-5", **_PLAIN
        )
        for widget in self.widgets.values():
            widget.layout.width = "auto"
            widget.observe(self._heard, "value")
        self._heard()

    def grid(self, *names: str) -> Any:
        """Give those of the named fields that there are, side by side where there is room."""
        box = ipywidgets.Box([self.widgets[name] for name in names if name in self.widgets])
        box.add_class("rlm-panel-grid")
        return box

    def values(self) -> dict[str, str]:
        """Give what each field holds; a context by its variable's name."""
        held = {name: widget.value for name, widget in self.widgets.items()}
        return held | {"context": self._contexts.get(held["context"], held["context"])}

    def fill(self, values: Mapping[str, Any]) -> None:
        """Put values into the fields, as `values` gives them or as the front end shows them; not what a field cannot hold."""
        for name, value in values.items():
            if name not in self.widgets or not isinstance(value, str):
                continue
            if name == "context":
                self._choose(value if value == A_PATH else self._contexts.get(value, value.partition(": ")[0]))
                continue
            with contextlib.suppress(traitlets.TraitError):
                self.widgets[name].value = value

    def form(self) -> Form:
        """Give what is filled in."""
        held = self.values()
        is_path = held["context"] == A_PATH
        names = ("question", "env", "model", "sub_model", "base_url", "api_key_env", "other", "out")
        return Form(
            context=held["path"] if is_path else held["context"],
            is_path=is_path,
            caps={name: choices[held[name]] for name, choices in self._caps.items()},
            **{name: held[name] for name in names},
        )

    def offer(self, variables: Sequence[Variable]) -> None:
        """Offer these variables as contexts. What was chosen stays chosen, also when it is gone."""
        chosen = self.values()["context"]
        self._contexts = {NO_CONTEXT: ""} | {variable.label: variable.name for variable in variables}
        self._choose(chosen)

    def _choose(self, chosen: str) -> None:
        field = self.widgets["context"]
        if chosen not in (*self._contexts.values(), A_PATH):
            self._contexts[f"{chosen}: {GONE}"] = chosen
        label = next((label for label, name in self._contexts.items() if name == chosen), A_PATH)
        if (*self._contexts, A_PATH) != field.options:
            self._offering = True
            with field.hold_sync():
                field.options = (*self._contexts, A_PATH)
                field.value = label
            self._offering = False
            self._heard()
        field.value = label

    def _heard(self, change: Any = None) -> None:
        if self._offering:
            return
        context, is_path = self.widgets["context"], self.widgets["context"].value == A_PATH
        self.widgets["path"].layout.display = None if is_path else "none"
        (context.remove_class if is_path else context.add_class)("rlm-panel-two")
        self.changed()


def _question_and_context() -> dict[str, Any]:
    hint = "What do you want to know? {{name}} puts the text of a variable here"
    question = ipywidgets.Textarea(description="Question", placeholder=hint, rows=3, **_PLAIN)
    return {
        "question": question,
        "context": ipywidgets.Dropdown(description="Context", options=(NO_CONTEXT, A_PATH)),
        "path": ipywidgets.Text(description="Path, folder or glob", placeholder="./notes, ./docs/**/*.md", **_PLAIN),
        "out": ipywidgets.Text(description="Result into variable", placeholder="none", value="answer", **_PLAIN),
    }


def _models_and_place(defaults: Mapping[str, Any], environments: Sequence[str], models: Sequence[str]) -> dict[str, Any]:
    def text(kind: type[Any], name: str, description: str, hint: str, **more: Any) -> Any:
        return kind(description=description, value=defaults[name], placeholder=hint, **more, **_PLAIN)

    known = defaults["env"] in environments
    return {
        "model": text(ipywidgets.Combobox, "model", "Model", "demo needs no key", options=models),
        "sub_model": text(ipywidgets.Combobox, "sub_model", "Model of sub-calls", "the same", options=models),
        "env": ipywidgets.Dropdown(
            description="Code runs in", options=environments, value=defaults["env"] if known else environments[0]
        ),
        "base_url": text(ipywidgets.Text, "base_url", "Server (base URL)", "the provider's"),
        "api_key_env": text(ipywidgets.Text, "api_key_env", "Variable with the key", "the provider's"),
    }
