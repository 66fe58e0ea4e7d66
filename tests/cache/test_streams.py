"""Leases of streams: what they hold, publish and leave, and the room that is promised to them."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, field

import pytest
from books import FULL, Books, session
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kveik.cache.directive import Directive, Selector, Ttl
from kveik.cache.lease import Lease, NoRoom, Opened
from kveik.cache.segments import CopyPrefix, KvGroup, Move
from kveik.cache.window import StreamWindow, laid_out, span_view
from kveik.errors import PinBudgetExceeded, PromptTooLarge, StreamBudgetExceeded

SIZE = 4
STREAM = StreamWindow(sinks=3, window=13)  # 16 tokens in all, four blocks
PROMPT = list(range(12))


def books(blocks: int = 40, *more: KvGroup, **options: object) -> Books:
    return Books(blocks, SIZE, (FULL, *more), **options)


def feed(kept: Books, lease: Lease, tokens: list[int], chunk: int = 1) -> int:
    """Compute tokens behind what the lease has, chunk by chunk; the most blocks it held."""
    most = 0
    for start in range(0, len(tokens), chunk):
        part = tokens[start : start + chunk]
        end = lease.committed + len(part)
        assert kept.extend(lease, end)
        most = max(most, lease.held(0))
        kept.step()
        if lease.evicted:
            kept.append(lease, part)
        else:
            kept.commit(lease, [0] * lease.committed + part)
        kept.check()
    return most


def open_stream(kept: Books, tokens: list[int], **options: object) -> Lease:
    return kept.start(tokens, 1, **{"stream": STREAM, **options})


@pytest.mark.parametrize("chunk", [1, 3, 8, 64])
def test_a_stream_holds_its_window_and_three_partly_used_blocks(chunk: int) -> None:
    kept = books(64)
    lease = open_stream(kept, [7])
    most = feed(kept, lease, list(range(300)), chunk)
    assert most * SIZE <= STREAM.size - 1 + chunk + 3 * (SIZE - 1)
    assert (lease.committed, lease.evicted) == (300, 301 - STREAM.size)
    assert lease.held(0) * SIZE <= STREAM.size + 3 * (SIZE - 1)
    kept.end(lease)


def test_the_sinks_stay_and_the_recent_part_is_cut_inside_its_first_block() -> None:
    kept = books()
    lease = open_stream(kept, [7])
    feed(kept, lease, list(range(16)))
    whole = lease.tables[0][0]
    assert whole.shift == 1  # the token at 16 will not see token 3
    feed(kept, lease, list(range(6)))
    sinks, recent = lease.tables[0]
    assert (sinks.home, sinks.skip, sinks.length, sinks.shift) == (0, 0, 3, 7)
    assert (recent.home + recent.skip, recent.shift) == (10, 0)
    assert recent.home == 8
    assert recent.seen_end == lease.committed == 22
    assert not set(sinks.blocks) & set(recent.blocks)


def test_sinks_that_share_a_block_with_the_window_keep_it_once() -> None:
    kept = books()
    lease = kept.start([7], 1, stream=StreamWindow(sinks=5, window=4))
    feed(kept, lease, list(range(10)))
    sinks, recent = lease.tables[0]
    assert sinks.blocks[1] == recent.blocks[0]  # holds sink 4 and, of the window, token 7
    assert lease.held(0) == 3
    kept.end(lease)
    kept.sweep()
    assert kept.stats().leased_blocks == (0,)


def test_nothing_is_published_that_was_written_after_the_first_eviction() -> None:
    kept = books()
    tokens = list(range(60))
    lease = open_stream(kept, tokens)
    feed(kept, lease, tokens)
    kept.end(lease)
    assert kept.cached(tokens) == 16  # what its rows computed before they forgot anything
    assert lease.stored == 16


def test_a_stream_reuses_an_ordinary_prefix_and_leaves_one() -> None:
    kept = books(60)
    kept.pass_through(list(range(40)))
    lease = open_stream(kept, list(range(40)))
    assert lease.cached_tokens == 15  # of 16 tokens in the window; token 16 sees another past
    other = list(range(100, 140))
    first = open_stream(kept, other)
    feed(kept, first, other)
    assert kept.cached(other) == 16
    ordinary = kept.start(other)
    assert ordinary.cached_tokens == 16


def test_shared_prompt_blocks_have_a_reference_of_every_stream() -> None:
    kept = books(200)
    kept.pass_through(PROMPT)
    streams = [open_stream(kept, [*PROMPT, number]) for number in range(16)]
    shared = streams[0].blocks[0][:3]
    assert all(lease.blocks[0][:3] == shared for lease in streams)
    assert [kept.pools[0].refs[block] for block in shared] == [16, 16, 16]
    for lease in streams:
        feed(kept, lease, list(range(50)))
    assert kept.pools[0].refs[shared[0]] == 16  # the sinks are shared for good
    assert kept.pools[0].refs[shared[1]] == 0


def test_blocks_whose_children_streams_hold_can_be_evicted() -> None:
    """A stream lets go of a cached block and goes on reading those behind it in the tree."""
    kept = books(8)
    tokens = list(range(16))
    lease = kept.start(tokens, 1, stream=StreamWindow(sinks=1, window=15))
    feed(kept, lease, tokens)
    feed(kept, lease, [1, 2, 3, 4, 5, 6])
    assert kept.stats().idle_blocks == (1,)  # block 1 of the prompt; blocks 2 and 3 are read
    assert kept.stats().free_blocks == (2,)
    other = kept.start([100, 101, 102, 103])
    assert kept.cached(tokens) == 15
    feed(kept, lease, list(range(8)), 8)  # two blocks: the free one, and that one
    assert kept.stats().evicted_blocks == 1
    assert kept.cached(tokens) == 4
    kept.end(other)
    kept.end(lease)


def test_a_prompt_longer_than_the_pool_streams_through() -> None:
    kept = books(kept_blocks := 8)
    lease = open_stream(kept, list(range(500)))
    feed(kept, lease, list(range(500)), 4)
    assert lease.held(0) <= kept_blocks


# --- room


def test_a_stream_waits_until_its_whole_window_fits() -> None:
    kept = books(10)
    need = kept.streams.blocks_for(STREAM)
    assert need == 6
    ordinary = kept.run(list(range(20)))  # five blocks, four left
    assert isinstance(kept.open([7], 1, stream=STREAM), NoRoom)
    kept.end(ordinary)
    lease = open_stream(kept, [7])
    assert lease.held(0) == 1
    # What is promised to it is nobody else's, although it lies free.
    assert isinstance(kept.open(list(range(200, 220)), 20), NoRoom)
    small = kept.start(list(range(300, 316)), 16)
    assert not kept.extend(small, 17)
    feed(kept, lease, list(range(100)))


def test_two_streams_are_open_only_where_both_can_grow() -> None:
    kept = books(11)
    open_stream(kept, [7])
    assert isinstance(kept.open([8], 1, stream=STREAM), NoRoom)


def test_a_window_larger_than_the_pool_is_refused_by_name() -> None:
    kept = books(5)
    with pytest.raises(PromptTooLarge, match=r"stream_window: 3\+13 tokens need 6 blocks") as told:
        kept.check_stream(STREAM, "", stays=False)
    assert told.value.param == "stream_window"


def test_streams_that_stay_share_the_budget_of_pins() -> None:
    kept = books(40, pin_share=0.25)  # ten blocks
    kept.check_stream(STREAM, "", stays=True)
    lease = open_stream(kept, [7], directive=session("s"))
    with pytest.raises(StreamBudgetExceeded) as told:
        kept.check_stream(STREAM, "", stays=True)
    assert told.value.status == 429
    with pytest.raises(PinBudgetExceeded):
        kept.check_pin(5 * SIZE)
    kept.check_pin(4 * SIZE)
    kept.check_stream(STREAM, "", stays=False)
    kept.end(lease)
    kept.check_pin(10 * SIZE)


def test_pins_leave_room_for_what_is_promised() -> None:
    kept = books(8, pin_share=0.9)
    open_stream(kept, [7])
    with pytest.raises(PinBudgetExceeded):
        kept.check_pin(3 * SIZE)


def test_a_window_that_pins_leave_no_room_for_is_refused_at_once() -> None:
    kept = books(10, pin_share=0.5)
    kept.check_stream(STREAM, "", stays=False)  # six blocks of ten
    kept.pass_through(list(range(4 * SIZE)), directive=Directive(pin=True))
    kept.check_stream(STREAM, "", stays=False)
    kept.pass_through(list(range(50, 50 + SIZE)), directive=Directive(pin=True))
    with pytest.raises(StreamBudgetExceeded, match="need 6 blocks, and 5 of the KV pool") as told:
        kept.check_stream(STREAM, "", stays=False)
    assert (told.value.status, told.value.param) == (429, "stream_window")
    assert told.value.retry_after


# --- between turns


def test_a_stream_rests_in_its_session_and_goes_on() -> None:
    kept = books()
    lease = open_stream(kept, PROMPT, directive=session("s"))
    feed(kept, lease, list(range(50)))
    kept.rest(lease, now=1.0)
    kept.check()
    assert [view[:2] for view in kept.sessions("", now=1.0)] == [("", "s")]
    assert kept.resume(lease, now=2.0)
    feed(kept, lease, list(range(30)))
    kept.end(lease)
    assert kept.table.get("", "s").open == 0  # type: ignore[union-attr]


def test_a_stream_that_rests_does_not_keep_its_session_alive() -> None:
    kept = books(session_idle=10.0)
    lease = open_stream(kept, PROMPT, directive=session("s"))
    feed(kept, lease, list(range(50)))
    kept.rest(lease, now=1.0)
    kept.sweep(now=100.0)
    assert not kept.resume(lease, now=100.0)
    kept.end(lease)
    assert kept.table.get("", "s") is None


@pytest.mark.parametrize("ends", [True, False], ids=["the session ends", "another takes its place"])
def test_what_a_stream_alone_held_is_overwritten_when_it_ends(ends: bool) -> None:
    kept = books()
    lease = open_stream(kept, PROMPT, directive=session("s"))
    feed(kept, lease, list(range(50)))
    private = {block for block in lease.blocks[0] if kept.pools[0].owner[block] < 0}
    kept.take_erasures()
    kept.rest(lease)
    if ends:
        kept.end_session("", "s")
    kept.end(lease, keep=False)
    assert private <= {erase.block for erase in kept.take_erasures()}


@pytest.mark.parametrize("fed", [0, 2, 50], ids=["a prefix", "before an eviction", "long after"])
def test_the_receipt_of_a_session_counts_the_window_of_its_stream(fed: int) -> None:
    kept = Books(40, SIZE, (KvGroup((0,), bytes_per_block=7),))
    lease = open_stream(kept, PROMPT, directive=session("s"))
    feed(kept, lease, [1] * (len(PROMPT) + fed - lease.committed))
    other = kept.start([9, 9, 9], 1, directive=session("other"))
    kept.rest(lease)
    free, held = len(kept.pools[0].free), lease.held(0)
    receipt = kept.end_session("", "s")
    assert receipt is not None
    kept.end(lease, keep=False)
    kept.take_erasures()
    kept.sweep()
    assert receipt.deferred == 0
    assert receipt.blocks == len(kept.pools[0].free) - free >= held
    assert receipt.bytes_by_tier == (("memory", 7 * receipt.blocks),)
    assert SIZE * (held - 3) < receipt.tokens <= SIZE * receipt.blocks
    assert other.held(0)


@pytest.mark.parametrize("selector", [Selector(tag="news"), Selector(prefix=(0, 1))])
def test_what_is_invalidated_is_overwritten_when_a_stream_lets_it_go(selector: Selector) -> None:
    kept = books()
    lease = open_stream(kept, PROMPT, directive=session("s", tags=("news",)))
    feed(kept, lease, list(range(50)))
    kept.invalidate(selector)
    kept.take_erasures()
    before = set(lease.blocks[0])
    feed(kept, lease, list(range(30)))
    assert before <= {erase.block for erase in kept.take_erasures()}


def test_a_stream_cannot_be_forked() -> None:
    kept = books()
    with pytest.raises(ValueError, match="one continuation"):
        kept.fork(open_stream(kept, [7]))


def test_append_is_for_streams_that_forgot() -> None:
    kept = books()
    lease = open_stream(kept, [7])
    with pytest.raises(ValueError, match="dropped"):
        kept.append(lease, [1])


# --- everything at once, against a dictionary


@dataclass
class Run:
    """A sequence and what its rows must read."""

    number: int
    lease: Lease
    tokens: list[int]
    stream: StreamWindow | None
    moves: list[Move] = field(default_factory=list)

    def content(self, position: int) -> object:
        """What lies in the slot of this position: its past, until that is no prefix any more."""
        if self.stream is not None and position >= self.stream.size:
            return self.number, position
        return tuple(self.tokens[: position + 1])

    def sees(self, position: int) -> set[int]:
        cache: list[int] = []
        for token in range(position + 1):
            if self.stream is not None:
                while len(cache) + 1 > self.stream.size:
                    del cache[self.stream.sinks : self.stream.sinks + self.stream.evict]
            cache.append(token)
        return set(cache)


class World:
    """A pool, its sequences, and a dictionary from slot to content."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.kept = books(
            dice.choice((14, 20, 40)), *dice.choice(((), (KvGroup((1,), "window", 24),)))
        )
        self.groups = self.kept.groups
        self.slots: list[dict[int, object]] = [{} for _ in self.groups]
        self.runs: list[Run] = []
        self.numbers = 0
        self.now = 1.0

    def open(self) -> None:
        dice = self.dice
        stream = None
        if dice.random() < 0.6:
            window = dice.randint(1, 14)
            stream = StreamWindow(dice.randint(0, 6), window, dice.randint(1, window))
        source = dice.choice(([], *(run.tokens for run in self.runs)))
        tokens = source[: dice.randint(0, 20)] + [
            dice.randint(0, 2) for _ in range(dice.randint(1, 9))
        ]
        tags = ("news",) if dice.random() < 0.3 else ()
        ttl = Ttl(40.0) if dice.random() < 0.2 else None
        directive = session(dice.choice("st"), tags=tags, ttl=ttl)
        result = self.kept.open(
            tokens, len(tokens), stream=stream, directive=directive, now=self.now
        )
        if not isinstance(result, Opened):
            return
        self.numbers += 1
        self.runs.append(Run(self.numbers, result.lease, tokens, stream, list(result.moves)))
        self.erase()
        for move in result.moves:
            assert isinstance(move, CopyPrefix)
            slots = self.slots[move.group]
            for slot in range(move.count):
                slots[move.dst * SIZE + slot] = slots[move.src * SIZE + slot]
        self.kept.step()

    def erase(self) -> None:
        """What was deleted is overwritten before anything else of a step."""
        for group, block in self.kept.take_erasures():
            for offset in range(SIZE):
                self.slots[group].pop(block * SIZE + offset, None)

    def disturb(self) -> None:
        """A verb that deletes, pins or lets time pass; nobody who reads may notice."""
        dice, kept = self.dice, self.kept
        self.now += dice.choice((0.0, 1.0, 30.0))
        tokens = dice.choice(self.runs).tokens if self.runs else [1, 2]
        match dice.randrange(6):
            case 0:
                kept.invalidate(Selector(tag="news"), self.now)
            case 1:
                kept.invalidate(Selector(prefix=tuple(tokens[: dice.randint(1, 9)])), self.now)
            case 2:
                kept.end_session("", dice.choice("st"), self.now)
            case 3:
                with contextlib.suppress(PinBudgetExceeded):
                    kept.name("", "n", tokens, pin=True, ttl=Ttl(20.0), now=self.now)
            case 4:
                kept.unname("", "n", self.now)
            case _:
                kept.tick(self.now)
        kept.check()

    def pause(self, run: Run) -> None:
        """The stream rests; its session may end meanwhile, and it with it."""
        self.kept.rest(run.lease, self.now)
        self.kept.check()
        for _ in range(self.dice.randint(0, 2)):
            self.disturb()
        gone = self.kept.is_over(run.lease)
        assert self.kept.resume(run.lease, self.now) is not gone
        if gone:
            self.end(run)

    def advance(self, run: Run) -> None:
        """One chunk of a sequence, which may get new tokens first."""
        lease, kept = run.lease, self.kept
        if len(run.tokens) == lease.committed:
            if run.stream is None and len(run.tokens) > 30:
                return self.end(run)
            run.tokens += [self.dice.randint(0, 2) for _ in range(self.dice.randint(1, 6))]
        end = min(lease.committed + self.dice.randint(1, 9), len(run.tokens))
        if not kept.extend(lease, end):
            if run.stream is None:
                return self.end(run)
            end = min(lease.committed + SIZE, end)
            for other in [one for one in self.runs if one.stream is None]:
                self.end(other)
            assert kept.extend(lease, end), "a stream must always get its next block"
        self.compute(run, end)
        return None

    def compute(self, run: Run, end: int) -> None:
        lease, first = run.lease, run.lease.committed
        if run.stream is not None:
            most = run.stream.size - 1 + end - first + 3 * (SIZE - 1)
            assert all(lease.held(g) * SIZE <= most for g in range(len(self.groups)))
        self.erase()
        for g, group in enumerate(self.groups):
            table = laid_out(lease.tables[g], end, SIZE, run.stream)
            view = span_view(group, table, first, end - first, SIZE, run.stream)
            for position, slot in zip(range(first, end), view.slots, strict=True):
                self.slots[g][slot] = run.content(position)
            numbers = iter(view.windows)
            for position in range(first, end):
                seen = set()
                for segment in table:
                    _, low, high = next(numbers), next(numbers), next(numbers)
                    for slot in range(low, high + 1):
                        token = segment.home + slot
                        block = segment.blocks[slot // SIZE]
                        assert self.slots[g][block * SIZE + slot % SIZE] == run.content(token)
                        seen.add(token)
                if run.stream is not None or group.kind == "full":
                    assert seen == run.sees(position)
        self.kept.step()
        if lease.evicted:
            self.kept.append(lease, run.tokens[first:end])
        else:
            self.kept.commit(lease, run.tokens[:end])
        self.kept.check()

    def end(self, run: Run) -> None:
        self.runs.remove(run)
        self.kept.end(run.lease, keep=self.dice.random() < 0.8)

    def live(self, operations: int) -> None:
        for _ in range(operations):
            if not self.runs or (len(self.runs) < 5 and self.dice.random() < 0.2):
                self.open()
            elif self.dice.random() < 0.03:
                self.end(self.dice.choice(self.runs))
            elif self.dice.random() < 0.1:
                self.disturb()
            elif self.dice.random() < 0.1:
                streams = [run for run in self.runs if run.stream is not None]
                if streams:
                    self.pause(self.dice.choice(streams))
            else:
                self.advance(self.dice.choice(self.runs))
        for run in list(self.runs):
            self.end(run)
        stats = self.kept.stats()
        assert stats.leased_blocks == (0,) * len(self.groups)
        assert not stats.leaked_blocks
        assert not self.kept.streams.reserved


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32 - 1))
def test_every_slot_holds_what_its_reader_expects_and_nothing_is_lost(seed: int) -> None:
    World(random.Random(seed)).live(120)
