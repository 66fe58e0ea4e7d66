"""Every shipped policy must differ from LRU where its idea says so, and keep the books straight."""

from __future__ import annotations

import pytest
from books import Books
from hypothesis import given, settings
from hypothesis import strategies as st
from traffic import chats, trace_of

from kveik.cache.policies.arc import AdaptiveReplacement
from kveik.cache.policies.reuse_time import ReuseTime
from kveik.cache.policies.s3fifo import MAIN, S3Fifo
from kveik.cache.policy import SHIPPED
from kveik.lab.optimum import optimum
from kveik.lab.replay import replay

SIZE = 4
Prompt = list[int]


def prompt(first: int, blocks: int = 1) -> Prompt:
    """Whole blocks of tokens from `first` on."""
    return list(range(first, first + blocks * SIZE))


def left(policy: str, served: list[Prompt], asked: list[Prompt], blocks: int) -> list[int]:
    """Cached tokens of `asked` once the others were served, one a second."""
    books = Books(blocks, SIZE, policy=policy)
    for second, one in enumerate(served, 1):
        books.pass_through(one, now=float(second))
    return [books.cached([*one, 1]) for one in asked]


def scan(count: int, first: int = 10_000) -> list[Prompt]:
    """One-shots of a block."""
    return [prompt(first + 10 * number) for number in range(count)]


def test_fifo_lets_what_is_old_go_however_often_it_is_used() -> None:
    old, young = prompt(0), prompt(100)
    served = [old, young, *scan(5), old, *scan(2, 20_000)]
    assert left("lru", served, [old, young], blocks=8) == [4, 0]
    assert left("fifo", served, [old, young], blocks=8) == [0, 4]


def test_slru_keeps_what_was_reused_through_a_scan() -> None:
    twice, once = prompt(0), prompt(100)
    served = [twice, twice, once, *scan(12)]
    assert left("lru", served, [twice, once], blocks=8) == [0, 0]
    assert left("slru", served, [twice, once], blocks=8) == [4, 0]


def test_slru_puts_the_oldest_of_too_many_protected_on_probation() -> None:
    """Four fifths of ten blocks are eight."""
    many = [prompt(100 * number) for number in range(9)]
    served = [one for one in many for _ in range(2)] + scan(3)
    assert left("slru", served, [many[0], many[1], many[8]], blocks=10) == [0, 4, 4]
    assert left("lru", served, [many[0], many[1], many[8]], blocks=10) == [0, 0, 4]
    assert left("slru", served[:-1], [many[0], scan(3)[0]], blocks=10) == [4, 0]  # behind that one


def test_s3fifo_forgets_a_scan_at_once_and_takes_back_what_was_asked_again() -> None:
    twice, back = prompt(0), prompt(100)
    served = [twice, back, twice, *scan(30), back, *scan(30, 20_000)]
    assert left("lru", served, [twice, back], blocks=20) == [0, 0]
    assert left("s3fifo", served, [twice, back], blocks=20) == [4, 4]


def test_s3fifo_gives_no_more_rounds_than_uses() -> None:
    """Three at most; what has used them up goes."""
    policy = S3Fifo()
    books = Books(10, SIZE, policy=lambda: policy)
    often, once_more = prompt(0), prompt(100)
    for one in (often, often, once_more, once_more, *scan(9)):
        books.pass_through(one)
    for _ in range(4):
        books.pass_through(often)
    before, kept = dict(policy._rounds), {0: MAIN, 1: MAIN}
    assert {block: policy._members._list[block] for block in kept} == kept
    assert (before[0], before[1]) == (3, 0)
    books.pass_through(once_more)
    books.reclaim.make_room(0, 7)  # the small queue down to its share
    assert [books.cached([*one, 1]) for one in (often, once_more)] == [4, 4]
    books.reclaim.make_room(0, 8)
    assert [books.cached([*one, 1]) for one in (often, once_more)] == [4, 0]
    assert policy._rounds[0] == 0
    books.reclaim.make_room(0, 9)
    assert books.cached([*often, 1]) == 0


def test_lfu_aged_keeps_what_was_used_often_until_it_has_aged() -> None:
    often = prompt(0)
    assert left("lru", [often] * 6 + scan(12), [often], blocks=8) == [0]
    assert left("lfu-aged", [often] * 6 + scan(12), [often], blocks=8) == [4]
    assert left("lfu-aged", [often] * 6 + scan(200), [often], blocks=8) == [0]


