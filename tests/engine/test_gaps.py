"""Prompts whose middle was forgotten, against the naive definition (talk.py)."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joined_toy import bench, expected
from talk import Talk, encode, text
from toy import BLOCK

from kveik.cache.directive import PUBLIC, Directive, Selector, Ttl
from kveik.cache.join import JoinedPrompt, Stretch, Unit
from kveik.engine.gaps import DEEPEST, Laid, Piece, aligned, closed, followed, through
from kveik.errors import InvalidRequest, PromptTooLarge


def some(count: int, seed: int) -> str:
    rng = random.Random(seed)
    return text([rng.randrange(10, 900) for _ in range(count)])


def spoken(turns: int, system: str | None = "7 8 9", **bench_of: int) -> Talk:
    talk = Talk(system, bench(blocks=200, **bench_of) if bench_of else None)
    for number in range(turns):
        talk.turn(some(20, number))
    return talk


# --- where tokens of a shorter prompt come from


@given(st.lists(st.integers(0, 3), min_size=1, max_size=24), st.data())
def test_an_alignment_accounts_for_every_token_of_the_shorter_prompt(
    longer: list[int], data: st.DataObject
) -> None:
    shorter = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=24))
    pieces = aligned(longer, shorter)
    at = 0
    for piece in pieces:
        assert piece.first == at
        at += piece.length
        if piece.source >= 0:
            end = piece.source + piece.length
            assert longer[piece.source : end] == shorter[piece.first : at]
    assert at == len(shorter)
    shortest = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=24))
    again = through(pieces, aligned(shorter, shortest))
    assert sum(piece.length for piece in again) == len(shortest)
    for piece in again:
        if piece.source >= 0:
            ours = shortest[piece.first : piece.first + piece.length]
            assert longer[piece.source : piece.source + piece.length] == ours


def test_what_is_cut_out_closes_and_what_grew_together_is_computed() -> None:
    longer = list(range(100, 140))
    assert aligned(longer, longer[:10] + longer[20:]) == [Piece(0, 10, 0), Piece(10, 20, 20)]
    merged = [*longer[:9], 7, *longer[21:]]
    assert aligned(longer, merged) == [Piece(0, 9, 0), Piece(9, 1, -1), Piece(10, 19, 21)]
    assert aligned(longer, longer[:10]) == [Piece(0, 9, 0), Piece(9, 1, -1)], "the last is computed"
    prompt = closed(Laid.plain(longer), aligned(longer, merged), 35, Directive())
    assert prompt is not None
    assert prompt.stretches == (
        Stretch(0, 9, 0),
        Stretch(9, 1, 9),
        Stretch(10, 14, 10, 0, 21),
        Stretch(24, 5, 24),
    )
    assert prompt.units[0].tokens == tuple(range(100, 135))


def test_nothing_that_is_settled_behind_the_gap_leaves_an_ordinary_prompt() -> None:
    longer = list(range(100, 140))
    shorter = longer[:10] + longer[30:]
    assert closed(Laid.plain(longer), aligned(longer, shorter), 30, Directive()) is None
    assert closed(Laid.plain(longer), aligned(longer, longer), 30, Directive()) is None


def test_a_prompt_that_leaves_the_one_before_is_computed_from_there() -> None:
    before = Laid((1, 2, 3, 4, 5, 6), (Stretch(0, 2, 0), Stretch(2, 2, 2, 0, 4), Stretch(4, 2, 4)))
    assert followed(before, (1, 2, 3, 9, 9)).stretches == (
        Stretch(0, 2, 0),
        Stretch(2, 1, 2, 0, 4),
        Stretch(3, 2, 3),
    )


def test_a_unit_that_is_a_run_holds_that_run_alone() -> None:
    inner = JoinedPrompt(
        (Stretch(0, 4, 0), Stretch(4, 6, 4, 0, 10), Stretch(10, 5, 10)),
        (Unit(tuple(range(20))),),
        "forget",
    )
    unit = Unit(tuple(range(15)), joined=inner)
    assert (unit.first, unit.depth, len(unit.lineage)) == (10, 1, 32)
    with pytest.raises(ValueError, match=r"tokens 10 \.\. 15"):
        JoinedPrompt((Stretch(0, 3, 0, 0, 9), Stretch(3, 1, 3)), (unit,), "forget")


def nested(forgotten: int) -> tuple[JoinedPrompt, list[int]]:
    """A prompt of the same tokens, whatever was forgotten in what one of its units is a run of."""
    past = Unit((*range(10), forgotten, *range(10, 20)))
    stretches = (Stretch(0, 10, 0), Stretch(10, 5, 10, 0, 11), Stretch(15, 20, 15))
    run = Unit(tuple(range(35)), joined=JoinedPrompt(stretches, (past,), "forget"))
    outer = (Stretch(0, 10, 0), Stretch(10, 18, 10, 0, 15), Stretch(28, 20, 28))
    return JoinedPrompt(outer, (run,), "forget"), [*range(10), *range(15, 33), *range(40, 60)]


def test_what_a_unit_was_computed_with_is_part_of_every_recipe_that_sees_it() -> None:
    one, other = nested(500), nested(501)
    assert one[1] == other[1]
    assert one[0].units[0].tokens == other[0].units[0].tokens
    assert one[0].lineages(one[1])[1] != other[0].lineages(other[1])[1]
    made = bench(budget=512)
    for handle, (prompt, tokens) in enumerate((one, other)):
        made.add(handle, tokens, joined=prompt)
    made.step()
    assert len(made.scheduler._roster.works) == 2 + 2, "each has its own unit made"
    made.drain()
    for handle, (prompt, tokens) in enumerate((one, other)):
        assert made.texts[handle, 0] == expected(tokens, prompt, 4)


# --- one session


@pytest.mark.parametrize("gone", [[1], [2], [1, 2], [1, 3], [2, 4], "2-3", [4], "1-4"])
def test_the_text_is_that_of_the_definition(gone: object) -> None:
    talk = spoken(4)
    talk.turn(some(9, 50), {"turns": gone})
    for number in range(3):
        talk.turn(some(11, 60 + number))


def test_only_what_is_new_is_computed() -> None:
    talk = spoken(4)
    rows = talk.made.runner.rows
    talk.turn(some(9, 50), {"turns": [2]}, count=1)
    # the last token of the answer before, its end, the new message with its frame, the next role
    assert talk.made.runner.rows - rows == 1 + 1 + (1 + 9 + 1) + 1
    usage = talk.work.usage()
    turn = 1 + 20 + 1 + 1 + 5 + 1
    exact = 1 + 5 + turn + 1  # up to the words of turn 2
    assert usage.cached_tokens == exact
    assert usage.approximate_cached_tokens == usage.prompt_tokens - exact - 14
    assert usage.computed_prompt_tokens == 14
    assert talk.kept is not None
    assert talk.kept.forgotten == turn


def test_the_next_turn_goes_on_from_what_is_left() -> None:
    talk = spoken(3)
    talk.turn(some(9, 50), {"turns": [2]})
    talk.turn(some(9, 51))
    usage = talk.work.usage()
    assert usage.computed_prompt_tokens == 14
    assert usage.cached_tokens + usage.approximate_cached_tokens + 14 == usage.prompt_tokens
    assert usage.approximate_cached_tokens > usage.cached_tokens
    assert talk.kept is not None
    assert talk.kept.joined is not None


def test_it_forgets_again_what_was_said_before_and_behind_the_first_gap() -> None:
    talk = spoken(4)
    talk.turn(some(9, 50), {"turns": [2]})
    talk.turn(some(30, 51), count=20)
    talk.turn(some(30, 52), {"turns": [5]}, count=20)
    assert talk.work.usage().computed_prompt_tokens == 1 + 1 + 32 + 1
    assert talk.kept is not None
    assert talk.kept.joined is not None
    assert talk.kept.joined.depth == 2
    talk.turn(some(9, 53), {"turns": [1]})
    talk.turn(some(9, 54), {"turns": "6-7"})


def test_after_so_many_gaps_the_rest_is_computed_anew() -> None:
    talk = spoken(2)
    depths = []
    for number in range(DEEPEST + 3):
        talk.turn(some(20, 100 + number), {"turns": [number + 1]})
        assert talk.kept is not None
        depths.append(0 if talk.kept.joined is None else talk.kept.joined.depth)
    assert depths == [*range(1, DEEPEST + 1), 0, 1, 2]
    usage = talk.work.usage()
    assert usage.approximate_cached_tokens
    assert talk.kept.forgotten > 10 * 25


def test_what_was_evicted_is_computed_again_as_it_was() -> None:
    """All of it, with what is forgotten: the bits of a session are not a matter of room."""
    talk = spoken(3)
    talk.turn(some(9, 50), {"turns": [2]})
    talk.turn(some(30, 51), count=20)
    talk.turn(some(9, 52), {"turns": [4]})
    talk.made.cache.reset()
    rows = talk.made.runner.rows
    talk.turn(some(9, 53))
    assert talk.made.runner.rows - rows > len(talk.naive)
    assert talk.work.usage().cached_tokens == talk.work.usage().approximate_cached_tokens == 0


def test_a_prompt_of_the_same_tokens_shares_the_exact_beginning_alone() -> None:
    """Invariant 16."""
    talk = spoken(3)
    talk.turn(some(9, 50), {"turns": [1]})
    tokens = [token for token, _ in talk.naive]
    exact = talk.work.usage().cached_tokens
    assert talk.made.cache.explain(tokens).cached_tokens == exact < 20
    plain = talk.made.add(1, tokens, max_tokens=1)
    talk.made.drain()
    assert plain.usage().cached_tokens == exact
    assert plain.usage().approximate_cached_tokens == 0


def test_keys_do_not_move_and_the_gap_is_the_shift() -> None:
    talk = spoken(3)
    talk.submit(some(9, 50), {"turns": [2]}, count=1)
    plan = talk.made.step()
    assert plan is not None
    [sequence] = plan.sequences
    [table] = sequence.tables
    turn = 1 + 20 + 1 + 1 + 5 + 1
    assert [segment.shift for segment in table][:2] == [0, -turn]
    assert sum(move.count for move in plan.moves) < BLOCK, "the partial block before the gap"
    talk.finish()


def test_choices_fork_and_preempted_requests_keep_their_text() -> None:
    talk = spoken(3)
    talk.turn(some(9, 50), {"turns": [2]}, n=2)
    small = Talk("7 8 9", bench(blocks=22))
    for number in range(3):
        small.turn(some(20, number))
    small.submit(some(9, 50), {"turns": [2]}, count=60)
    for handle in range(3):
        small.made.add(handle, range(500 + handle, 530 + handle), max_tokens=60)
    small.finish()
    assert small.made.scheduler.preemptions


def test_recipes_of_the_same_tokens_with_another_past_are_told_apart() -> None:
    """Two sessions say the same but for a turn that both forgot, and forget again."""
    made = bench(blocks=200, budget=64)
    for forgotten in (31, 32):
        talk = Talk("7 8 9", made)
        talk.turn(some(20, 1))
        talk.turn(some(20, forgotten))
        talk.turn(some(20, 3))
        talk.turn(some(20, 4), {"turns": [2]})
        talk.turn(some(20, 5), {"turns": [1]})
        talk.turn(some(20, 6), {"turns": [3]})


def test_a_pool_that_one_of_its_pasts_does_not_fit_refuses_at_once() -> None:
    talk = spoken(4)
    talk.turn(some(9, 50), {"turns": [2]})
    talk.turn(some(9, 51), {"turns": [1, 3, 4]})
    assert talk.kept is not None
    assert talk.kept.joined is not None
    tokens = [token for token, _ in talk.naive[: -talk.count]]
    longest = talk.kept.joined.blocks(BLOCK)
    assert longest > 2 * len(tokens) // BLOCK
    with pytest.raises(PromptTooLarge):
        bench(blocks=longest - 1).add(0, tokens, joined=talk.kept.joined)
    small = bench(blocks=longest)
    small.add(0, tokens, joined=talk.kept.joined, max_tokens=1)
    small.drain()
    assert small.texts[0, 0] == [talk.naive[-talk.count][0]]


# --- what goes with what


def test_what_is_left_goes_with_the_public_text_behind_which_it_was_computed() -> None:
    public = encode([{"role": "system", "content": some(3 * BLOCK, 70)}]).token_ids[: 3 * BLOCK]
    made = bench(blocks=200, budget=64)
    made.add(0, public, PUBLIC, max_tokens=0)
    made.drain()
    talk = Talk(some(3 * BLOCK, 70), made, "tenant")
    for number in range(3):
        talk.turn(some(20, number))
    talk.turn(some(20, 10), {"turns": [2]})
    talk.turn(some(20, 11), {"turns": [1, 3]})
    assert talk.kept is not None
    assert talk.kept.joined is not None
    assert talk.kept.joined.depth == 2
    made.cache.invalidate(Selector(PUBLIC))
    for _ in range(50):
        made.cache.tick(0.0)
    tree = made.cache.tree
    assert not [one for one in tree.roots if one.lineage and tree.children[tree.roots[one]]]
    made.add(1, public, PUBLIC, max_tokens=0)
    made.drain()
    talk.turn(some(20, 12))
    assert talk.work.usage().approximate_cached_tokens == 0


def test_public_text_that_was_forgotten_twice_over_takes_what_is_left_along() -> None:
    """Nothing of it is seen any more, and the first gap's run was computed with it in sight."""
    first = [{"role": "system", "content": some(BLOCK, 70)}]
    first.append({"role": "user", "content": some(3 * BLOCK, 71)})
    public = encode(first).token_ids[: 4 * BLOCK]
    made = bench(blocks=200, budget=64)
    made.add(0, public, PUBLIC, max_tokens=0)
    made.drain()
    talk = Talk(some(BLOCK, 70), made, "tenant")
    talk.turn(some(3 * BLOCK, 71))
    talk.turn(some(20, 1))
    talk.turn(some(20, 2), {"turns": [1]})
    talk.turn(some(20, 3), {"turns": [2]})
    assert talk.kept is not None
    assert talk.kept.joined is not None
    assert [unit.depth for unit in talk.kept.joined.units] == [1]
    made.cache.invalidate(Selector(PUBLIC, prefix=public[: 3 * BLOCK]))
    for _ in range(50):
        made.cache.tick(0.0)
    tree = made.cache.tree
    assert not [one for one in tree.roots if one.lineage and tree.children[tree.roots[one]]]


