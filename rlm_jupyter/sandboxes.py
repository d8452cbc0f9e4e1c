"""`%rlm sandboxes`: this user's sandboxes at Modal, in words; `--end` ends one, or all that were left over.

What is in use is never ended by `all`: neither by a run of this notebook, nor by another process of this machine, nor by one of
another machine, of which nobody here knows whether it still runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlm_jupyter.errors import SettingsError

if TYPE_CHECKING:
    from rlm_jupyter.kernels.modal_sandboxes import Found
    from rlm_jupyter.run import Run

USAGE = "%rlm sandboxes takes --end ID, --end all and --app-name NAME"


def sandboxes(words: Sequence[str], app_name: str, runs: Sequence[Run]) -> str:
    """Do what the words of the command say and give what to print.

    `app_name`: the default's; looked at are it, the apps of the session's runs and of what this process uses, or what
    `--app-name` names.
    """
    from rlm_jupyter.kernels.modal import apps_in_use
    from rlm_jupyter.kernels.modal_place import ModalPlace
    from rlm_jupyter.kernels.modal_sandboxes import end, find

    asked = _options(words)
    at_modal = [run for run in runs if run.settings.environment == "modal"]
    usual = ModalPlace().app_name
    known = (app_name or usual, *(run.settings.app_name or usual for run in at_modal), *apps_in_use())
    apps = [asked["--app-name"]] if "--app-name" in asked else list(dict.fromkeys(known))
    found = find(apps)
    if "--end" not in asked:
        return _told(found, apps)
    chosen = _chosen(found, asked["--end"], apps)
    if not chosen:
        return f"nothing was left over {_where(apps)}, so none was ended"
    end([one.id for one in chosen])
    return f"ended: {', '.join(one.id for one in chosen)}"


def _options(words: Sequence[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    pairs = iter([part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])])
    for name in pairs:
        value = next(pairs, None)
        if name not in ("--end", "--app-name") or not value or value.startswith("-") or name in options:
            raise SettingsError(f"{' '.join(words)}: {USAGE}")
        options[name] = value
    return options


def _chosen(found: Sequence[Found], which: str, apps: Sequence[str]) -> list[Found]:
    chosen = [one for one in found if (not one.process if which == "all" else one.id == which)]
    if which != "all" and not chosen:
        raise SettingsError(f"no sandbox of yours has the id {which} {_where(apps)}; %rlm sandboxes lists them")
    return chosen


def _where(apps: Sequence[str]) -> str:
    return f"at Modal in the app{'s' * (len(apps) > 1)} {', '.join(apps)}"


def _told(found: Sequence[Found], apps: Sequence[str]) -> str:
    from rlm_jupyter.widgets import words

    if not found:
        return f"no sandbox of yours runs {_where(apps)}"
    many = f"{len(found)} of your sandboxes run" if len(found) > 1 else "1 sandbox of yours runs"
    lines = [f"{many} {_where(apps)}:"]
    for one in found:
        age = "?" if one.age is None else words.duration(one.age)
        use = f"in use by {one.process}" if one.process else "left over: nothing uses it"
        lines.append(f"  {words.one_line(one.id, 60)}  {age:>12}  {words.one_line(use, 120)}")
    lines.append("%rlm sandboxes --end ID ends one, --end all those that are left over; Modal bills each second until then.")
    return "\n".join(lines)