def test_arc_learns_from_what_comes_back() -> None:
    """Reused blocks survive a scan; after misses on what was used once, that list gets room."""
    twice = [prompt(1000 * number) for number in range(1, 5)]
    scans = scan(20)
    served = [one for one in twice for _ in range(2)] + scans
    assert left("lru", served, twice, blocks=8) == [0, 0, 0, 0]
    assert left("arc", served, twice, blocks=8) == [4, 4, 4, 4]


def test_arc_gives_room_to_the_list_whose_blocks_come_back() -> None:
    policy = AdaptiveReplacement()
    books = Books(8, SIZE, policy=lambda: policy)

    def serve(*prompts: Prompt) -> float:
        for one in prompts:
            books.pass_through(one)
        return policy._wanted

    often = [one for number in range(1, 9) for one in 2 * [prompt(1000 * number)]]
    assert serve(*often[:8], *scan(8)) == 0.0
    assert serve(scan(8)[2]) == 1.0  # had it been kept, it would have been a hit
    assert serve(*often[8:]) == 1.0  # pushes out what was used twice
    assert serve(often[0]) == 0.0


def test_tail_lru_gives_first_what_can_be_computed_in_time() -> None:
    """1,024 tokens are in time and 256 of them the next turn brings: of 1,200 the last 768 may be
    missing, of eight all."""
    for policy, kept in (("lru", [424, 8]), ("tail-lru", [432, 0])):
        books = Books(302, SIZE, policy=policy)
        long, young = prompt(0, 300), prompt(5000, 2)
        books.pass_through(long, now=1.0)
        books.pass_through(young, now=2.0)
        books.reclaim.make_room(0, 194)
        books.check()
        assert [books.cached([*one, 1]) for one in (long, young)] == kept, policy


def test_reuse_time_gives_the_category_that_never_returns() -> None:
    """Long prompts are one-shots, short ones come again after a while; LRU goes by age alone."""
    short = [(2 * number, 2 * number + 1) for number in range(8)]
    fresh = iter(range(100, 10**6, 100))
    prompts: list[tuple[int, ...]] = []
    for _ in range(20):
        prompts += [*short, *(tuple(range(one, one + 64)) for one in (next(fresh), next(fresh)))]
    trace = trace_of(*prompts)
    assert sum(replay(trace, "lru", 84).hits[-10:]) == 0
    assert sum(replay(trace, "reuse-time", 84).hits[-10:]) == 16


def test_reuse_time_learns_how_often_and_how_soon_what_is_used_comes_back() -> None:
    policy = ReuseTime()
    books = Books(64, SIZE, policy=lambda: policy)
    for second in range(60):
        books.pass_through(prompt(0, 2), now=1.0 + 10 * second)
    facts = books.idle[0].facts
    facts.block = 0
    learned = policy._category(facts)
    assert 8 < policy._waited[learned] / policy._reused[learned] < 16
    assert 0.5 < policy._reused[learned] / policy._blocks[learned] <= 1.0


def test_reuse_time_ranks_by_share_and_time_of_reuse() -> None:
    policy = ReuseTime()
    policy._blocks, policy._reused = [100.0] * 24, [50.0] * 24
    policy._waited = [50.0 * (10.0 if queue else 1000.0) for queue in range(24)]
    fresh, stale = policy.rank(1, 100.0, 100.0), policy.rank(1, 0.0, 100.0)
    slow = policy.rank(0, 0.0, 100.0)
    assert stale < slow < fresh
    policy._reused[1] = 0.5
    assert policy.rank(1, 100.0, 100.0) < slow


@pytest.mark.parametrize("policy", SHIPPED)
def test_every_policy_hits_no_more_than_the_optimum_and_something(policy: str) -> None:
    trace = chats(300, seed=5)
    for blocks in (20, 60):
        played = replay(trace, policy, blocks, watch=True)
        assert 0 < played.hit_blocks <= optimum(trace, blocks).hit_blocks
        reasons = played.played.reasons
        assert reasons.evicted_unused + reasons.evicted_reused == played.played.evicted
        assert sum(reasons.evicted.values()) == played.played.evicted


Turn = tuple[int, int, bool]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(list(SHIPPED)),
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 30), st.booleans()), max_size=25),
)
def test_no_policy_upsets_the_books(policy: str, turns: list[Turn]) -> None:
    """Prompts that share beginnings and end anywhere; two leases at a time; `check` after each
    move."""
    books = Books(24, SIZE, policy=policy)
    held = None
    for number, (family, length, hold) in enumerate(turns, 1):
        tokens = [*([family] * min(length, 11)), *range(100, 100 + max(length - 11, 0))]
        lease = books.run(tokens, now=float(number))
        if held is not None:
            books.end(held, now=float(number))
            held = None
        if hold:
            held = lease
        else:
            books.end(lease, now=float(number))
