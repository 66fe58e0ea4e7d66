"""Every cache field of a request, native or foreign, changes `cached_tokens` or eviction.

docs/CACHE_FIELDS.md names these tests; the last ones here hold it to that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cache_server import CacheServer, cache_server, fresh, user

from kveik.server.messages import _LABELS
from kveik.server.retention_fields import CacheFields, CacheOptions, Native

HOUR = 3600.0
COLD = 16  # tokens: prompts that have nothing to do with each other may begin alike
DOCUMENT = Path(__file__).parents[2] / "docs" / "CACHE_FIELDS.md"


@pytest.fixture(scope="module")
def one(tiny_folder: Callable[..., Path]) -> Iterator[CacheServer]:
    with cache_server(tiny_folder()) as server:
        yield server


def test_plain_use_is_cached(one: CacheServer) -> None:
    """What the other tests change: without any field a prompt is found again, for days."""
    text = fresh()
    assert one.cached(text) < COLD
    one.clock.advance(48 * HOUR)
    assert one.cached(text) > 100


# --- the native object


def test_session(one: CacheServer) -> None:
    text = fresh()
    one.cached(text, kveik={"session": "s1"})
    assert _is_cached(one, text)  # without a use of its own, which would keep it
    assert one.send("DELETE", "/v1/sessions/s1").json()["tokens"] > 0
    assert one.peek(text) < COLD


def test_session_idles_out(one: CacheServer) -> None:
    text = fresh()
    one.cached(text, kveik={"session": "idle"})
    one.clock.advance(1801)
    assert one.peek(text) < COLD
    assert one.send("DELETE", "/v1/sessions/idle").status_code == 404


def test_continue(one: CacheServer) -> None:
    first = user(fresh())
    begun = one.usage(first, kveik={"session": "talk"})
    more = one.usage(user("and then"), kveik={"session": "talk", "continue": True})
    assert more["prompt_tokens"] > begun["prompt_tokens"]
    assert more["prompt_tokens_details"]["cached_tokens"] >= begun["prompt_tokens"] - 1
    unknown = one.send(
        "POST",
        "/v1/chat/completions",
        {"model": "tiny", "messages": first, "kveik": {"session": "no", "continue": True}},
    )
    assert unknown.status_code == 409


def test_context(one: CacheServer) -> None:
    old, new = fresh(), fresh()
    about = {"session": "coder", "relevance": "delete"}
    one.cached(old, kveik={**about, "context": "repo-a"})
    one.cached(new, kveik={**about, "context": "repo-b"})
    assert one.peek(old) < COLD
    assert one.peek(new) > 100


def test_relevance(one: CacheServer) -> None:
    """off: another context changes nothing."""
    old, new = fresh(), fresh()
    about = {"session": "reader", "relevance": "off"}
    one.cached(old, kveik={**about, "context": "book-a"})
    one.cached(new, kveik={**about, "context": "book-b"})
    assert one.peek(old) > 100


def test_tags(one: CacheServer) -> None:
    text, other = fresh(), fresh()
    one.cached(text, kveik={"tags": ["news", "daily"]})
    one.cached(other)
    assert one.post("/v1/cache/invalidate", {"tag": "daily"})["tokens"] > 0
    assert one.peek(text) < COLD
    assert one.peek(other) > 100


@pytest.mark.parametrize("ttl", [300, "300s", "5m"])
def test_ttl(one: CacheServer, ttl: Any) -> None:
    text = fresh()
    one.cached(text, kveik={"ttl": ttl})
    one.clock.advance(299)
    assert one.peek(text) > 100
    one.clock.advance(301)
    assert one.peek(text) < COLD


def test_ttl_mode(one: CacheServer) -> None:
    """demote: still there behind the deadline, until something else needs the room."""
    text = fresh()
    one.cached(text, kveik={"ttl": 60, "ttl_mode": "demote"})
    one.clock.advance(61)
    assert one.peek(text) > 100


def test_clock(one: CacheServer) -> None:
    from_first, from_last = fresh(), fresh()
    one.cached(from_first, kveik={"ttl": 60, "clock": "first_use"})
    one.cached(from_last, kveik={"ttl": 60, "clock": "last_use"})
    for _ in range(2):
        one.clock.advance(40)
        one.peek(from_first)
        one.peek(from_last)
    assert one.peek(from_first) < COLD
    assert one.peek(from_last) > 100


def test_write(one: CacheServer) -> None:
    text = fresh()
    assert one.cached(text, kveik={"write": False}) < COLD
    assert one.cached(text) < COLD
    assert one.cached(text, kveik={"write": False}) > 100


def test_priority(tiny_folder: Callable[..., Path]) -> None:
    """Under pressure low goes before normal, and normal before high, whatever came first."""
    with cache_server(tiny_folder(), kv_memory=2**18) as small:
        texts = {priority: fresh(20) for priority in ("high", "normal", "low")}
        for priority, text in texts.items():
            small.cached(text, kveik={"priority": priority})
        survived: dict[str, list[bool]] = {priority: [] for priority in texts}
        for _ in range(12):
            small.cached(fresh(20))
            for priority, text in texts.items():
                survived[priority].append(_is_cached(small, text))
        lives = {priority: sum(alive) for priority, alive in survived.items()}
        assert lives["low"] < lives["normal"] <= lives["high"], lives


def test_write_low(tiny_folder: Callable[..., Path]) -> None:
    """A batch job that writes low never evicts a chat."""
    with cache_server(tiny_folder(), kv_memory=2**18) as small:
        chat = fresh(20)
        small.cached(chat)
        for _ in range(12):
            small.cached(fresh(20), kveik={"write": "low"})
        assert _is_cached(small, chat)
        for _ in range(12):
            small.cached(fresh(20))
        assert not _is_cached(small, chat)


def _is_cached(server: CacheServer, text: str) -> bool:
    """Without touching it."""
    found = server.post("/v1/cache/explain", {"prompt": text})
    return int(found["hit_tokens"]["by_level"]["states"]) > 16


def test_an_unknown_field_of_the_native_object_tells_which_there_are(one: CacheServer) -> None:
    body = {"model": "kveik-test", "prompt": "a", "kveik": {"tag": "x"}}
    told = one.send("POST", "/v1/completions", body).json()["error"]
    assert told["param"] == "kveik.tag"
    assert "known are session, continue, context" in told["message"]


def test_explain(one: CacheServer) -> None:
    text = fresh()
    one.cached(text)
    usage = one.usage("Today is Monday. " + text, kveik={"explain": True})
    assert usage["kveik"]["explanation"]["reason"] == "diverged"
    assert "explanation" not in one.usage(text)["kveik"]
    assert one.peek(text) > 100
    told = one.post("/v1/cache/explain", {"prompt": text})
    assert told["hit_tokens"]["by_level"]["tokens"] == told["prompt_tokens"]


def test_document(one: CacheServer) -> None:
    labelled = user("Answer from this: ", {"text": fresh(), "document": "handbook@1"}, "Why?")
    one.cached(labelled)
    assert one.peek(labelled) > 100
    told = one.usage(labelled, kveik={"explain": True, "write": False})["kveik"]["explanation"]
    assert told["hit_tokens"]["by_level"]["tokens"] > 100
    one.post("/v1/documents/handbook", {"version": "2"})
    assert one.peek(labelled) < 32


def test_cached_content(one: CacheServer) -> None:
    text = fresh()
    made = one.post("/v1/caches", {"name": "faq", "messages": user(text)})
    usage = one.usage(user("What is that?"), cached_content="faq")
    assert usage["prompt_tokens"] > made["tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= made["tokens"] - 1


# --- the words of others


def test_prompt_cache_key(one: CacheServer) -> None:
    """A tag: what was computed under a key can be found and dropped by it."""
    text = fresh()
    one.cached(text, prompt_cache_key="tenant-7")
    assert one.cached(text, prompt_cache_key="tenant-8") > 100  # never a wall
    one.post("/v1/cache/invalidate", {"tag": "tenant-7"})
    assert one.peek(text) < COLD


@pytest.mark.parametrize(
    ("retention", "seconds"), [("in_memory", HOUR), ("in-memory", HOUR), ("24h", 24 * HOUR)]
)
def test_prompt_cache_retention(one: CacheServer, retention: str, seconds: float) -> None:
    text = fresh()
    one.cached(text, prompt_cache_retention=retention)
    one.clock.advance(seconds - 1)
    assert one.peek(text) > 100
    one.clock.advance(seconds + 1)
    assert one.peek(text) < COLD


def test_prompt_cache_options_mode(one: CacheServer) -> None:
    """explicit without a breakpoint: nothing is stored."""
    text = user(fresh())
    one.cached(text, prompt_cache_options={"mode": "explicit"})
    assert one.peek(text) < COLD
    one.cached(text, prompt_cache_options={"mode": "implicit"})
    assert one.peek(text) > 100


def test_prompt_cache_breakpoint(one: CacheServer) -> None:
    """explicit: what is behind the last breakpoint is not stored."""
    head, tail = fresh(30), fresh(30)
    marked = user({"text": head, "prompt_cache_breakpoint": {"mode": "explicit"}}, tail)
    whole = one.usage(marked, prompt_cache_options={"mode": "explicit"})["prompt_tokens"]
    kept = one.peek(marked)
    assert 100 < kept < whole * 2 // 3
    one.cached(marked)
    assert one.peek(marked) > whole - 32


def test_prompt_cache_options_ttl(tiny_folder: Callable[..., Path]) -> None:
    """The shortest lifetime: behind it a prompt stays, and is the first to go."""
    with cache_server(tiny_folder(), kv_memory=2**18) as small:
        brief, plain = fresh(20), fresh(20)
        small.cached(plain)
        small.cached(brief, prompt_cache_options={"ttl": "30m"})
        small.clock.advance(1801)
        assert _is_cached(small, brief)
        while _is_cached(small, brief):
            assert _is_cached(small, plain)
            small.cached(fresh(20))
        assert _is_cached(small, plain)


@pytest.mark.parametrize(("ttl", "seconds"), [(None, 300), ("5m", 300), ("1h", 3600)])
def test_cache_control(one: CacheServer, ttl: str | None, seconds: float) -> None:
    control = {"type": "ephemeral", **({"ttl": ttl} if ttl else {})}
    marked = user({"text": fresh(), "cache_control": control}, "Why?")

    def tokens_remembered() -> int:
        usage = one.usage(marked, kveik={"explain": True, "write": False})
        return int(usage["kveik"]["explanation"]["hit_tokens"]["by_level"]["tokens"])

    one.cached(marked)
    one.clock.advance(seconds - 1)
    assert tokens_remembered() > 100 or seconds > 1800  # idle texts go before
    assert one.peek(marked) > 100
    one.clock.advance(seconds + 1)
    assert tokens_remembered() == 0
    assert one.peek(marked) < COLD


def test_cache_salt(one: CacheServer) -> None:
    text = fresh()
    assert one.cached(text, cache_salt="a") < COLD
    assert one.cached(text, cache_salt="b") < COLD
    assert one.cached(text) < COLD
    assert one.cached(text, cache_salt="a") > 100


def test_cache_prompt(one: CacheServer) -> None:
    """false: computed cold, and nothing is kept."""
    text = fresh()
    assert one.cached(text, cache_prompt=False) < COLD
    assert one.cached(text, cache_prompt=True) < COLD
    assert one.cached(text, cache_prompt=False) < COLD
    assert one.cached(text) > 100


# --- the document


def rows() -> list[tuple[str, list[str]]]:
    """(field, tests as "file::name") from the tables of the document."""
    found = []
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `") and len(cells) >= 3:
            file, tests = "", []
            for one in re.findall(r"`([\w/.]*)::(\w+)`", cells[-1]):
                file = one[0] or file
                tests.append(f"{file}::{one[1]}")
            found.append((cells[0].split("`")[1], tests))
    return found


def accepted() -> set[str]:
    """Every cache field that a generation request may carry."""
    native = {field.alias or name for name, field in Native.model_fields.items()}
    options = {f"prompt_cache_options.{name}" for name in CacheOptions.model_fields}
    plain = set(CacheFields.model_fields) - {"kveik", "prompt_cache_options"}
    return {f"kveik.{name}" for name in native} | options | plain | set(_LABELS)


def test_every_accepted_field_is_documented() -> None:
    assert accepted() <= {field for field, _ in rows()}


def test_every_test_that_the_document_names_exists() -> None:
    tests = Path(__file__).parents[1]
    for field, named in rows():
        assert named, field
        for one in named:
            file, _, name = one.partition("::")
            assert re.search(rf"^ *def {name}\(", (tests / file).read_text(), re.MULTILINE), one
