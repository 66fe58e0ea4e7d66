"""Fair shares: reserves that others leave alone, maxima, and pins that never wedge the pool."""

from __future__ import annotations

from random import Random

import pytest

from kveik.cache.directive import PUBLIC, Directive
from kveik.cache.manager import CacheManager, NoRoom, Opened
from kveik.cache.segments import KvGroup
from kveik.errors import ConfigError

SIZE = 4


class World:
    """A cache that runs whole prompts, one step each."""

    def __init__(self, blocks: int, shares: dict[str, tuple[int, int | None]], **options: object):
        group = KvGroup((0,), bytes_per_block=1)
        self.cache = CacheManager([group], [blocks], SIZE, **options)  # type: ignore[arg-type]
        self.cache.set_shares(shares)
        self.step = 0

    def run(self, namespace: str, tokens: list[int], **options: object) -> int:
        """Tokens that the cache served."""
        self.step += 1
        cache = self.cache
        result = cache.open(tokens, len(tokens), namespace=namespace, **options)  # type: ignore[arg-type]
        assert isinstance(result, Opened), (namespace, result)
        cache.launched(self.step)
        cache.commit(result.lease, tokens)
        cache.acknowledge(self.step)
        cache.release(result.lease)
        cache.tick(float(self.step))
        return result.lease.cached_tokens


def working_set(namespace: str, count: int, length: int) -> list[list[int]]:
    return [[ord(namespace), k, *range(length - 2)] for k in range(count)]


def hit_rate(shares: dict[str, tuple[int, int | None]], flood: int, seed: int) -> float:
    """Share of its tokens that tenant a finds cached while b floods."""
    rng = Random(seed)
    world = World(100, shares)
    own = working_set("a", 8, 4 * SIZE)
    served = asked = 0
    for turn in range(200):
        prompt = rng.choice(own)
        hit = world.run("a", prompt)
        if turn >= 20:
            served, asked = served + hit, asked + len(prompt)
        for _ in range(flood):
            world.run("b", [ord("b"), *(rng.randrange(10**6) for _ in range(6 * SIZE - 1))])
        world.cache.check()
    return served / asked


@pytest.mark.parametrize("seed", range(3))
def test_a_flood_of_ten_times_its_quota_costs_another_at_most_two_points(seed: int) -> None:
    """b may keep 20 blocks and writes 36 between two prompts of a: 200 per six of them."""
    shares = {"a": (40, None), "b": (10, 20)}
    quiet = hit_rate(shares, 0, seed)
    flooded = hit_rate(shares, 6, seed)
    assert flooded >= quiet - 0.02
    assert hit_rate({}, 6, seed) < quiet - 0.2  # the control: without shares it does cost


def test_a_reserve_is_left_alone_and_the_rest_is_everybodys() -> None:
    world = World(20, {"a": (6, None)})
    world.run("a", list(range(8 * SIZE)))
    for k in range(30):
        world.run("b", [k + 1000] * (14 * SIZE))
    assert world.cache.usage("a") == (6, 6, 6, None)
    assert world.cache.explain(list(range(8 * SIZE)), namespace="a").cached_tokens == 6 * SIZE


def test_a_maximum_bounds_what_is_kept() -> None:
    world = World(40, {"a": (0, 5)})
    for k in range(10):
        world.run("a", [k] * (3 * SIZE))
        assert world.cache.usage("a")[0] <= 5
        world.cache.check()
    assert world.run("a", [9] * (3 * SIZE)) == 3 * SIZE - 1


def test_what_is_reserved_for_others_is_no_capacity() -> None:
    world = World(20, {"a": (6, None), "b": (4, None)})
    assert world.cache.capacity_tokens("c") == 10 * SIZE
    assert world.cache.capacity_tokens("a") == 16 * SIZE
    world.run("a", list(range(16 * SIZE)))
    world.run("b", list(range(14 * SIZE)))
    world.run("c", list(range(10 * SIZE)))
    assert isinstance(world.cache.open(list(range(60)), 60, namespace="c"), NoRoom)


def test_shares_change_while_blocks_are_cached() -> None:
    world = World(24, {})
    world.run("a", list(range(4 * SIZE)))
    world.run("b", list(range(4 * SIZE)))
    world.cache.set_shares({"a": (4, None)})
    world.cache.check()
    assert world.cache.usage("a")[0] == 4
    for k in range(20):
        world.run("b", [k + 50] * (5 * SIZE))
    assert world.run("a", list(range(4 * SIZE))) == 4 * SIZE - 1
    world.cache.set_shares({})
    for k in range(20):
        world.run("b", [k + 90] * (5 * SIZE))
    assert world.cache.explain(list(range(4 * SIZE)), namespace="a").cached_tokens == 0
    world.cache.check()


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ({"a": (19, None)}, "nine tenths"),
        ({"a": (5, 4)}, "maximum below"),
        ({"a": (0, 0)}, "maximum below"),
        ({"a": (-1, None)}, "maximum below"),
        ({str(k): (0, None) for k in range(256)}, "at most 255"),
    ],
)
def test_impossible_shares_change_nothing(
    shares: dict[str, tuple[int, int | None]], told: str
) -> None:
    world = World(20, {"b": (3, None)})
    with pytest.raises(ConfigError, match=told):
        world.cache.set_shares(shares)
    assert world.cache.usage("b")[2] == 3


