"""Prompts that are only computed (max_tokens 0), and work that waits until nobody needs a step."""

from __future__ import annotations

import random

import pytest
from toy import BLOCK, Bench, expected_text
from toy_model import toy_engine

from kveik.engine.request import ChoiceFinished, Request, SamplingParams
from kveik.errors import InvalidRequest


def prompt(length: int, start: int = 0) -> list[int]:
    return list(range(start, start + length))


# ---- nothing is generated


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40, 64])
def test_a_prompt_is_computed_and_cached_to_its_last_token(length: int) -> None:
    bench = Bench(blocks=4, budget=32)
    work = bench.add(0, prompt(length), max_tokens=0)
    bench.drain()
    assert bench.finished == {(0, 0): "length"}
    assert bench.texts == {}
    assert all(not sequence.samples for plan in bench.plans for sequence in plan.sequences)
    assert bench.cache.lookup([*prompt(length), 999]).cached_tokens == length
    usage = work.usage()
    assert (usage.prompt_tokens, usage.completion_tokens) == (length, 0)
    assert usage.computed_prompt_tokens == usage.stored_tokens == length


def test_warming_twice_computes_one_token() -> None:
    bench = Bench()
    bench.add(0, prompt(40), max_tokens=0)
    bench.drain()
    again = bench.add(1, prompt(40), max_tokens=0)
    bench.drain()
    assert again.cached_tokens == 39
    assert bench.finished[1, 0] == "length"
    answered = bench.add(2, [*prompt(40), 999], max_tokens=3)
    bench.drain()
    assert answered.cached_tokens == 40
    assert bench.texts[2, 0] == expected_text([*prompt(40), 999], 3)


def test_the_engine_ends_it_by_length_without_a_delta() -> None:
    engine = toy_engine()
    events: list[object] = []
    engine.submit(Request(tuple(prompt(20)), SamplingParams(max_tokens=0)), events.append)
    while engine.step():
        pass
    assert [type(event).__name__ for event in events] == [
        "PromptReady",
        "ChoiceFinished",
        "RequestFinished",
    ]
    assert events[1] == ChoiceFinished(0, "length", None)
    assert engine.stats().requests_finished == {"length": 1}
    assert engine.stats().generation_tokens == 0


def test_log_probabilities_of_a_prompt_need_no_token() -> None:
    bench = Bench(budget=16)
    work = bench.add(0, prompt(20), max_tokens=0, prompt_logprobs=0)
    bench.drain()
    assert [row.token_id for row in work.prompt_logprobs] == prompt(20)[1:]


def test_several_choices_of_nothing_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="n: 2") as caught:
        SamplingParams(max_tokens=0, n=2)
    assert caught.value.param == "n"


# ---- what a request left behind


def test_stored_tokens_are_counted_where_they_are_published() -> None:
    bench = Bench()
    first = bench.add(0, prompt(50), max_tokens=4)
    bench.drain()
    assert first.usage().stored_tokens == 50
    longer = bench.add(1, [*prompt(50), *prompt(30, 500)], max_tokens=4)
    bench.drain()
    assert (longer.cached_tokens, longer.usage().stored_tokens) == (50, 30)
    forked = bench.add(2, prompt(40, 700), max_tokens=4, n=3)
    uncached = bench.add(3, prompt(40, 800), max_tokens=2, use_cache=False)
    bench.drain()
    assert forked.usage().stored_tokens == 40
    assert uncached.usage().stored_tokens == 0


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 40])
@pytest.mark.parametrize("tokens", [0, 1, 4, 40])
def test_a_prompt_that_is_all_there_stores_nothing(length: int, tokens: int) -> None:
    """The last token is always computed, and found in the cache all the same."""
    bench = Bench()
    bench.add(0, prompt(length), max_tokens=4)
    bench.drain()
    again = bench.add(1, prompt(length), max_tokens=tokens, seed=7)
    bench.drain()
    usage = again.usage()
    assert (usage.cached_tokens, usage.computed_prompt_tokens) == (length - 1, 1)
    assert usage.stored_tokens == 0
    rows = bench.add(2, prompt(length), max_tokens=1, prompt_logprobs=0)
    other = bench.add(3, [*prompt(length - 1), 999], max_tokens=1)
    bench.drain()
    assert (rows.usage().cached_tokens, rows.usage().stored_tokens) == (0, 0)
    assert (other.usage().cached_tokens, other.usage().stored_tokens) == (length - 1, 1)


def test_what_an_aborted_request_stored_ends_with_what_it_computed() -> None:
    bench = Bench(budget=32)
    work = bench.add(0, prompt(100), max_tokens=4)
    bench.step()
    bench.scheduler.abort(0)
    assert work.usage().stored_tokens == 32


def test_stored_tokens_survive_preemption() -> None:
    bench = Bench(blocks=8, budget=512)
    works = [bench.add(k, prompt(40, 300 * k), max_tokens=30) for k in range(2)]
    bench.drain()
    assert bench.scheduler.preemptions > 0
    assert [work.usage().stored_tokens for work in works] == [40, 40]


# ---- background


def test_background_work_gets_only_steps_that_nobody_else_needs() -> None:
    bench = Bench(budget=64)
    bench.add(0, prompt(40), max_tokens=0, background=True)
    bench.add(1, prompt(90, 500), max_tokens=6)
    bench.drain()
    assert bench.served == [[1]] * 7 + [[0]] * 3
    assert bench.finished == {(1, 0): "length", (0, 0): "length"}


