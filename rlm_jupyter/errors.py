"""The exception tree: who may act on a failure, and what it must say.

    RLMError                        whatever a run can report; carries the partial result where there is one
    ├── SettingsError               refused before anything was started or spent; one line that says what to type
    ├── LMError                     one request to a language model failed for good (after the retries it deserves)
    │   ├── LMRefused               the provider said no: key, model, quota, content, size. A retry would not help
    │   ├── LMUnavailable           rate limit, server error, time-out, lost connection: retried, then this
    │   └── LMReplyError            an answer came that is not one: malformed, empty, cut in the middle: retried, then this
    ├── LimitReached                a cap of the run: `limit` names it
    ├── KernelError                 the place where the code runs failed; the LM cannot mend it by writing other code
    │   ├── KernelStartError        it did not start; nothing was spent
    │   └── KernelDied              it was there and is gone, with every variable in it
    ├── ProtocolError               the other end of a stream broke the protocol: the stream is closed
    └── RunStopped                  the user stopped the run (also a KeyboardInterrupt)

What the LM *can* mend by writing other code is never one of these: it is the traceback of its own cell.
In the kernel `llm_query` raises a class of its own that is also called `LMError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlm_jupyter.result import RLMResult


class RLMError(Exception):
    """Base of everything a run can report.

    The text is at most three lines: what happened, what was kept, what to do next. `result` is the partial
    `RLMResult` (trace, usage, cost and the best answer so far), or None when no run had begun.
    """

    result: RLMResult | None = None

    def _render_traceback_(self) -> list[str]:
        """Show one short error in IPython instead of our call stack (IPython's protocol for this)."""
        return [f"{type(self).__name__}: {line}" if n == 0 else line for n, line in enumerate(str(self).split("\n")[:4])]


class SettingsError(RLMError, ValueError):
    """An option, a variable or an environment that cannot be used; one line that says what to type instead."""


class LMError(RLMError):
    """One request to a language model failed.

    Attributes
    ----------
    retryable
        Whether the same request may succeed when it is sent again.
    unreached
        Whether no server was reached: nobody listens there, or the name is not known.
    retry_after
        Seconds that the provider asked us to wait, or None.
    """

    retryable = False
    unreached = False

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class LMRefused(LMError):
    """The provider refused the request itself (key, model, quota, content filter, too long)."""


class LMUnavailable(LMError):
    """Rate limit, server error, time-out or lost connection."""

    retryable = True


class LMReplyError(LMError):
    """A reply that is none: malformed JSON, no choices, a stream that was cut."""

    retryable = True


class LimitReached(RLMError):
    """A cap of the run is used up. `limit` is the name of the setting (`max_calls`, ...), `used` how much of its `cap`."""

    def __init__(self, limit: str, message: str, *, used: float = 0.0, cap: float = 0.0) -> None:
        super().__init__(message)
        self.limit, self.used, self.cap = limit, used, cap


class KernelError(RLMError):
    """The kernel, or what it lives in, failed."""


class KernelStartError(KernelError):
    """The kernel did not start."""


class KernelDied(KernelError):
    """The kernel is gone: killed, crashed or exited. The text says how, and what was lost with it."""


class ProtocolError(RLMError):
    """The other end of a stream sent what the protocol does not allow."""


class RunStopped(RLMError, KeyboardInterrupt):
    """The user stopped the run; `result` holds what there is. Also a KeyboardInterrupt, for code that waits for one."""
