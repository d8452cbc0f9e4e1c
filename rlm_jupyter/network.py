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
import urllib.parse
import urllib.request

from rlm_jupyter.errors import SettingsError

_PROXIES = ("http", "https", "socks5", "socks5h")


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


def told(proxy: str | None) -> str:
    """Give a proxy as one may show it: without user and password; "" for none."""
    scheme, _, rest = (proxy or "").rpartition("://")
    return f"{scheme or 'http'}://{rest.rpartition('@')[2].partition('/')[0]}" if proxy else ""


def check(url: str) -> None:
    """Refuse proxies and certificates of the environment that no client could use on the way to `url`; nothing is looked up.

    Raises
    ------
    SettingsError
        One line with the variable; a user or password in it is not repeated.
    """
    parts = urllib.parse.urlsplit(url)
    if is_loopback(parts.hostname or ""):
        return
    proxies = urllib.request.getproxies()
    for name in ("http", "https", "all"):
        found = proxies.get(name)
        if found and not _is_address(found if "://" in found else f"http://{found}"):
            told_of = f"{name.upper()}_PROXY ({told(found)})"
            raise SettingsError(f"{told_of} is no address of a proxy; type one such as http://proxy.example.com:8080")
    between = proxy_for(parts.scheme, parts.hostname or "")
    if between and between.startswith("socks"):
        raise SettingsError(f"the proxy {told(between)} speaks SOCKS, which is not supported; set HTTPS_PROXY to one of HTTP")
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if file and not _holds_certificates(file):
        raise SettingsError(f"SSL_CERT_FILE names {file}, which holds no certificates that can be read; unset it, or mend it")
    if folder and not file and not all(os.path.isdir(part) for part in folder.split(os.pathsep)):
        raise SettingsError(f"SSL_CERT_DIR names {folder}, which is no folder; unset it, or mend it")


def _is_address(proxy: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(proxy)
        return parts.scheme in _PROXIES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _holds_certificates(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return b"-----BEGIN" in file.read()
    except OSError:
        return False


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
