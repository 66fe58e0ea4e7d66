"""The order of eviction: classes, pins, and what stays put until its children are gone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from books import Books

from kveik.cache.directive import Directive, Selector, Ttl
from kveik.cache.manager import NoRoom
from kveik.cache.policy import (
    DEMOTED,
    HIGH,
    LOW,
    NORMAL,
    SHIPPED,
    BlockFacts,
    IdleQueues,
    make_policy,
)
from kveik.cache.pool import BlockPool
from kveik.cache.prefix import PrefixTree
from kveik.config import ENGINE_OPTIONS
from kveik.errors import ConfigError


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


# --- facts: whatever a policy may read, something updates


def facts_of(books: Books, block: int) -> BlockFacts:
    facts = books.idle[0].facts
    facts.block = block
    return facts


def test_facts_of_place_and_size() -> None:
    books = Books(blocks=4, size=4)
    books.end(books.run(list(range(6)), namespace="tenant"))
    head, tail = ((facts_of(books, n).depth, facts_of(books, n).tokens) for n in (0, 1))
    assert (head, tail) == ((4, 4), (6, 2))
    assert facts_of(books, 1).namespace == "tenant"


def test_fact_recompute_cost_grows_with_depth() -> None:
    books = Books(blocks=1030, size=4)
    books.end(books.run(list(range(4116))))
    head, deep = (facts_of(books, block).recompute_cost for block in (0, 1024))
    assert head == pytest.approx(4, rel=0.01)
    assert deep == pytest.approx(8, rel=0.01)


def test_facts_of_time_follow_the_clock_that_is_handed_in() -> None:
    books = Books(blocks=4, size=4)
    books.end(books.start([1, 2, 3, 4, 5], now=10.0))
    lease = books.start([1, 2, 3, 4, 5], now=20.0)
    books.commit(lease, [1, 2, 3, 4, 5], now=21.0)
    books.release(lease, now=25.0)
    first = facts_of(books, 0)
    assert (first.created, first.used, first.hits) == (21.0, 25.0, 0)
    before = first.last_used
    lease = books.start([1, 2, 3, 4, 6], now=40.0)
    books.release(lease, now=41.0)
    again = facts_of(books, 0)
    assert (again.created, again.used, again.hits) == (21.0, 41.0, 1)
    assert again.last_used > before


def test_facts_of_retention() -> None:
    books = Books(blocks=4, size=4)
    plain = books.run([9] * 4)
    books.end(plain)
    directive = Directive(tags=("a", "b"), ttl=Ttl(60.0, "first_use"), priority="high")
    lease = books.start([1, 2, 3, 4], directive=directive, now=100.0)
    books.commit(lease, [1, 2, 3, 4], now=100.0)
    books.release(lease, now=101.0)
    facts = facts_of(books, 1)
    assert (facts.tags, facts.deadline, facts.priority) == (2, 160.0, HIGH)
    generation = facts.generation
    facts = facts_of(books, 0)
    assert (facts.tags, facts.deadline, facts.priority) == (0, float("inf"), NORMAL)
    assert facts.generation < generation


def test_facts_of_the_prompt_that_used_it_last() -> None:
    books = Books(blocks=8, size=4)
    books.end(books.run(list(range(12))))
    assert [(facts_of(books, n).sequence, facts_of(books, n).found) for n in (0, 2)] == [
        (12, 0)
    ] * 2
    lease = books.run([*range(8), 50, 51, 52, 53, 54])
    books.commit(lease, [*range(8), 50, 51, 52, 53, 54])
    books.end(lease)
    seen = [(facts_of(books, n).sequence, facts_of(books, n).found) for n in (0, 1, 2, 3)]
    assert seen == [(13, 8), (13, 8), (12, 0), (13, 8)]


def test_facts_of_the_pool_and_of_the_moment() -> None:
    books = Books(blocks=4, size=4)
    books.end(books.run([1, 2, 3, 4], now=7.0), now=9.0)
    assert (facts_of(books, 0).capacity, facts_of(books, 0).now) == (4, 9.0)


def test_fact_content_is_the_same_when_it_is_computed_again_and_says_whose_it_is() -> None:
    books = Books(blocks=4, size=4)
    books.end(books.run([1, 2, 3, 4]))
    first = facts_of(books, 0).content
    books.end(books.run([1, 2, 3, 4], namespace="other"))
    assert facts_of(books, 1).content != first
    books.reclaim.make_room(0, 4)
    books.end(books.run([1, 2, 3, 4]))
    again = next(block for block in range(4) if books.pools[0].owner[block] >= 0)
    assert facts_of(books, again).content == first


# --- what a policy sends back, and what it hears of


class Sends:
    """Two queues; a block is sent to the second `lives` times before it goes."""

    queues = 2

    def __init__(self, lives: int = 1) -> None:
        self.lives: dict[int, int] = {}
        self._given = lives
        self.heard: list[tuple[int, int]] = []

    def queue(self, facts: BlockFacts) -> int:
        self.lives[facts.block] = self._given if facts.block == 0 else 0
        return 0

    def key(self, facts: BlockFacts) -> float:
        return float(facts.last_used)

    def rank(self, queue: int, key: float, now: float) -> float:
        return float(queue)

    def again(self, facts: BlockFacts) -> int:
        self.lives[facts.block] -= 1
        return 1 if self.lives[facts.block] >= 0 else -1

    def gone(self, facts: BlockFacts) -> None:
        self.heard.append((facts.block, facts.depth))


def test_a_block_that_is_sent_back_joins_the_end_of_the_queue_that_was_named() -> None:
    queues = IdleQueues(BlockPool(3), PrefixTree(1, 4, b""), Sends())
    for block in range(3):
        queues.append(block)
    assert order(queues) == [1, 2, 0]
    assert queues.count == 0


def test_a_policy_that_sends_everything_back_does_not_stop_the_world() -> None:
    queues = IdleQueues(BlockPool(2), PrefixTree(1, 4, b""), Sends(10**9))
    queues.append(0)
    assert queues.first(0.0) == 0


def test_a_policy_hears_of_what_is_evicted_and_of_nothing_else() -> None:
    policy = Sends()
    books = Books(blocks=4, size=4, policy=lambda: policy)
    books.end(books.run(list(range(8))))
    books.end(books.run([*range(100, 108)]))
    books.reclaim.make_room(0, 1)
    assert policy.heard == [(1, 8)]
    books.invalidate(Selector(prefix=(0,)))
    books.sweep()
    books.reclaim.make_room(0, 4)
    assert policy.heard == [(1, 8), (3, 8), (2, 4)]


# --- cost


def serve(books: Books, tokens: list[int]) -> None:
    books.end(books.run(tokens))


def pressed(policy: str) -> tuple[int, int]:
    """A long prompt, then short ones that come once each: what is left of the long one, and of the
    short one that came last."""
    books = Books(blocks=24, size=4, policy=policy)
    long = list(range(1000, 1064))
    for _ in range(4):
        serve(books, long)
    for number in range(20):
        serve(books, list(range(8 * number, 8 * number + 8)))
    return books.cached([*long, 1]), books.cached([*range(152, 160), 1])


def test_cost_keeps_what_is_used_often_where_lru_keeps_what_came_last() -> None:
    assert pressed("lru") == (0, 8)
    kept, last = pressed("cost")
    assert kept > 32
    assert last == 8


def deep_and_shallow(policy: str) -> tuple[int, int]:
    """One prompt of 8,000 tokens, then four of 16; room is made for one more block."""
    books = Books(blocks=2004, size=4, policy=policy)
    serve(books, list(range(8000)))
    for start in (10_000, 20_000):
        serve(books, list(range(start, start + 8)))
    books.reclaim.make_room(0, 1)
    books.check()
    return books.cached([*range(8000), 1]), books.cached([*range(10_000, 10_008), 1])


def test_cost_lets_a_shallow_tail_go_before_a_deep_one() -> None:
    """Both were used once; behind 8,000 tokens attention alone makes a block dearer."""
    assert deep_and_shallow("lru") == (7996, 8)
    assert deep_and_shallow("cost") == (8000, 4)


def test_what_was_used_often_once_does_not_stay_for_ever() -> None:
    """The inflation overtakes it."""
    books = Books(blocks=8, size=4, policy="cost")
    for _ in range(50):
        serve(books, [1] * 8)
    facts_of(books, 0)
    for number in range(400):
        serve(books, list(range(8 * number + 100, 8 * number + 108)))
    assert books.idle[0].facts.inflation > 0
    assert books.cached([1] * 9) == 0


# --- the operator's own


def guide() -> str:
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    return text.split("```python\n")[1].split("```")[0]


def test_the_example_of_a_policy_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps the start of prompts, which lru gives away with the prompt that is oldest."""
    (tmp_path / "starts_first.py").write_text(guide())
    monkeypatch.syspath_prepend(str(tmp_path))
    left = {}
    for policy in ("lru", "starts_first:KeepStarts"):
        books = Books(blocks=16, size=4, policy=policy)
        serve(books, list(range(1000, 1032)))
        serve(books, list(range(2000, 2032)))
        books.reclaim.make_room(0, 8)
        books.check()
        left[policy] = [books.cached([*range(n, n + 32), 1]) for n in (1000, 2000)]
    assert left == {"lru": [0, 32], "starts_first:KeepStarts": [12, 20]}


