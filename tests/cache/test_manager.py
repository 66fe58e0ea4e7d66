"""Sharing in flight, forks, fences, invalidation, recipes and explanations, one case at a time."""

from __future__ import annotations

import pytest
from books import FULL, Books, blocks_of

from kveik.cache.directive import Selector
from kveik.cache.manager import CacheManager, Miss, NoRoom, Opened, Wait
from kveik.cache.segments import CopyPrefix, KvGroup
from kveik.errors import ConfigError, InvalidRequest

PROMPT = list(range(40))  # ten blocks of four


def small(blocks: int = 32, *more: KvGroup, **options: bool) -> Books:
    return Books(blocks, 4, (FULL, *more), **options)


# --- many requests with one prefix


def test_followers_wait_without_blocks_and_hit_what_the_leader_commits() -> None:
    books = small()
    leader = books.start(PROMPT)
    free = books.stats()
    assert isinstance(books.open([*PROMPT, 1], 41), Wait)
    assert books.stats() == free
    books.commit(leader, PROMPT[:12])
    assert isinstance(books.open([*PROMPT, 1], 41), Wait)  # the next block is under way too
    books.commit(leader, PROMPT)
    follower = books.start([*PROMPT, 1])
    assert follower.cached_tokens == 40


def test_a_prompt_that_differs_in_the_next_block_does_not_wait() -> None:
    books = small(64)
    books.start(PROMPT)
    assert isinstance(books.open([*PROMPT[:3], 99, *PROMPT[4:]], 40), Opened)
    assert isinstance(books.open(PROMPT[:3], 3), Opened)  # no whole block to wait for
    assert isinstance(books.open(PROMPT, 40, namespace="other"), Opened)
    assert isinstance(books.open(PROMPT, 40, adapter=1), Opened)
    assert isinstance(books.open(PROMPT, 40, lineage=b"recipe"), Opened)


def test_a_follower_waits_only_as_far_as_the_prompts_agree() -> None:
    books = small()
    leader = books.start(PROMPT)
    asked = [*PROMPT[:8], *range(500, 510)]
    assert isinstance(books.open(asked, 18), Wait)
    books.commit(leader, PROMPT[:8])
    assert books.start(asked).cached_tokens == 8


@pytest.mark.parametrize("keep", [True, False])
def test_when_the_leader_ends_the_first_follower_leads(keep: bool) -> None:
    books = small()
    books.end(books.start(PROMPT), keep=keep)
    follower = books.start(PROMPT)
    assert follower.cached_tokens == 0
    assert isinstance(books.open(PROMPT, 40), Wait)


def test_a_no_store_request_never_leads_but_may_follow() -> None:
    books = small()
    hidden = books.start(PROMPT, store=False)
    leader = books.start(PROMPT)
    assert isinstance(books.open(PROMPT, 40, store=False), Wait)
    books.commit(hidden, PROMPT)
    assert books.cached([*PROMPT, 1]) == 0
    books.commit(leader, PROMPT)
    assert books.start([*PROMPT, 1], store=False).cached_tokens == 40
    books.end(hidden)
    assert books.cached([*PROMPT, 1]) == 40


def test_a_request_that_may_not_reuse_does_not_wait_and_still_publishes() -> None:
    books = small()
    books.start(PROMPT)
    lease = books.start(PROMPT, reuse=False)
    assert (lease.cached_tokens, lease.miss) == (0, Miss(0, "too_short"))
    books.commit(lease, PROMPT)
    assert books.cached([*PROMPT, 1]) == 40


def test_a_leader_whose_work_is_invalidated_leads_no_longer() -> None:
    books = small()
    books.start(PROMPT)
    books.invalidate(Selector(""))
    assert isinstance(books.open(PROMPT, 40), Opened)
    books.check()


def test_a_selector_that_ends_in_the_next_block_stops_the_leader_in_time() -> None:
    books = small()
    leader = books.start(PROMPT)
    books.commit(leader, PROMPT[:4])
    books.invalidate(Selector("", prefix=tuple(PROMPT[:6])))
    assert isinstance(books.open(PROMPT, 40), Wait)  # not known to match yet
    books.commit(leader, PROMPT[:7])
    assert isinstance(books.open(PROMPT, 40), Opened)


# --- tables, forks and windows