def test_an_invalidation_takes_what_was_computed_with_what_it_names() -> None:
    """Forgetting is no privacy: this is (invariant 17)."""
    talk = Talk("7 8 9")
    talk.turn(some(20, 1))
    talk.turn(some(20, 2), directive=Directive(session="s", tags=("secret",)))
    talk.turn(some(20, 3))
    talk.turn(some(9, 4), {"tag": "secret"})
    talk.made.cache.invalidate(Selector(tag="secret"))
    assert not [one for one in talk.made.cache.tree.roots if one.lineage]
    talk.history.invalidate(Selector(tag="secret"))
    assert talk.history.sizes()[0] == 0


def test_what_is_left_does_not_outlive_what_was_forgotten() -> None:
    talk = Talk("7 8 9")
    talk.turn(some(20, 1))
    short = Directive(session="s", ttl=Ttl(10.0, "first_use"))
    talk.turn(some(20, 2), directive=short)
    talk.turn(some(40, 3))
    talk.turn(some(40, 4), {"turns": [2]})
    for _ in range(50):
        talk.made.cache.tick(1000.0)
    blocks = talk.made.cache.tree
    assert not [one for one in blocks.roots if one.lineage and blocks.children[blocks.roots[one]]]


def test_documents_that_were_forgotten_stay_labels_of_what_they_were_computed_with() -> None:
    talk = Talk("7 8 9")
    part = {"type": "text", "text": some(30, 1), "document": "book@1"}
    talk.turn([part, {"type": "text", "text": some(10, 2)}])
    talk.turn(some(20, 3))
    talk.turn(some(9, 4), {"document": "book"})
    assert talk.kept is not None
    assert talk.kept.joined is not None
    [label] = talk.kept.joined.units[0].directive.documents
    assert (label.document, label.version, label.end - label.start) == ("book", "1", 30)
    talk.turn(some(20, 5))
    talk.turn(some(20, 6), {"turns": [3]})
    assert talk.kept.joined is not None
    assert talk.kept.joined.units[0].directive.documents == (label,)