def test_names_of_policies_are_told_where_they_are_asked_for() -> None:
    said = next(option.help for option in ENGINE_OPTIONS if option.name == "policy")
    assert [name.strip() for name in said.split(":")[1].split(",")[:-1]] == list(SHIPPED)


BROKEN = """
class NoRank:
    queues = 1
    def queue(self, facts): return 0
    def key(self, facts): return 0.0

class ManyQueues(NoRank):
    queues = 33
    def rank(self, queue, key, now): return key

class WrongQueue(ManyQueues):
    queues = 2
    def queue(self, facts): return 2

class WrongRank(WrongQueue):
    def queue(self, facts): return 1
    def rank(self, queue, key, now): return "first"

class WrongAgain(ManyQueues):
    queues = 1
    def again(self, facts): return 7

class WrongGone(ManyQueues):
    queues = 1
    def gone(self, facts): return facts.no_such_fact

class NeedsArguments(NoRank):
    def __init__(self, size): ...

function = len
"""


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("oracle", "is not known; use lru, cost, fifo, "),
        ("no_such_module_here:Policy", "cannot be imported"),
        ("broken_policies:Absent", "has no class 'Absent'"),
        ("broken_policies:function", "has no class 'function'"),
        ("broken_policies:NoRank", "no method rank"),
        ("broken_policies:ManyQueues", "has 1 to 32 queues, got 33"),
        ("broken_policies:WrongQueue", "queue 2 of 2"),
        ("broken_policies:WrongRank", "rank returned str"),
        ("broken_policies:WrongAgain", "queue 7 of 1"),
        ("broken_policies:WrongGone", "no_such_fact"),
        ("broken_policies:NeedsArguments", "without arguments"),
        ("broken_policies:", "has no class ''"),
        (":Policy", "cannot be imported"),
    ],
)
def test_what_is_no_policy_is_refused_with_the_reason(
    name: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_policies.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=re.escape(why)) as refused:
        Books(policy=name)
    assert refused.value.param == "policy"
