"""How many answers change with the engine's circumstances. Standard library.

32 prompts of 64 to 600 tokens that share prefixes, 32 new tokens each, greedy:
cold twice; cold, then the same prompt from the prefix cache; alone, then in a batch of 32. An
answer counts as changed in its tokens, and in its bits where any log-probability differs (the
tokens included), where the engine offers them.
"""

from __future__ import annotations

import random
from typing import Any

from protocol import Answer, Engine, Setting

PROMPTS, NEW_TOKENS = 32, 32


def prompts(vocabulary: int) -> list[list[int]]:
    """Four families; within one, each prompt begins with a part of the family's common text."""
    source = random.Random("exactness")
    heads = [[source.randrange(300, vocabulary) for _ in range(560)] for _ in range(4)]
    made = []
    for number in range(PROMPTS):
        length = source.randint(64, 600)
        common = min(560, length - source.randint(8, 40))
        own = [source.randrange(300, vocabulary) for _ in range(length - common)]
        made.append(heads[number % 4][:common] + own)
    return made


def answers(engine: Engine, setting: Setting) -> dict[str, Any]:
    """The counts of changed answers, by experiment."""
    asked = prompts(setting.vocabulary)

    def alone(prompt: list[int]) -> Answer:
        return engine.generate([prompt], NEW_TOKENS, logprobs=True)[0]

    def cold(prompt: list[int]) -> Answer:
        engine.forget()
        return alone(prompt)

    first = [cold(prompt) for prompt in asked]
    found = {"cold": changed(first, [cold(prompt) for prompt in asked])}
    if engine.reuses:
        engine.forget()
        for prompt in asked:
            alone(prompt)
        found["cached"] = changed(first, [alone(prompt) for prompt in asked])
    engine.forget()
    found["batch"] = changed(first, engine.generate(asked, NEW_TOKENS, logprobs=True))
    return {"prompts": PROMPTS, "changed": found}


def changed(before: list[Answer], after: list[Answer]) -> dict[str, int | None]:
    """tokens: answers with another token; bits: with another token or log-probability."""
    pairs = list(zip(before, after, strict=True))
    tokens = sum(one.tokens != other.tokens for one, other in pairs)
    if not all(one.logprobs and other.logprobs for one, other in pairs):
        return {"tokens": tokens, "bits": None}
    bits = sum((one.tokens, one.logprobs) != (other.tokens, other.logprobs) for one, other in pairs)
    return {"tokens": tokens, "bits": bits}