def test_pins_give_way_to_what_could_never_run_otherwise() -> None:
    world = World(12, {}, pin_share=0.5)
    pinned = list(range(6 * SIZE))
    world.run("a", pinned, directive=Directive(name="n", pin=True))
    assert world.cache.explain(pinned, namespace="a").cached_tokens == len(pinned) - 1
    big = [7] * (10 * SIZE)
    assert isinstance(world.cache.open(big, len(big), namespace="a"), NoRoom)
    assert world.run("a", big, last_resort=True) == 0
    world.cache.check()
    assert world.cache.explain(pinned, namespace="a").cached_tokens == 2 * SIZE


def kept(world: World, namespace: str) -> int:
    return world.cache.usage(namespace)[0]


def test_an_unused_reserve_is_lent() -> None:
    """Two requests of b at once have the whole pool while a keeps nothing."""
    world = World(20, {"a": (6, None)})
    for start, blocks in ((0, 10), (1000, 10)):
        tokens = list(range(start, start + blocks * SIZE))
        assert isinstance(world.cache.open(tokens, len(tokens), namespace="b"), Opened)
    world.cache.check()


def test_a_namespace_may_use_up_its_own_reserve() -> None:
    world = World(20, {"a": (10, None)})
    world.run("a", list(range(20 * SIZE)))
    assert world.run("a", [7] * (16 * SIZE)) == 0


def test_a_request_that_grows_leaves_the_reserve_of_others_alone() -> None:
    world = World(10, {"a": (6, None)})
    world.run("a", list(range(6 * SIZE)))
    opened = world.cache.open([1, 2, 3], 3, namespace="b")
    assert isinstance(opened, Opened)
    assert world.cache.extend(opened.lease, 4 * SIZE)
    assert not world.cache.extend(opened.lease, 5 * SIZE)
    assert kept(world, "a") == 6


def test_a_request_that_grows_may_use_up_its_own_reserve() -> None:
    world = World(10, {"a": (6, None)})
    world.run("a", list(range(6 * SIZE)))
    opened = world.cache.open([1, 2, 3], 3, namespace="a")
    assert isinstance(opened, Opened)
    assert world.cache.extend(opened.lease, 10 * SIZE)


def test_who_keeps_most_above_its_reserve_gives_first() -> None:
    world = World(20, {"a": (4, None), "b": (1, None), "c": (0, None)})
    world.run("a", list(range(8 * SIZE)))  # 4 above
    world.run("b", list(range(7 * SIZE)))  # 6 above
    world.run("c", list(range(5 * SIZE)))  # 5 above
    world.run("d", list(range(2 * SIZE)))
    assert (kept(world, "a"), kept(world, "b"), kept(world, "c")) == (8, 5, 5)
    world.run("d", [9] * SIZE)
    assert (kept(world, "a"), kept(world, "b"), kept(world, "c")) == (8, 5, 4)


def test_of_equals_the_one_in_need_gives() -> None:
    world = World(10, {"a": (0, None), "b": (0, None)})
    world.run("a", list(range(5 * SIZE)))
    world.run("b", list(range(5 * SIZE)))
    world.run("b", [7] * SIZE)
    assert (kept(world, "a"), kept(world, "b")) == (5, 5)


def test_a_maximum_is_carried_out_in_bounded_steps() -> None:
    world = World(40, {"a": (0, 30)})
    world.run("a", list(range(30 * SIZE)))
    world.cache.set_shares({"a": (0, 10)})
    for left in (27, 24, 21):
        world.cache.tick(100.0, 3)
        assert kept(world, "a") == left


def test_usage_is_in_bytes_and_counts_what_is_public_beside() -> None:
    cache = CacheManager([KvGroup((0,), bytes_per_block=10)], [20], SIZE)
    cache.set_shares({"a": (25, 59)})
    text = list(range(2 * SIZE))
    for namespace, tokens in ((PUBLIC, text), ("a", [*text, *range(50, 50 + SIZE)])):
        result = cache.open(tokens, len(tokens), namespace=namespace)
        assert isinstance(result, Opened)
        cache.launched(len(tokens))
        cache.commit(result.lease, tokens)
        cache.acknowledge(len(tokens))
        cache.release(result.lease)
    assert cache.usage("a") == (10, 30, 30, 50)  # reserves are rounded up, maxima down
    assert cache.usage("b") == (0, 0, 0, None)


def test_pinned_blocks_are_no_part_of_a_share() -> None:
    world = World(20, {"a": (2, 8)})
    text = list(range(6 * SIZE))
    world.run("a", text, directive=Directive(name="n"))
    world.cache.name("a", "n", text, pin=True)
    assert kept(world, "a") == 0
    assert world.cache.explain([*text, 1], namespace="a").cached_tokens == len(text)
    world.cache.set_pin("a", "n", False)
    while world.cache.tick(10.0):
        pass
    assert kept(world, "a") == 6
    world.cache.set_pin("a", "n", True)
    assert kept(world, "a") == 0
    world.cache.check()


def test_pins_that_give_way_do_so_from_their_end() -> None:
    world = World(12, {}, pin_share=0.5)
    text = list(range(6 * SIZE))
    world.run("a", text)
    world.cache.name("a", "n", text, pin=True)  # from the head on
    assert world.run("a", [7] * (10 * SIZE), last_resort=True) == 0
    world.cache.check()
    assert world.cache.explain(text, namespace="a").cached_tokens == 2 * SIZE