def test_commit_reads_only_what_is_new_and_refuses_to_go_back_or_too_far() -> None:
    books = small()
    lease = books.run(PROMPT[:6])
    assert lease.tables[0][0].length == 6
    books.commit(lease, PROMPT[:6])
    for length in (5, 9):
        with pytest.raises(ValueError, match="extend it first"):
            books.commit(lease, PROMPT[:length])
    assert books.extend(lease, 9)
    books.commit(lease, PROMPT[:9])
    assert lease.capacity == 12


def test_the_second_to_commit_takes_the_published_block() -> None:
    books = small(8)
    one, two = books.start(PROMPT[:8]), books.start(PROMPT[:8], reuse=False)
    old = blocks_of(two)
    books.launched(100)
    books.commit(one, PROMPT[:8])
    books.commit(two, PROMPT[:8])
    books.check()
    assert blocks_of(two) == blocks_of(one)
    assert not set(old) & set(books.pools[0].free)  # the running step may still write them
    books.acknowledge(100)
    assert set(old) <= set(books.pools[0].free)


def test_a_fork_shares_full_blocks_and_copies_the_tail() -> None:
    books = small()
    lease = books.run(PROMPT[:6])
    forked = books.fork(lease)
    assert forked is not None
    child, moves = forked
    books.check()
    assert moves == (CopyPrefix(0, 1, 2, 2),)
    assert (blocks_of(lease), blocks_of(child)) == ((0, 1), (0, 2))
    assert (child.committed, child.capacity, child.cached_tokens) == (6, 8, lease.cached_tokens)
    with pytest.raises(ValueError, match="not launched"):
        books.fork(child)
    books.end(lease)  # its tail stays until the copy is made
    assert books.pools[0].refs[1] == 1
    books.step()
    books.commit(child, [*PROMPT[:6], 9, 9])
    assert books.cached([*PROMPT[:6], 9, 9, 9]) == 8


def test_a_fork_at_a_block_boundary_needs_no_block() -> None:
    books = small(2)
    lease = books.run(PROMPT[:8])
    forked = books.fork(lease)
    assert forked is not None
    assert forked[1] == ()
    assert blocks_of(forked[0]) == (0, 1)


def test_a_fork_without_a_block_for_the_tail_changes_nothing() -> None:
    books = small(2)
    lease = books.run(PROMPT[:6])
    before = list(books.pools[0].refs)
    assert books.fork(lease) is None
    assert list(books.pools[0].refs) == before
    books.check()


def test_a_tail_that_was_never_copied_is_not_sealed() -> None:
    books = small()
    lease = books.run(PROMPT[:6])
    forked = books.fork(lease)
    assert forked is not None
    books.end(forked[0])
    assert books.cached(PROMPT) == 4
    books.end(lease)
    assert books.cached(PROMPT) == 6


def test_blocks_that_leave_the_window_are_let_go_at_once() -> None:
    books = small(8, KvGroup((1,), "window", 5))
    lease = books.run(PROMPT[:16])
    assert (blocks_of(lease, 0), blocks_of(lease, 1)) == ((0, 1, 2, 3), (3,))
    assert lease.tables[1][0].home == 12
    assert books.stats().idle_blocks == (0, 3)  # still in the tree
    assert books.extend(lease, 17)
    assert blocks_of(lease, 1) == (3, 4)


def test_a_long_sequence_runs_through_a_short_window_pool() -> None:
    window = KvGroup((0,), "window", 6)
    books = Books(4, 4, (window,))
    lease = books.start(PROMPT[:4])
    for length in range(5, 41):
        assert books.extend(lease, length)
        books.commit(lease, PROMPT[:length])
        books.check()
    books.end(lease)


def test_an_extended_tail_is_dropped_when_nobody_reads_it() -> None:
    books = small()
    books.end(books.run(PROMPT[:6]))
    assert len(books.tree) == 2
    lease = books.run(PROMPT[:7])
    assert lease.cached_tokens == 6
    books.end(lease)
    assert len(books.tree) == 2  # [0..3], [4..6]; the tail [4, 5] is gone
    assert books.stats().idle_blocks == (2,)
    books.end(books.run(PROMPT[:5]))  # nothing new
    assert (len(books.tree), books.cached(PROMPT)) == (2, 7)


def test_the_source_of_a_copy_gives_way_when_the_pool_is_too_small_for_both() -> None:
    books = small(3)
    books.end(books.run(PROMPT[:11]))
    result = books.open([*PROMPT[:11], 99], 12)
    assert isinstance(result, Opened)
    assert (result.lease.cached_tokens, result.moves) == (8, ())
    books.check()


