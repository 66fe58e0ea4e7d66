"""The keys file: tenants with their keys and their shares of the cache. JSON or TOML.

    [[keys]]
    name = "support"          # of the tenant; its cache namespace follows from the name
    key = "sk-..."
    admin = false             # may see and do what concerns every tenant
    reserved = "256MiB"       # KV bytes that no other tenant can evict
    maximum = "1GiB"          # KV bytes that it can never exceed

A rotated key keeps its cache, and a tenant with two keys (while one is being replaced) has one
cache: entries of one name share a namespace, and must agree on their shares. Whatever is wrong is
one ConfigError that names file, entry and field, and never a key.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, NoReturn

from kveik.config import LIMITS, parse_bytes
from kveik.engine.words import identifier
from kveik.errors import ConfigError

PUBLIC_NAME = "public"
"""How an operator names what every tenant shares; no tenant can be called so."""

_FIELDS = ("name", "key", "admin", "reserved", "maximum")


@dataclass(frozen=True, slots=True)
class Tenant:
    """One entry. reserved, maximum: bytes; maximum None: no bound of its own."""

    name: str
    key: str = field(repr=False)
    admin: bool = False
    reserved: int = 0
    maximum: int | None = None


def read_keys_file(path: str | Path) -> tuple[Tenant, ...]:
    """Raises ConfigError naming file, entry and field."""
    entries = _entries(Path(path))
    most = int(LIMITS["tenant_count"].high)
    if not 1 <= len(entries) <= most:
        _refuse(path, f"holds {len(entries)} keys; expected 1 .. {most}")
    tenants = tuple(_tenant(entry, f"{path}: keys[{n}]") for n, entry in enumerate(entries))
    _check_together(tenants, path)
    return tenants


def tenant_namespace(name: str) -> str:
    return blake2b(name.encode(), digest_size=16, person=b"kveik-tenant").hexdigest()


def shares_of(tenants: Iterable[Tenant]) -> dict[str, tuple[int, int | None]]:
    """namespace -> (reserved, maximum) of the tenants that have a share of their own."""
    return {
        tenant_namespace(one.name): (one.reserved, one.maximum)
        for one in tenants
        if one.reserved or one.maximum is not None
    }


def _entries(path: Path) -> Sequence[object]:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        _refuse(path, f"cannot be read ({error.strerror})")
    except ValueError as error:
        _refuse(path, f"is not valid {'JSON' if path.suffix == '.json' else 'TOML'} ({error})")
    entries = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(entries, list) or set(content) != {"keys"}:
        _refuse(path, "expected a list `keys` of entries with name and key, and nothing else")
    return entries


def _tenant(entry: object, place: str) -> Tenant:
    if not isinstance(entry, Mapping):
        _refuse(place, "expected name and key")
    for name in entry:
        if name not in _FIELDS:
            _refuse(place, f"unknown field {str(name)[:40]!r}; known are {', '.join(_FIELDS)}")
    try:
        name = identifier(entry.get("name"))
    except ValueError as error:
        _refuse(f"{place}: name", str(error))
    if name == PUBLIC_NAME:
        _refuse(f"{place}: name", f"{PUBLIC_NAME!r} stands for what every tenant shares")
    key, admin = entry.get("key"), entry.get("admin", False)
    if not isinstance(key, str) or not key or key != key.strip() or not key.isascii():
        _refuse(f"{place}: key", "expected a string of ASCII characters without spaces around it")
    if not isinstance(admin, bool):
        _refuse(f"{place}: admin", "expected true or false")
    reserved = _size(entry, "reserved", place) or 0
    maximum = _size(entry, "maximum", place)
    if maximum is not None and reserved > maximum:
        _refuse(f"{place}: reserved", f"{reserved} bytes are more than the maximum of {maximum}")
    return Tenant(name, key, admin, reserved, maximum)


def _size(entry: Mapping[str, Any], name: str, place: str) -> int | None:
    value = entry.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        _refuse(f"{place}: {name}", "expected a size such as 256MiB")
    return parse_bytes(value, f"{place}: {name}")


def _check_together(tenants: Sequence[Tenant], path: str | Path) -> None:
    shares: dict[str, tuple[int, int | None]] = {}
    keys: dict[str, int] = {}
    for number, one in enumerate(tenants):
        first = keys.setdefault(one.key, number)
        if first != number:
            _refuse(f"{path}: keys[{number}]: key", f"is that of keys[{first}] too")
        if shares.setdefault(one.name, (one.reserved, one.maximum)) != (one.reserved, one.maximum):
            _refuse(
                f"{path}: keys[{number}]",
                "has other shares than an earlier entry of its name: a tenant has one share",
            )


def _refuse(place: object, why: str) -> NoReturn:
    raise ConfigError(f"{place}: {why}", param="keys_file")