def test_a_document_behind_a_gap_labels_the_blocks_that_hold_it_and_no_others() -> None:
    talk = spoken(2)

    def labelled_blocks() -> int:
        return sum("document:book@1" in one.claims for one in talk.made.cache.listing())

    part = {"type": "text", "text": some(4 * BLOCK, 1), "document": "book@1"}
    talk.turn([part, {"type": "text", "text": some(6 * BLOCK, 2)}], {"turns": [1]})
    before = labelled_blocks()
    assert 4 <= before <= 6
    talk.turn(some(20, 5), {"turns": [2]})
    assert talk.kept is not None
    assert talk.kept.joined is not None
    assert talk.kept.joined.depth == 2
    assert labelled_blocks() == before


def test_what_cannot_be_asked_of_it() -> None:
    talk = spoken(3)
    for params, field in (
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"use_cache": False}, "forget"),
        ({"directive": Directive(session="s", write="none")}, "write"),
    ):
        state = list(talk.naive)
        with pytest.raises(InvalidRequest) as caught:
            talk.submit(some(9, 50), {"turns": [2]}, **params)
        assert caught.value.param == field
        talk.naive = state
    uncached = Talk("7", bench(caching=False))  # type: ignore[arg-type]
    for number in range(3):
        uncached.turn(some(20, number))
    with pytest.raises(InvalidRequest, match="prefix caching is off"):
        uncached.turn(some(9, 50), {"turns": [2]})


