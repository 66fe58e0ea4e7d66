"""What a Python caller says to the cache arrives at the engine, or is refused by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kveik import LLM, CacheOptions, InvalidRequest, SamplingParams
from kveik.cache.directive import PLAIN, Directive, Selector, Ttl
from kveik.engine.request import Request
from kveik.managed import selector

PARAMS = SamplingParams(temperature=0, max_tokens=2)


@pytest.fixture(scope="module")
def llm(tiny_folder: Callable[..., Path]) -> Iterator[LLM]:
    with LLM(tiny_folder(), kv_memory=4 * 2**20) as llm:
        yield llm


def test_the_default_is_plain_use() -> None:
    assert CacheOptions().directive() == PLAIN
    assert CacheOptions().salt() == ""


def test_every_field_reaches_the_directive() -> None:
    options = CacheOptions(
        session="s1",
        context="repo-b",
        relevance="delete",
        tags=["news", "shop", "news"],
        ttl="5m",
        ttl_mode="demote",
        clock="first_use",
        priority="high",
        write="low",
    )
    assert options.directive() == Directive(
        session="s1",
        context="repo-b",
        relevance="delete",
        tags=("news", "shop"),
        ttl=Ttl(300.0, "first_use", "demote"),
        priority="high",
        write="low",
    )
    assert CacheOptions(ttl=90).directive().ttl == Ttl(90.0, "last_use", "delete")
    assert CacheOptions(write=False).directive().write == "none"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"session": "two words"}, "session"),
        ({"session": "x" * 129}, "session"),
        ({"context": "repo-b"}, "context"),
        ({"session": "s", "context": ""}, "context"),
        ({"relevance": "delete"}, "relevance"),
        ({"session": "s", "relevance": "hide"}, "relevance"),
        ({"tags": "news"}, "tags"),
        ({"tags": ["two words"]}, "tags"),
        ({"tags": [f"t{n}" for n in range(17)]}, "tags"),
        ({"ttl": "soon"}, "ttl"),
        ({"ttl": 0}, "ttl"),
        ({"ttl": True}, "ttl"),
        ({"ttl_mode": "delete"}, "ttl_mode"),
        ({"clock": "last_use"}, "clock"),
        ({"ttl": 5, "ttl_mode": "hide"}, "ttl_mode"),
        ({"ttl": 5, "clock": "wall"}, "clock"),
        ({"priority": "urgent"}, "priority"),
        ({"write": "high"}, "write"),
        ({"cached_content": "a b"}, "cached_content"),
        ({"namespace": 5}, "namespace"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        CacheOptions(**fields)
    assert caught.value.param == param
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("salt", ["", "x" * 1025, "\ud800"])
def test_a_salt_out_of_bounds(salt: str) -> None:
    with pytest.raises(InvalidRequest, match="cache_salt"):
        CacheOptions(cache_salt=salt).salt()


def test_a_salt_is_hashed_and_never_shown() -> None:
    options = CacheOptions(cache_salt="my secret")
    assert "secret" not in options.salt()
    assert "secret" not in repr(options)
    assert options.salt() != CacheOptions(cache_salt="another").salt()


def test_every_door_hands_the_options_over(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Request] = []
    submit = llm.engine.submit

    def spy(request: Request, sink: Any) -> int:
        seen.append(request)
        return submit(request, sink)

    monkeypatch.setattr(llm.engine, "submit", spy)
    options = CacheOptions(tags=("news",), namespace="north", cache_salt="x", explain=True)
    llm.generate(["one", "two"], PARAMS, cache=options)
    llm.chat([{"role": "user", "content": "one"}], PARAMS, cache=options)
    list(llm.stream("one", PARAMS, cache=options))
    list(llm.stream([{"role": "user", "content": "one"}], PARAMS, cache=options))
    assert len(seen) == 5
    for request in seen:
        assert request.directive.tags == ("news",)
        assert (request.namespace, request.salt, request.explain) == ("north", options.salt(), True)


def test_namespaces_share_nothing(llm: LLM) -> None:
    prompt = "the namespaces of this engine share nothing at all"

    def cached(namespace: str) -> int:
        output = llm.generate(prompt, PARAMS, cache=CacheOptions(namespace=namespace))[0]
        return output.num_cached_tokens

    assert cached("east") == 0
    assert cached("east") > 0
    assert cached("west") == 0


def test_selectors() -> None:
    assert selector(tag="news") == Selector(tag="news")
    assert selector(document="d@2") == Selector(document="d", version="2")
    assert selector(document="d", not_version="2") == Selector(document="d", not_version="2")
    assert selector(older_than="1h", namespace="n") == Selector(namespace="n", older_than=3600.0)
    assert selector(prefix=(1, 2)) == Selector(prefix=(1, 2))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "selector"),
        ({"namespace": "n"}, "selector"),
        ({"tag": "two words"}, "tag"),
        ({"version": "2"}, "version"),
        ({"not_version": "2"}, "version"),
        ({"document": "d@2", "version": "2"}, "version"),
        ({"document": "a b"}, "document"),
        ({"older_than": "soon"}, "older_than"),
    ],
)
def test_a_selector_that_says_nothing_or_nonsense(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        selector(**fields)
    assert caught.value.param == param


def test_texts_are_remembered_unless_they_must_go(llm: LLM) -> None:
    def growth(text: str, **fields: Any) -> int:
        text, before = text * 20, llm.engine.token_memory.size
        llm.generate(text, PARAMS, cache=CacheOptions(**fields))
        llm.chat([{"role": "user", "content": text}], PARAMS, cache=CacheOptions(**fields))
        return llm.engine.token_memory.size - before

    assert growth("a text that only reads", write=False) == 0
    assert growth("a text that will be deleted", ttl="5m") > 0
    assert 0.0 < (llm.engine.token_memory.next_deadline() or 0.0) <= time.monotonic() + 300
    assert growth("a text that will be demoted", ttl="5m", ttl_mode="demote") > 0
    assert growth("a text of no importance") > 0
