"""The manifest of a warm start: which prompts to compute before anybody asks. YAML or JSON.

    entries:
      - name: faq                  # a named cache; without a name: plain cached prompts
        messages:                  # or prompt: TEXT, file: PATH, tokens: [...]
          - {role: system, content: You help with televisions.}
          - {role: user, file: products.txt}
        ttl: 24h
        tags: [faq]
        pin: true

The reader is strict and reads all of it, files included, before anything is computed: whatever is
wrong is one ConfigError that names file, entry and field. Paths are relative to the manifest and
stay below its folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, TypeVar, get_args

import yaml

from kveik.cache.directive import Clock, Priority, Ttl, TtlMode
from kveik.config import LIMITS
from kveik.engine.strict_data import StrictLoader, distinct
from kveik.engine.words import document_version, duration, identifier, tag_list
from kveik.errors import ConfigError

Message: TypeAlias = Mapping[str, Any]
Checked = TypeVar("Checked")

_MOST_BYTES = 64 * 2**20  # of the manifest and of each file that it names
_MOST_ENTRIES = 10_000
_CONTENT = ("prompt", "messages", "file", "tokens")
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Entry:
    """One prompt to compute: exactly one of `prompt`, `messages` and `tokens` is given.

    name: a named cache is made of it; pin and public need one. tenant: whose namespace, by the
    name in the keys file; None: of the only one that there is."""

    prompt: str | None = field(default=None, repr=False)
    messages: tuple[Message, ...] | None = field(default=None, repr=False)
    tokens: tuple[int, ...] | None = field(default=None, repr=False)
    name: str | None = None
    ttl: Ttl | None = None
    tags: tuple[str, ...] = ()
    priority: Priority = "normal"
    pin: bool = False
    public: bool = False
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What to warm, in this order. path: where it was read."""

    path: str
    entries: tuple[Entry, ...]

    def label(self, index: int) -> str:
        """How messages call an entry: "warm.yaml: entries[3] (faq)"."""
        name = self.entries[index].name
        return f"{self.path}: entries[{index}]" + (f" ({name})" if name else "")


def read_manifest(path: str | Path) -> Manifest:
    """Raises ConfigError naming file, entry and field, and what to do."""
    path = Path(path)
    value = _load(_read_text(path, str(path)), path)
    if not isinstance(value, Mapping) or not isinstance(value.get("entries"), list):
        _refuse(str(path), "expected `entries:` and below it a list of what to compute")
    for key in value:
        if key != "entries":
            _refuse(str(path), f"unknown field {_shown(key)}; the only one is entries")
    entries = value["entries"]
    if len(entries) > _MOST_ENTRIES:
        _refuse(str(path), f"has {len(entries)} entries, more than {_MOST_ENTRIES}")
    read = tuple(
        _Reader(path.parent, f"{path}: entries[{index}]").entry(entry)
        for index, entry in enumerate(entries)
    )
    _check_names(path, read)
    return Manifest(str(path), read)


def written(entries: Iterable[Mapping[str, Any]]) -> str:
    """Entries as the YAML that `read_manifest` reads."""
    return str(
        yaml.safe_dump(
            {"entries": list(entries)}, sort_keys=False, allow_unicode=True, default_flow_style=None
        )
    )


