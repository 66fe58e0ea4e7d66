"""The page at `/`: one file, no outside requests, light and dark."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
}


@cache
def html() -> str:
    return (files("kveik.server") / "page.html").read_text(encoding="utf-8")
