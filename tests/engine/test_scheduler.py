"""The scheduler with hand-made requests: exact rows, exact order, nothing but Python."""

from __future__ import annotations

import os
import random

import pytest
from toy import BLOCK, Bench, expected_text

from kveik.cache.segments import KvGroup
from kveik.engine.plan import StepResult
from kveik.engine.request import Request, SamplingParams
from kveik.errors import ContextLengthExceeded, InvalidRequest, PromptTooLarge


def prompt(length: int, start: int = 0) -> list[int]:
    return list(range(start, start + length))


# ---- what a step computes


def test_chunks_end_on_the_block_grid_and_the_last_one_samples() -> None:
    bench = Bench(budget=40)
    bench.add(0, prompt(90), max_tokens=2)
    spans = [bench.rows(bench.step())[0] for _ in range(4)]
    assert spans == [(0, 32), (32, 32), (64, 26), (90, 1)]
    samples = [len(plan.sequences[0].samples) for plan in bench.plans]
    assert samples == [0, 0, 1, 1]
    assert bench.step() is None
    assert bench.texts[0, 0] == expected_text(prompt(90), 2)
    assert bench.finished == {(0, 0): "length"}


def test_decoding_sequences_go_first_and_the_prompt_takes_the_rest() -> None:
    bench = Bench(budget=34)
    bench.add(0, prompt(10), max_tokens=5)
    bench.add(1, prompt(10, 100), max_tokens=5)
    bench.step()
    bench.add(2, prompt(200, 200), max_tokens=1)
    for _ in range(4):
        plan = bench.step()
        assert [count for _, count in bench.rows(plan)] == [1, 1, 32]
    assert bench.finished == {(0, 0): "length", (1, 0): "length"}
    assert bench.rows(bench.step()) == [(128, 32)]


def test_no_step_exceeds_its_budget_and_decoding_never_pauses() -> None:
    bench = Bench(budget=48, max_num_seqs=8, blocks=200)
    for handle in range(12):
        bench.add(handle, prompt(40 + 17 * handle, 1000 * handle), max_tokens=20)
    bench.drain()
    seen: dict[int, int] = {}
    for number, plan in enumerate(bench.plans):
        assert sum(count for _, count in bench.rows(plan)) <= 48
        for sequence in plan.sequences:
            if sequence.spans[0][1] == 1 and sequence.samples:
                last = seen.get(sequence.sequence_id, number - 1)
                assert last == number - 1, "a decoding sequence waited"
            if sequence.samples:
                seen[sequence.sequence_id] = number
    assert len(bench.finished) == 12


def test_the_oldest_prompt_moves_on_when_less_than_a_block_is_left() -> None:
    bench = Bench(budget=16, max_num_seqs=8)
    for handle in range(6):
        bench.add(handle, prompt(2, 100 * handle), max_tokens=40)
    bench.step()
    bench.add(9, prompt(30, 900), max_tokens=1)
    for _ in range(4):
        bench.step()
    assert bench.texts[9, 0] == expected_text(prompt(30, 900), 1)


def test_seats_are_bounded_by_max_num_seqs() -> None:
    bench = Bench(max_num_seqs=2)
    for handle in range(3):
        bench.add(handle, prompt(4, 100 * handle), max_tokens=3)
    assert len(bench.step().sequences) == 2
    assert bench.scheduler.running == 2
    assert bench.scheduler.queues.requests == 1
    assert bench.scheduler.queues.tokens == 4
    bench.drain()
    assert len(bench.finished) == 3
    assert bench.scheduler.queues.tokens == 0


def test_first_come_first_served_without_overtaking() -> None:
    bench = Bench(blocks=8, budget=512)
    bench.add(0, prompt(60), max_tokens=4)
    bench.step()
    bench.add(1, prompt(100, 1000), max_tokens=4)  # does not fit beside 0
    bench.add(2, prompt(10, 2000), max_tokens=1)  # would fit, but came later
    bench.step()
    assert bench.scheduler.running == 1
    bench.drain()
    order = sorted(bench.finished, key=lambda place: place[0])
    assert len(order) == 3


