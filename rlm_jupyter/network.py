"""What the environment says about the way to other machines: which are this one, which proxy is between, whose word counts.

Proxies and certificates are honoured, and bypassed for loopback, which is never looked up. Both the connection to a provider
and the one to a sandbox's broker read them here; a client that is told to trust the environment would also take passwords
from .netrc.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import ssl
import urllib.request

from rlm_jupyter.errors import SettingsError


def is_loopback(host: str) -> bool:
    """Tell whether `host` is this machine by name or address; no look-up is made."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False


def proxy_for(scheme: str, host: str) -> str | None:
    """Give the URL of the proxy on the way to a host, or None."""
    if is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    found = proxies.get(scheme) or proxies.get("all")
    return found if found is None or "://" in found else f"http://{found}"


def bundle() -> ssl.SSLContext | None:
    """Give what `REQUESTS_CA_BUNDLE` or `CURL_CA_BUNDLE` names, which firms set; None where Python's own variables say more.

    Raises
    ------
    SettingsError
        When it cannot be read.
    """
    named = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    if not named or _by_python():
        return None
    try:
        if os.path.isdir(named):
            return ssl.create_default_context(capath=named)
        return ssl.create_default_context(cafile=named)
    except OSError:
        raise SettingsError(f"REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names {named}, which cannot be read") from None


def security() -> ssl.SSLContext:
    """Make what verifies certificates and names, with the authorities that count here; SettingsError as of `bundle`."""
    context = bundle()
    if context is None:
        context = ssl.create_default_context()
        if not _by_python():  # some Pythons come without any certificates
            with contextlib.suppress(ImportError, OSError):
                import certifi

                context.load_verify_locations(certifi.where())
    return context


def _by_python() -> bool:
    return bool(os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR"))
