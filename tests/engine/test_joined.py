"""Prompts joined from modules, through scheduler and cache manager, against a naive definition."""

from __future__ import annotations

import random

import pytest
from joined_toy import BLOCK, Builder, add, bench, expected

from kveik.cache.directive import PUBLIC, Directive, Selector, Ttl
from kveik.cache.manager import NoRoom
from kveik.engine.sequence import TokenAccepted
from kveik.errors import ContextLengthExceeded, InvalidRequest, PromptTooLarge

LEAD = [1, 2, 3, 4, 5]


def words(count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(10, 900) for _ in range(count)]


A, B, C = words(40, 1), words(23, 2), words(16, 3)


def typical() -> Builder:
    """Two modules, the beginning of each computed in the prompt, and a question."""
    built = Builder(LEAD).fresh(words(3, 4)).fresh(A[:11]).module(A, 11)
    return built.fresh(B[:9]).module(B, 9).fresh(words(7, 5))


def test_the_text_is_that_of_the_definition() -> None:
    made, built = bench(), typical()
    add(made, 0, built, max_tokens=12)
    made.drain()
    assert made.texts[0, 0] == expected(built.tokens, built.prompt(), 12)


def test_first_use_and_reuse_are_the_same_and_only_the_last_token_is_computed_again() -> None:
    made, built = bench(), typical()
    first = add(made, 0, built)
    made.drain()
    rows = made.runner.rows
    again = add(made, 1, built)
    made.drain()
    assert made.texts[1, 0] == made.texts[0, 0] == expected(built.tokens, built.prompt(), 4)
    assert made.runner.rows - rows == 4  # the last prompt token, three of the answer
    reused = len(A) - 11 + len(B) - 9
    usage = first.usage()
    assert (usage.cached_tokens, usage.approximate_cached_tokens) == (0, 0)
    assert usage.computed_prompt_tokens == len(built.tokens)
    usage = again.usage()
    exact = len(LEAD) + 3 + 11  # all before the first shifted module
    assert usage.cached_tokens == exact
    assert usage.approximate_cached_tokens == len(built.tokens) - exact - 1
    assert usage.computed_prompt_tokens == 1
    assert reused < usage.approximate_cached_tokens


def test_all_that_must_be_computed_goes_in_one_step() -> None:
    made, built = bench(budget=512), typical()
    add(made, 0, built)
    made.drain()
    other = Builder(LEAD).fresh([700]).fresh(B[:4]).module(B, 4).fresh([701, 702])
    other.fresh(A[:4]).module(A, 4).fresh([703])
    add(made, 1, other)
    plan = made.step()
    assert plan is not None
    [sequence] = plan.sequences
    [table] = sequence.tables
    assert [segment.shift for segment in table][1] == 10 - (len(LEAD) + 4)
    start = len(LEAD) + 5 + 19
    assert sequence.spans == ((5, 5), (start, 6), (start + 6 + 36, 1))
    made.drain()
    assert made.texts[1, 0] == expected(other.tokens, other.prompt(), 4)
    assert [move.count for move in plan.moves] == [len(LEAD)]  # the ordinary prefix, no module


def test_modules_in_another_order_are_not_computed_again() -> None:
    made = bench(budget=512)
    parts = {1: A, 2: B, 3: C}
    for handle, order in enumerate([(1, 2, 3), (3, 1, 2), (2, 3, 1)]):
        built = Builder(LEAD).fresh([500])
        for name in order:
            built.module(parts[name])
        built.fresh([501, 502])
        before = made.runner.rows
        work = add(made, handle, built, max_tokens=1)
        made.drain()
        assert made.texts[handle, 0] == expected(built.tokens, built.prompt(), 1)
        if handle:
            assert made.runner.rows - before == 2
            assert work.usage().approximate_cached_tokens == len(A) + len(B) + len(C)
    made.cache.check()


def test_the_next_turn_goes_on_from_its_own_recipe() -> None:
    made, built = bench(), typical()
    add(made, 0, built, max_tokens=20)
    made.drain()
    answer = made.texts[0, 0]
    built.fresh(answer).fresh(words(6, 9))
    work = add(made, 1, built)
    made.drain()
    assert made.texts[1, 0] == expected(built.tokens, built.prompt(), 4)
    assert work.usage().computed_prompt_tokens <= 6 + 1  # the last token of an answer has no K/V


