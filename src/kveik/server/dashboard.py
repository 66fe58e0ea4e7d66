"""The dashboard: static files of the package, served as they are. No data, so no key.

The page asks /v1/cache/... for what it shows, with the key of whoever looks. Its policy allows
scripts and styles of this server only, none inside the page, and no request to anywhere else.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
}

PAGE = "/dashboard"

SCRIPTS = (
    "main.js",
    "api.js",
    "format.js",
    "theme.js",
    "charts.js",
    "overview.js",
    "blockmap.js",
    "tree.js",
    "lists.js",
    "requests.js",
)

FILES: dict[str, tuple[str, str]] = {
    PAGE: ("dashboard.html", "text/html"),
    f"{PAGE}/dashboard.css": ("dashboard.css", "text/css"),
    **{f"{PAGE}/{name}": (name, "text/javascript") for name in SCRIPTS},
}
"""path -> file in `dashboard_files`, media type"""


@cache
def content(name: str) -> str:
    return (files("kveik.server") / "dashboard_files" / name).read_text(encoding="utf-8")
