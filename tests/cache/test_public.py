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


def test_the_operator_goes_on_in_the_one_public_tree() -> None:
    cache = manager()
    publish(cache)
    longer = [*PRODUCT, *range(2 * SIZE)]
    publish(cache, longer)
    assert cache.explain([*longer, 1], namespace="a").cached_tokens == len(longer)
    assert cache.stats().idle_blocks[0] == 5


def test_public_blocks_serve_their_own_adapter_and_no_recipe() -> None:
    cache = manager()
    publish(cache)
    assert cache.explain([*PRODUCT, 1], namespace="a", adapter=1).cached_tokens == 0
    result = cache.open([*PRODUCT, 1], 16, namespace="a", lineage=b"recipe")
    assert isinstance(result, Opened)
    assert result.lease.cached_tokens == 0


def test_what_is_public_and_deleted_is_out_of_reach_before_it_is_swept() -> None:
    cache = manager()
    cache.invalidation.at_once = 0
    publish(cache)
    prompt = [*PRODUCT, *range(2 * SIZE), 3]
    served(cache, prompt, "a")
    cache.invalidate(Selector(PUBLIC, prefix=tuple(PRODUCT[:2]), older_than=0.0), 1.0)
    assert cache.explain(prompt, namespace="a", now=1.0).cached_tokens == 0
    assert cache.explain([*PRODUCT, 1], namespace="b", now=1.0).cached_tokens == 0


def test_of_a_public_tail_and_an_own_one_the_longer_serves() -> None:
    for public, own in ((1, 3), (3, 1)):
        cache = manager()
        tail = [1, 2, 3, 4]
        served(cache, [*PRODUCT, *tail[:own]], "a")
        publish(cache)
        served(cache, [*PRODUCT, *tail[:own]], "a")
        publish(cache, [*PRODUCT, *tail[:public]])
        assert cache.explain([*PRODUCT, *tail, 9], namespace="a").cached_tokens == len(PRODUCT) + 3


def test_why_a_continuation_is_gone_is_remembered_behind_public_blocks() -> None:
    cache = manager()
    publish(cache)
    prompt = [*PRODUCT, *range(2 * SIZE), 3]
    served(cache, prompt, "a")
    cache.invalidate(Selector("a", prefix=tuple(prompt[: len(PRODUCT) + 1])), 1.0)
    cache.tick(1.0)
    miss = cache.explain(prompt, namespace="a").miss
    assert miss is not None
    assert (miss.position, miss.reason) == (len(PRODUCT), "invalidated")


def test_a_session_behind_public_blocks_claims_its_own_and_no_public_ones() -> None:
    cache = manager()
    publish(cache)
    prompt = [*PRODUCT, *range(2 * SIZE), 3]
    served(cache, prompt, "a", directive=Directive(session="s", tags=("t",)))
    served(cache, [*prompt, 4], "a", directive=Directive(session="s", tags=("t",)))
    assert cache.end_session("a", "s", 1.0) is not None
    assert cache.explain(prompt, namespace="a").cached_tokens == len(PRODUCT)
    assert cache.invalidate(Selector(PUBLIC, tag="t"), 1.0).blocks == 0
    views = cache.listing(PUBLIC, 1.0)
    assert {claim for view in views for claim in view.claims} == {"name:product"}


def test_a_prefix_of_another_text_spares_what_is_behind_this_one() -> None:
    cache = manager()
    publish(cache)
    prompt = [*PRODUCT, *range(2 * SIZE), 3]
    served(cache, prompt, "a")
    other = [*PRODUCT[:-1], 7, *prompt[len(PRODUCT) :]]
    for prefix in (other[: len(PRODUCT)], other[: len(PRODUCT) + 2], other):
        cache.invalidate(Selector("a", prefix=tuple(prefix)), 1.0)
        assert cache.explain(prompt, namespace="a").cached_tokens == len(prompt) - 1


def test_a_use_adds_no_claim_to_what_is_public() -> None:
    cache = manager()
    served(cache, PRODUCT, PUBLIC, directive=Directive(session="demo"))
    prompt = [*PRODUCT, *range(2 * SIZE), 3]
    for session in (None, "s"):
        served(cache, prompt, "a", directive=Directive(session=session))
    cache.end_session(PUBLIC, "demo", 1.0)
    assert cache.explain(prompt, namespace="a").cached_tokens == 0


def test_a_rule_that_is_being_carried_out_counts_positions_from_the_start_of_the_prompt() -> None:
    cache = manager()
    cache.invalidation.at_once = 0
    publish(cache)
    prompt = [*PRODUCT, *range(2 * SIZE), 3]
    served(cache, prompt, "a")
    cache.invalidate(Selector("a", prefix=tuple(prompt[: len(PRODUCT) + 1]), older_than=0.0), 1.0)
    assert cache.explain(prompt, namespace="a", now=1.0).cached_tokens == len(PRODUCT)


def test_a_name_of_a_tenant_holds_no_public_tail() -> None:
    cache = manager()
    text = [*PRODUCT, 1, 2]
    publish(cache, text)
    assert cache.name("a", "mine", text, pin=True) == len(text)
    assert cache.stats().pinned_blocks == (0,)
    assert cache.invalidate(Selector("a", name="mine"), 1.0).blocks == 0
    assert cache.explain([*text, 9], namespace="b").cached_tokens == len(text)
    served(cache, [*text, 5], "a")
    assert cache.name("a", "mine", [*text, 5], pin=True) == len(text) + 1
    assert cache.stats().pinned_blocks == (1,)


def test_a_live_prompt_spares_nothing_behind_another_public_text() -> None:
    cache = manager()
    publish(cache)
    own = list(range(50, 50 + 2 * SIZE))
    directive = Directive(session="s", context="here")
    served(cache, [*PRODUCT, *own], "a", directive=directive)
    other = [7] * len(PRODUCT)
    cache.switch_context("a", "s", "there", "delete", [*other, *own, 1], 1.0)
    assert cache.explain([*PRODUCT, *own, 1], namespace="a").cached_tokens == len(PRODUCT)


def test_public_blocks_that_a_window_lost_are_not_built_on() -> None:
    """Then the prompt is computed again, in a tree of the caller's own."""
    groups = [KvGroup((0,)), KvGroup((1,), "window", 6)]
    cache = CacheManager(groups, [30, 4], SIZE)
    publish(cache)
    served(cache, [9] * (4 * SIZE), "b")  # takes every block of the window group
    prompt = [*PRODUCT, *range(50, 50 + 2 * SIZE)]
    for _ in range(2):
        lease = opened(cache, prompt[:13], "a")
        cache.launched(10**6)
        cache.commit(lease, prompt[:13])
        cache.acknowledge(10**6)
        cache.release(lease)
    cache.check()
    paths = {view.path for view in cache.listing("a", 1.0, with_path=True)}
    assert paths
    assert all(path == tuple(prompt[: len(path)]) for path in paths)
