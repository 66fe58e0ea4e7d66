"""Who is calling: API keys, compared in constant time, each its own cache namespace.

A key is kept as its SHA-256 digest only. The namespace is another digest of the key, so neither
logs nor labels nor the cache ever hold the key itself.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b, sha256

from kveik.errors import ConfigError, PermissionDenied, Unauthorized

Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Caller:
    """namespace: of the cache. operator: may see and do what concerns all namespaces."""

    namespace: str
    operator: bool

    def require_operator(self) -> None:
        if not self.operator:
            raise PermissionDenied(
                "this concerns other keys too and needs an admin key (--admin-key)"
            )


@dataclass(frozen=True, slots=True)
class _Key:
    digest: bytes
    caller: Caller


class KeyRing:
    """The configured keys; ConfigError for an empty one.

    Without any key every caller is the operator of one namespace. Else an operator holds an admin
    key, or, where no admin key is configured, the only key: what concerns every namespace then
    concerns nobody else."""

    def __init__(self, api_keys: Iterable[str], admin_keys: Iterable[str]) -> None:
        plain, admin = dict.fromkeys(api_keys), dict.fromkeys(admin_keys)
        if any(not key.strip() for key in (*plain, *admin)):
            raise ConfigError("api_key: a key is empty", param="api_key")
        alone = len(plain) == 1 and not admin
        self._keys = [
            _Key(_digest(key), Caller(_namespace(key), key in admin or alone))
            for key in dict.fromkeys((*plain, *admin))
        ]

    @property
    def open(self) -> bool:
        """No key is configured."""
        return not self._keys

    def caller(self, headers: Headers) -> Caller:
        """From `Authorization: Bearer KEY` or `X-Api-Key: KEY`. Raises Unauthorized."""
        if self.open:
            return Caller("", True)
        given = _digest(_given_key(headers))
        found: Caller | None = None
        for key in self._keys:  # no early exit: the time says nothing about which key is near
            if hmac.compare_digest(key.digest, given):
                found = key.caller
        if found is None:
            raise Unauthorized(
                "a valid API key is needed: Authorization: Bearer KEY or X-Api-Key: KEY"
            )
        return found


def _given_key(headers: Headers) -> bytes:
    """The key sent, b"" if there is none or the headers contradict each other."""
    keys: set[bytes] = set()
    for name, value in headers:
        if name == b"authorization":
            scheme, _, credentials = value.partition(b" ")
            keys.add(credentials.strip() if scheme.lower() == b"bearer" else b"")
        elif name == b"x-api-key":
            keys.add(value.strip())
    return keys.pop() if len(keys) == 1 else b""


def _digest(key: str | bytes) -> bytes:
    return sha256(key.encode() if isinstance(key, str) else key).digest()


def _namespace(key: str) -> str:
    return blake2b(key.encode(), digest_size=16, person=b"kveik-namespace").hexdigest()
