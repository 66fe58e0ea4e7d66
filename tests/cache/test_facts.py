"""Facts that users of other engines rely on, with exact block ids: block 16, ten blocks.

Where token-granular reuse changes an outcome, a comment says so.
"""

from __future__ import annotations

import pytest
from books import FULL, Books, blocks_of

from kveik.cache.manager import NoRoom
from kveik.cache.segments import CopyPrefix, KvGroup

COMMON = list(range(100, 148))  # 48 tokens, three blocks
FIRST = [*COMMON, *range(200, 207)]
SECOND = [*COMMON, *range(300, 305)]


def test_c1_only_full_blocks_of_a_running_request_are_published() -> None:
    books = Books()
    lease = books.run(FIRST)
    assert lease.cached_tokens == 0
    assert blocks_of(lease) == (0, 1, 2, 3)
    assert books.stats().committed_blocks == 3
    assert books.cached(FIRST) == 48  # not 54: the fourth block is not sealed yet


def test_c2_a_second_request_shares_what_the_first_holds() -> None:
    books = Books()
    first = books.run(FIRST)
    second = books.run(SECOND)
    assert second.cached_tokens == 48
    assert blocks_of(second) == (0, 1, 2, 4)
    assert [books.pools[0].refs[block] for block in (0, 1, 2)] == [2, 2, 2]
    assert books.stats().free_blocks == (5,)
    assert blocks_of(first) == (0, 1, 2, 3)


def test_c3_order_of_reuse_is_partial_then_unused_then_tail_before_head() -> None:
    books = Books()
    first, second = books.run(FIRST), books.run(SECOND)
    # keep=False gives the partial blocks back unsealed. When they are kept (the default) they
    # serve partial matches and go after the blocks that were never used.
    books.end(first, keep=False)
    books.end(second, keep=False)
    stats = books.stats()
    assert stats.free_blocks[0] + stats.idle_blocks[0] == 10
    assert list(reversed(books.pools[0].free)) == [4, 3, 5, 6, 7, 8, 9]
    assert list(books.idle[0]) == [2, 1, 0]


def test_c3_kept_tails_go_before_heads_too() -> None:
    books = Books()
    books.end(books.run(FIRST))
    assert list(books.idle[0]) == [3, 2, 1, 0]


def test_c4_a_released_prefix_is_found_again() -> None:
    books = Books()
    books.end(books.run(FIRST))
    third = books.run([*COMMON, 1, 2])
    assert third.cached_tokens == 48
    assert blocks_of(third)[:3] == (0, 1, 2)


def test_c5_a_large_request_takes_every_block_in_that_order() -> None:
    books = Books()
    books.end(books.run(FIRST), keep=False)
    large = books.run(list(range(1000, 1160)))
    assert blocks_of(large) == (3, 4, 5, 6, 7, 8, 9, 2, 1, 0)
    assert books.cached(FIRST) == 0
    assert books.why(FIRST) == (0, "evicted")


def test_c6_a_reused_block_is_not_found_under_its_old_tokens() -> None:
    books = Books(blocks=3)
    books.end(books.run(list(range(48))))
    lease = books.run([7] * 5)
    assert blocks_of(lease) == (2,)
    assert books.cached(list(range(49))) == 32


def test_c7_a_block_just_hit_is_never_evicted_for_the_same_request() -> None:
    books = Books(blocks=5)
    books.end(books.run(list(range(48))))  # blocks 0, 1, 2: least recently used
    books.end(books.run(list(range(500, 532))))  # blocks 3, 4
    lease = books.run([*range(48), *range(900, 925)])
    assert lease.cached_tokens == 48
    assert blocks_of(lease) == (0, 1, 2, 4, 3)


def test_c8_without_prefix_caching_nothing_is_ever_found() -> None:
    books = Books(enable_prefix_caching=False)
    books.end(books.run(FIRST))
    lease = books.run(FIRST)
    assert lease.cached_tokens == 0
    assert books.why(FIRST) == (0, "no_store")
    books.end(lease)
    assert books.stats().free_blocks == (10,)


@pytest.mark.parametrize("caching", [True, False])
def test_c8_c10_a_short_pool_refuses_and_changes_nothing(caching: bool) -> None:
    books = Books(enable_prefix_caching=caching)
    books.end(books.run(COMMON))
    held = books.run(list(range(1000, 1100)))  # seven blocks
    references, free = list(books.pools[0].refs), list(books.pools[0].free)
    order, stats = list(books.idle[0]), books.stats()
    assert isinstance(books.open(FIRST, 160), NoRoom)
    assert not books.extend(held, 161)
    assert (list(books.pools[0].refs), list(books.pools[0].free)) == (references, free)
    assert (list(books.idle[0]), books.stats()) == (order, stats)
    books.check()


def test_c9_namespaces_do_not_see_each_other() -> None:
    books = Books()
    books.end(books.run(FIRST, namespace="a"), keep=False)
    assert books.cached(SECOND, namespace="a") == 48
    assert books.cached(SECOND, namespace="b") == 0
    assert books.why(SECOND, namespace="b") == (0, "new")


def test_c11_reset_is_refused_while_blocks_are_held() -> None:
    books = Books()
    lease = books.run(FIRST)
    assert not books.reset()
    assert books.cached(FIRST) == 48
    books.end(lease)
    assert books.reset()
    books.check()
    assert (books.cached(FIRST), len(books.tree)) == (0, 0)
    assert books.stats().free_blocks == (10,)


