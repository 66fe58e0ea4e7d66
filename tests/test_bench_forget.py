"""The benches of forgetting: what each side computes, and what is compared with what."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import forget
import forget_quality
import gapped
import joined
import watched

from kveik import LLM

POOL = {"kv_memory": 8 * 2**20}
CASE = gapped.Case(40, 50, 60, 20)


def text(count: int, seed: int = 0) -> list[int]:
    return [0, *random.Random(seed).choices(range(8, 4096), k=count - 1)]


def test_a_gapped_prompt_is_the_shorter_text_and_reuses_what_is_behind_the_gap() -> None:
    whole = text(170)
    made = gapped.gapped(whole, CASE)
    assert list(made.prompt_token_ids) == whole[:40] + whole[90:]
    assert made.joined is not None
    [stretch] = made.joined.reused
    assert (stretch.seen, stretch.offset, stretch.length) == (40, 90, 60)


def test_each_side_computes_what_it_says() -> None:
    with LLM(**POOL) as llm:
        talk = forget.Conversation(llm, CASE)
        computed = {}
        for _ in range(2):  # nothing is left for the second round
            for side in (talk.closed, talk.prefix_only, talk.cold, talk.prefix_hit):
                before = llm.engine._totals.computed_tokens
                side()
                computed[side.__name__] = llm.engine._totals.computed_tokens - before
        assert computed == {"closed": 20, "prefix_only": 80, "cold": 120, "prefix_hit": 20}
        llm.engine.check()


def test_rows_of_both_ways_are_of_the_same_tokens() -> None:
    subject = forget_quality.Subject(*watched.watched(**POOL))
    whole = text(170)
    closed = subject.rows(gapped.gapped(whole, CASE), CASE.new)
    again = subject.rows(joined.ordinary(CASE.shorter(whole)), CASE.new)
    nothing = subject.rows(joined.ordinary(whole), CASE.new)
    subject.llm.close()
    assert all(np.allclose(np.exp(one).sum(1), 1) for one in (closed, again, nothing))
    assert 0 < forget_quality.divergence(again, closed) < forget_quality.divergence(again, nothing)
