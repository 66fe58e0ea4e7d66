"""A conversation leaves its subject without saying so: branch, resent history and return, through
the engine. A stand-in tracker reads the topic from the last new token, so that every case is plain;
what the shipped one sees is measured by bench/relevance.py."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from toy_model import toy_engine

from kveik.cache.directive import Directive
from kveik.cache.relevance import Features, TopicSpace, Turn
from kveik.engine.engine import Engine
from kveik.engine.request import Request, RequestFinished, SamplingParams

SYSTEM = tuple(range(16))
OLD, NEW = tuple(range(100, 132)), tuple(range(200, 232))  # files of two projects


class ByHundreds:
    """Token 1xx: topic 1, 2xx: topic 2."""

    def __init__(self, features: Features, space: TopicSpace) -> None:
        pass

    def turn(self, tokens: Sequence[int]) -> Turn:
        return Turn(tokens[-1] // 100)

    def answer(self, tokens: Sequence[int]) -> None:
        pass


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr("kveik.engine.engine.TopicTracker", ByHundreds)
    return toy_engine(block_size=8, follow_topics=True)


def ask(engine: Engine, *parts: Sequence[int], **directive: object) -> RequestFinished:
    """One turn of the session; its prompt."""
    prompt = tuple(token for part in parts for token in part)
    events: list[object] = []
    about = Directive(session="s", **directive)  # type: ignore[arg-type]
    engine.submit(Request(prompt, SamplingParams(max_tokens=1), directive=about), events.append)
    while engine.step():
        pass
    assert isinstance(events[-1], RequestFinished)
    return events[-1]


def plain(engine: Engine, prompt: Sequence[int]) -> None:
    engine.submit(Request(tuple(prompt), SamplingParams(max_tokens=1)), lambda event: None)
    while engine.step():
        pass


def demoted(engine: Engine) -> set[int]:
    """First tokens of the demoted blocks."""
    views = engine.cache_listing(with_path=True)
    return {view.path[view.depth - view.tokens] for view in views if view.demoted}


def test_branch_the_files_that_left_the_prompt_are_demoted(followed: Engine) -> None:
    ask(followed, SYSTEM, OLD)
    assert not demoted(followed)
    ask(followed, SYSTEM, NEW)
    assert demoted(followed) == {100, 108, 116, 124}


def test_branch_what_was_demoted_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where room is needed, the files that were left go before another's, used longer ago."""
    monkeypatch.setattr("kveik.engine.engine.TopicTracker", ByHundreds)
    other = tuple(range(140, 172))
    kept = {}
    for follow in (False, True):
        engine = toy_engine(block_size=8, blocks=16, follow_topics=follow)
        plain(engine, other)
        ask(engine, OLD)
        ask(engine, NEW)
        plain(engine, range(40, 80))
        kept[follow] = (cached(engine, other), cached(engine, OLD))
    assert kept[True][0] == 32 > kept[False][0]
    assert kept[True][1] < 32 == kept[False][1]


def test_resent_history_is_never_demoted_while_the_prompt_contains_it(followed: Engine) -> None:
    ask(followed, SYSTEM, OLD)
    finished = ask(followed, SYSTEM, OLD, NEW, relevance="delete")
    assert finished.usage.cached_tokens >= len(SYSTEM + OLD) - 1
    assert not demoted(followed)
    assert cached(followed, SYSTEM + OLD + NEW) == len(SYSTEM + OLD + NEW)


def test_return_is_found_and_no_longer_demoted(followed: Engine) -> None:
    ask(followed, SYSTEM, OLD)
    ask(followed, SYSTEM, NEW)
    again = ask(followed, SYSTEM, OLD, (150,))
    assert again.usage.cached_tokens >= len(SYSTEM + OLD) - 1
    assert demoted(followed) == {200, 208, 216, 224}


def test_a_found_topic_deletes_nothing(followed: Engine) -> None:
    ask(followed, SYSTEM, OLD, relevance="delete")
    ask(followed, SYSTEM, NEW, relevance="delete")
    assert cached(followed, SYSTEM + OLD) == len(SYSTEM + OLD)
    assert demoted(followed) == {100, 108, 116, 124}


def test_topics_are_followed_where_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kveik.engine.engine.TopicTracker", ByHundreds)
    engine = toy_engine(block_size=8)
    ask(engine, SYSTEM, OLD)
    ask(engine, SYSTEM, NEW)
    assert not demoted(engine)


def cached(engine: Engine, prompt: Sequence[int]) -> int:
    return dict(engine.explain_prompt((*prompt, 99)).levels)["states"]
