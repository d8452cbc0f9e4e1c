"""Where a broker is, and how to get there: its exact origin, the proxy on the way, the certificates that count.

What the environment says about proxies and certificates is honoured, and bypassed for loopback. It is read here and set
explicitly, since a client that is told to trust the environment also takes a password from .netrc. A URL that is more than an
origin is refused, and so is one without TLS to another machine than this one.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import ssl
import urllib.request
from dataclasses import dataclass
from urllib.parse import urlsplit

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
        plain = parts.scheme == "http" and _is_loopback(host)
        if not host or not (plain or parts.scheme == "https"):
            raise SettingsError("the broker must be reached by https")
        if "@" in parts.netloc or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise SettingsError("the address of the broker must be scheme, host and port, nothing more")
        name = f"[{host}]" if ":" in host else host
        clean = f"{parts.scheme}://{name}" + (f":{port}" if port is not None else "")
        return cls(clean, host, not plain, _proxy(parts.scheme, host))

    def security(self) -> ssl.SSLContext | None:
        """Make what verifies the origin's certificate and name; None where there is no TLS."""
        if not self.secure:
            return None
        named = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
        bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
        if bundle and not named:
            try:
                if os.path.isdir(bundle):
                    return ssl.create_default_context(capath=bundle)
                return ssl.create_default_context(cafile=bundle)
            except OSError:
                raise SettingsError(f"REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names {bundle}, which cannot be read") from None
        context = ssl.create_default_context()
        if not named:  # some Pythons come without any certificates
            with contextlib.suppress(ImportError, OSError):
                import certifi

                context.load_verify_locations(certifi.where())
        return context


def _proxy(scheme: str, host: str) -> str | None:
    if _is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    found = proxies.get(scheme) or proxies.get("all")
    return found if found is None or "://" in found else f"http://{found}"


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False