def test_a_prompt_of_the_same_tokens_shares_nothing_with_a_recipe() -> None:
    """Invariant 16, both ways: only the exact beginning is common."""
    made, built = bench(), typical()
    add(made, 0, built)
    made.drain()
    exact = len(LEAD) + 3 + 11
    found = made.cache.explain(built.tokens)
    assert found.cached_tokens == exact
    plain = made.add(1, built.tokens)
    made.drain()
    assert plain.usage().cached_tokens == exact
    assert plain.usage().approximate_cached_tokens == 0
    assert made.texts[1, 0] == expected(built.tokens, Builder([]).fresh(built.tokens).prompt(), 4)
    other = add(made, 2, typical())
    made.drain()
    assert other.usage().cached_tokens == exact


def test_positions_are_part_of_a_recipe_and_so_is_the_way_of_joining() -> None:
    made = bench()
    texts = []
    for handle, (gap, recipe) in enumerate([(0, "link/1"), (3, "link/1"), (3, "link/2")]):
        built = Builder(LEAD).fresh([500]).gap(gap).module(A).fresh(words(20, 8))
        work = made.add(handle, built.tokens, joined=built.prompt(recipe))
        made.drain()
        assert made.texts[handle, 0] == expected(built.tokens, built.prompt(recipe), 4)
        texts.append(made.texts[handle, 0])
        if handle:
            assert work.usage().approximate_cached_tokens == len(A)
    assert texts[0] != texts[1] == texts[2]


def test_a_batch_holds_a_module_once() -> None:
    made = bench(blocks=128, budget=1024)
    add(made, 0, Builder(LEAD).fresh([500]).module(A).fresh([501]))
    made.drain()
    builders = [Builder(LEAD).fresh([500 + k]).module(A).fresh([600]) for k in range(1, 9)]
    for handle, built in enumerate(builders, 1):
        add(made, handle, built, max_tokens=8)
    plan = made.step()
    assert plan is not None
    tables = [sequence.tables[0] for sequence in plan.sequences]
    assert len(tables) == 8
    assert len({table[1].blocks for table in tables}) == 1
    [module] = {table[1].blocks for table in tables}
    assert all(made.cache.pools[0].refs[block] == 8 for block in module)
    copies = [move.count for each in made.plans for move in each.moves]
    assert set(copies) == {len(LEAD)}, "of the ordinary prefix, in front of every first word"
    made.drain()
    for handle, built in enumerate(builders, 1):
        assert made.texts[handle, 0] == expected(built.tokens, built.prompt(), 8)


def test_those_who_need_one_module_have_it_computed_once() -> None:
    made = bench(budget=1024)
    builders = [Builder(LEAD).fresh([500 + k]).module(A).fresh([600]) for k in range(4)]
    works = [add(made, k, built, max_tokens=1) for k, built in enumerate(builders)]
    made.drain()
    lead, others = len(LEAD), 2 * 4
    assert made.runner.rows == lead + len(A) + others
    assert [work.usage().approximate_cached_tokens for work in works] == [0, 40, 40, 40]
    assert works[0].usage().computed_prompt_tokens == len(builders[0].tokens)


def test_choices_fork_behind_their_modules() -> None:
    made, built = bench(), typical()
    add(made, 0, built, n=3, max_tokens=9)
    made.drain()
    for choice in range(3):
        wanted = expected(built.tokens, built.prompt(), 9, choice=choice)
        assert made.texts[0, choice] == wanted


def test_preempted_requests_keep_their_text() -> None:
    made = bench(blocks=18)
    builders = [Builder(LEAD).fresh([500 + k]).module(B).fresh(words(12, k)) for k in range(4)]
    for handle, built in enumerate(builders):
        add(made, handle, built, max_tokens=60)
    made.drain()
    assert made.scheduler.preemptions
    for handle, built in enumerate(builders):
        assert made.texts[handle, 0] == expected(built.tokens, built.prompt(), 60)


