"""Requests to a running server, with errors that are one line: not there, refused, not found."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

from kveik.errors import ConfigError, Conflict, KveikError, PermissionDenied, Unavailable

_KINDS: Mapping[int, type[KveikError]] = {403: PermissionDenied, 409: Conflict}


class Remote:
    """A kveik server at `url` (with or without /v1 at its end)."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--url: {url!r} is not an http address", param="url")
        self._parts = parts
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def json(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, object] | None = None,
    ) -> Any:
        """The answer's JSON. query: None values are left out."""
        given = {name: value for name, value in (query or {}).items() if value is not None}
        with self.request(method, path + (f"?{urlencode(given)}" if given else ""), body) as answer:
            try:
                return json.loads(answer.read())
            except ValueError:
                raise KveikError(
                    f"{self._parts.geturl()} does not answer {path} with JSON: is it kveik?"
                ) from None

    @contextlib.contextmanager
    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """The open answer. Raises Unavailable where nobody answers, KveikError where refused
        (PermissionDenied: to this key, Conflict: now)."""
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        connection = kinds[self._parts.scheme](self._parts.hostname or "", self._parts.port)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, self._path + path, content, self._headers)
            response = connection.getresponse()
            if response.status != 200:
                kind = _KINDS.get(response.status, KveikError)
                raise kind(f"{response.status}: {_error_message(response.read())}")
            yield response
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Unavailable(
                f"--url: no answer from {self._parts.geturl()} ({why}): is kveik serve running?"
            ) from None
        finally:
            connection.close()


def _error_message(body: bytes) -> str:
    """The server's message on one line."""
    try:
        text = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        text = body[:200].decode("utf-8", errors="replace")
    return " ".join(text.split())
