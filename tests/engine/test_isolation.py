"""No oracle: what a tenant sees does not depend on what others did.

Non-interference by pairs of traces: one tenant's requests run alone, and again between the traffic
of another that sends the same prompts, tags and sessions; whatever the first one can observe is
equal, as long as it stays within its reserve. Then the work behind an answer: a prompt that only
somebody else has cached costs exactly what one costs that nobody has.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from toy_model import BLOCK_BYTES, toy_engine

import kveik.cache.prefix as prefix_room
from kveik.cache.directive import PUBLIC, Directive, Selector, Ttl
from kveik.cache.manager import CacheManager, Opened
from kveik.cache.prefix import PrefixTree
from kveik.cache.segments import KvGroup
from kveik.engine.engine import Engine
from kveik.engine.request import Request, SamplingParams

SIZE = 4
BLOCKS = 64
RESERVE = 24  # blocks of the tenant that is watched; it never needs more
TENANT, OTHER = "tenant", "other"

# --- non-interference


class Stage:
    """One engine, a clock of its own, and what the watched tenant saw."""

    def __init__(self, shared: bool = True) -> None:
        self.now = 1.0
        self.engine = toy_engine(
            blocks=BLOCKS,
            clock=lambda: self.now,
            block_size=SIZE,
            max_num_batched_tokens=32,
            max_num_seqs=4,
        )
        if shared:
            self.engine.set_shares({TENANT: (RESERVE * BLOCK_BYTES, None)})
        self.seen: list[object] = []

    def submit(self, namespace: str, tokens: list[int], directive: Directive, count: int) -> Any:
        events: list[Any] = []
        params = SamplingParams(max_tokens=count, temperature=0.0)
        request = Request(tuple(tokens), params, namespace, directive=directive, explain=True)
        self.engine.submit(request, events.append)
        return events

    def settle(self) -> None:
        while self.engine.step():
            pass

    def observe(self, events: list[Any]) -> None:
        """Everything in the answer but the time it took."""
        for event in events:
            kind = type(event).__name__
            if kind == "PromptReady":
                self.seen.append((kind, event.cached_tokens, event.miss, event.divergence))
            elif kind == "RequestFinished":
                usage = event.usage
                self.seen.append((kind, usage.cached_tokens, usage.stored_tokens))
            else:
                self.seen.append(event)
        views = self.engine.cache_listing(TENANT)
        self.seen.append(views)
        self.seen.append(self.engine.cache_usage(TENANT))


def some_tokens(dice: random.Random) -> list[int]:
    """Prompts of a small family, so that they share and part again; at most six blocks."""
    start = dice.choice((10, 20))
    shared = [start] * dice.choice((4, 8, 10, 12))
    return [*shared, *dice.choices((1, 2, 3), k=dice.randint(1, 6))]


def some_directive(dice: random.Random) -> Directive:
    return Directive(
        session=dice.choice((None, "s1", "s2")),
        tags=dice.choice(((), (), ("t",))),
        ttl=dice.choice((None, None, Ttl(2.0, "first_use"), Ttl(3.0, "last_use", "demote"))),
        priority=dice.choice(("normal", "normal", "low", "high")),
        write=dice.choice(("all", "all", "low", "none")),
    )


Act = Callable[[Stage], None]


def own_acts(dice: random.Random) -> list[Act]:
    """What the tenant does: few prompts, so that it stays within its reserve."""
    acts: list[Act] = []
    pool = [some_tokens(dice) for _ in range(3)]
    for _ in range(8):
        kind = dice.random()
        if kind < 0.75:
            acts.append(asks(dice.choice(pool), some_directive(dice), dice.randint(1, 2)))
        elif kind < 0.85:
            acts.append(invalidates(Selector(TENANT, tag="t")))
        elif kind < 0.95:
            acts.append(ends(dice.choice(("s1", "s2"))))
        else:
            acts.append(invalidates(Selector(TENANT, prefix=tuple(pool[0][:5]))))
    return acts


def asks(tokens: list[int], directive: Directive, count: int) -> Act:
    def act(stage: Stage) -> None:
        events = stage.submit(TENANT, tokens, directive, count)
        stage.settle()
        stage.observe(events)

    return act


def invalidates(selector: Selector) -> Act:
    def act(stage: Stage) -> None:
        stage.seen.append(stage.engine.invalidate(selector))
        stage.settle()

    return act


def ends(session: str) -> Act:
    def act(stage: Stage) -> None:
        stage.seen.append(stage.engine.end_session(TENANT, session))
        stage.settle()

    return act


def disturb(stage: Stage, dice: random.Random) -> None:
    """The other tenant: some of the same prompts, many of its own, and its own invalidations."""
    for _ in range(dice.randint(0, 5)):
        tokens = some_tokens(dice) if dice.random() < 0.5 else dice.choices(range(250), k=40)
        stage.submit(OTHER, tokens, some_directive(dice), dice.randint(1, 8))
    for _ in range(dice.randint(0, 6)):
        stage.engine.step()
    if dice.random() < 0.2:
        stage.engine.invalidate(Selector(OTHER, tag=dice.choice(("t", None))))
    if dice.random() < 0.2:
        stage.engine.end_session(OTHER, "s1")


def run(acts: list[Act], seed: int, *, disturbed: bool, shared: bool = True) -> list[object]:
    stage, dice = Stage(shared), random.Random(seed)
    for act in acts:
        stage.now += 1.0
        stage.engine.step()  # an idle engine wakes for deadlines, too
        if disturbed:
            disturb(stage, dice)
        act(stage)
    return stage.seen


def differences(pairs: range, shared: bool = True) -> list[int]:
    """Seeds whose two runs showed the tenant something different."""
    found = []
    for seed in pairs:
        acts = own_acts(random.Random(seed))
        alone = run(acts, seed, disturbed=False, shared=shared)
        if run(acts, seed, disturbed=True, shared=shared) != alone:
            found.append(seed)
    return found


def test_a_tenant_within_its_reserve_sees_nothing_of_another() -> None:
    assert differences(range(200)) == []


def test_without_a_reserve_the_same_traces_do_tell() -> None:
    """The control: the pairs are able to show interference."""
    assert differences(range(40), shared=False)


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.skipif(not os.environ.get("KVEIK_SOAK"), reason="set KVEIK_SOAK=1")
@pytest.mark.parametrize("part", range(10))
def test_ten_thousand_pairs(part: int) -> None:
    assert differences(range(1000 * (part + 1), 1000 * (part + 2))) == []


# --- the work behind an answer


class CountingIndex(dict[bytes, int]):
    """Look-ups of nodes."""

    lookups = 0

    def get(self, key: bytes, default: Any = None) -> Any:
        self.lookups += 1
        return super().get(key, default)


def work_of(
    monkeypatch: pytest.MonkeyPatch, prompt: list[int], cached_by: str | None, public: bool
) -> Counter[str]:
    """Nodes looked up, bytes compared and digests made while a newcomer's prompt is served."""
    cache = CacheManager([KvGroup((0,), bytes_per_block=1)], [BLOCKS], SIZE)
    step = iter(range(100))

    def serve(tokens: list[int], namespace: str) -> None:
        result = cache.open(tokens, len(tokens), namespace=namespace)
        assert isinstance(result, Opened)
        number = next(step)
        cache.launched(number)
        cache.commit(result.lease, tokens)
        cache.acknowledge(number)
        cache.release(result.lease)

    if public:
        serve(prompt[: 2 * SIZE], PUBLIC)
    serve([7] * (len(prompt)), "bystander")
    serve(prompt[: 3 * SIZE + 1], "newcomer")
    if cached_by is not None:
        serve(prompt, cached_by)
    counts: Counter[str] = Counter()
    cache.tree.index = index = CountingIndex(cache.tree.index)
    compare, digest = prefix_room.shared_tokens, PrefixTree.digest_below

    def counted(left: bytes, right: bytes) -> int:
        counts["bytes"] += min(len(left), len(right))
        return compare(left, right)

    def digested(self: PrefixTree, parent_digest: bytes, chunk: bytes) -> bytes:
        counts["digests"] += 1
        return digest(self, parent_digest, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(prefix_room, "shared_tokens", counted)
        patch.setattr(PrefixTree, "digest_below", digested)
        cache.divergence([*prompt, 5], namespace="newcomer")
        serve([*prompt, 5], "newcomer")
    counts["nodes"] = index.lookups
    return counts


@pytest.mark.parametrize("public", [False, True])
def test_a_hit_elsewhere_costs_exactly_what_a_miss_costs(
    monkeypatch: pytest.MonkeyPatch, public: bool
) -> None:
    prompt = [*range(10, 10 + 6 * SIZE + 2)]
    missed = work_of(monkeypatch, prompt, None, public)
    assert missed["nodes"]
    assert missed["bytes"]
    assert work_of(monkeypatch, prompt, "somebody", public) == missed
    assert work_of(monkeypatch, prompt, "newcomer", public) != missed  # the control


# --- the order in which requests are served


def finish_order(warm: str | None) -> list[str]:
    """Three tenants in one seat; `warm` has its whole prompt cached already."""
    engine: Engine = toy_engine(blocks=BLOCKS, block_size=SIZE, max_num_seqs=1)
    order: list[str] = []

    def sink(name: str) -> Callable[[Any], None]:
        def note(event: Any) -> None:
            if type(event).__name__ == "RequestFinished":
                order.append(name)

        return note

    def ask(name: str) -> None:
        params = SamplingParams(max_tokens=2, temperature=0.0)
        engine.submit(Request(tuple(range(40)), params, name), sink(name))

    if warm is not None:
        ask(warm)
        while engine.step():
            pass
        order.clear()
    for name in ("first", "second", "third"):
        ask(name)
    while engine.step():
        pass
    return order


@pytest.mark.parametrize("warm", [None, "first", "second", "third"])
def test_nobody_is_served_earlier_for_what_is_cached(warm: str | None) -> None:
    assert finish_order(warm) == ["first", "second", "third"]
