"""Public blocks: made once by the operator, continued by every namespace in a tree of its own."""

from __future__ import annotations

from random import Random

from kveik.cache.directive import PUBLIC, Directive, Selector
from kveik.cache.manager import CacheManager, Lease, Opened
from kveik.cache.segments import KvGroup

SIZE = 4
PRODUCT = list(range(100, 100 + 3 * SIZE))


def manager(blocks: int = 64, **options: object) -> CacheManager:
    group = KvGroup((0,), bytes_per_block=1)
    return CacheManager([group], [blocks], SIZE, **options)  # type: ignore[arg-type]


def opened(cache: CacheManager, tokens: list[int], namespace: str, **options: object) -> Lease:
    result = cache.open(tokens, len(tokens), namespace=namespace, **options)  # type: ignore[arg-type]
    assert isinstance(result, Opened)
    return result.lease


def served(cache: CacheManager, tokens: list[int], namespace: str, **options: object) -> int:
    """Run a whole prompt; how much of it the cache served."""
    step = getattr(cache, "steps", 0)
    cache.steps = step + 1  # type: ignore[attr-defined]
    lease = opened(cache, tokens, namespace, **options)
    cache.launched(step)
    cache.commit(lease, tokens)
    cache.acknowledge(step)
    cache.release(lease)
    cache.check()
    return lease.cached_tokens


def publish(cache: CacheManager, tokens: list[int] = PRODUCT) -> None:
    served(cache, tokens, PUBLIC, directive=Directive(name="product"))


def test_every_tenant_runs_through_one_copy_and_goes_on_alone() -> None:
    cache = manager()
    publish(cache)
    prompts = {name: PRODUCT + [k] * SIZE * 2 for k, name in enumerate("abcd")}
    for name, prompt in prompts.items():
        assert served(cache, prompt, name) == len(PRODUCT)
    stats = cache.stats()
    assert stats.idle_blocks[0] == 3 + 4 * 2  # one copy of what is public
    assert stats.logical_blocks[0] == 3 + 4 * (3 + 2)
    for name, prompt in prompts.items():
        assert served(cache, [*prompt, 7], name) == len(prompt)


def test_what_a_tenant_adds_is_nobody_elses() -> None:
    cache = manager()
    publish(cache)
    prompt = [*PRODUCT, *range(50, 50 + 2 * SIZE), 9]
    served(cache, prompt, "a")
    match = cache.explain(prompt, namespace="b")
    assert match.cached_tokens == len(PRODUCT)
    assert match.miss is not None
    assert match.miss.reason == "new"
    assert cache.divergence(prompt, namespace="b").cached == ()
    assert cache.explain(prompt, namespace="a", salt="s").cached_tokens == len(PRODUCT)
    assert cache.explain(prompt, namespace="a").cached_tokens == len(prompt) - 1
    served(cache, prompt, "b", store=False)
    assert cache.explain(prompt, namespace="c").miss == match.miss


def test_a_public_tail_is_copied() -> None:
    cache = manager()
    publish(cache, [*PRODUCT, 1, 2])
    result = cache.open([*PRODUCT, 1, 2, 3, 4], 16, namespace="a")
    assert isinstance(result, Opened)
    assert result.lease.cached_tokens == len(PRODUCT) + 2
    assert len(result.moves) == 1


def test_followers_wait_behind_a_public_prefix() -> None:
    cache = manager()
    publish(cache)
    prompt = [*PRODUCT, *range(2 * SIZE)]
    lease = opened(cache, prompt, "a")
    assert not isinstance(cache.open(prompt, len(prompt), namespace="a"), Opened)
    assert isinstance(cache.open(prompt, len(prompt), namespace="b"), Opened)
    cache.launched(10**6)
    cache.commit(lease, prompt)
    cache.acknowledge(10**6)
    assert isinstance(cache.open([*prompt, 1], 32, namespace="a"), Opened)


