"""`kveik cache ...`: see and manage the cache of a running server.

Every command prints a table for people, or with as_json the server's own answer.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import typer

from kveik.commands.plan import size_text
from kveik.commands.remote import Remote
from kveik.engine.manifest import Entry, Manifest, read_manifest, written
from kveik.errors import ConfigError, KveikError

Json = dict[str, Any]
Column = tuple[str, Callable[[Json], str]]

_PIPE_WIDTH = 200


def ls(remote: Remote, *, as_json: bool) -> None:
    """Named caches: those of the key, and the public ones."""
    answer = remote.json("GET", "/v1/caches")
    if as_json:
        _print_json(answer)
    else:
        _print_table(answer["data"], _CACHE_COLUMNS, empty="no named caches")


def hottest(remote: Remote, top: int, *, as_json: bool) -> None:
    """What is cached, the most recently used first."""
    answer = remote.json("GET", "/v1/cache", query={"top": top})
    if as_json:
        _print_json(answer)
    else:
        _print_table(answer["data"], _BLOCK_COLUMNS, empty="nothing is cached")


def sessions(remote: Remote, *, as_json: bool) -> None:
    """Open conversations."""
    answer = remote.json("GET", "/v1/sessions")
    if as_json:
        _print_json(answer)
    else:
        _print_table(answer["data"], _SESSION_COLUMNS, empty="no open sessions")


def show(remote: Remote, name: str, *, as_json: bool) -> None:
    """One named cache."""
    answer = remote.json("GET", _cache_path(name))
    if as_json:
        _print_json(answer)
        return
    for label, text in [(label, text(answer)) for label, text in _ONE_CACHE]:
        typer.echo(f"{label:<11} {text}")


def rm(remote: Remote, names: Sequence[str], *, as_json: bool) -> None:
    """Delete named caches; stops at the first that is not there."""
    for name in names:
        receipt = remote.json("DELETE", _cache_path(name))
        if as_json:
            _print_json(receipt)
        else:
            typer.echo(f"{name}: {_receipt(receipt)}")


def invalidate(remote: Remote, selector: Mapping[str, object], *, as_json: bool) -> None:
    """Make everything that the selector names unreachable at once."""
    body = {name: value for name, value in selector.items() if value is not None}
    if not body:
        flags = ", ".join("--" + name.replace("_", "-") for name in selector)
        raise ConfigError(f"invalidate: name what to invalidate: {flags}")
    receipt = remote.json("POST", "/v1/cache/invalidate", body)
    if as_json:
        _print_json(receipt)
    else:
        typer.echo(_receipt(receipt))


def explain(remote: Remote, source: str, *, as_json: bool) -> None:
    """How much of a prompt would come from the cache now, and why not more.

    source: a JSON file of messages (or of {"messages"|"prompt"|"tokens": ...}), a text file, "-"
    for standard input, or the prompt itself."""
    answer = remote.json("POST", "/v1/cache/explain", _question(source))
    if as_json:
        _print_json(answer)
    else:
        typer.echo("\n".join(_explanation(answer)))


def warm(remote: Remote, path: Path, *, as_json: bool) -> None:
    """Compute every entry of a manifest now; one that fails does not stop the others.

    Raises KveikError at the end when any failed."""
    manifest = read_manifest(path)
    if tenants := [n for n, entry in enumerate(manifest.entries) if entry.tenant is not None]:
        raise ConfigError(
            f"{manifest.label(tenants[0])}: tenant: a key speaks for itself only; leave it out, or "
            "start the server with --warm"
        )
    results = [_warmed(remote, manifest, index) for index in range(len(manifest.entries))]
    if as_json:
        _print_json({"entries": results})
    else:
        _print_table(results, _WARM_COLUMNS, empty=f"{path} has no entries")
    failed = sum(result["error"] is not None for result in results)
    if failed:
        raise KveikError(f"{failed} of {len(results)} entries of {path} failed")


def manifest(remote: Remote, top: int, *, as_json: bool) -> None:
    """Print a manifest of what is hot now."""
    answer = remote.json("GET", "/v1/cache/manifest", query={"top": top})
    if as_json:
        _print_json(answer)
    else:
        sys.stdout.write(written(answer["entries"]))


# ---- warming


def _warmed(remote: Remote, manifest: Manifest, index: int) -> Json:
    """What became of one entry."""
    entry = manifest.entries[index]
    result: Json = {"entry": f"entries[{index}]", "name": entry.name, "tokens": None}
    result |= {"cached": None, "error": None}
    try:
        result |= _create(remote, entry) if entry.name is not None else _compute(remote, entry)
    except KveikError as error:
        if error.status == 503:  # nobody answers: the others would wait for nothing
            raise
        result["error"] = error.message
    return result


def _create(remote: Remote, entry: Entry) -> Json:
    cache = remote.json("POST", "/v1/caches", _content(entry) | _lifetime(entry) | _held(entry))
    return {"tokens": cache["tokens"]}


def _compute(remote: Remote, entry: Entry) -> Json:
    """A plain prompt."""
    content = _content(entry)
    if "tokens" in content:
        content["prompt"] = content.pop("tokens")
    path = "/v1/chat/completions" if "messages" in content else "/v1/completions"
    model = remote.json("GET", "/v1/models")["data"][0]["id"]
    words = _lifetime(entry)
    body = {"model": model, "max_tokens": 0, **content}
    usage = remote.json("POST", path, body | ({"kveik": words} if words else {}))["usage"]
    details = usage.get("prompt_tokens_details") or {}
    return {"tokens": usage["prompt_tokens"], "cached": details.get("cached_tokens")}


def _content(entry: Entry) -> Json:
    given = {"messages": entry.messages, "prompt": entry.prompt, "tokens": entry.tokens}
    return {name: value for name, value in given.items() if value is not None}


def _lifetime(entry: Entry) -> Json:
    words: Json = {}
    if entry.ttl is not None:
        words |= {"ttl": entry.ttl.seconds, "ttl_mode": entry.ttl.mode, "clock": entry.ttl.clock}
    if entry.tags:
        words["tags"] = list(entry.tags)
    if entry.priority != "normal":
        words["priority"] = entry.priority
    return words


def _held(entry: Entry) -> Json:
    switches = {name: True for name in ("pin", "public") if getattr(entry, name)}
    return {"name": entry.name, **switches}


# ---- reading and printing


def _question(source: str) -> Json:
    if source == "-":
        return _as_question(sys.stdin.read(), "standard input")
    path = Path(source)
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # a prompt that is too long for a path
        is_file = False
    if not is_file:
        return {"prompt": source}
    try:
        return _as_question(path.read_text(encoding="utf-8"), source)
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{source}: cannot be read as text") from None


def _as_question(text: str, source: str) -> Json:
    """JSON that holds a conversation or a prompt is one; every other text is a prompt."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        if source.endswith(".json"):
            raise ConfigError(f"{source}: is not JSON") from None
        return {"prompt": text}
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        return {"messages": value}
    if isinstance(value, dict):
        known = {name: value[name] for name in ("messages", "prompt", "tokens") if name in value}
        if known:
            return known
    return {"prompt": text}


