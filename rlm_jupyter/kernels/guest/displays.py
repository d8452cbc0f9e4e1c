"""What a cell displays, on its way to the host: as text, and the PNG or JPEG of it; nothing else of it leaves the kernel."""

from __future__ import annotations

import base64
import contextlib
import sys
from typing import Any

from .channel import Channel


class Displays:
    """Takes what IPython publishes. `output` bytes of a text are kept at each end, and pictures of at most `picture` bytes."""

    def __init__(self, channel: Channel, output: int, picture: int) -> None:
        self._channel = channel
        self._output, self._picture = output, picture

    def outlet(self) -> Any:
        """Give a jupyter_client Session that sends nothing: what displays publish is handed to `show` instead."""
        from jupyter_client.session import Session

        show = self.show

        class Outlet(Session):
            def send(self, stream: Any, msg_or_type: Any, content: Any = None, *args: Any, **kwargs: Any) -> Any:
                if isinstance(msg_or_type, dict):
                    msg_or_type, content = msg_or_type["header"]["msg_type"], msg_or_type["content"]
                show(msg_or_type, content or {})
                return msg_or_type

        return Outlet()

    def show(self, kind: str, content: dict[str, Any]) -> None:
        """Hand on what a cell displays, as text, and wait until all output before it has been read."""
        if kind in ("execute_result", "display_data"):
            self._show_picture(content.get("data", {}))
            text = content.get("data", {}).get("text/plain")
        elif kind == "error":
            text = "\n".join(map(str, content.get("traceback", ())))
        else:
            return
        if type(text) is not str:
            return
        stream = {"execute_result": "result", "display_data": "display", "error": "error"}[kind]
        data, half = text.encode("utf-8", "backslashreplace"), self._output
        if not data.endswith(b"\n"):
            data += b"\n"
        head, skipped = len(data), 0
        if len(data) > 2 * half:
            head, skipped = half, len(data) - 2 * half
            data = data[:half] + data[-half:]
        self._flush()
        self._channel.ask({"kind": "show", "stream": stream, "head": head, "skipped": skipped}, data)

    def _show_picture(self, data: dict[str, Any]) -> None:
        coded = data.get("image/png") or data.get("image/jpeg")
        with contextlib.suppress(ValueError, TypeError):
            picture = base64.b64decode(coded) if isinstance(coded, str) else bytes(coded or b"")
            if 0 < len(picture) <= self._picture:
                self._flush()
                self._channel.ask({"kind": "picture"}, picture)

    def _flush(self) -> None:
        for each in (sys.stdout, sys.stderr):
            if each is not None and not getattr(each, "closed", False):
                each.flush()