def test_invalidating_what_is_public_takes_what_follows_it() -> None:
    cache = manager()
    publish(cache)
    prompt = [*PRODUCT, *range(2 * SIZE), 3]
    served(cache, prompt, "a")
    cache.invalidate(Selector(PUBLIC, name="product"), 1.0)
    assert cache.explain(prompt, namespace="a").cached_tokens == 0
    publish(cache)
    assert cache.explain(prompt, namespace="a").cached_tokens == len(PRODUCT)
    while cache.tick(2.0):
        pass
    cache.check()
    assert cache.stats().idle_blocks[0] == 3


def test_selectors_of_a_tenant_see_whole_prompts_and_spare_what_is_public() -> None:
    cache = manager()
    publish(cache)
    prompt = [*PRODUCT, *range(2 * SIZE), 3]
    for prefix in (prompt[:2], PRODUCT, prompt[: len(PRODUCT) + 2], prompt[:-1], []):
        served(cache, prompt, "a", directive=Directive(tags=("t",)))
        served(cache, prompt, "b")
        cache.invalidate(Selector("a", prefix=tuple(prefix)), 1.0)
        cache.check()
        kept = max(len(PRODUCT), (max(len(prefix), 1) - 1) // SIZE * SIZE)
        assert cache.explain(prompt, namespace="a").cached_tokens == kept, prefix
        assert cache.explain(prompt, namespace="b").cached_tokens == len(prompt) - 1
    served(cache, prompt, "a", directive=Directive(tags=("t",)))
    cache.invalidate(Selector("a", tag="t", prefix=tuple(PRODUCT[:3]), older_than=-1.0), 9.0)
    assert cache.explain(prompt, namespace="a").cached_tokens == len(PRODUCT)
    cache.invalidate(Selector("a", tag="t"), 9.0)
    assert cache.explain(PRODUCT, namespace="b").cached_tokens == len(PRODUCT) - 1


def test_a_listing_tells_whole_depths_and_paths() -> None:
    cache = manager()
    publish(cache)
    prompt = [*PRODUCT, *range(2 * SIZE)]
    served(cache, prompt, "a")
    views = cache.listing("a", 1.0, with_path=True)
    assert max(view.depth for view in views) == len(prompt)
    assert {view.path for view in views} == {tuple(prompt[:16]), tuple(prompt[:20])}


def test_under_pressure_nothing_leaks_and_hits_stay_true() -> None:
    """Random traffic of three tenants over two public texts in a small pool."""
    for seed in range(20):
        rng = Random(seed)
        cache = manager(blocks=14)
        texts = [PRODUCT, PRODUCT[:SIZE] + [1] * SIZE]
        owned: dict[str, set[tuple[int, ...]]] = {"": set()}
        for turn in range(60):
            public = list(rng.choice(texts))
            name = rng.choice("abc")
            prompt = public + [rng.randrange(3) for _ in range(rng.randrange(1, 3 * SIZE))]
            own = owned.setdefault(name, set())
            if rng.random() < 0.2:
                publish(cache, public)
                owned[""].add(tuple(public))
            if rng.random() < 0.1:
                cache.invalidate(Selector(rng.choice([PUBLIC, name])), float(turn))
            cached = served(cache, prompt, name)
            known = [tuple(prompt[:cached])] if cached else []
            for part in known:
                assert any(each[:cached] == part for each in own | owned[""]), (seed, turn)
            own.add(tuple(prompt))
            cache.tick(float(turn))
            cache.check()


def test_what_is_left_behind_a_forgotten_public_cache_is_freed_on_an_idle_engine() -> None:
    """The continuations are work for the next tick, and the engine is told that there is some."""
    cache = manager()
    publish(cache)
    served(cache, [*PRODUCT, *range(50, 50 + 2 * SIZE)], "a")
    assert cache.next_deadline() is None
    cache.invalidate(Selector(PUBLIC))
    while cache.next_deadline() is not None:
        cache.tick(0.0)
    cache.check()
    assert cache.stats().idle_blocks == (0,)
    assert len(cache.take_erasures()) == 5