def test_a_prompt_with_modules_can_be_warmed() -> None:
    made, built = bench(), typical()
    add(made, 0, built, max_tokens=0)
    made.drain()
    assert made.finished[0, 0] == "length"
    work = add(made, 1, built)
    made.drain()
    assert work.usage().computed_prompt_tokens == 1
    assert made.texts[1, 0] == expected(built.tokens, built.prompt(), 4)


def test_an_aborted_request_leaves_nothing_behind() -> None:
    for steps in range(4):
        made = bench(budget=16)
        add(made, 0, typical())
        for _ in range(steps):
            made.step()
        made.scheduler.abort(0)
        made.drain()
        made.cache.check()
        assert made.cache.stats().leased_blocks == (0,)


def test_a_module_that_fails_ends_its_request_alone() -> None:
    made = bench()
    failing = Builder(LEAD).fresh([500]).module(A).fresh([501])
    unit = tuple(failing.prompt().units[0].tokens)
    made.runner.faulty = lambda plan: plan.token_ids[-1] == unit[-1]
    add(made, 0, failing)
    built = Builder(LEAD).fresh([500]).module(B).fresh([501])
    add(made, 1, built)
    made.drain()
    assert made.failures[0] == "a module of the prompt could not be computed: planted fault"
    assert made.texts[1, 0] == expected(built.tokens, built.prompt(), 4)


# --- what is forgotten


def kept(made, built: Builder, handle: int = 90) -> tuple[int, int]:  # type: ignore[no-untyped-def]
    """(exact, approximate) tokens that the same request finds now."""
    work = add(made, handle, built, max_tokens=1)
    made.drain()
    return work.usage().cached_tokens, work.usage().approximate_cached_tokens


def tagged(tag: str) -> Builder:
    directive = Directive(tags=(tag,))
    built = Builder(LEAD).fresh(words(3, 4)).module(A, directive=directive)
    return built.fresh(words(30, 5)).fresh([7])


def test_invalidating_a_module_takes_every_recipe_that_contains_it() -> None:
    made, built = bench(), tagged("news")
    add(made, 0, built)
    made.drain()
    assert kept(made, built, 1) == (8, 40 + 30)
    made.cache.invalidate(Selector(tag="news"))
    recipes = [one for one in made.cache.tree.roots if one.lineage]
    assert not recipes
    assert kept(made, built, 2) == (8, 0)
    assert kept(made, built, 3) == (8, 40 + 30)


def test_a_request_under_way_publishes_no_recipe_after_an_invalidation() -> None:
    made, built = bench(), tagged("news")
    add(made, 0, built, max_tokens=30)
    for _ in range(6):
        made.step()
    made.cache.invalidate(Selector(tag="news"))
    made.drain()
    assert made.texts[0, 0] == expected(built.tokens, built.prompt(), 30)
    assert not [one for one in made.cache.tree.roots if one.lineage]


@pytest.mark.parametrize("clock", ["first_use", "last_use"])
def test_a_recipe_does_not_outlive_what_it_contains(clock: str) -> None:
    made = bench()
    ttl = Ttl(10.0, clock)  # type: ignore[arg-type]
    built = Builder(LEAD).fresh(words(3, 4)).module(A, directive=Directive(ttl=ttl))
    built.fresh(words(30, 5)).fresh([7])

    def serve(handle: int, now: float) -> int:
        work = add(made, handle, built, max_tokens=1)
        while made.scheduler.has_work:
            plan = made.scheduler.plan_step(now)
            if plan is not None:
                made.scheduler.apply(made.runner.run(plan), now)
            made.cache.check()
        return work.usage().approximate_cached_tokens

    assert serve(0, 1.0) == 0
    assert serve(1, 9.0) == 40 + 30
    assert serve(2, 12.0) == (0 if clock == "first_use" else 40 + 30)
    for _ in range(50):
        made.cache.tick(40.0)
    assert not [one for one in made.cache.tree.roots if one.lineage and _blocks_of(made, one)]
    assert serve(3, 41.0) == 0


def _blocks_of(made, identity) -> int:  # type: ignore[no-untyped-def]
    return made.cache.tree.children[made.cache.tree.roots[identity]]


