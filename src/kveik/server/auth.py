"""Who is calling: API keys, compared in constant time, each with a cache namespace.

A key is kept as its SHA-256 digest only. The namespace is a digest of the tenant's name where a
keys file names one (a rotated key keeps its cache), else another digest of the key: neither logs
nor labels nor the cache ever hold the key itself.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256

from kveik.cache.directive import PUBLIC
from kveik.errors import ConfigError, NotFound, PermissionDenied, Unauthorized
from kveik.server.keys_file import PUBLIC_NAME, Tenant, tenant_namespace

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
    concerns nobody else. `replace` puts other tenants in the place of those of the keys file."""

    def __init__(
        self,
        api_keys: Iterable[str],
        admin_keys: Iterable[str],
        tenants: Sequence[Tenant] = (),
    ) -> None:
        self._plain, self._admin = tuple(dict.fromkeys(api_keys)), tuple(dict.fromkeys(admin_keys))
        if any(not key.strip() for key in (*self._plain, *self._admin)):
            raise ConfigError("api_key: a key is empty", param="api_key")
        self._keys: list[_Key] = []
        self._namespaces: dict[str, str] = {}
        self.replace(tenants)

    def replace(self, tenants: Sequence[Tenant]) -> None:
        """Keys that are gone are refused from now on; what they started goes on."""
        plain, admin = self._plain, self._admin
        alone = len(plain) + len(tenants) == 1 and not admin
        keys = [
            _Key(_digest(key), Caller(_namespace(key), key in admin or alone))
            for key in dict.fromkeys((*plain, *admin))
        ]
        for one in tenants:
            caller = Caller(tenant_namespace(one.name), one.admin or alone)
            keys.append(_Key(_digest(one.key), caller))
        if len({key.digest for key in keys}) < len(keys):
            raise ConfigError(
                "keys_file: a key is configured as --api-key or --admin-key too; give it once",
                param="keys_file",
            )
        self._keys = keys
        self._namespaces = {one.name: tenant_namespace(one.name) for one in tenants}

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

    def namespace_of(self, name: str) -> str:
        """Of a tenant by its name in the keys file, or what is public. Raises NotFound."""
        if name == PUBLIC_NAME:
            return PUBLIC
        try:
            return self._namespaces[name]
        except KeyError:
            raise NotFound(
                "namespace: the keys file has no tenant of this name", param="namespace"
            ) from None

    @property
    def alone(self) -> bool:
        """There is one caller, to whom everything belongs."""
        return len({key.caller.namespace for key in self._keys}) <= 1

    def names(self) -> list[str]:
        """The tenants of the keys file."""
        return sorted(self._namespaces)

    def name_of(self, namespace: str) -> str | None:
        """What an operator is told instead of a namespace; None: it has no name."""
        if namespace == PUBLIC:
            return PUBLIC_NAME
        return next((name for name, own in self._namespaces.items() if own == namespace), None)

    def warm_namespace(self, name: str | None) -> str:
        """Where an entry of a warm manifest belongs. Raises ConfigError."""
        if name is not None:
            if name not in self._namespaces:
                raise ConfigError(
                    f"tenant: the keys file has no tenant {name!r}; name one that it has",
                    param="warm",
                )
            return self._namespaces[name]
        namespaces = {key.caller.namespace for key in self._keys} or {""}
        if len(namespaces) > 1:
            raise ConfigError(
                "tenant: there are several keys, so it must say whose: the NAME of one in the "
                "keys file (--keys-file), or public: true",
                param="warm",
            )
        return namespaces.pop()


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
