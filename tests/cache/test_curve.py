"""The curve of hit rate against memory, beside LRU pools of every size that are really replayed."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kveik.cache.curve import CurveMeter
from kveik.cache.directive import Directive, Selector, Ttl
from kveik.cache.manager import CacheManager, Opened
from kveik.cache.segments import KvGroup

SIZE = 4
Path = Sequence[int]


def mark(path: Path) -> int:
    """64 bits that differ from those of every other path, evenly spread."""
    return int.from_bytes(blake2b(repr(tuple(path)).encode(), digest_size=8).digest(), "big")


def marks(path: Path) -> list[int]:
    return [mark(path[: end + 1]) for end in range(len(path))]


def replayed(prompts: Sequence[Path], size: int) -> int:
    """Blocks that an LRU pool of so many blocks serves of these prompts: the naive way."""
    pool: OrderedDict[int, None] = OrderedDict()
    served = 0
    for prompt in prompts:
        path = marks(prompt)
        served += next((n for n, block in enumerate(path) if block not in pool), len(path))
        for block in reversed(path):  # the tail goes first
            pool[block] = None
            pool.move_to_end(block)
        while len(pool) > size:
            pool.popitem(last=False)
    return served


def watch(meter: CurveMeter, prompts: Sequence[Path]) -> None:
    for prompt in prompts:
        path = marks(prompt)
        meter.looked_up(path, None, len(path) * meter.block_size, 0)
        meter.touched(path)


PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=60)


@given(PROMPTS, st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_every_size_is_exactly_an_lru_pool_of_that_size(prompts: list[Path], pool: int) -> None:
    meter = CurveMeter(pool, SIZE, kept=4 * max(pool, 4))
    watch(meter, prompts)
    curve, asked = meter.curve(), sum(map(len, prompts))
    assert curve.share == 1
    assert curve.tokens == asked * SIZE
    for size, rate in zip(curve.sizes, curve.hit_rates, strict=True):
        assert rate == pytest.approx(replayed(prompts, size) / asked), size
    assert curve.sizes[-1] == 4 * pool
    assert curve.at(1) == curve.hit_rates[curve.sizes.index(pool)]


class Stack:
    """The naive stack: a list, the most recent first; `seen` counts served blocks by size."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.blocks: list[int] = []
        self.sizes = sizes
        self.served = [0] * len(sizes)

    def look_up(self, path: list[int]) -> None:
        for index, size in enumerate(self.sizes):
            top = self.blocks[:size]
            self.served[index] += next((n for n, b in enumerate(path) if b not in top), len(path))

    def touch(self, path: list[int], *, known: bool) -> None:
        path = [block for block in path if block in self.blocks] if known else path
        self.blocks = path + [block for block in self.blocks if block not in path]
        del self.blocks[self.sizes[-1] :]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "use", "use known", "forget", "clear"]),
        st.lists(st.integers(0, 1), min_size=1, max_size=7),
    ),
    max_size=120,
)


@given(STEPS, st.integers(1, 6))
@settings(max_examples=120, deadline=None)
def test_whatever_happens_in_between_the_stack_is_the_naive_one(
    steps: list[tuple[str, Path]], pool: int
) -> None:
    meter = CurveMeter(pool, SIZE, kept=24)
    stack, asked = Stack(meter.sizes), 0
    for what, path in steps:
        blocks = marks(path)
        if what == "ask":
            meter.looked_up(blocks, None, len(blocks) * SIZE, 0)
            stack.look_up(blocks)
            asked += len(blocks)
        elif what == "forget":
            meter.forget(blocks[-1])
            stack.blocks = [block for block in stack.blocks if block != blocks[-1]]
        elif what == "clear":
            if len(path) > 5:
                meter.clear()
                stack.blocks = []
        else:
            meter.touched(blocks, known=what == "use known")
            stack.touch(blocks, known=what == "use known")
        assert len(meter) == len(stack.blocks)
    if asked:
        rates = [served / asked for served in stack.served]
        assert meter.curve().hit_rates == pytest.approx(rates)


def test_nothing_is_served_behind_a_block_that_is_gone() -> None:
    meter = CurveMeter(4, SIZE)
    path = marks([0, 1, 2])
    meter.touched(path)
    meter.forget(path[1])
    meter.looked_up(path, None, 12, 0)
    assert meter.curve().at(4) == pytest.approx(1 / 3)


