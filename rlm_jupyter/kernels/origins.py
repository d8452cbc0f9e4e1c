"""Where a broker is, and how to get there: its exact origin, the proxy on the way.

A URL that is more than an origin is refused, and so is one without TLS to another machine than this one. What the environment
says about proxies and certificates is read in `network` and set explicitly.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from rlm_jupyter import network
from rlm_jupyter.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port, nothing else. `proxy` is the URL of the proxy on the way, or None."""

    url: str
    host: str
    secure: bool
    proxy: str | None

    @classmethod
    def of(cls, url: str) -> Origin:
        """Read a URL; SettingsError where it is more than an origin, or not safe."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise SettingsError("the address of the broker is no URL") from None
        plain = parts.scheme == "http" and network.is_loopback(host)
        if not host or not (plain or parts.scheme == "https"):
            raise SettingsError("the broker must be reached by https")
        if "@" in parts.netloc or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise SettingsError("the address of the broker must be scheme, host and port, nothing more")
        name = f"[{host}]" if ":" in host else host
        clean = f"{parts.scheme}://{name}" + (f":{port}" if port is not None else "")
        return cls(clean, host, not plain, network.proxy_for(parts.scheme, host))

    def security(self) -> ssl.SSLContext | None:
        """Make what verifies the origin's certificate and name; None where there is no TLS."""
        if not self.secure:
            return None
        return network.security()