def test_a_module_that_does_not_fit_any_more_ends_its_request_alone() -> None:
    """The shares of the pool were changed while it waited."""
    made, built = bench(blocks=40), typical()
    add(made, 0, built)
    made.add(1, words(20, 60))
    made.cache.set_shares({"other": (36 * made.cache.groups[0].bytes_per_block, None)})
    made.cache.capacity_tokens = lambda namespace="": 32  # type: ignore[method-assign]
    made.drain()
    assert "shorten one of the two" in made.failures[0]
    assert made.finished[1, 0]
    made.cache.check()


def test_a_module_is_of_one_namespace() -> None:
    made, built = bench(), typical()
    add(made, 0, built, namespace="a")
    made.drain()
    work = add(made, 1, built, namespace="b")
    made.drain()
    assert work.usage().cached_tokens == work.usage().approximate_cached_tokens == 0
    salted = add(made, 2, built, namespace="a", salt="x")
    made.drain()
    assert salted.usage().approximate_cached_tokens == 0


# --- what is refused


def test_what_a_joined_prompt_cannot_be_asked_for() -> None:
    made, built = bench(), typical()
    for params, field in (
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"use_cache": False}, "join"),
        ({"directive": Directive(write="none")}, "write"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            add(made, 0, built, **params)
        assert caught.value.param == field
    uncached = bench(caching=False)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="prefix caching is off"):
        add(uncached, 0, built)


def test_positions_and_blocks_are_counted_with_their_gaps_and_leads() -> None:
    built = Builder(LEAD).gap(900).module(A).fresh([7])
    with pytest.raises(ContextLengthExceeded):
        add(bench(context=946), 0, built, max_tokens=1)
    add(bench(context=947), 0, built, max_tokens=1)
    with pytest.raises(PromptTooLarge):
        add(bench(blocks=4), 0, built, max_tokens=1)
    made = bench(blocks=5)  # three of the unit, one of each run
    add(made, 0, built, max_tokens=1)
    made.drain()
    assert made.texts[0, 0] == expected(built.tokens, built.prompt(), 1)


# --- all of it at once