def test_admission_does_not_prefer_what_is_cached() -> None:
    bench = Bench(max_num_seqs=1)
    bench.add(0, prompt(64), max_tokens=1)
    bench.drain()
    bench.add(1, prompt(64, 500), max_tokens=1)
    bench.add(2, prompt(64), max_tokens=1)  # wholly cached
    assert bench.step().sequences[0].token_ids[0] == 500


# ---- reuse


def test_a_second_request_computes_only_what_is_new() -> None:
    bench = Bench()
    bench.add(0, prompt(55), max_tokens=1)
    bench.drain()
    work = bench.add(1, [*prompt(50), 900, 901, 902], max_tokens=1)
    plan = bench.step()
    assert bench.rows(plan) == [(50, 3)]
    assert plan.moves[0].count == 2  # the sealed partial tail is reused token by token
    assert bench.texts[1, 0] == expected_text([*prompt(50), 900, 901, 902], 1)
    assert work.cached_tokens == 50
    assert work.computed_prompt_tokens == 3


def test_one_token_is_always_computed() -> None:
    bench = Bench()
    for handle in range(2):
        work = bench.add(handle, prompt(48), max_tokens=1)
        bench.drain()
    assert bench.rows(bench.plans[-1]) == [(47, 1)]
    assert work.cached_tokens == 47
    assert bench.texts[1, 0] == bench.texts[0, 0]


def test_usage_adds_up_for_every_request() -> None:
    bench, rng = Bench(blocks=400), random.Random(5)
    for handle in range(40):
        bench.add(handle, prompt(rng.randrange(1, 120), rng.choice((0, 0, 500))), max_tokens=3)
        bench.step()
    bench.drain()
    assert bench.scheduler.preemptions == 0
    for work in bench.works.values():
        assert work.cached_tokens + work.computed_prompt_tokens == work.prompt_length
    prompt_rows = bench.runner.rows - sum(len(text) - 1 for text in bench.texts.values())
    assert prompt_rows == sum(work.computed_prompt_tokens for work in bench.works.values())


def test_requests_that_arrive_together_compute_a_shared_prefix_once() -> None:
    bench = Bench(budget=512)
    shared = prompt(160)
    for handle in range(6):
        bench.add(handle, [*shared, 900 + handle, 950 + handle], max_tokens=3)
    bench.add(6, prompt(20, 500), max_tokens=3)  # another prefix behind the followers
    first = bench.step()
    assert bench.rows(first) == [(0, 162), (0, 20)]
    second = bench.step()
    assert bench.rows(second)[2:] == [(160, 2)] * 5
    bench.drain()
    prompts = 162 + 20 + 5 * 2
    assert bench.runner.rows == prompts + 7 * 2
    for handle in range(6):
        assert bench.texts[handle, 0] == expected_text([*shared, 900 + handle, 950 + handle], 3)


def test_a_follower_goes_on_as_soon_as_the_shared_blocks_are_there() -> None:
    """Also when the last row of the last shared block comes alone, after a chunk off the grid."""
    bench = Bench(budget=16)
    bench.add(0, prompt(2, 500), max_tokens=100)
    bench.step()
    bench.add(1, prompt(48), max_tokens=100)
    bench.add(2, [*prompt(48), 900, 901], max_tokens=1)
    while (1, 0) not in bench.texts:
        assert bench.works[2].started is False
        bench.step()
    assert bench.rows(bench.plans[-1]) == [(7, 1), (47, 1)]
    bench.step()
    assert bench.texts[2, 0] == expected_text([*prompt(48), 900, 901], 1)
    assert bench.works[2].cached_tokens == 48


def test_the_first_follower_leads_when_the_leader_ends() -> None:
    bench = Bench(budget=32)
    for handle in range(3):
        bench.add(handle, [*prompt(100), 900 + handle], max_tokens=2)
    assert len(bench.step().sequences) == 1
    bench.scheduler.abort(0)
    plan = bench.step()
    assert bench.rows(plan) == [(32, 32)]  # goes on where the leader stopped
    bench.drain()
    assert bench.runner.rows == (101 + 1) + (5 + 1)  # the open tail of 1 is not shared yet
    assert bench.texts[1, 0] == expected_text([*prompt(100), 901], 2)
    assert bench.texts[2, 0] == expected_text([*prompt(100), 902], 2)


