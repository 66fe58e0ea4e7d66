"""Hit rate against memory: what pools of other sizes would have served of the same prompts.

An LRU pool of any size holds the top of one stack: the blocks in the order of their last use, a
head above its tail. So one pass answers for all sizes (Mattson et al., 1970): a block is served by
every pool that reaches down to where it lies when it is looked up, and a prompt is served up to the
first block that is not.

    looked_up   where do the blocks of this prompt lie?     -> the counts of the sizes
    touched     they are the most recent now
    forget      a block was deleted: no pool would have it

Each block is known by 64 bits, its mark. While there are at most `KEPT` of them within reach of the
largest size, every one is followed and the answer is exact. Beyond that those whose mark ends with
one zero bit more, and so on (SHARDS, Waldspurger et al., 2015): a sample of 1 / 2^k of the blocks
that depends on nothing but their marks, whose places in the stack count 2^k-fold. Memory is bounded
by `KEPT`.

Uses of one moment are one epoch. What is left of an epoch is one path, so where its blocks lie
follows from how many blocks newer epochs have (a Fenwick tree) and the order along the path; a
prompt of a thousand blocks that were used together takes one look. Standard library only.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

KEPT = 8192
"""Blocks that are followed."""

WINDOW = 1 << 24
"""Tokens looked up; whenever so many were counted, what was counted so far weighs half."""

Tail: TypeAlias = tuple[int, int]
"""Mark of a partial block, and how many of its tokens were served."""

_NOWHERE = 1 << 62  # a place below every pool
_SIXTEENTHS = (1, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64)  # of the pool


@dataclass(frozen=True, slots=True)
class Curve:
    """What pools of other sizes would have served, if they evict the least recently used.

    now: blocks of this pool; sizes: of the others, ascending, `now` among them; hit_rates: share of
    the looked-up prompt tokens that each serves. tokens: how many were looked up (with the weights
    of the window); served: share of them that this pool really served, by its own policy, with its
    pins and with what requests held. share: of the blocks that are followed; 1.0: the counts are
    exact."""

    now: int
    block_size: int
    sizes: tuple[int, ...]
    hit_rates: tuple[float, ...]
    tokens: int
    served: float
    share: float

    def at(self, times: float) -> float:
        """The hit rate of a pool so many times the size of this one: 0.5, 1, 2 or 4."""
        return self.hit_rates[bisect_left(self.sizes, max(1, int(self.now * times)))]


class CurveMeter:
    """See the module. pool: blocks; kept: blocks that are followed at most."""

    def __init__(self, pool: int, block_size: int, kept: int = KEPT, window: int = WINDOW) -> None:
        self.pool, self.block_size = pool, block_size
        self.sizes = tuple(sorted({max(1, pool * part // 16) for part in _SIXTEENTHS}))
        self._kept, self._window = kept, window
        self._shift = 0  # one block in 2 ** shift is followed
        self._stack: OrderedDict[int, int] = OrderedDict()  # mark -> epoch, least recent first
        self._epoch = -1
        self._sizes_of = _Counts(4 * kept)  # blocks of every epoch
        self._served_at = [0.0] * (len(self.sizes) + 1)  # tokens, by the smallest size that does
        self._asked = 0.0  # tokens of all blocks that were looked up
        self._seen = 0.0  # the same by the sample
        self._tokens = self._served = 0.0

    def __len__(self) -> int:
        return len(self._stack)

    def follow(self, marks: Iterable[int]) -> list[int]:
        """Those of the marks that are in the sample."""
        mask = (1 << self._shift) - 1
        return [mark for mark in marks if not mark & mask]

    # --- what happens

    def looked_up(self, marks: Sequence[int], tail: Tail | None, length: int, served: int) -> None:
        """A prompt of `length` tokens was looked up, of which this pool served `served`. marks: of
        all its whole blocks, in order. tail: of the partial block that served its last tokens."""
        at = served // self.block_size
        before, behind = self.follow(marks[:at]), self.follow(marks[at:])
        follows_tail = tail is not None and bool(self.follow(tail[:1]))
        places = self._places([*before, *(tail[:1] if tail and follows_tail else ()), *behind])
        rest = places[len(before) + follows_tail :]
        deepest = self._count(places[: len(before)], 0)
        if tail is not None and follows_tail:
            whole = rest[0] if behind and behind[0] == marks[at] else _NOWHERE
            self._count_tail(tail[1], max(places[len(before)], deepest), max(whole, deepest))
        self._count(rest, deepest)
        self._asked += len(marks) * self.block_size
        self._tokens += length
        self._served += served
        if self._tokens >= self._window:
            self._fade()

    def touched(self, marks: Sequence[int], *, known: bool = False) -> None:
        """The blocks of one path, from its root on, are the most recent now, the first of them most
        of all. known: leave out what no pool has."""
        stack, marks = self._stack, self.follow(marks)
        if known:
            marks = [mark for mark in marks if mark in stack]
        if not marks:
            return
        if self._epoch + 1 == self._sizes_of.length:
            self._renumber()
        self._epoch += 1
        before, run = -1, 0  # so many blocks leave that epoch
        for mark in reversed(marks):
            old = stack.pop(mark, -1)
            stack[mark] = self._epoch
            if old != before:
                self._sizes_of.add(before, -run)
                before, run = old, 0
            run += 1
        self._sizes_of.add(before, -run)
        self._sizes_of.add(self._epoch, len(marks))
        self._trim()

    def forget(self, mark: int) -> None:
        """A block was deleted."""
        epoch = self._stack.pop(mark, -1)
        self._sizes_of.add(epoch, -1)

    def clear(self) -> None:
        """Everything was deleted; what was counted stays."""
        self._stack.clear()
        self._sizes_of = _Counts(self._sizes_of.length)
        self._epoch = -1

    # --- what follows

    def curve(self) -> Curve:
        # What the sample misses of the prompts, or has too much, is mostly what is used most often
        # and lies near the top, because there are few such blocks (SHARDS-adj).
        found, rates = self._asked - self._seen, []
        for tokens in self._served_at[:-1]:
            found += tokens
            rates.append(min(max(found / self._tokens, 0.0), 1.0) if self._tokens else 0.0)
        return Curve(
            now=self.pool,
            block_size=self.block_size,
            sizes=self.sizes,
            hit_rates=tuple(accumulate(rates, max)),
            tokens=round(self._tokens),
            served=self._served / self._tokens if self._tokens else 0.0,
            share=0.5**self._shift,
        )

    # --- the stack

    def _places(self, marks: Sequence[int]) -> list[int]:
        """How many blocks a pool has that reaches down to each of these; _NOWHERE: none does."""
        get, shift = self._stack.get, self._shift
        places, epoch, newer, of_epoch = [], -1, 0, 0
        for mark in marks:
            found = get(mark)
            if found is None:
                places.append(_NOWHERE)
                continue
            if found != epoch:
                epoch, of_epoch = found, 0
                newer = self._sizes_of.above(epoch)
            places.append((newer + of_epoch << shift) + 1)
            of_epoch += 1
        return places

    def _count(self, places: Sequence[int], deepest: int) -> int:
        """Count whole blocks behind one that lies so deep; returns how deep the last one lies."""
        index, tokens = bisect_left(self.sizes, deepest), self.block_size << self._shift
        for place in places:
            if place > deepest:
                deepest = place
                index = bisect_left(self.sizes, deepest)
            self._served_at[index] += tokens
        self._seen += tokens * len(places)
        return deepest

    def _count_tail(self, tokens: int, place: int, whole: int) -> None:
        """Count `tokens` that a partial block served, for the pools that do not reach down to the
        whole block in its place."""
        if place < whole:
            self._served_at[bisect_left(self.sizes, place)] += tokens << self._shift
            self._served_at[bisect_left(self.sizes, whole)] -= tokens << self._shift

    def _trim(self) -> None:
        """Follow nothing that lies deeper than the largest size, and never more than `kept`."""
        while len(self._stack) > min(self._kept, most := self._within_reach()):
            if most > self._kept:
                self._halve()
            else:
                self._stack.popitem(last=False)  # of the oldest epoch, above which nothing changes

    def _within_reach(self) -> int:
        """Blocks of the sample that the largest size has."""
        return (self.sizes[-1] - 1 >> self._shift) + 1

    def _halve(self) -> None:
        self._shift += 1
        kept = set(self.follow(self._stack))
        self._rebuild([(mark, epoch) for mark, epoch in self._stack.items() if mark in kept])

    def _renumber(self) -> None:
        """Number the epochs that are left from 0 on."""
        self._rebuild(list(self._stack.items()))

    def _rebuild(self, left: list[tuple[int, int]]) -> None:
        """These blocks are followed, the least recent first."""
        self._stack.clear()
        self._sizes_of = _Counts(self._sizes_of.length)
        self._epoch, before = -1, -1
        for mark, epoch in left:
            self._epoch += epoch != before
            before = epoch
            self._stack[mark] = self._epoch
            self._sizes_of.add(self._epoch, 1)

    def _fade(self) -> None:
        """What was counted so far weighs half."""
        self._served_at = [tokens / 2 for tokens in self._served_at]
        self._asked, self._seen = self._asked / 2, self._seen / 2
        self._tokens, self._served = self._tokens / 2, self._served / 2


class _Counts:
    """A count for each of the numbers 0 .. length - 1, and how many are above one (Fenwick)."""

    def __init__(self, length: int) -> None:
        self.length, self._total = length, 0
        self._sums = array("i", bytes(4 * (length + 1)))

    def add(self, number: int, count: int) -> None:
        """number -1: nothing is counted."""
        if number < 0 or not count:
            return
        self._total += count
        sums, place = self._sums, number + 1
        while place <= self.length:
            sums[place] += count
            place += place & -place

    def above(self, number: int) -> int:
        sums, place, upto = self._sums, number + 1, 0
        while place:
            upto += sums[place]
            place &= place - 1
        return self._total - upto