def test_a_block_freed_while_a_step_runs_is_not_reused_before_it_ends() -> None:
    books = small(4)
    lease = books.start(PROMPT[:16], store=False)
    books.launched(50)
    books.end(lease)
    assert books.stats().fenced_blocks == (4,)
    assert isinstance(books.open([7, 7, 7, 7], 4), NoRoom)
    books.acknowledge(50)
    books.check()
    assert isinstance(books.open([7, 7, 7, 7], 4), Opened)


def test_blocks_that_others_will_need_can_be_set_aside() -> None:
    books = small(4)
    assert isinstance(books.open(PROMPT[:8], 8, spare=3), NoRoom)
    assert isinstance(books.open(PROMPT[:8], 8, spare=2), Opened)


# --- invalidation


def test_invalidation_removes_the_subtree_and_nothing_else() -> None:
    books = small()
    other = [*PROMPT[:8], *range(800, 810)]
    books.end(books.run(PROMPT))
    books.end(books.run(other))
    assert books.invalidate(Selector("", prefix=tuple(PROMPT[:10]))).blocks == 8
    books.check()
    assert books.cached([*PROMPT, 1]) == 8
    assert books.why([*PROMPT, 1]) == (8, "invalidated")
    assert books.cached([*other, 1]) == 18
    assert books.invalidate(Selector("nobody")).blocks == 0
    assert books.invalidate(Selector("", prefix=(5,))).blocks == 0


def test_a_running_reader_finishes_and_publishes_nothing_below() -> None:
    books = small()
    lease = books.run(PROMPT)
    assert books.invalidate(Selector("", prefix=tuple(PROMPT[:2]))).blocks == 10
    books.check()
    assert books.extend(lease, 44)
    books.commit(lease, [*PROMPT, 1, 2, 3, 4])
    books.end(lease)
    assert (books.cached([*PROMPT, 1]), len(books.tree)) == (0, 0)
    assert books.stats().free_blocks == (32,)


@pytest.mark.parametrize("computed", [0, 1, 2, 5])
def test_a_lease_opened_before_publishes_nothing_that_matches(computed: int) -> None:
    books = small()
    lease = books.start(PROMPT)
    books.commit(lease, PROMPT[:computed])
    books.invalidate(Selector("", prefix=tuple(PROMPT[:2])))
    if computed != 1:
        books.commit(lease, PROMPT[: computed + 3])
    books.end(lease)
    assert books.cached(PROMPT) <= 1


def test_a_lease_that_does_not_match_publishes_as_before() -> None:
    books = small()
    lease = books.start(PROMPT)
    books.invalidate(Selector("", prefix=(0, 1, 2, 99)))
    books.invalidate(Selector("other"))
    books.commit(lease, PROMPT)
    assert books.cached([*PROMPT, 1]) == 40


def test_invalidation_removes_every_recipe_of_the_namespace() -> None:
    books = small()
    books.end(books.run([7, 8, 9, 10], lineage=b"recipe"))
    running = books.start([1, 2, 3, 4], lineage=b"recipe")
    assert books.invalidate(Selector("", prefix=(500,))).blocks == 1
    books.commit(running, [1, 2, 3, 4])
    books.end(running)
    assert len(books.tree) == 0


def test_reset_of_one_namespace_leaves_the_others() -> None:
    books = small()
    books.end(books.run(PROMPT, namespace="a"))
    lease = books.run(PROMPT, namespace="b")
    assert not books.reset("b")
    assert books.reset("a")
    assert books.cached([*PROMPT, 1], namespace="a") == 0
    assert books.cached([*PROMPT, 1], namespace="b") == 40
    books.end(lease)


# --- recipes


def test_a_recipe_matches_only_itself_and_counts_as_approximate() -> None:
    books = small()
    books.end(books.run(PROMPT, lineage=b"recipe"))
    assert books.cached([*PROMPT, 1]) == 0
    assert books.start([*PROMPT, 1], lineage=b"another").cached_tokens == 0
    lease = books.start([*PROMPT, 1], lineage=b"recipe")
    assert (lease.cached_tokens, lease.lineage) == (40, b"recipe")
    stats = books.stats()
    assert (stats.hit_tokens, stats.approximate_hit_tokens) == (0, 40)


# --- why not more


