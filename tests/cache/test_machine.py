"""The cache core against naive models, driven by hypothesis and, for the soak, by dice.

Two machines: `CacheMachine` looks at every slot while steps are in flight (`world.py`);
`RetentionMachine` knows every verb that says who keeps a block and until when (`verbs.py`).
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from verbs import Life
from world import Tokens, World, roll

from kveik.cache.prefix import Identity
from kveik.cache.segments import EXACT, KvGroup

SIZE = 4
FULL = KvGroup((0,))
GEOMETRIES = (
    ((FULL,), (12,)),
    ((FULL, KvGroup((1,), "window", 6)), (12, 10)),
    ((FULL, KvGroup((1,), "window", 1)), (10, 8)),
    ((KvGroup((0,), "window", 5),), (10,)),
    ((FULL, KvGroup((1,)), KvGroup((2,), "window", 9)), (12, 14, 9)),
)
WIDE = ((FULL, KvGroup((1,), "window", 6)), (60, 50))  # room for many siblings
NAMES = ("", "other")
TINY = KvGroup((0,), bytes_per_block=1)
LIVES = (
    ((TINY,), 18),
    ((TINY,), 100),
    ((TINY, KvGroup((1,), "window", 6, bytes_per_block=1)), 40),
)
SEEDS = st.integers(0, 2**32 - 1)
TOKENS = st.lists(st.sampled_from((1, 1, 1, 2, 2**32 - 1)), min_size=1, max_size=22).map(tuple)


class CacheMachine(RuleBasedStateMachine):
    @initialize(
        geometry=st.sampled_from(GEOMETRIES), caching=st.sampled_from((True,) * 9 + (False,))
    )
    def build(self, geometry: tuple[tuple[KvGroup, ...], tuple[int, ...]], caching: bool) -> None:
        groups, blocks = geometry
        self.world = World(groups, blocks, SIZE, caching)

    @rule(
        like=st.tuples(st.integers(0, 9), st.integers(0, 20)),
        tokens=TOKENS,
        namespace=st.sampled_from(NAMES),
        recipe=st.sampled_from((EXACT, EXACT, EXACT, b"recipe")),
        extra=st.integers(0, 9),
        store=st.sampled_from((True, True, True, False)),
        reuse=st.sampled_from((True, True, True, False)),
    )
    def admit(
        self,
        like: tuple[int, int],
        tokens: Tokens,
        namespace: str,
        recipe: bytes,
        extra: int,
        store: bool,
        reuse: bool,
    ) -> None:
        prompt = self.world.like(*like, tokens)
        identity = Identity(namespace, 0, recipe)
        self.world.admit(identity, prompt, len(prompt) + extra, store, reuse)

    @rule(chunks=st.lists(st.integers(1, 12), min_size=1, max_size=6), preempt=st.booleans())
    def launch(self, chunks: list[int], preempt: bool) -> None:
        if len(self.world.flights) < 2:
            self.world.launch(chunks, preempt)

    @rule()
    def acknowledge(self) -> None:
        self.world.acknowledge()

    @rule(chunks=st.lists(st.integers(4, 22), min_size=3, max_size=6))
    def step(self, chunks: list[int]) -> None:
        self.world.launch(chunks, True)
        while self.world.flights:
            self.world.acknowledge()

    @rule(index=st.integers(0, 9), more=TOKENS)
    def append(self, index: int, more: Tokens) -> None:
        if self.world.runs:
            run = self.world.runs[index % len(self.world.runs)]
            run.tokens += more[: max(30 - len(run.tokens), 0)]

    @rule(index=st.integers(0, 9), tail=TOKENS)
    def fork(self, index: int, tail: Tokens) -> None:
        resting = [run for run in self.world.runs if run.step is None]
        if resting and len(self.world.runs) < 8:
            self.world.fork(resting[index % len(resting)], tail)

    @rule(index=st.integers(0, 9), keep=st.sampled_from((True, True, False)))
    def abort(self, index: int, keep: bool) -> None:
        if self.world.runs:
            self.world.end(self.world.runs[index % len(self.world.runs)], keep)

    @rule(namespace=st.sampled_from(NAMES), selector=TOKENS, short=st.integers(0, 9))
    def invalidate(self, namespace: str, selector: Tokens, short: int) -> None:
        self.world.invalidate(namespace, selector[:short])

    @rule(namespace=st.sampled_from((*NAMES, None)))
    def reset(self, namespace: str | None) -> None:
        self.world.reset(namespace)

    @rule()
    def finish_all(self) -> None:
        for run in list(self.world.runs):
            if run.committed == len(run.tokens):
                self.world.end(run, True)

    @invariant()
    def exact_lookups_do_not_reach_recipes(self) -> None:
        """What only a recipe holds is a miss for everybody else."""
        if not hasattr(self, "world"):
            return
        for identity, path in self.world.cached:
            if identity.lineage != EXACT:
                tokens = (*path, 7)
                exact = self.world.longest(Identity(identity.namespace), tokens, len(path))
                found = self.world.manager.explain(tokens, namespace=identity.namespace)
                assert found.cached_tokens == exact

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()


WORK: tuple[Callable[[Life], None], ...] = (Life.open, Life.commit, Life.commit, Life.release)
VERBS: tuple[Callable[[Life], None], ...] = (
    Life.fork,
    Life.invalidate,
    Life.announce_document,
    Life.end_session,
    Life.switch_context,
    Life.name,
    Life.change_name,
    Life.unname,
    Life.tick,
    Life.jump,
    Life.share,
    Life.step,
)


class RetentionMachine(RuleBasedStateMachine):
    """Hypothesis chooses what happens in which order, and shrinks it; dice fill in the details.
    The keeper proves its invariants after every operation."""

    @initialize(geometry=st.sampled_from(LIVES), seed=SEEDS)
    def build(self, geometry: tuple[tuple[KvGroup, ...], int], seed: int) -> None:
        self.life = Life(random.Random(seed), *geometry)

    def carry_out(self, work: Callable[[Life], None], seed: int) -> None:
        self.life.dice = random.Random(seed)
        work(self.life)

    @rule(work=st.sampled_from(WORK), seed=SEEDS)
    def work(self, work: Callable[[Life], None], seed: int) -> None:
        self.carry_out(work, seed)

    @rule(seed=SEEDS)
    def converse(self, seed: int) -> None:
        """A request from its beginning to its end, beside those that are open."""
        before = len(self.life.turns)
        self.carry_out(Life.open, seed)
        if len(self.life.turns) > before:
            while self.life.turns[-1].done < len(self.life.turns[-1].tokens):
                if not self.life.compute(self.life.turns[-1]):
                    return
            self.life.end(self.life.turns[-1], finished=True)

    @rule(verb=st.sampled_from(VERBS), seed=SEEDS)
    def verb(self, verb: Callable[[Life], None], seed: int) -> None:
        self.carry_out(verb, seed)

    def teardown(self) -> None:
        if hasattr(self, "life"):
            self.life.drain()


QUICK = settings(
    max_examples=200,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


def test_ten_thousand_steps() -> None:
    run_state_machine_as_test(CacheMachine, settings=QUICK)  # type: ignore[no-untyped-call]


def test_five_thousand_steps_with_every_verb() -> None:
    few = settings(QUICK, max_examples=100)
    run_state_machine_as_test(RetentionMachine, settings=few)  # type: ignore[no-untyped-call]


def soak(steps: int, seed: int) -> World:
    """Random operations without hypothesis: many steps in one world."""
    dice = random.Random(seed)
    groups, blocks = (*GEOMETRIES, WIDE)[seed % (len(GEOMETRIES) + 1)]
    world = World(groups, blocks, SIZE)
    for _ in range(steps):
        roll(dice, world, rare=0.3 if blocks == WIDE[1] else 0.0)
    world.drain()
    return world


@pytest.mark.parametrize("seed", range(len(GEOMETRIES) + 1))
def test_long_lives(seed: int) -> None:
    """Every kind of thing happens; the dice are not loaded against one of them."""
    world = soak(600, seed)
    assert world.waits
    assert world.hits
    assert world.refusals
    assert world.preemptions
    assert world.manager.stats().evicted_blocks


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.skipif(not os.environ.get("KVEIK_SOAK"), reason="set KVEIK_SOAK=1")
@pytest.mark.parametrize("seed", range(10))
def test_a_million_steps(seed: int) -> None:
    for life in range(100):
        soak(1000, 1000 + 100 * seed + life)
