"""Explanations: the right cause for realistic pairs of prompts, and nothing blamed for nothing."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest
from prompt_pairs import PromptPair, pairs
from toy_model import toy_engine

from kveik.cache.directive import Divergence
from kveik.cache.manager import CacheManager, Opened
from kveik.cache.segments import KvGroup
from kveik.config import DEFAULT_MODEL_PATH
from kveik.engine.causes import TextCause
from kveik.engine.explain import CAUSES, REASONS, Explanation, explain
from kveik.engine.request import Request, SamplingParams
from kveik.engine.tokenizer import Tokenizer

WINDOW = 512
HARMLESS = {"new_content", "different_text", "complete"}


@pytest.fixture(scope="module", params=["chatml", None])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.from_folder(DEFAULT_MODEL_PATH, chat_template=request.param)


def ids_of(tokenizer: Tokenizer, prompt: object, *, last: bool = True) -> list[int]:
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    assert isinstance(prompt, list)
    return tokenizer.encode_chat(prompt, add_generation_prompt=last)


def divergence_of(cached: Sequence[int], wanted: Sequence[int], reason: str) -> Divergence:
    """What the cache would say of `wanted` while it holds `cached`."""
    position = 0
    while position < min(len(cached), len(wanted)) and cached[position] == wanted[position]:
        position += 1
    own = () if reason not in ("diverged", "new") else tuple(cached[position : position + WINDOW])
    return Divergence(position, reason, own, tuple(wanted[position : position + WINDOW]))


def same_prompt(tokenizer: Tokenizer, pair: PromptPair) -> bool:
    """A template that trims its messages makes some pairs equal."""
    both = [ids_of(tokenizer, prompt) for prompt in (pair.before, pair.after)]
    return pair.reason == "diverged" and both[0] == both[1]


def explained(tokenizer: Tokenizer, pair: PromptPair) -> Explanation:
    growing = pair.cause == "new_content"
    cached = ids_of(tokenizer, pair.before, last=not growing)
    wanted = ids_of(tokenizer, pair.after)
    return explain(divergence_of(cached, wanted, pair.reason), wanted, tokenizer)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_right_cause_is_named(tokenizer: Tokenizer, seed: int) -> None:
    confusion: Counter[tuple[str, str, str]] = Counter()
    for pair in pairs(300, seed):
        if same_prompt(tokenizer, pair):
            continue
        confusion[pair.cause, pair.form, explained(tokenizer, pair).cause] += 1
    wrong = {key: count for key, count in confusion.items() if key[0] != key[2]}
    total = sum(confusion.values())
    assert sum(wrong.values()) <= 0.1 * total, table(confusion)
    for cause in {key[0] for key in confusion}:
        right = sum(count for key, count in confusion.items() if key[0] == key[2] == cause)
        assert right >= 0.8 * sum(c for key, c in confusion.items() if key[0] == cause), (
            cause,
            table(confusion),
        )
    blamed = [key for key in wrong if key[0] in HARMLESS and key[2] not in HARMLESS]
    assert sum(wrong[key] for key in blamed) <= 0.02 * total, blamed


def cached_in_blocks(token_ids: Sequence[int]) -> CacheManager:
    """A cache that holds one finished prompt."""
    cache = CacheManager((KvGroup((0,), bytes_per_block=64),), (400,), 16)
    opened = cache.open(token_ids, len(token_ids))
    assert isinstance(opened, Opened)
    cache.launched(0)
    cache.acknowledge(0)
    cache.commit(opened.lease, token_ids)
    cache.release(opened.lease, keep=True, finished=True)
    return cache


def test_the_right_cause_is_named_from_what_the_cache_really_says(tokenizer: Tokenizer) -> None:
    wrong, total = Counter[tuple[str, str, str]](), 0
    for pair in pairs(150, 5):
        if pair.reason not in ("diverged", "new") or same_prompt(tokenizer, pair):
            continue
        cache = cached_in_blocks(ids_of(tokenizer, pair.before, last=pair.cause != "new_content"))
        wanted = ids_of(tokenizer, pair.after)
        told = explain(cache.divergence(wanted), wanted, tokenizer)
        total += 1
        wrong[pair.cause, pair.form, told.cause] += told.cause != pair.cause
    assert total > 100
    assert sum(wrong.values()) <= 0.1 * total, table(wrong)


def table(confusion: Counter[tuple[str, str, str]]) -> str:
    lines = [
        f"{count:4} {cause} ({form}) -> {found}"
        for (cause, form, found), count in sorted(confusion.items())
        if cause != found
    ]
    return "\n".join(lines)


# ---- what an explanation says


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    return Tokenizer.from_folder(DEFAULT_MODEL_PATH)


RULES = "Be kind. Prices include tax. The 55-inch TV comes with a wall bracket. " * 3


def of_texts(tokenizer: Tokenizer, old: str, new: str, reason: str = "diverged") -> Explanation:
    cached, wanted = tokenizer.encode(old), tokenizer.encode(new)
    found = divergence_of(cached, wanted, reason)
    return explain(found, wanted, tokenizer, remembered=7, block_size=4)


def test_an_explanation_names_pieces_position_and_levels(plain: Tokenizer) -> None:
    old, new = (f"{RULES}It is {clock} now. {RULES}" for clock in ("14:05:11", "14:06:12"))
    told = of_texts(plain, old, new)
    assert (told.cause, told.reason) == ("time", "diverged")
    assert (told.cached_text, told.wanted_text) == ("14:05:11", "14:06:12")
    assert plain.encode(old)[: told.position] == plain.encode(new)[: told.position]
    assert plain.encode(old)[told.position] != plain.encode(new)[told.position]
    assert (told.cached_token, told.wanted_token) == ("5", "6")
    assert told.blocks_shared == told.position // 4
    assert "move it to the end" in told.advice
    body = told.as_json()
    assert body["hit_tokens"] == {
        "by_level": {
            "tokens": 7,
            "encodings": told.prompt_tokens,
            "states": told.position,
        },
        "by_tier": {"memory": told.position},
    }
    assert json.loads(json.dumps(body)) == body


def test_the_advice_says_whose_message_it_is(plain: Tokenizer) -> None:
    chats = [
        [{"role": "system", "content": f"It is {day}, 3 March 2024. {RULES}"}, QUESTION]
        for day in ("Sunday", "Monday")
    ]
    cached, wanted = (plain.encode_chat(chat) for chat in chats)
    told = explain(divergence_of(cached, wanted, "diverged"), wanted, plain)
    assert told.role == "system"
    assert told.advice.startswith("The time in the system prompt changes every call")


QUESTION = {"role": "user", "content": "What's the weather today?"}


def test_the_position_moves_to_the_first_token_that_differs(plain: Tokenizer) -> None:
    """A cache serves whole blocks: the tokens behind the last one may be equal for a while."""
    old, new = plain.encode(RULES + "one two three"), plain.encode(RULES + "one two four")
    same = next(i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b)
    found = Divergence(same - 3, "diverged", tuple(old[same - 3 :]), tuple(new[same - 3 :]))
    told = explain(found, new, plain, cached_tokens=same - 3)
    assert told.position == same
    assert dict(told.levels)["states"] == same - 3


@pytest.mark.parametrize(
    ("old", "new", "reason", "cause"),
    [
        ("", "Hello", "new", "new_content"),
        (RULES, RULES + "And more", "new", "new_content"),
        (RULES + "And more", RULES.strip(), "diverged", "complete"),
        (RULES + "x", RULES + "y", "too_short", "complete"),
        (RULES, RULES + "y", "evicted", "evicted"),
        (RULES, RULES + "y", "expired", "expired"),
        (RULES, RULES + "y", "invalidated", "invalidated"),
        (RULES, RULES + "y", "no_store", "no_store"),
        (RULES, RULES + "y", "engine_changed", "other_adapter"),
    ],
)
def test_what_needs_no_reading(
    plain: Tokenizer, old: str, new: str, reason: str, cause: str
) -> None:
    assert of_texts(plain, old, new, reason).cause == cause


def test_the_same_text_in_other_tokens(plain: Tokenizer) -> None:
    words = plain.encode(RULES)
    letters = [token for letter in RULES for token in plain.encode(letter)[1:]]
    found = divergence_of([words[0], *letters], words, "diverged")
    assert explain(found, words, plain).cause == "retokenised"


def test_half_characters_at_the_difference(plain: Tokenizer) -> None:
    told = of_texts(plain, RULES + "🙂 " + RULES, RULES + "🙃 " + RULES)
    assert told.cause == "different_text"
    assert ("🙂" in told.cached_text, "🙃" in told.wanted_text) == (True, True)


# ---- in the engine


def test_the_engine_explains_a_prompt_from_what_it_holds() -> None:
    engine = toy_engine(blocks=64)

    def run(text: str, namespace: str = "") -> None:
        params = SamplingParams(max_tokens=1)
        engine.submit(Request(tuple(text.encode()), params, namespace), lambda event: None)
        while engine.step():
            pass

    old, new = (
        f"Be kind and brief, always. It is {clock} now. {'So be it. ' * 8}"
        for clock in ("14:05:11", "14:06:12")
    )
    run(old)
    told = engine.explain_prompt(tuple(new.encode()), remembered=3)
    assert (told.cause, told.cached_text, told.wanted_text) == ("time", "14:05:11", "14:06:12")
    assert told.position == new.index("6:12")
    assert dict(told.levels)["tokens"] == 3
    elsewhere = engine.explain_prompt(tuple(new.encode()), namespace="other")
    assert (elsewhere.cause, elsewhere.position, elsewhere.cached_text) == ("new_content", 0, "")
    assert engine.explain_prompt(tuple(old.encode())).cause == "complete"
    assert engine.explain_prompt(tuple(old.encode()), salt="s").cause == "new_content"


# ---- the page


PAGE = (Path(__file__).parents[2] / "docs" / "EXPLAIN.md").read_text(encoding="utf-8")


def codes_of(heading: str) -> set[str]:
    """The codes that the first column of a table lists."""
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return set(re.findall(r"^\| `([a-z_]+)` \|", section, re.MULTILINE))


def test_the_page_lists_every_code_and_no_other() -> None:
    assert codes_of("Reasons") == set(REASONS)
    assert codes_of("Causes") == set(CAUSES)
    assert set(get_args(TextCause)) <= set(CAUSES)
    assert {cause for cause in REASONS.values() if cause} <= set(CAUSES)
    assert codes_of("Levels") == {"tokens", "encodings", "states"}


def test_the_page_quotes_the_advice() -> None:
    for advice in CAUSES.values():
        assert advice.format(where="…") in PAGE.replace("\n", " "), advice
