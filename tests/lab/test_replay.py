"""The replay against a cache of thirty lines that knows nothing of kveik."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traffic import chats, trace_of

from kveik.cache.policies.lru import LeastRecentlyUsed
from kveik.cache.policy import BlockFacts
from kveik.lab.replay import replay
from kveik.lab.trace import Trace, TraceRequest


def plain_lru(trace: Trace, blocks: int) -> tuple[int, ...]:
    """Longest prefix, recency by request, tail before head."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = []
    for request in trace.requests:
        found = 0
        for block in request.blocks:
            if block not in cache:
                break
            found += 1
        hits.append(found)
        for block in reversed(request.blocks):
            cache[block] = None
            cache.move_to_end(block)
        while len(cache) > blocks:
            cache.popitem(last=False)
    return tuple(hits)


@pytest.mark.parametrize("blocks", [12, 40, 150, 100_000])
def test_lru_hits_what_a_plain_lru_hits_block_for_block(blocks: int) -> None:
    trace = chats(400)
    longest = max(len(request.blocks) for request in trace.requests)
    played = replay(trace, "lru", max(blocks, longest))
    assert played.hits == plain_lru(trace, max(blocks, longest))
    assert played.played.refused == 0
    assert played.hit_blocks > 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60))
def test_lru_on_any_chat_and_any_pool(seed: int, more: int) -> None:
    trace = chats(60, seed)
    blocks = max(len(request.blocks) for request in trace.requests) + more
    assert replay(trace, "lru", blocks).hits == plain_lru(trace, blocks)


def test_tokens_count_as_they_lie_in_blocks_and_the_last_is_computed() -> None:
    trace = trace_of((0, 1, 2), (0, 1, 2), (0, 1, 3))
    played = replay(trace, "lru", 16)
    assert played.hits == (0, 3, 2)
    assert played.hit_tokens == 47 + 32
    assert played.token_hit_rate == pytest.approx(79 / 144)
    assert played.block_hit_rate == pytest.approx(5 / 9)


def test_what_is_longer_than_the_pool_is_refused_and_hits_nothing() -> None:
    whole = (5, 6, 7, 8)  # needs all that the refused one was given
    played = replay(trace_of((0, 1), (0, 1, 2, 3, 4), (0, 1), whole, whole), "lru", 4)
    assert played.hits == (0, 0, 2, 0, 3)  # beside all four there is no room for a copy
    assert played.played.refused == 1


class Listens(LeastRecentlyUsed):
    """Notes tokens, depth and time of what becomes idle."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, int, float]] = []

    def queue(self, facts: BlockFacts) -> int:
        self.heard.append((facts.tokens, facts.depth, facts.used))
        return 0


def test_a_policy_sees_the_sizes_and_times_of_the_trace() -> None:
    """Of a prompt of forty tokens the answer fills the last block and begins another."""
    policy = Listens()
    requests = (TraceRequest(0.0, 40, 0, (0, 1, 2)), TraceRequest(9.0, 40, 12, (0, 1, 3), (4, 5)))
    replay(Trace("made", 16, requests), lambda: policy, 8)
    assert policy.heard == [
        *((8, 40, 1.0), (16, 32, 1.0), (16, 16, 1.0)),
        *((3, 51, 10.0), (16, 48, 10.0), (16, 32, 10.0), (16, 16, 10.0)),
    ]


def test_since_counts_only_what_comes_later() -> None:
    trace = chats(100)
    whole, later = replay(trace, "lru", 60), replay(trace, "lru", 60, since=50.0)
    assert later.hits == whole.hits[50:]
    assert later.prompt_blocks < whole.prompt_blocks