@pytest.mark.parametrize("seed", range(30))
def test_any_prompts_in_any_company(seed: int) -> None:
    """Random prompts over few modules in a small pool, with preemption, forks and aborts."""
    rng = random.Random(seed)
    made = bench(blocks=rng.choice((24, 40, 80)), budget=rng.choice((7, 16, 64, 300)))
    texts = [words(rng.randrange(1, 50), 100 + k) for k in range(5)]
    leads = [LEAD, words(BLOCK, 77), []]
    lead = rng.choice(leads)
    wanted = {}
    for handle in range(14):
        if rng.random() < 0.2 and wanted:
            made.scheduler.abort(rng.choice(list(wanted)))
        built = Builder(lead)
        if not lead:
            built.fresh(words(1, rng.randrange(3)))
        for _ in range(rng.randrange(4)):
            text = rng.choice(texts)
            skip = rng.choice((0, 0, len(text) // 2))
            built.fresh(words(rng.randrange(6), rng.randrange(3))).fresh(text[:skip])
            built.module(text, skip)
            if rng.random() < 0.2:
                built.gap(rng.randrange(1, 40))
        built.fresh(words(rng.randrange(1, 20), rng.randrange(3)))
        params = {"max_tokens": rng.randrange(1, 30), "n": rng.choice((1, 1, 2)), "seed": handle}
        try:
            add(made, handle, built, **params)
        except PromptTooLarge:
            continue
        wanted[handle] = (built, params)
        for _ in range(rng.randrange(5)):
            made.step()
    made.drain()
    assert not made.failures
    for handle, (built, params) in wanted.items():
        for choice in range(params["n"]):
            text = made.texts.get((handle, choice), [])
            naive = expected(built.tokens, built.prompt(), params["max_tokens"], handle, choice)
            assert text == naive[: len(text)]
            if (handle, choice) in made.finished:
                assert text == naive


# --- what a recipe is made of


def served(made, built: Builder, handle: int, now: float = 0.0, **params: object) -> int:  # type: ignore[no-untyped-def]
    """Approximate tokens of one request that is served at this time, its text checked."""
    work = add(made, handle, built, **{"max_tokens": 1, **params})
    while made.scheduler.has_work:
        plan = made.scheduler.plan_step(now)
        if plan is not None:
            for output in made.scheduler.apply(made.runner.run(plan), now):
                if isinstance(output, TokenAccepted):
                    made.texts.setdefault((handle, 0), []).append(output.token.token_id)
        made.cache.check()
    count = params.get("max_tokens", 1)
    assert made.texts[handle, 0] == expected(built.tokens, built.prompt(), count)  # type: ignore[arg-type]
    return work.usage().approximate_cached_tokens


def test_modules_of_one_length_are_told_apart() -> None:
    made, question = bench(), words(40, 8)
    for handle, text in enumerate((words(20, 50), words(20, 51))):
        add(made, handle, Builder(LEAD).fresh([500]).module(text).fresh([1]))
        made.drain()
    assert served(made, Builder(LEAD).fresh([500]).module(words(20, 50)).fresh(question), 2) == 20
    assert served(made, Builder(LEAD).fresh([500]).module(words(20, 51)).fresh(question), 3) == 20


def test_where_a_module_is_seen_is_part_of_what_follows() -> None:
    made, question = bench(), words(40, 8)
    before = Builder(LEAD).fresh([500]).module(A).gap(3).fresh(question)
    behind = Builder(LEAD).fresh([500]).gap(3).module(A).fresh(question)
    served(made, before, 0)
    assert served(made, behind, 1) == len(A)
    cut = Builder(LEAD).fresh([500]).gap(7).module(A, 4).fresh(question)
    assert served(made, cut, 2) == len(A) - 4


@pytest.mark.parametrize("seconds", [(10.0, 100.0), (100.0, 10.0)])
def test_the_shortest_life_in_a_prompt_is_its_recipes(seconds: tuple[float, float]) -> None:
    made, built = bench(), Builder(LEAD).fresh([500])
    for text, life in zip((A, B), seconds, strict=True):
        built.module(text, directive=Directive(ttl=Ttl(life, "last_use")))
    built.fresh(words(40, 8))
    served(made, built, 0, 1.0)
    for _ in range(50):
        made.cache.tick(12.0)
    assert not [one for one in made.cache.tree.roots if one.lineage and _blocks_of(made, one)]


def test_what_is_computed_behind_a_deadline_is_not_kept() -> None:
    made = bench()
    ttl = Ttl(10.0, "first_use")
    built = Builder(LEAD).fresh([500]).module(A, directive=Directive(ttl=ttl)).fresh([7])
    add(made, 0, built, max_tokens=60)
    for step in range(80):
        now = 1.0 if step < 20 else 30.0
        plan = made.scheduler.plan_step(now)
        if plan is None:
            break
        made.scheduler.apply(made.runner.run(plan), now)
    made.cache.check()
    assert not [one for one in made.cache.tree.roots if one.lineage and _blocks_of(made, one)]


def test_stored_tokens_are_those_that_were_not_there() -> None:
    made, built = bench(), typical()
    first = add(made, 0, built)
    made.drain()
    assert first.usage().stored_tokens == len(built.tokens)
    again = add(made, 1, built)
    made.drain()
    assert again.usage().stored_tokens == 0


def test_a_second_request_for_the_same_recipe_waits_and_holds_nobody_up() -> None:
    made = bench(budget=512)
    built = Builder(LEAD).fresh([500]).module(A).fresh(words(40, 8))
    add(made, 0, Builder(LEAD).fresh([501]).module(A).fresh([1]))
    made.drain()
    rows = made.runner.rows
    works = [add(made, handle, built, max_tokens=1) for handle in (1, 2)]
    made.add(3, words(5, 60), max_tokens=1)
    made.step()
    assert made.served[-1] == [1, 3]
    made.drain()
    assert works[1].usage().computed_prompt_tokens <= 40 % BLOCK + 1
    assert made.runner.rows - rows <= 41 + 9 + 5


def test_without_room_nothing_is_changed() -> None:
    made, built = bench(blocks=12, budget=512), Builder(LEAD).fresh([500]).module(A)
    add(made, 0, built.fresh([1]), max_tokens=1)
    made.drain()
    made.add(1, words(90, 60), max_tokens=60)
    made.step()
    other = Builder(LEAD).fresh([501]).module(A).fresh(words(60, 61))
    result = made.cache.open_joined(other.tokens, len(other.tokens), other.prompt())
    assert isinstance(result, NoRoom)
    assert not made.cache.fence.held()
    made.cache.check()


def test_what_a_request_says_of_a_module_holds_for_one_that_is_there() -> None:
    made = bench()
    plain = Builder(LEAD).fresh([500]).module(A).fresh([7])
    assert served(made, plain, 0) == 0
    named = Builder(LEAD).fresh([501]).module(A, directive=Directive(tags=("news",))).fresh([7])
    assert served(made, named, 1) == len(A)
    made.cache.invalidate(Selector(tag="news"))
    assert served(made, plain, 2) == 0


def test_a_module_that_a_session_computed_stays_when_others_used_it() -> None:
    for shared in (False, True):
        made = bench()
        directive = Directive(session="s")
        built = Builder(LEAD).fresh([500]).module(A, directive=directive).fresh(words(20, 8))
        served(made, built, 0, directive=directive)
        plain = Builder(LEAD).fresh([501]).module(A).fresh([7])
        if shared:
            assert served(made, plain, 1) == len(A)
        made.cache.end_session("", "s")
        assert served(made, plain, 2) == (len(A) + 1 - 1 if shared else 0)


def test_a_recipe_goes_with_the_public_text_that_it_contains() -> None:
    lead = words(2 * BLOCK, 70)
    made = bench(blocks=128)
    made.add(0, lead, namespace=PUBLIC, max_tokens=0)
    made.drain()
    built = Builder(lead).fresh([500]).module(A).fresh(words(40, 8))
    assert served(made, built, 1, namespace="tenant") == 0
    assert served(made, built, 2, namespace="tenant") == len(A) + 39
    made.cache.invalidate(Selector(PUBLIC))
    for _ in range(20):
        made.cache.tick(0.0)
    assert not [one for one in made.cache.tree.roots if one.lineage and _blocks_of(made, one)]
    made.add(3, lead, namespace=PUBLIC, max_tokens=0)
    made.drain()
    assert served(made, built, 4, namespace="tenant") == 0


def test_a_recipe_contains_every_public_text_that_it_sees() -> None:
    """One module lies behind a public lead, another one is public itself, and goes."""
    lead, text = words(BLOCK, 70), words(2 * BLOCK, 71)
    made = bench(blocks=128)
    made.add(0, lead + text, namespace=PUBLIC, max_tokens=0)
    made.drain()
    built = Builder(lead).fresh([500]).module(A).module(text).fresh(words(40, 8))
    served(made, built, 1, namespace="tenant")
    assert served(made, built, 2, namespace="tenant") == len(A) + len(text) + 39
    made.cache.invalidate(Selector(PUBLIC, prefix=tuple(lead + text[:1])))
    for _ in range(20):
        made.cache.tick(0.0)
    assert not [one for one in made.cache.tree.roots if one.lineage and _blocks_of(made, one)]
    assert served(made, built, 3, namespace="tenant") == len(A)


def test_nobody_waits_for_a_module_that_is_made_in_the_background() -> None:
    """A live request has a row in every step, and another needs what background work computes."""
    made = bench(budget=16, blocks=128)
    unit = Builder(LEAD).module(A).prompt_units()[0]
    add(made, 1, Builder(LEAD).fresh([500]).module(A).fresh([7]), background=True, max_tokens=1)
    made.step()
    made.add(0, words(5, 60), max_tokens=60)
    add(made, 2, Builder(LEAD).fresh([501]).module(A).fresh([7]), max_tokens=1)
    assert made.cache.explain(unit).cached_tokens < len(unit) - 1
    while (0, 0) not in made.finished:
        made.step()
    assert made.cache.explain(unit).cached_tokens == len(unit) - 1
    made.drain()
