"""Fair shares: reserves that others leave alone, maxima, and pins that never wedge the pool."""

from __future__ import annotations

from random import Random

import pytest

from kveik.cache.directive import Directive
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
