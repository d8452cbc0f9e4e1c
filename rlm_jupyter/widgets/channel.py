"""The widget's own line to the front end, and what can be known of that front end.

A cell that runs blocks the kernel's main shell, and with it messages of widgets. JupyterLab and Notebook 7 send those through a
subshell where the kernel has any (ipykernel 7), and `Channel` lets them be handled there. ipykernel's own comm (7.4) sends a
reply back to the shell that published last, which is the blocked one: that is why this is a class of ours.
"""

from __future__ import annotations

import sys
from typing import Any

from comm import base_comm


def kernel() -> Any:
    """Give the ipykernel of this process, or None."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return getattr(shell, "kernel", None) if shell is not None and shell.has_trait("kernel") else None


def in_lab() -> bool:
    """Tell whether the cell that runs was sent by JupyterLab or Notebook 7: those say which cells were deleted."""
    running = kernel()
    if running is None:
        return False
    parent = running.get_parent("shell") if hasattr(running, "get_parent") else {}
    metadata = parent.get("metadata") if isinstance(parent, dict) else None
    return isinstance(metadata, dict) and "deletedCells" in metadata


class Channel(base_comm.BaseComm):
    """A comm whose messages from the front end are handled by the shell that the front end sent them to."""

    def publish_msg(
        self,
        msg_type: str,
        data: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
        buffers: list[bytes] | None = None,
        **keys: Any,
    ) -> None:
        """Send one message on iopub, in the name of the cell that runs."""
        running = kernel()
        if running is None or running.session is None:
            return
        running.session.send(
            running.iopub_socket,
            msg_type,
            {"data": data or {}, "comm_id": self.comm_id, **keys},
            metadata=metadata or {},
            parent=running.get_parent("shell"),
            ident=self.topic,
            buffers=buffers,
        )
