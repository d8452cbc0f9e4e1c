"""Who may ask: the account's token for the control plane, and signed tokens with an end for what follows."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from typing import Any

from grpclib import GRPCError, Status

LIFETIME = 3600.0


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Credentials:
    """The account of one plane."""

    def __init__(self) -> None:
        self.token_id, self.token_secret = f"ak-{secrets.token_hex(11)}", f"as-{secrets.token_hex(11)}"
        self._key = secrets.token_bytes(32)

    def token(self, use: str) -> str:
        """Sign a token for one use: 'control', or the id of a task."""
        parts = {"alg": "HS256", "typ": "JWT"}, {"use": use, "exp": time.time() + LIFETIME}
        signed = ".".join(_encoded(json.dumps(part).encode()) for part in parts)
        return f"{signed}.{self._signature(signed)}"

    def _signature(self, signed: str) -> str:
        return _encoded(hmac.digest(self._key, signed.encode(), hashlib.sha256))

    def use(self, token: str) -> str:
        """Give the use that a token was signed for."""
        signed, _, signature = token.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(signed).encode()):
            raise GRPCError(Status.UNAUTHENTICATED, "this token was not given here")
        payload = signed.partition(".")[2]
        told: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        if told["exp"] < time.time():
            raise GRPCError(Status.UNAUTHENTICATED, "this token has run out")
        return str(told["use"])

    def control(self, name: str, metadata: Any) -> None:
        """Check a call of the control plane."""
        if (metadata.get("x-modal-token-id"), metadata.get("x-modal-token-secret")) != (self.token_id, self.token_secret):
            raise GRPCError(Status.UNAUTHENTICATED, "Token ID is malformed or does not belong to this account")
        if name.startswith("Sandbox") and name.endswith("V2") and self.use(metadata.get("x-modal-auth-token", "")) != "control":
            raise GRPCError(Status.UNAUTHENTICATED, "this token is not for the control plane")

    def router(self, _name: str, metadata: Any) -> None:
        """Check a call of a task's command router; which task is checked against the request."""
        self.use(str(metadata.get("authorization", "")).removeprefix("Bearer "))