def test_a_request_without_cache_never_leads_and_leaves_nothing() -> None:
    bench = Bench(budget=512)
    bench.add(0, prompt(60), use_cache=False, max_tokens=3)
    bench.add(1, prompt(60), max_tokens=3)
    assert bench.rows(bench.step()) == [(0, 60), (0, 60)]
    bench.drain()
    assert bench.texts[0, 0] == bench.texts[1, 0] == expected_text(prompt(60), 3)
    spans = [bench.rows(plan) for plan in bench.plans]
    assert [(0, 61) in rows for rows in spans] == [False, True, False]
    assert [(0, 62) in rows for rows in spans] == [False, False, True]


def test_a_request_without_cache_alone_is_not_published() -> None:
    bench = Bench()
    bench.add(0, prompt(60), use_cache=False, max_tokens=2)
    bench.drain()
    assert bench.cache.lookup(prompt(60)).cached_tokens == 0
    assert bench.cache.stats().free_blocks == (64,)


def test_namespaces_do_not_share() -> None:
    bench = Bench()
    bench.add(0, prompt(40), namespace="a", max_tokens=1)
    bench.drain()
    work = bench.add(1, prompt(40), namespace="b", max_tokens=1)
    bench.drain()
    assert work.cached_tokens == 0


def test_prompt_log_probabilities_skip_nothing_but_still_publish() -> None:
    bench = Bench(budget=32)
    bench.add(0, prompt(40), max_tokens=1)
    bench.drain()
    bench.add(1, prompt(40), max_tokens=1, prompt_logprobs=0)
    assert bench.rows(bench.step()) == [(0, 32)]
    bench.step()
    targets = [token for plan in bench.plans[-2:] for token in plan.sequences[0].targets]
    assert targets == [*prompt(40)[1:], -1]
    assert bench.cache.lookup(prompt(41)).cached_tokens == 40


# ---- preemption


def test_preemption_geometry_lets_both_requests_finish_unchanged() -> None:
    """34-token prompts, 35 new tokens, block 16, 7 blocks (LMCache issue 1969)."""
    bench = Bench(blocks=7, budget=512)
    for handle in range(2):
        bench.add(handle, prompt(34, 100 * handle), max_tokens=35)
    bench.drain()
    assert bench.scheduler.preemptions > 0
    for handle in range(2):
        assert bench.texts[handle, 0] == expected_text(prompt(34, 100 * handle), 35)
        assert bench.finished[handle, 0] == "length"


def test_a_preempted_sequence_returns_under_another_name() -> None:
    """So that a result that comes back late finds nobody."""
    bench = Bench(blocks=7, budget=512)
    for handle in range(2):
        bench.add(handle, prompt(34, 100 * handle), max_tokens=35)
    bench.drain()
    reached: dict[int, int] = {}
    for plan in bench.plans:
        for sequence in plan.sequences:
            [(first, count)] = sequence.spans
            assert reached.get(sequence.sequence_id, first) == first
            reached[sequence.sequence_id] = first + count
    assert len(reached) == 2 + bench.scheduler.preemptions


def test_prompt_log_probabilities_survive_preemption() -> None:
    bench = Bench(blocks=23, budget=17)
    bench.add(0, prompt(46, 500), max_tokens=30)
    for _ in range(3):
        bench.step()
    work = bench.add(1, prompt(300), max_tokens=1, prompt_logprobs=0)
    for _ in range(18):
        bench.step()
    assert len(work.prompt_logprobs) == 288
    bench.drain()
    assert bench.scheduler.preemptions == 1
    assert [row.token_id for row in work.prompt_logprobs] == prompt(300)[1:]


def test_a_block_stays_free_for_each_running_sequence() -> None:
    """Admission into the last block would be undone by the next token of those that run."""
    for blocks, admitted in ((9, 2), (8, 1)):
        bench = Bench(blocks=blocks)
        bench.add(0, prompt(48), max_tokens=10)
        bench.step()
        bench.add(1, prompt(60, 500), max_tokens=4)
        bench.step()
        assert bench.scheduler.running == admitted
        bench.drain()
        assert bench.scheduler.preemptions == 0


