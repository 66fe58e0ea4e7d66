"""Free list, fence and idle queues, each alone."""

from __future__ import annotations

import pytest

from kveik.cache.policies.lru import LeastRecentlyUsed
from kveik.cache.policy import BlockFacts, IdleQueues, Policy, make_policy
from kveik.cache.pool import BlockPool, StepFence
from kveik.cache.prefix import PrefixTree
from kveik.errors import ConfigError


def test_never_used_blocks_come_in_order_and_returned_ones_first() -> None:
    pool = BlockPool(5)
    assert pool.take(3) == [0, 1, 2]
    pool.refs[1] = 0
    pool.give(1)
    assert pool.take(2) == [1, 3]
    assert pool.take(0) == []


@pytest.mark.parametrize("fault", ["free", "held", "owned"])
def test_over_release_raises(fault: str) -> None:
    pool = BlockPool(2)
    pool.take(1)
    if fault != "held":
        pool.refs[0] = 0
    if fault == "owned":
        pool.owner[0] = 7
    if fault == "free":
        pool.give(0)
    with pytest.raises(ValueError, match="block 0"):
        pool.give(0)


def test_the_fence_keeps_references_until_the_last_launched_step() -> None:
    fence = StepFence()
    fence.launched(1)
    fence.launched(2)
    fence.hold([(0, 4)])
    assert fence.acknowledge(1) == []
    assert fence.held() == [(0, 4)]
    assert fence.acknowledge(2) == [(0, 4)]
    assert not fence.running
    assert not fence.held()


def test_sources_of_moves_wait_for_the_step_that_carries_them() -> None:
    fence = StepFence()
    fence.launched(1)
    fence.hold_for_next([(0, 4)])
    assert fence.acknowledge(1) == []
    fence.launched(2)
    assert fence.acknowledge(2) == [(0, 4)]


def test_an_early_acknowledgement_waits_for_the_steps_before() -> None:
    fence = StepFence()
    fence.launched(1)
    fence.hold([(0, 1)])
    fence.launched(2)
    fence.hold([(0, 2)])
    assert fence.acknowledge(2) == []
    assert fence.acknowledge(1) == [(0, 1), (0, 2)]


@pytest.mark.parametrize("step", [1, 2, 9])
def test_unknown_or_repeated_acknowledgements_raise(step: int) -> None:
    fence = StepFence()
    fence.launched(1)
    fence.launched(2)
    fence.acknowledge(1) if step == 1 else fence.acknowledge(2)
    with pytest.raises(ValueError, match=f"step {step}"):
        fence.acknowledge(step)


def test_steps_are_launched_in_order() -> None:
    fence = StepFence()
    fence.launched(2)
    with pytest.raises(ValueError, match="step 1"):
        fence.launched(1)


def waiting(policy: Policy) -> IdleQueues:
    return IdleQueues(BlockPool(4), PrefixTree(1, 4, b""), policy)


class OftenUsedLast:
    """Two queues: reused blocks, and the others, which go first for ten seconds."""

    queues = 2

    def queue(self, facts: BlockFacts) -> int:
        return int(facts.hits > 0)

    def key(self, facts: BlockFacts) -> float:
        return facts.last_used

    def rank(self, queue: int, key: float, now: float) -> float:
        return key + 10.0 * queue - now * queue


def test_heads_of_queues_are_compared_with_now() -> None:
    queues = waiting(OftenUsedLast())
    for block, (last_used, hits) in enumerate([(1, 1), (2, 0), (3, 0)]):
        queues.last_used[block], queues.hits[block] = last_used, hits
        queues.append(block)
    assert list(queues) == [1, 2, 0]
    queues.park(0)
    queues.unpark(0)  # to the queue that it was in
    assert list(queues) == [1, 2, 0]
    assert queues.first(0.0) == 1  # least recently used would be 0
    assert queues.first(9.5) == 0
    queues.remove(1)
    assert queues.first(0.0) == 2
    queues.park(2)
    assert (queues.first(0.0), queues.count) == (0, 2)
    queues.unpark(2)
    assert queues.first(0.0) == 2
    queues.remove(2)
    queues.remove(0)
    assert (queues.first(0.0), queues.count) == (-1, 0)


def test_least_recently_used_is_the_order_of_arrival() -> None:
    queues = waiting(LeastRecentlyUsed())
    for block in (2, 0, 3):
        queues.append(block)
    queues.remove(2)
    queues.append(2)
    assert list(queues) == [0, 3, 2]


def test_unknown_policies_are_refused() -> None:
    with pytest.raises(ConfigError, match="'oracle'"):
        make_policy("oracle")


@pytest.mark.parametrize("queues", [0, 33])
def test_a_policy_has_at_most_32_queues(queues: int) -> None:
    policy = OftenUsedLast()
    policy.queues = queues
    with pytest.raises(ConfigError, match="32"):
        waiting(policy)
