"""Where a request says it comes from and goes to: Host, Origin and CORS. Pure functions.

Without keys the server trusts the loopback user, and a web page open in that user's browser must
not be able to speak for them: Host names other than loopback (DNS rebinding) and foreign origins
are refused.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from kveik.errors import InvalidRequest, PermissionDenied

Headers = Sequence[tuple[bytes, bytes]]

_HOST = re.compile(r"(?P<name>[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
"""RFC 3986: reg-name, IPv4 or [IPv6], and a port."""

_EXPOSED = b"x-request-id, request-id, retry-after"


def header(headers: Headers, name: bytes) -> str | None:
    for key, value in headers:
        if key == name:
            return value.decode("latin-1")
    return None


def is_loopback(name: str) -> bool:
    """Whether a host name or address stays on this machine."""
    bare = name.strip("[]").lower()
    if bare == "localhost":
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False


def check_host(headers: Headers, *, loopback_only: bool) -> None:
    """Raise InvalidRequest for a malformed Host, PermissionDenied for a foreign one."""
    hosts = [value.decode("latin-1") for key, value in headers if key == b"host"]
    if not hosts:
        return  # HTTP/1.0; a browser always sends one
    match = _HOST.fullmatch(hosts[0])
    if match is None or len(hosts) > 1:
        raise InvalidRequest("the Host header is not a host name", code="invalid_host")
    if loopback_only and not is_loopback(match["name"]):
        raise PermissionDenied(
            "without an API key only requests to localhost are served; start with --api-key KEY"
        )


def check_origin(headers: Headers, allowed: Sequence[str], *, open_door: bool) -> None:
    """Without keys (`open_door`), a page of another origin may only call if it is allowed."""
    origin = header(headers, b"origin")
    if origin is None or not open_door or is_allowed(origin, allowed):
        return
    if urlsplit(origin).netloc.lower() != (header(headers, b"host") or "").lower():
        raise PermissionDenied("this origin may not call; start with --cors-origin ORIGIN")


def is_allowed(origin: str, allowed: Sequence[str]) -> bool:
    return "*" in allowed or origin in allowed


def cors_headers(headers: Headers, allowed: Sequence[str]) -> list[tuple[bytes, bytes]]:
    """What to add to an answer so that an allowed origin may read it."""
    if not allowed:
        return []
    origin = header(headers, b"origin")
    vary = (b"vary", b"Origin")
    if origin is None or not is_allowed(origin, allowed):
        return [vary]
    allow = (b"access-control-allow-origin", origin.encode("latin-1"))
    return [vary, allow, (b"access-control-expose-headers", _EXPOSED)]


def is_preflight(method: str, headers: Headers) -> bool:
    asks = header(headers, b"access-control-request-method") is not None
    return method == "OPTIONS" and asks and header(headers, b"origin") is not None


PREFLIGHT_HEADERS = [
    (b"access-control-allow-methods", b"GET, POST, PATCH, DELETE, OPTIONS"),
    (
        b"access-control-allow-headers",
        b"authorization, content-type, x-api-key, x-request-id, anthropic-version, anthropic-beta, "
        b"anthropic-dangerous-direct-browser-access",
    ),
    (b"access-control-max-age", b"600"),
]