def test_the_latest_arrival_gives_way() -> None:
    bench = Bench(blocks=6, budget=512)
    for handle in range(3):
        bench.add(handle, prompt(30, 100 * handle), max_tokens=30)
    ends: list[int] = []
    while bench.step() or bench.scheduler.has_work:
        ends += [handle for handle, _ in bench.finished if handle not in ends]
    assert ends == [0, 1, 2]
    assert bench.scheduler.preemptions > 0


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("groups", [(KvGroup((0,)),), (KvGroup((0,)), KvGroup((1,), "window", 20))])
def test_nothing_gets_stuck(groups: tuple[KvGroup, ...], caching: bool) -> None:
    _nothing_gets_stuck(range(50), groups, caching)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.skipif("KVEIK_SOAK" not in os.environ, reason="a long suite: make soak")
def test_nothing_gets_stuck_for_long() -> None:
    groups = (KvGroup((0,)), KvGroup((1,), "window", 20))
    for seeds in range(0, 100_000, 1000):
        _nothing_gets_stuck(range(seeds, seeds + 1000), groups[: 1 + seeds % 2000 // 1000], True)


def _nothing_gets_stuck(seeds: range, groups: tuple[KvGroup, ...], caching: bool) -> None:
    """Random pools and requests; some need more than half of the pool, all of it included."""
    for seed in seeds:
        rng = random.Random(seed)
        blocks = rng.randrange(4, 20)
        bench = Bench(
            blocks=blocks,
            budget=rng.choice((16, 33, 64, 512)),
            max_num_seqs=rng.choice((1, 2, 5, 16)),
            groups=groups,
            caching=caching,
        )
        capacity = bench.cache.capacity_tokens()
        expected = {}
        for handle in range(rng.randrange(2, 9)):
            length = rng.randrange(1, capacity)
            tokens = prompt(length, rng.choice((0, 0, 0, 300)))
            tokens[-1] += rng.choice((0, 0, 500))
            room = capacity + 1 - length
            count = room if rng.random() < 0.3 else rng.randrange(1, min(room, 40) + 1)
            n = rng.choice((1, 1, 1, 3))
            uncached = rng.random() < 0.1 and count < 20
            bench.add(handle, tokens, max_tokens=count, n=n, use_cache=not uncached)
            for choice in range(n):
                expected[handle, choice] = (tokens, count, choice)
            for _ in range(rng.randrange(3)):
                bench.step()
        bench.drain()
        assert not bench.failures
        for place, (tokens, count, choice) in expected.items():
            assert bench.texts[place] == expected_text(tokens, count, choice=choice), (seed, place)
        assert bench.cache.stats().leased_blocks == (0,) * len(groups)


# ---- several choices


def test_choices_share_the_prompt_and_equal_separate_requests() -> None:
    bench = Bench(budget=64)
    bench.add(0, prompt(100), n=4, max_tokens=6)
    bench.drain()
    for choice in range(4):
        assert bench.texts[0, choice] == expected_text(prompt(100), 6, choice=choice)
    assert bench.runner.rows == 100 + 4 * 5
    assert bench.works[0].usage().completion_tokens == 24
    assert bench.works[0].usage().prompt_tokens == 100
    lengths = [len(plan.sequences[0].samples) for plan in bench.plans[:2]]
    assert lengths == [0, 4]


def test_a_choice_without_a_block_for_its_fork_computes_the_same_later() -> None:
    bench = Bench(blocks=4, budget=512)
    bench.add(0, prompt(40), n=5, max_tokens=10)
    bench.drain()
    for choice in range(5):
        assert bench.texts[0, choice] == expected_text(prompt(40), 10, choice=choice)


def test_more_choices_than_seats() -> None:
    bench = Bench(max_num_seqs=2)
    bench.add(0, prompt(20), n=7, max_tokens=5)
    bench.drain()
    assert set(bench.finished) == {(0, choice) for choice in range(7)}
    assert all(
        bench.texts[0, choice] == expected_text(prompt(20), 5, choice=choice) for choice in range(7)
    )


def test_one_token_per_choice_forks_nothing_that_lives() -> None:
    bench = Bench()
    bench.add(0, prompt(20), n=3, max_tokens=1)
    bench.drain()
    assert len(bench.finished) == 3
    assert bench.cache.stats().leased_blocks == (0,)


# ---- endings


def test_end_ids_stop_ids_and_their_reasons() -> None:
    text = expected_text(prompt(10), 6)
    bench = Bench(end_ids=(text[3],))
    bench.add(0, prompt(10), max_tokens=6)
    bench.add(1, prompt(10), max_tokens=6, ignore_eos=True)
    bench.add(2, prompt(10), max_tokens=6, stop_token_ids=(text[1],))
    bench.drain()
    assert bench.texts[0, 0] == text[:4]
    assert bench.texts[1, 0] == text
    assert bench.texts[2, 0] == text[:2]
    assert bench.finished == {(0, 0): "stop", (1, 0): "length", (2, 0): "stop"}


def test_ends_are_banned_before_min_tokens() -> None:
    bench = Bench(end_ids=(7,))
    bench.add(0, prompt(10), max_tokens=4, min_tokens=2, stop_token_ids=(9, 8))
    bench.drain()
    banned = [plan.sequences[0].samples[0].banned for plan in bench.plans]
    assert banned == [(7, 8, 9), (7, 8, 9), (), ()]


def test_random_numbers_are_keyed_by_seed_choice_and_position() -> None:
    bench = Bench()
    request = Request(tuple(prompt(5)), SamplingParams(n=2, max_tokens=2), first_choice=10)
    bench.scheduler.add(0, request, seed=77)
    bench.drain()
    keys = [
        (sample.seed, sample.choice, sample.position)
        for plan in bench.plans
        for sequence in plan.sequences
        for sample in sequence.samples
    ]
    assert keys == [(77, 10, 5), (77, 11, 5), (77, 10, 6), (77, 11, 6)]


def test_penalties_see_prompt_and_outputs_and_nothing_is_sent_without_them() -> None:
    bench = Bench()
    bench.add(0, prompt(5), max_tokens=2, repetition_penalty=1.2)
    bench.add(1, prompt(5, 50), max_tokens=2, presence_penalty=0.5)
    bench.add(2, prompt(5, 80), max_tokens=2)
    bench.drain()
    last = [sequence.samples[0] for sequence in bench.plans[-1].sequences]
    assert last[0].prompt_ids == tuple(prompt(5))
    assert last[0].output_ids == tuple(bench.texts[0, 0][:1])
    assert last[1].prompt_ids == ()
    assert last[1].output_ids == tuple(bench.texts[1, 0][:1])
    assert last[2].prompt_ids == last[2].output_ids == ()


def test_the_last_sampled_token_is_not_committed() -> None:
    bench = Bench()
    bench.add(0, prompt(20), max_tokens=4)
    bench.drain()
    whole = [*prompt(20), *bench.texts[0, 0]]
    assert bench.cache.lookup([*whole, 1, 2]).cached_tokens == 23


# ---- refusals


@pytest.mark.parametrize(
    ("length", "params", "error"),
    [
        (0, {}, InvalidRequest),
        (1000, {"max_tokens": 25}, ContextLengthExceeded),
        (1024, {"max_tokens": None}, ContextLengthExceeded),
        (64, {"max_tokens": 2}, PromptTooLarge),
        (65, {"max_tokens": None}, PromptTooLarge),
        (10, {"max_tokens": 3, "min_tokens": 4}, InvalidRequest),
        (10, {"max_tokens": 0, "min_tokens": 1}, InvalidRequest),
        (65, {"max_tokens": 0}, PromptTooLarge),
        (1025, {"max_tokens": 0}, ContextLengthExceeded),
    ],
)
def test_what_cannot_finish_is_refused_at_once(
    length: int, params: dict[str, int], error: type[Exception]
) -> None:
    bench = Bench(blocks=4)
    with pytest.raises(error) as caught:
        bench.add(0, prompt(length), **params)
    assert caught.type is error
    assert not bench.scheduler.has_work
    if error is ContextLengthExceeded:
        assert str(length) in str(caught.value)
        assert "1024" in str(caught.value)


def test_a_request_that_fills_the_pool_to_the_last_slot_is_served() -> None:
    bench = Bench(blocks=4)
    bench.add(0, prompt(30), max_tokens=35)
    bench.add(1, prompt(64, 100), max_tokens=1)
    assert bench.add(2, prompt(30), max_tokens=None).max_tokens == 35
    bench.drain()
    assert [len(text) for text in bench.texts.values()] == [35, 1, 35] or not bench.failures
    assert bench.texts[0, 0] == expected_text(prompt(30), 35)
    assert bench.texts[1, 0] == expected_text(prompt(64, 100), 1)


# ---- aborts and faults


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("between", [False, True])
def test_abort_at_any_moment_frees_the_blocks_and_keeps_the_prefix(
    steps: int, between: bool
) -> None:
    """In the queue, in prefill, in decode; between steps and while one is running."""
    bench = Bench(budget=32, blocks=30)
    other = bench.add(1, prompt(20, 500), max_tokens=12)
    bench.add(0, prompt(70), max_tokens=8, n=2)
    for _ in range(steps):
        bench.step()
    if between:
        plan = bench.plan()
        bench.scheduler.abort(0)
        bench.cache.check()
        bench.finish(plan)
    else:
        bench.scheduler.abort(0)
        bench.cache.check()
    generated = len(bench.texts.get((0, 0), []))
    bench.drain()
    assert len(bench.texts.get((0, 0), [])) == generated
    assert bench.texts[1, 0] == expected_text(prompt(20, 500), 12)
    assert other.usage().completion_tokens == 12
    stats = bench.cache.stats()
    assert stats.leased_blocks == (0,)
    assert stats.free_blocks[0] + stats.idle_blocks[0] == 30
    computed = bench.works[0].computed_prompt_tokens
    assert (computed > 0) == (steps > 1)
    kept = bench.cache.lookup(prompt(71)).cached_tokens
    assert kept >= computed - computed % BLOCK


def test_aborts_at_random_moments_leak_nothing() -> None:
    for seed in range(30):
        rng = random.Random(seed)
        bench = Bench(blocks=rng.randrange(8, 16), budget=rng.choice((16, 64)), max_num_seqs=4)
        for handle in range(8):
            tokens = prompt(rng.randrange(1, 90), rng.choice((0, 300)))
            bench.add(handle, tokens, max_tokens=rng.randrange(1, 20), n=rng.choice((1, 2)))
        victims = rng.sample(range(8), 5)
        for _ in range(200):
            plan = bench.plan()
            if rng.random() < 0.2 and victims:
                bench.scheduler.abort(victims.pop())
            if plan is not None:
                bench.finish(plan)
        bench.drain()
        stats = bench.cache.stats()
        assert stats.leased_blocks == (0,)
        assert stats.free_blocks[0] + stats.idle_blocks[0] == bench.blocks


def test_a_stopped_choice_ends_alone() -> None:
    bench = Bench()
    bench.add(0, prompt(20), n=3, max_tokens=6)
    bench.step()
    bench.step()
    bench.scheduler.finish_choice(0, 1)
    bench.scheduler.finish_choice(0, 99)
    bench.drain()
    assert [len(bench.texts[0, choice]) for choice in range(3)] == [6, 2, 6]
    assert not bench.scheduler.has_work


def test_a_faulty_sequence_ends_its_request_and_no_other() -> None:
    bench = Bench()
    for handle in range(3):
        bench.add(handle, prompt(30, 100 * handle), max_tokens=6)
    bench.step()
    bench.runner.faulty = lambda plan: (
        plan.samples[0].position == 32 and plan.token_ids[0] == (bench.texts[1, 0][-1])
    )
    bench.step()
    bench.step()
    bench.drain()
    assert bench.failures == {1: "planted fault"}
    for handle in (0, 2):
        assert bench.texts[handle, 0] == expected_text(prompt(30, 100 * handle), 6)


def test_a_result_without_an_answer_fails_only_that_request() -> None:
    bench = Bench()
    bench.add(0, prompt(10), max_tokens=2)
    bench.add(1, prompt(10, 50), max_tokens=2)
    plan = bench.plan()
    result = bench.runner.run(plan)
    outputs = bench.scheduler.apply(StepResult(plan.step_id, result.sequences[:1]))
    assert [type(output).__name__ for output in outputs] == [
        "PromptComputed",
        "TokenAccepted",
        "WorkFailed",
    ]
    bench.cache.check()


def test_results_come_in_turn() -> None:
    bench = Bench()
    bench.add(0, prompt(10), max_tokens=2)
    plan = bench.plan()
    with pytest.raises(RuntimeError, match="was not applied"):
        bench.scheduler.plan_step()
    with pytest.raises(RuntimeError, match="not the one"):
        bench.scheduler.apply(StepResult(plan.step_id + 1, ()))
