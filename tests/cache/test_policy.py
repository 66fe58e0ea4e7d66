"""The order of eviction: classes, pins, and what stays put until its children are gone."""

from __future__ import annotations

import pytest
from books import Books

from kveik.cache.manager import NoRoom
from kveik.cache.policy import DEMOTED, HIGH, LOW, NORMAL, BlockFacts, IdleQueues, make_policy
from kveik.cache.pool import BlockPool
from kveik.cache.prefix import PrefixTree


def waiting(*ranks: int, policy: str = "lru") -> IdleQueues:
    """Idle blocks 0, 1, ... of these classes, in the order of their arrival."""
    queues = IdleQueues(BlockPool(len(ranks)), PrefixTree(1, 4, b""), make_policy(policy))
    for block, rank in enumerate(ranks):
        queues.set_class(block, rank)
        queues.append(block)
    return queues


def order(queues: IdleQueues) -> list[int]:
    """The order in which they really go."""
    gone: list[int] = []
    while (block := queues.first(0.0)) >= 0:
        queues.remove(block)
        gone.append(block)
    return gone


def test_demoted_goes_before_low_before_normal_before_high() -> None:
    assert order(waiting(HIGH, NORMAL, LOW, DEMOTED)) == [3, 2, 1, 0]
    assert order(waiting(NORMAL, LOW, NORMAL, LOW)) == [1, 3, 0, 2]


def test_a_waiting_block_changes_its_class_in_one_call() -> None:
    queues = waiting(NORMAL, NORMAL, NORMAL)
    queues.set_class(1, HIGH)
    queues.set_class(2, DEMOTED)
    assert (queues.count, queues.class_of(1)) == (3, HIGH)
    assert order(queues) == [2, 0, 1]


def test_a_held_block_keeps_the_class_that_it_is_given() -> None:
    queues = waiting(NORMAL, NORMAL)
    queues.remove(0)
    queues.set_class(0, LOW)
    queues.remove(1)
    queues.append(1)
    queues.append(0)
    assert order(queues) == [0, 1]


def test_a_parked_block_changes_its_class_and_goes_when_that_is_due() -> None:
    queues = waiting(NORMAL, NORMAL)
    queues.park(0)
    queues.set_class(0, HIGH)
    assert (queues.count, order(queues)) == (2, [1, 0])


def test_a_parked_block_comes_back_before_those_that_came_after_it() -> None:
    queues = waiting(NORMAL, NORMAL, NORMAL)
    queues.park(0)
    assert queues.first(0.0) == 1
    queues.remove(1)
    queues.unpark(0)
    assert order(queues) == [0, 2]


def test_pinned_blocks_are_counted_and_never_named() -> None:
    queues = waiting(DEMOTED, NORMAL)
    queues.set_pinned(0, True)
    assert (queues.count, queues.evictable, queues.pinned) == (2, 1, 1)
    assert set(queues) == {0, 1}
    assert order(queues) == [1]
    queues.set_pinned(0, False)
    assert (queues.evictable, queues.pinned) == (1, 0)
    assert order(queues) == [0]


def test_a_pin_outlives_that_somebody_holds_the_block() -> None:
    queues = waiting(NORMAL)
    queues.remove(0)
    queues.set_pinned(0, True)
    queues.append(0)
    assert (queues.first(0.0), queues.evictable) == (-1, 0)
    queues.remove(0)
    assert (queues.count, queues.pinned) == (0, 0)


def test_a_parked_block_can_be_pinned() -> None:
    queues = waiting(NORMAL, NORMAL)
    queues.park(0)
    queues.set_pinned(0, True)
    queues.unpark(0)  # its last child is gone: it stays pinned
    assert order(queues) == [1]


def test_what_is_filled_anew_has_no_past() -> None:
    queues = waiting(HIGH)
    queues.set_pinned(0, True)
    queues.hits[0] = 3
    queues.remove(0)
    queues.renew([0])
    assert (queues.class_of(0), queues.is_pinned(0), queues.hits[0]) == (NORMAL, False, 0)


class PlainQueues:
    """Two queues by number of hits; it counts how many heads are compared."""

    queues = 2

    def __init__(self) -> None:
        self.compared = 0

    def queue(self, facts: BlockFacts) -> int:
        return int(facts.hits > 0)

    def key(self, facts: BlockFacts) -> float:
        return float(facts.last_used)

    def rank(self, queue: int, key: float, now: float) -> float:
        self.compared += 1
        return key


def test_only_the_lowest_class_that_has_blocks_is_looked_at() -> None:
    policy = PlainQueues()
    queues = IdleQueues(BlockPool(4), PrefixTree(1, 4, b""), policy)
    for block, rank in enumerate((LOW, NORMAL, HIGH, LOW)):
        queues.hits[block] = block
        queues.set_class(block, rank)
        queues.append(block)
    assert queues.first(0.0) == 0
    assert policy.compared == 2


# --- in the manager


def test_a_pinned_path_is_never_evicted_and_never_counted_as_room() -> None:
    books = Books(blocks=4, size=4)
    books.end(books.run(list(range(8))))
    for block in (0, 1):
        books.idle[0].set_pinned(block, True)
    assert isinstance(books.open(list(range(100, 112)), 12), NoRoom)
    books.end(books.run(list(range(200, 208))))
    books.end(books.run(list(range(300, 308))))
    assert books.cached([*range(8), 1]) == 8
    assert books.cached([*range(200, 208), 1]) == 0


@pytest.mark.parametrize("pinned", [True, False])
def test_whoever_reuses_a_pinned_path_needs_no_room_for_it(pinned: bool) -> None:
    """Of four blocks two are reused; the other two are room for two more."""
    books = Books(blocks=4, size=4)
    books.end(books.run(list(range(8))))
    for block in (0, 1):
        books.idle[0].set_pinned(block, pinned)
    lease = books.run(list(range(16)))
    assert lease.cached_tokens == 8
    books.end(lease)


def test_demoted_tails_go_first_and_a_demoted_head_waits_for_its_tail() -> None:
    books = Books(blocks=6, size=4)
    books.end(books.run(list(range(8))))  # blocks 0, 1
    books.end(books.run(list(range(100, 108))))  # 2, 3
    books.end(books.run(list(range(200, 208))))  # 4, 5
    books.idle[0].set_class(2, DEMOTED)  # a head
    books.idle[0].set_class(5, DEMOTED)  # a tail
    books.reclaim.make_room(0, 1)
    books.check()
    assert [books.cached([*range(n, n + 8), 1]) for n in (0, 100, 200)] == [8, 8, 4]
    books.end(books.run([*range(8), 1]))  # what was not used for longest is now 100
    for free, left in ((1, [8, 4, 4]), (2, [8, 0, 4]), (3, [8, 0, 0])):
        books.reclaim.make_room(0, free)
        books.check()
        assert [books.cached([*range(n, n + 8), 1]) for n in (0, 100, 200)] == left