def test_background_chunks_are_small() -> None:
    bench = Bench(budget=256, context=2048, blocks=200)
    bench.add(0, prompt(400), max_tokens=0, background=True)
    bench.drain()
    assert [rows[0][1] for rows in map(bench.rows, bench.plans)] == [32] * 12 + [16]


def test_a_live_request_takes_over_at_the_next_step() -> None:
    bench = Bench(budget=64)
    bench.add(0, prompt(200), max_tokens=4, background=True)
    bench.step()
    bench.add(1, prompt(50, 500), max_tokens=3)
    for _ in range(3):
        bench.step()
    assert bench.served == [[0], [1], [1], [1]]
    assert bench.finished == {(1, 0): "length"}
    bench.drain()
    assert bench.texts[0, 0] == expected_text(prompt(200), 4)


def test_background_work_gives_up_its_seat() -> None:
    bench = Bench(max_num_seqs=1)
    bench.add(0, prompt(60), max_tokens=8, background=True)
    bench.step()
    bench.add(1, prompt(20, 500), max_tokens=2)
    bench.drain()
    assert bench.served[:4] == [[0], [1], [1], [0]]
    assert bench.texts[0, 0] == expected_text(prompt(60), 8)
    assert bench.texts[1, 0] == expected_text(prompt(20, 500), 2)


def test_background_work_gives_up_its_blocks() -> None:
    bench = Bench(blocks=8, budget=512)
    bench.add(0, prompt(100), max_tokens=0, background=True)
    bench.step()
    bench.add(1, prompt(90, 500), max_tokens=30)
    bench.step()
    assert bench.served[-1] == [1]
    assert bench.scheduler.running == 1
    bench.drain()
    assert bench.texts[1, 0] == expected_text(prompt(90, 500), 30)
    assert bench.finished == {(1, 0): "length", (0, 0): "length"}


def test_background_work_is_the_first_victim_however_early_it_came() -> None:
    bench = Bench(blocks=6, budget=512)
    bench.add(0, prompt(20), max_tokens=20, background=True)
    bench.step()
    bench.step()
    bench.add(1, prompt(40, 500), max_tokens=50)
    bench.drain()
    assert bench.scheduler.preemptions > 0
    assert bench.works[1].computed_prompt_tokens == 40
    assert bench.texts[0, 0] == expected_text(prompt(20), 20)


def test_who_waits_for_background_work_lends_it_its_rank() -> None:
    """Else a stream of other requests would hold up the one that needs what is being warmed."""
    bench = Bench(budget=16, blocks=400)
    bench.add(0, prompt(64), max_tokens=0, background=True)
    bench.step()
    bench.add(1, [*prompt(64), 999], max_tokens=1)
    for handle in range(2, 30):
        bench.add(handle, prompt(64, 1000 * handle), max_tokens=1)
    for _ in range(8):
        bench.step()
    assert (1, 0) in bench.finished
    assert bench.works[1].cached_tokens == 64
    assert bench.texts[1, 0] == expected_text([*prompt(64), 999], 1)


def test_lent_rank_lasts_until_the_prompt_is_there() -> None:
    """Decoding requests leave less than a block of each step: the leader needs all of it."""
    bench = Bench(budget=20)
    bench.add(0, prompt(64), max_tokens=0, background=True)
    bench.step()
    for handle in range(1, 9):
        bench.add(handle, prompt(2, 500 + 10 * handle), max_tokens=40)
    bench.add(9, [*prompt(64), 999], max_tokens=1)
    for _ in range(8):
        bench.step()
    assert bench.finished == {(0, 0): "length", (9, 0): "length"}


def test_a_leader_gets_its_rows_in_the_step_in_which_it_is_waited_for() -> None:
    """An engine sleeps when a plan is empty."""
    bench = Bench(budget=16)
    bench.add(0, prompt(64), max_tokens=0, background=True)
    bench.step()
    bench.add(1, [*prompt(64), 999], max_tokens=1)
    assert bench.step() is not None
    assert bench.served == [[0], [0]]


def test_no_block_is_spared_for_who_would_give_up_its_own() -> None:
    bench = Bench(blocks=6, budget=256)
    bench.add(0, prompt(48), max_tokens=0, background=True)
    bench.step()
    bench.add(1, prompt(48, 500), max_tokens=0)
    bench.step()
    assert (1, 0) in bench.finished
    assert bench.scheduler.preemptions == 0


def test_background_work_is_not_starved_of_an_idle_engine() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        bench = Bench(blocks=rng.randrange(8, 24), budget=rng.choice((16, 64)), max_num_seqs=3)
        expected = {}
        for handle in range(14):
            tokens = prompt(rng.randrange(1, 100), rng.choice((0, 0, 400)))
            background = rng.random() < 0.5
            count = rng.choice((0, 1, 9)) if background else rng.randrange(1, 20)
            bench.add(handle, tokens, max_tokens=count, background=background)
            expected[handle, 0] = expected_text(tokens, count)
            for _ in range(rng.randrange(4)):
                bench.step()
        bench.drain()
        assert not bench.failures
        assert set(bench.finished) == set(expected)
        for place, text in expected.items():
            assert bench.texts.get(place, []) == text
        assert bench.cache.stats().leased_blocks == (0,)


def test_one_token_of_the_grid() -> None:
    """The budget of background work is never less than a block, so that chunks end on the grid."""
    bench = Bench(budget=BLOCK)
    bench.add(0, prompt(3 * BLOCK), max_tokens=0, background=True)
    bench.drain()
    assert [bench.rows(plan) for plan in bench.plans] == [[(0, 16)], [(16, 16)], [(32, 16)]]