class _Reader:
    """Reads one entry; `place` stands in front of every complaint."""

    def __init__(self, folder: Path, place: str) -> None:
        self._folder = folder
        self._place = place

    def entry(self, value: object) -> Entry:
        if not isinstance(value, Mapping):
            _refuse(self._place, "expected an object with prompt, messages, file or tokens")
        for key in value:
            if key not in _FIELDS:
                _refuse(self._place, f"unknown field {_shown(key)}; known are {', '.join(_FIELDS)}")
        given = [name for name in _CONTENT if name in value]
        if len(given) != 1:
            what = "has " + " and ".join(given) if given else "has nothing to compute"
            _refuse(self._place, f"{what}; give one of {', '.join(_CONTENT)}")
        entry = Entry(
            prompt=self._prompt(value),
            messages=self._messages(value),
            tokens=self._tokens(value),
            name=self._checked(value, "name", identifier),
            ttl=self._ttl(value),
            tags=self._checked(value, "tags", tag_list) or (),
            priority=self._choice(value, "priority", get_args(Priority)) or "normal",
            pin=self._switch(value, "pin"),
            public=self._switch(value, "public"),
            tenant=self._checked(value, "tenant", _tenant),
        )
        for name in ("pin", "public"):
            if getattr(entry, name) and entry.name is None:
                self._refuse(name, "needs a name, by which it can be changed and deleted")
        return entry

    def _prompt(self, value: Mapping[str, Any]) -> str | None:
        if "file" in value:
            return self._file(value["file"], "file")
        return self._checked(value, "prompt", _text)

    def _messages(self, value: Mapping[str, Any]) -> tuple[Message, ...] | None:
        if "messages" not in value:
            return None
        listed, most = value["messages"], int(LIMITS["message_count"].high)
        if not isinstance(listed, list) or not 1 <= len(listed) <= most:
            self._refuse("messages", f"expected a list of 1 .. {most} messages")
        return tuple(self._message(item, f"messages[{n}]") for n, item in enumerate(listed))

    def _message(self, item: object, place: str) -> Message:
        if not isinstance(item, Mapping):
            self._refuse(place, "expected an object with role and content")
        if set(item) not in ({"role", "content"}, {"role", "file"}):
            self._refuse(place, "expected role, and either content or file")
        if item["role"] not in _ROLES:
            self._refuse(f"{place}.role", "expected one of " + ", ".join(_ROLES))
        if "file" in item:
            text = self._file(item["file"], f"{place}.file")
            return {"role": item["role"], "content": text}
        content = item["content"]
        if isinstance(content, list):
            parts = [self._part(p, f"{place}.content[{n}]") for n, p in enumerate(content)]
            return {"role": item["role"], "content": parts}
        if not isinstance(content, str):
            self._refuse(f"{place}.content", "expected a string or a list of text parts")
        return {"role": item["role"], "content": content}

    def _part(self, part: object, place: str) -> Message:
        """{"type": "text", "text": ..., "document": "id@version"}"""
        if not isinstance(part, Mapping) or not set(part) <= {"type", "text", "document"}:
            self._refuse(place, "expected an object with type, text and perhaps document")
        if part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
            self._refuse(place, "expected a text part")
        if "document" in part:
            self._checked({place: part["document"]}, place, document_version)
        return {"type": "text", **part}

    def _tokens(self, value: Mapping[str, Any]) -> tuple[int, ...] | None:
        if "tokens" not in value:
            return None
        listed, high = value["tokens"], LIMITS["token_id"].high
        whole = isinstance(listed, list) and all(type(i) is int and 0 <= i <= high for i in listed)
        if not whole or not listed:
            self._refuse("tokens", "expected a list of token ids")
        return tuple(listed)

    def _ttl(self, value: Mapping[str, Any]) -> Ttl | None:
        mode = self._choice(value, "ttl_mode", get_args(TtlMode))
        clock = self._choice(value, "clock", get_args(Clock))
        seconds = self._checked(value, "ttl", duration)
        if seconds is not None:
            return Ttl(seconds, clock or "last_use", mode or "delete")
        for name, given in (("ttl_mode", mode), ("clock", clock)):
            if given is not None:
                self._refuse(name, "needs ttl")
        return None

    def _file(self, name: object, place: str) -> str:
        if not isinstance(name, str) or not name:
            self._refuse(place, "expected a path")
        path = self._folder / name
        if not path.resolve().is_relative_to(self._folder.resolve()):
            self._refuse(place, f"{name!r} is not below the folder of the manifest")
        text = _read_text(path, f"{self._place}: {place}")
        return text if text else self._refuse(place, f"{name!r} is empty")

    def _checked(
        self, value: Mapping[str, Any], name: str, check: Callable[[object], Checked]
    ) -> Checked | None:
        if name not in value:
            return None
        try:
            return check(value[name])
        except ValueError as error:
            self._refuse(name, str(error))

    def _choice(self, value: Mapping[str, Any], name: str, choices: tuple[Any, ...]) -> Any:
        if name not in value:
            return None
        if value[name] not in choices:
            self._refuse(name, "expected one of " + ", ".join(choices))
        return value[name]

    def _switch(self, value: Mapping[str, Any], name: str) -> bool:
        given = value.get(name, False)
        if not isinstance(given, bool):
            self._refuse(name, "expected true or false")
        return given

    def _refuse(self, name: str, why: str) -> NoReturn:
        _refuse(f"{self._place}: {name}", why)


_FIELDS = (
    *_CONTENT,
    "name",
    "ttl",
    "ttl_mode",
    "clock",
    "tags",
    "priority",
    "pin",
    "public",
    "tenant",
)


def _check_names(path: Path, entries: Iterable[Entry]) -> None:
    seen: dict[tuple[str | None, str], int] = {}
    for index, entry in enumerate(entries):
        if entry.name is None:
            continue
        first = seen.setdefault((entry.tenant, entry.name), index)
        if first != index:
            _refuse(f"{path}: entries[{index}]: name", f"is that of entries[{first}] too")


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("expected a text of at least one character (put it in quotes)")
    return value


def _tenant(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("expected the name of a key in the keys file")
    return value


def _read_text(path: Path, place: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            _refuse(place, f"{path.name!r} is larger than {_MOST_BYTES >> 20} MiB")
        return data.decode("utf-8")
    except OSError as error:
        _refuse(place, f"cannot be read ({error.strerror})")
    except UnicodeDecodeError:
        _refuse(place, f"{path.name!r} is not UTF-8 text")


def _load(text: str, path: Path) -> Any:
    """JSON is read as JSON (a tab is no fault there), everything else as YAML."""
    try:
        if path.suffix == ".json":
            return json.loads(text, object_pairs_hook=distinct)
        return yaml.load(text, Loader=StrictLoader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        _refuse(str(path), f"{line}{error.problem}")
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        _refuse(str(path), f"cannot be read ({str(error).splitlines()[0]})")


def _shown(key: object) -> str:
    return repr(key)[:60]


def _refuse(place: str, why: str) -> NoReturn:
    raise ConfigError(f"{place}: {why}", param="warm")
