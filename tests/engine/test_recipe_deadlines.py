"""What a recipe contains may get a shorter life after it was computed: it goes along."""

from __future__ import annotations

import random
from typing import Any

import pytest
from joined_toy import BLOCK, Builder, add, bench

from kveik.cache.directive import Directive, Ttl

LEAD = [1, 2, 3, 4, 5]


def words(count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(10, 900) for _ in range(count)]


A, B, OPENING, QUESTION = words(40, 1), words(24, 2), words(2 * BLOCK, 3), words(40, 5)
PLAIN = Directive()


def asked(*modules: list[int], directive: Directive = PLAIN, opening: Any = (500,)) -> Builder:
    """Modules behind an opening, and a question; the directive is of the first one."""
    built = Builder(LEAD).fresh(list(opening))
    for number, text in enumerate(modules):
        built.module(text, directive=PLAIN if number else directive)
    return built.fresh(QUESTION)


def served(made: Any, built: Builder, handle: int, now: float, **params: Any) -> int:
    """Tokens of recipes and modules that one request reused at this time."""
    work = add(made, handle, built, max_tokens=1, **params)
    run(made, now)
    return int(work.usage().approximate_cached_tokens)


def run(made: Any, now: float) -> None:
    while made.scheduler.has_work:
        plan = made.scheduler.plan_step(now)
        if plan is not None:
            made.scheduler.apply(made.runner.run(plan), now)
        made.cache.check()


def tick(made: Any, now: float) -> None:
    while made.cache.tick(now):
        made.cache.check()


def recipes(made: Any) -> int:
    """Recipes that anybody could find."""
    tree = made.cache.tree
    return sum(bool(one.lineage and tree.children[root]) for one, root in tree.roots.items())


@pytest.mark.parametrize("clock", ["first_use", "last_use"])
@pytest.mark.parametrize("swept", [True, False])
def test_a_module_s_later_shorter_life_is_that_of_its_recipes(clock: Any, swept: bool) -> None:
    made = bench()
    served(made, asked(A), 0, 1.0)
    assert served(made, asked(A), 1, 2.0) == len(A) + len(QUESTION) - 1
    short = asked(A, directive=Directive(ttl=Ttl(10.0, clock)), opening=(501,))
    assert served(made, short, 2, 5.0) == len(A)
    assert recipes(made) == 2
    assert served(made, asked(B), 3, 6.0) == 0
    if swept:
        tick(made, 20.0)
        assert recipes(made) == 1  # of the other module
    assert served(made, asked(A), 4, 20.0) == 0
    assert served(made, asked(B), 5, 20.0) == len(B) + len(QUESTION) - 1


@pytest.mark.parametrize("whose", [0, 1, 2])
def test_the_life_may_be_given_to_any_part_by_any_request(whose: int) -> None:
    """To the exact beginning, to one module or the other, by an ordinary prompt."""
    made = bench()
    served(made, asked(A, B, opening=OPENING), 0, 1.0)
    text = [[*LEAD, *OPENING], [*LEAD, *B], [*LEAD, *A, 8]][whose]
    made.add(1, [*text, 7], max_tokens=1, directive=Directive(ttl=Ttl(10.0)))
    run(made, 2.0)
    assert recipes(made)
    tick(made, 20.0)
    assert not recipes(made)


def test_a_text_that_shares_no_more_than_the_lead_takes_nothing_along() -> None:
    made = bench()
    served(made, asked(A), 0, 1.0)
    made.add(1, [*LEAD, *words(30, 9)], max_tokens=1, directive=Directive(ttl=Ttl(10.0)))
    run(made, 2.0)
    tick(made, 20.0)
    assert served(made, asked(A), 2, 21.0) == len(A) + len(QUESTION) - 1


@pytest.mark.parametrize("seconds", [None, 100.0])
def test_what_is_evicted_takes_its_recipes_along_if_a_deadline_was_on_it(
    seconds: float | None,
) -> None:
    made = bench(blocks=24)
    served(made, asked(A), 0, 1.0)
    ttl = None if seconds is None else Ttl(seconds)
    served(
        made, Builder(LEAD).fresh([501]).module(A, directive=Directive(ttl=ttl)).fresh([7]), 1, 2.0
    )
    unit = len(LEAD) + len(A)
    assert made.cache.explain([*LEAD, *A, 7]).cached_tokens == unit
    tree, recency = made.cache.tree, []
    for identity, root in tree.roots.items():  # what is used last goes last
        if identity.lineage:
            recency += [node for node in tree.index.values() if tree.root_of(node) == root]
    made.cache.holdings.touch(sorted(recency, key=lambda node: -tree.depth[node]))
    number = 10
    while made.cache.explain([*LEAD, *A, 7]).cached_tokens == unit:
        made.add(number, words(8, number), max_tokens=1)
        run(made, 3.0)
        number += 1
    built = asked(A)
    made.cache.open_joined(built.tokens, len(built.tokens), built.prompt(), now=3.0)
    assert bool(recipes(made)) is (seconds is None)  # out of reach for whoever looks next


def test_what_a_session_held_alone_takes_its_recipes_along() -> None:
    made = bench()
    built = Builder(LEAD).fresh([500]).module(A, directive=Directive(session="s")).fresh(QUESTION)
    served(made, built, 0, 1.0)
    assert recipes(made) == 1
    made.cache.end_session("", "s", 2.0)
    tick(made, 3.0)
    assert not recipes(made)


def test_a_request_under_way_keeps_no_recipe_of_what_has_gone() -> None:
    made = bench()
    served(made, asked(A), 0, 1.0)
    add(made, 1, asked(A, opening=(502,)), max_tokens=60)
    for _ in range(6):
        made.scheduler.apply(made.runner.run(made.scheduler.plan_step(2.0)), 2.0)
    made.add(2, [*LEAD, *A, 7], max_tokens=1, directive=Directive(ttl=Ttl(10.0, "first_use")))
    for now in (2.0, 3.0, 20.0):
        made.scheduler.apply(made.runner.run(made.scheduler.plan_step(now)), now)
    run(made, 21.0)
    tick(made, 22.0)
    assert not recipes(made)
