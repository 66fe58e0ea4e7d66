"""Explanations: the right cause for realistic pairs of prompts, and nothing blamed for nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from prompt_pairs import PromptPair, pairs

from kveik.cache.directive import Divergence
from kveik.config import DEFAULT_MODEL_PATH
from kveik.engine.explain import Explanation, explain
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


def table(confusion: Counter[tuple[str, str, str]]) -> str:
    lines = [
        f"{count:4} {cause} ({form}) -> {found}"
        for (cause, form, found), count in sorted(confusion.items())
        if cause != found
    ]
    return "\n".join(lines)