def test_reasons() -> None:
    books = small(8)
    assert books.why(PROMPT) == (0, "new")
    assert books.why([1]) == (0, "too_short")
    books.end(books.run(PROMPT[:14]))
    assert books.why(PROMPT[:14]) == (13, "too_short")
    assert books.why(PROMPT) == (14, "new")
    assert books.why([*PROMPT[:9], 500, 501]) == (9, "diverged")
    assert books.why([*PROMPT[:8], 500, 501]) == (8, "diverged")
    hidden = books.run([77] * 6, store=False)
    books.end(hidden)
    assert books.why([77] * 6) == (0, "no_store")
    books.end(books.run(list(range(600, 626))))  # seven of eight blocks
    assert books.why(PROMPT) == (4, "evicted")
    assert books.why(PROMPT, namespace="other") == (0, "new")


def test_a_partial_tail_that_was_evicted_is_remembered() -> None:
    books = small(4)
    books.end(books.run(PROMPT[:6]))
    books.end(books.run(list(range(600, 612))))
    assert books.why(PROMPT) == (4, "evicted")


def test_lookup_touches_recency_and_explain_does_not() -> None:
    books = small(4)
    books.end(books.run([1, 1, 1, 1]))
    books.end(books.run([2, 2, 2, 2]))
    assert books.explain([1, 1, 1, 1, 1]).cached_tokens == 4
    assert list(books.idle[0]) == [0, 1]
    assert books.lookup([1, 1, 1, 1, 1]).cached_tokens == 4
    assert list(books.idle[0]) == [1, 0]
    assert books.idle[0].last_used[0] == books.holdings.tick > books.idle[0].last_used[1]
    assert books.stats().queried_tokens == 8  # of the two that were opened


def test_hits_of_a_block_are_counted_for_policies() -> None:
    books = small()
    books.end(books.run(PROMPT[:4]))
    assert (books.idle[0].hits[0], books.idle[0].last_used[0]) == (0, books.holdings.tick)
    for _ in range(2):
        books.end(books.run(PROMPT[:5]))
    assert books.idle[0].hits[0] == 2


class ParentsFirst:
    """Names blocks in the wrong order: the head of a prompt before its tail."""

    queues = 2

    def __init__(self) -> None:
        self.calls = 0

    def queue(self, facts: object) -> int:
        self.calls += 1
        return self.calls % 2

    def key(self, facts: object) -> float:
        return 0.0

    def rank(self, queue: int, key: float, now: float) -> float:
        return queue


def test_children_go_before_parents_whatever_the_policy_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kveik.cache.manager.make_policy", lambda name: ParentsFirst())
    books = small(4)
    books.end(books.run(PROMPT[:16]))
    left = []
    for free in range(1, 5):
        books.reclaim.make_room(0, free)
        books.check()
        left.append(books.cached([*PROMPT[:16], 1]))
    assert left == [12, 8, 4, 0]


# --- sizes and refusals


def test_sizes() -> None:
    books = small(8, KvGroup((1,), "window", 5))
    assert [books.blocks_for(n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert books.capacity_tokens() == 32


@pytest.mark.parametrize(
    ("groups", "blocks", "size"),
    [
        ([], [], 4),
        ([FULL], [4, 4], 4),
        ([FULL], [0], 4),
        ([FULL], [4], 0),
        ([KvGroup((0,), "state")], [4], 4),
        ([KvGroup((0,), "window")], [4], 4),
        ([KvGroup((0,), "window", 0)], [4], 4),
    ],
)
def test_sizes_that_cannot_be_served_are_refused(
    groups: list[KvGroup], blocks: list[int], size: int
) -> None:
    with pytest.raises(ConfigError):
        CacheManager(groups, blocks, size)


def test_bad_token_ids_are_refused_before_anything_changes() -> None:
    books = small()
    with pytest.raises(InvalidRequest):
        books.open([1, -1], 2)
    assert books.stats() == small().stats()


@pytest.mark.parametrize("place", ["refs", "owner", "free", "pins", "leader"])
def test_check_sees_damage(place: str) -> None:
    books = small()
    lease = books.start(PROMPT)
    books.commit(lease, PROMPT[:10])
    if place == "refs":
        books.pools[0].refs[1] += 1
    elif place == "owner":
        books.pools[0].owner[2] = 1
    elif place == "free":
        books.pools[0].free.pop()
    elif place == "pins":
        books.tree.pins[lease.node] -= 1
    else:
        books.leaders.clear()
    with pytest.raises((AssertionError, KeyError)):
        books.check()
