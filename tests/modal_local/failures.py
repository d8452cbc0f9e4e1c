"""Answers that a test orders: the next calls of a procedure fail, with a status and a message of its choice."""

from __future__ import annotations

from dataclasses import dataclass, field

from grpclib import GRPCError, Status


@dataclass(slots=True)
class Failures:
    """The orders that are open, by procedure."""

    ordered: dict[str, list[GRPCError]] = field(default_factory=dict)

    def order(self, procedure: str, status: str, message: str, times: int) -> None:
        self.ordered.setdefault(procedure, []).extend(GRPCError(Status[status], message) for _ in range(times))

    def meet(self, procedure: str) -> None:
        """Fail the call if that was ordered."""
        if waiting := self.ordered.get(procedure):
            raise waiting.pop(0)