def test_c12_two_requests_that_computed_one_block_keep_one_copy() -> None:
    # Elsewhere both copies stay findable. Here the second to commit gives its copy back and takes
    # the published block, so that there is nothing that could lose its twin.
    books = Books()
    one = books.start(COMMON, reuse=False)
    two = books.start(COMMON, reuse=False)
    assert blocks_of(two) == (3, 4, 5)
    books.commit(one, COMMON)
    books.commit(two, COMMON)
    books.check()
    assert blocks_of(two) == blocks_of(one) == (0, 1, 2)
    books.end(one)
    assert books.cached(SECOND) == 48
    assert books.stats().free_blocks == (7,)


def test_c13_an_adapter_changes_the_key() -> None:
    books = Books()
    books.end(books.run(FIRST, adapter=1))
    assert books.cached(FIRST, adapter=1) == 54
    assert books.cached(FIRST) == books.cached(FIRST, adapter=2) == 0


def test_c14_what_was_stored_and_removed_is_counted() -> None:
    books = Books(blocks=4)
    books.end(books.run(FIRST))
    books.end(books.run(list(range(1000, 1064))))
    stats = books.stats()
    assert (stats.committed_blocks, stats.evicted_blocks) == (8, 4)


def two_groups(blocks: int = 10) -> Books:
    return Books(blocks, 16, (FULL, KvGroup((1,), "window", 33)))


def test_c15_evicting_the_last_block_shrinks_a_hit_by_one() -> None:
    books = two_groups()
    books.end(books.run(list(range(80))))
    books.reclaim.make_room(0, 6)  # one block more than the five that are free
    books.check()
    # The window group reads back 32 tokens from position 64: blocks 2 and 3, still there.
    assert books.cached([*range(80), 1]) == 64


def test_c15_blocks_outside_the_window_do_not_matter_and_those_inside_do() -> None:
    books = two_groups()
    books.end(books.run(list(range(80))))  # blocks 0, 1, 2 left the window while it ran
    asked = [*range(80), 1]
    for free in (6, 7, 8):
        books.reclaim.make_room(1, free)
        books.check()
        assert books.cached(asked) == 80
    books.reclaim.make_room(1, 9)
    books.check()
    # Position 80 reads block 4, which is gone; no earlier end of a match has its two blocks.
    assert books.cached(asked) == 0
    assert books.why(asked) == (0, "evicted")


def test_c15_a_full_group_never_loses_a_head_before_its_tail() -> None:
    books = two_groups()
    books.end(books.run(list(range(80))))
    sizes = []
    for free in range(6, 11):
        books.reclaim.make_room(0, free)
        books.check()
        sizes.append(len(books.tree))
    assert sizes == [4, 3, 2, 1, 0]


def test_c16_shared_prefixes_are_stored_once() -> None:
    # Page size 1 elsewhere; with pages of 4 and partial reuse the same answers.
    books = Books(blocks=10, size=4)
    one, two = list(range(1, 9)), [1, 2, 9, 10]
    books.end(books.run(one))
    lease = books.run(two)
    assert lease.cached_tokens == 2
    books.end(lease)
    assert books.cached([1, 2, 3, 4, 999, 1000]) == 4
    assert books.cached([1, 2, 9, 10, 777, 888]) == 4
    assert len(books.tree) == 3
    assert books.cached([1, 2, 3, 4, 5], namespace="unknown") == 0


def test_c16_equal_tokens_behind_another_parent_are_another_block() -> None:
    books = Books(blocks=4, size=4)
    lease = books.run([1, 2, 3, 4, 1, 2, 3, 4])
    assert len(books.tree) == 2
    first, second = books.tree.index.values()
    assert books.tree.parent[second] == first
    assert books.tree.chunk(first) == books.tree.chunk(second)
    books.end(lease)
    with pytest.raises(ValueError, match="released already"):
        books.release(lease)


def test_c17_two_growing_requests_in_seven_blocks_both_finish() -> None:
    """34 prompt tokens and 35 new ones each need 5 blocks; 7 are there."""
    books = Books(blocks=7)
    prompts = [list(range(34)), list(range(1000, 1034))]
    goals = [[*prompt, *(7000 + prompt[0] + n for n in range(35))] for prompt in prompts]
    leases = {0: books.start(prompts[0]), 1: books.start(prompts[1])}
    computed = {0: prompts[0], 1: prompts[1]}
    preempted, finished = 0, []
    while len(finished) < 2:
        for who in list(leases):
            lease, wanted = leases[who], len(computed[who])
            if not books.extend(lease, wanted):
                victim = max(leases)
                books.end(leases.pop(victim))
                preempted += 1
                break
            books.commit(lease, computed[who])
            books.check()
            if computed[who] == goals[who]:
                books.end(leases.pop(who))
                finished.append(who)
            else:
                computed[who] = goals[who][: wanted + 1]
        for who in {0, 1} - set(leases) - set(finished):
            if not leases:  # the other has finished
                leases[who] = books.start(computed[who])
    assert preempted == 1
    assert finished == [0, 1]


def test_a_partial_match_is_copied_into_a_private_block() -> None:
    books = Books()
    books.end(books.run(FIRST))
    result = books.open([*FIRST[:52], 1, 2, 3], 55)
    assert result.moves == (CopyPrefix(0, 3, 4, 4),)
    assert blocks_of(result.lease) == (0, 1, 2, 4)
    assert result.lease.cached_tokens == 52
    assert books.pools[0].refs[3] == 1  # the source, until the step is acknowledged
    books.check()
    books.step()
    assert books.pools[0].refs[3] == 0


def test_a_whole_prompt_in_the_cache_leaves_one_token_to_compute() -> None:
    books = Books()
    books.end(books.run(COMMON))
    result = books.open(COMMON, 48)
    assert result.lease.cached_tokens == 47
    assert result.moves == (CopyPrefix(0, 2, 3, 15),)
    assert (result.lease.miss.position, result.lease.miss.reason) == (47, "too_short")
