"""Batch jobs that write at low priority, or nothing, never evict the chats."""

from __future__ import annotations

from random import Random

import pytest
from books import Books

from kveik.cache.directive import PLAIN, Directive
from kveik.cache.policy import LOW, NORMAL

LOW_WRITES = Directive(priority="low", write="low")


def chat_hit_rate(flood: Directive | None, seed: int) -> float:
    """Six chats of 8 blocks in a pool of 64, while a batch job passes 12 new blocks between two
    turns; share of the chats' tokens that the cache served."""
    dice, batch = Random(seed), Random(-seed - 1)
    books = Books(blocks=64, size=4)
    chats = [[1000 + chat] * 32 for chat in range(6)]
    served = asked = 0
    for turn in range(60):
        tokens = dice.choice(chats)
        lease = books.run(tokens)
        books.end(lease)
        if turn >= 12:
            served, asked = served + lease.cached_tokens, asked + len(tokens)
        if flood is not None:
            fresh = [batch.randrange(10**6, 10**7) for _ in range(48)]
            books.pass_through(fresh, directive=flood)
    return served / asked


@pytest.mark.parametrize("seed", range(3))
def test_a_flood_of_low_writes_costs_the_chats_nothing(seed: int) -> None:
    quiet = chat_hit_rate(None, seed)
    for flood in (LOW_WRITES, Directive(write="low"), Directive(write="none")):
        assert chat_hit_rate(flood, seed) == quiet
    assert chat_hit_rate(PLAIN, seed) < quiet - 0.2  # the control


def test_low_writes_are_found_again_until_room_is_needed() -> None:
    books = Books(blocks=4, size=4)
    books.pass_through(list(range(8)), directive=LOW_WRITES)
    assert books.cached([*range(8), 1]) == 8
    assert [books.idle[0].class_of(block) for block in (0, 1)] == [LOW, LOW]
    books.pass_through(list(range(100, 112)))
    assert books.cached([*range(8), 1]) == 4
    assert books.cached([*range(100, 112), 1]) == 12


def test_what_a_chat_reuses_of_a_batch_job_is_raised_to_the_chats_class() -> None:
    books = Books(blocks=8, size=4)
    books.pass_through(list(range(8)), directive=LOW_WRITES)
    books.pass_through(
        [*range(8), *range(50, 54)], directive=Directive(priority="normal", tags=("t",))
    )
    assert [books.idle[0].class_of(block) for block in (0, 1)] == [NORMAL, NORMAL]


def test_who_writes_nothing_still_reads() -> None:
    books = Books(blocks=8, size=4)
    books.pass_through(list(range(8)))
    lease = books.run([*range(8), *range(60, 68)], directive=Directive(write="none"))
    assert lease.cached_tokens == 8
    books.end(lease)
    assert books.cached([*range(8), *range(60, 69)]) == 8