# --- all of it at once


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False))
def test_any_session_in_any_company(rng: random.Random) -> None:
    """Turns, gaps, gaps in what is left of gaps, evictions, cut turns, in small pools."""
    made = bench(blocks=rng.choice((60, 200)), budget=rng.choice((7, 16, 64, 300)))
    talk = Talk(rng.choice((None, "7 8 9")), made)
    there: list[int] = []
    turns = 0
    for step in range(rng.randrange(4, 10)):
        forget = None
        if there and rng.random() < 0.5:
            gone = rng.sample(there, rng.randrange(1, len(there) + 1))
            forget = {"turns": gone}
        for other in range(rng.randrange(3)):
            length = rng.randrange(1, 60)
            made.add(10 * step + other, [rng.randrange(10, 900) for _ in range(length)])
        if rng.random() < 0.2:
            made.drain()
            made.cache.reset()
        said, state = some(rng.randrange(1, 30), rng.randrange(9)), list(talk.naive)
        talk.submit(said, forget, count=rng.randrange(1, 25), seed=step)
        if talk.begun and rng.random() < 0.15:
            for _ in range(rng.randrange(4)):
                made.step()
            made.scheduler.abort(talk.handle)
            assert talk.turn_ is not None
            talk.history.drop(talk.turn_)
            made.drain()
            talk.naive = state
            continue
        talk.finish()
        turns += 1
        if forget is not None:
            there = [one for one in there if one not in gone]
        there.append(turns)
        past = talk.history.past("", "s")
        assert sorted({mark.turn for mark in past.marks} - {0}) == there
        assert past.turns == turns
    made.drain()
    assert not made.failures