def _cache_path(name: str) -> str:
    return "/v1/caches/" + quote(name, safe="")


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(rows: Sequence[Json], columns: Sequence[Column], *, empty: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        typer.echo(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for label, _ in columns:
        table.add_column(label, overflow="fold")
    for row in rows:
        table.add_row(*(Text(text(row)) for _, text in columns))
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    Console(width=width, highlight=False).print(table)


def _field(name: str) -> Callable[[Json], str]:
    return lambda row: _line(row.get(name))


def _line(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(_line, value)) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_line(item)}" for name, item in value.items())
    return str(value)


def _time(name: str) -> Callable[[Json], str]:
    return lambda row: span(row.get(name))


def span(seconds: float | None) -> str:
    """A length of time as one reads it: 12 s, 4 min, 2.5 h, 3.0 d."""
    if seconds is None:
        return "-"
    for unit, size, below in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < below:
            digits = 0 if size < 3600 else 1
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds / 86400:.1f} d"


def _ago(name: str) -> Callable[[Json], str]:
    """A moment of the wall clock as one reads it: 4 min ago."""

    def text(row: Json) -> str:
        moment = row.get(name)
        return "-" if moment is None else f"{span(max(0.0, time.time() - moment))} ago"

    return text


def _size(row: Json) -> str:
    return size_text(row["bytes"]).partition(" (")[0]


def _held_by(row: Json) -> str:
    flags = [name for name in ("pinned", "demoted") if row.get(name)]
    return ", ".join([*flags, *row.get("claims", ())]) or "-"


def _receipt(receipt: Json) -> str:
    tiers = ", ".join(f"{_line(size)} bytes of {tier}" for tier, size in receipt["bytes"].items())
    blocks, tokens = _count(receipt["blocks"], "block"), _count(receipt["tokens"], "token")
    later = f", {_count(receipt['deferred'], 'block')} in the next steps"
    return f"{blocks}, {tokens}, {tiers}" + (later if receipt["deferred"] else "")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _explanation(answer: Json) -> list[str]:
    """Sentences; what the server left empty is left out."""
    hits = answer["hit_tokens"]["by_level"]
    lines = [
        f"{hits['states']:,} of {answer['prompt_tokens']:,} prompt tokens would come from the "
        f"cache ({_count(answer['blocks_shared'], 'block')})",
        f"from token {answer['position']:,} on not: {answer['reason']}",
    ]
    for label, name in (("cached", "cached"), ("here", "wanted")):
        if text := answer[name]["text"]:
            lines.append(f"  {label:<7} {text!r}")
    if answer.get("cause"):
        lines.append(f"cause   {answer['cause']}")
    if answer.get("advice"):
        lines.append(f"advice  {answer['advice']}")
    return lines


_CACHE_COLUMNS: tuple[Column, ...] = (
    ("name", _field("name")),
    ("status", _field("status")),
    ("tokens", _field("tokens")),
    ("bytes", _size),
    ("hits", _field("hits")),
    ("last use", _ago("last_use")),
    ("expires in", _time("time_left")),
    ("priority", _field("priority")),
    ("pinned", _field("pinned")),
    ("public", _field("public")),
    ("tags", _field("tags")),
)
_ONE_CACHE: tuple[Column, ...] = (
    *_CACHE_COLUMNS,
    ("made of", _field("kind")),
    ("created", _ago("created")),
    ("computed in", _time("seconds")),
    ("error", _field("error")),
)
_BLOCK_COLUMNS: tuple[Column, ...] = (
    ("depth", _field("depth")),
    ("tokens", _field("tokens")),
    ("hits", _field("hits")),
    ("age", _time("age")),
    ("idle", _time("idle")),
    ("expires in", _time("time_left")),
    ("priority", _field("priority")),
    ("readers", _field("readers")),
    ("held by", _held_by),
)
_SESSION_COLUMNS: tuple[Column, ...] = (
    ("session", _field("session")),
    ("idle", _time("idle")),
    ("blocks", _field("blocks")),
    ("tokens", _field("tokens")),
)
_WARM_COLUMNS: tuple[Column, ...] = (
    ("entry", _field("entry")),
    ("name", _field("name")),
    ("tokens", _field("tokens")),
    ("were cached", _field("cached")),
    ("error", _field("error")),
)