def conversations(seed: int, count: int) -> list[Path]:
    """Prompts by block: a few openings, most of them go on from one of the last prompts."""
    rng = random.Random(seed)
    openings = [tuple(rng.randrange(10**6) for _ in range(rng.randrange(2, 9))) for _ in range(5)]
    recent: list[tuple[int, ...]] = list(openings)
    prompts: list[Path] = []
    for _ in range(count):
        before = rng.choice(recent[-150:]) if rng.random() < 0.7 else rng.choice(openings)
        prompt = before + tuple(rng.randrange(10**6) for _ in range(rng.randrange(1, 6)))
        prompts.append(prompt[:40])
        recent.append(prompt[:40])
    return prompts


@pytest.mark.parametrize("seed", range(2))
def test_a_sample_is_within_two_points_of_the_truth(seed: int) -> None:
    prompts = conversations(seed, 2500)
    meter = CurveMeter(1000, SIZE, kept=2000)
    watch(meter, prompts)
    curve, asked = meter.curve(), sum(map(len, prompts))
    assert curve.share == 0.5
    for times in (0.25, 0.5, 1, 2, 4):
        truth = replayed(prompts, int(1000 * times)) / asked
        assert curve.at(times) == pytest.approx(truth, abs=0.02), times


@given(PROMPTS, st.integers(1, 200), st.integers(1, 32))
@settings(max_examples=60, deadline=None)
def test_a_sample_is_bounded_and_its_curve_rises(prompts: list[Path], pool: int, kept: int) -> None:
    meter = CurveMeter(pool, SIZE, kept=kept)
    for prompt in prompts:
        watch(meter, [prompt])
        assert len(meter) <= kept
    rates = meter.curve().hit_rates
    assert list(rates) == sorted(rates)
    assert all(0 <= rate <= 1 for rate in rates)
    again = CurveMeter(pool, SIZE, kept=kept)
    watch(again, prompts)
    assert again.curve() == meter.curve()


def test_partial_blocks_count_in_a_sample_too() -> None:
    meter = CurveMeter(4000, SIZE, kept=1000)
    for again in (False, True):
        for prompt in range(3000):
            whole, tail = mark([prompt]), mark([prompt, 0])
            served = SIZE + 3 if again else 0
            meter.looked_up([whole], (tail, 3) if again else None, 2 * SIZE, served)
            meter.touched([tail])
            meter.touched([whole])
    curve = meter.curve()
    assert curve.share == 0.125
    assert curve.served == pytest.approx((SIZE + 3) / (4 * SIZE))
    assert curve.at(1) == 0.0
    assert curve.at(2) == pytest.approx(curve.served, abs=0.03)


def test_what_is_long_ago_weighs_less() -> None:
    meter = CurveMeter(10, SIZE, window=400)
    watch(meter, [[1, 2]] * 60)  # all but the first are served
    assert meter.curve().at(1) > 0.95
    watch(meter, [[n, n + 1] for n in range(1000, 2000, 2)])  # none is
    assert meter.curve().at(1) < 0.05
    assert meter.curve().tokens < 400


# --- in the manager


def manager(blocks: int) -> CacheManager:
    return CacheManager([KvGroup(layers=(0,))], [blocks], SIZE)


def serve(cache: CacheManager, prompt: Path, answer: Path = (), **words: object) -> int:
    """Compute a prompt and an answer; returns the tokens that were cached."""
    opened = cache.open(prompt, len(prompt), **words)  # type: ignore[arg-type]
    assert isinstance(opened, Opened)
    everything = [*prompt, *answer]
    cached = opened.lease.cached_tokens
    for end in range(len(prompt), len(everything) + 1):
        assert cache.extend(opened.lease, end)
        cache.launched(end)
        cache.acknowledge(end)
        cache.commit(opened.lease, everything[:end])
    cache.release(opened.lease)
    return cached


def chats(seed: int, count: int) -> list[tuple[Path, Path]]:
    """(prompt, answer) of turns of several chats at the same time; whole texts, odd lengths."""
    rng = random.Random(seed)
    live: list[list[int]] = []
    turns: list[tuple[Path, Path]] = []
    for _ in range(count):
        if len(live) < 3 or rng.random() < 0.3:
            live.append([7, 7, 7, 7, 7, *(rng.randrange(50) for _ in range(6))])
        chat = rng.choice(live[-12:])
        chat += [rng.randrange(50) for _ in range(rng.randrange(1, 9))]
        answer = [rng.randrange(50) for _ in range(rng.randrange(0, 7))]
        if len(chat) > 60:
            live.remove(chat)
        turns.append((tuple(chat), answer))
        chat += answer
    return turns


@pytest.mark.parametrize("seed", range(2))
def test_one_manager_says_what_managers_of_other_sizes_serve(seed: int) -> None:
    """This size to the token; the others to what partial blocks add, which other pools have at
    other places: less than a block for each prompt."""
    turns, pool = chats(seed, 250), 48
    watched = manager(pool)
    for turn in turns:
        serve(watched, *turn)
    curve, stats = watched.curve(), watched.stats()
    assert curve.tokens == stats.queried_tokens
    assert curve.served == pytest.approx(stats.hit_tokens / stats.queried_tokens)
    assert curve.at(1) == pytest.approx(curve.served, abs=0.002)
    assert 0.1 < curve.at(0.5) < curve.at(1) < curve.at(2)
    slack = (SIZE - 1) * len(turns) / curve.tokens
    for size, rate in zip(curve.sizes, curve.hit_rates, strict=True):
        if size >= 24:  # smaller ones have no room for a whole prompt and its answer
            other = manager(size)
            served = sum(serve(other, *turn) for turn in turns) / curve.tokens
            assert rate == pytest.approx(served, abs=slack), size


@pytest.mark.parametrize("pool", [64, 256])
def test_whole_blocks_are_served_as_the_curve_says_to_the_token(pool: int) -> None:
    prompts = [
        [token for block in prompt for token in (block, block, block, block)]
        for prompt in conversations(5, 150)
    ]
    watched = manager(pool)
    for prompt in prompts:
        serve(watched, [*prompt, 1])
    curve = watched.curve()
    for size, rate in zip(curve.sizes, curve.hit_rates, strict=True):
        if size > 40:
            other = manager(size)
            served = sum(serve(other, [*prompt, 1]) for prompt in prompts)
            assert rate == pytest.approx(served / curve.tokens, abs=0.004), size


def test_what_was_deleted_is_in_no_pool() -> None:
    text = tuple(range(40))
    for words in (
        {"directive": Directive(tags=("t",))},
        {"directive": Directive(ttl=Ttl(10.0, mode="delete"))},
        {},
    ):
        cache = manager(32)
        assert serve(cache, text, **words) == 0
        if not words:
            assert cache.reset()
        elif words["directive"].ttl is None:
            cache.invalidate(Selector(namespace="", tag="t"))
        while cache.tick(100.0):
            pass
        assert serve(cache, text, now=100.0, **words) == 0
        assert cache.curve().at(4) == 0, words
        assert serve(cache, text, now=101.0, **words) == 39
        assert cache.curve().at(4) == cache.curve().served == pytest.approx(39 / 120)


def test_after_a_reset_no_pool_has_what_this_one_had_evicted() -> None:
    cache = manager(12)
    for first in range(0, 400, 100):
        serve(cache, tuple(range(first, first + 40)))
    assert cache.reset()
    serve(cache, tuple(range(300, 340)))
    serve(cache, tuple(range(40)))
    assert cache.curve().at(4) == 0


def test_what_a_request_writes_not_is_in_no_pool() -> None:
    cache, text = manager(32), tuple(range(41))
    for _ in range(2):
        serve(cache, text, store=False)
    assert cache.curve().at(4) == 0
    serve(cache, text)
    serve(cache, text, store=False)
    assert cache.curve().at(4) == pytest.approx(1 / 4, abs=0.01)


def test_tenants_are_told_apart() -> None:
    cache, text = manager(32), tuple(range(41))
    serve(cache, text, namespace="ada")
    serve(cache, text, namespace="bo")
    assert cache.curve().at(4) == 0


def test_without_a_cache_there_is_nothing_to_say() -> None:
    cache = CacheManager([KvGroup(layers=(0,))], [32], SIZE, enable_prefix_caching=False)
    serve(cache, tuple(range(41)))
    assert cache.curve().tokens == 0
    assert set(cache.curve().hit_rates) == {0.0}
