"""The counter-based generator and the rows made from sampling plans."""

from __future__ import annotations

from dataclasses import fields

from kveik.engine.plan import SampledToken, SamplingPlan, TokenLogprobs
from kveik.engine.sampler import draw_row, sampled_token, target_row, uniform
from kveik.kernels.ops import Sampled, SampleRow


def test_numbers_are_pinned() -> None:
    """A change of the generator changes every seeded text: it must be a decision."""
    assert uniform(0, 0, 0) == 0.156742553465558
    assert uniform(-(2**63), 3, 1_000_000) == 0.6315876905996621


def test_numbers_are_uniform_and_depend_on_every_key() -> None:
    numbers = [uniform(seed, choice, 7) for seed in range(100) for choice in range(100)]
    assert len(set(numbers)) == 10_000
    assert all(0.0 <= number < 1.0 for number in numbers)
    counts = [sum(k / 10 <= number < (k + 1) / 10 for number in numbers) for k in range(10)]
    chi_square = sum((count - 1000) ** 2 / 1000 for count in counts)
    assert chi_square < 27.9  # 99.9 % point of 9 degrees of freedom
    assert uniform(1, 2, 3) != uniform(1, 3, 2) != uniform(2, 1, 3)


def test_every_field_of_a_plan_reaches_its_row() -> None:
    plan = SamplingPlan(
        seed=5,
        choice=1,
        position=9,
        temperature=0.7,
        top_k=3,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        logit_bias=((4, 1.0),),
        banned=(2,),
        logprobs=4,
        prompt_ids=(1, 2),
        output_ids=(3,),
    )
    row = draw_row(6, plan)
    assert row.row == 6
    assert row.uniform == uniform(5, 1, 9)
    shared = {field.name for field in fields(SamplingPlan)} & set(SampleRow._fields)
    assert shared == {field.name for field in fields(SamplingPlan)} - {"seed", "choice", "position"}
    for name in shared:
        assert getattr(row, name) == getattr(plan, name), name
    assert row.target == -1
    assert target_row(2, 40, 5) == SampleRow(row=2, target=40, logprobs=5)


def test_log_probabilities_only_when_asked_for() -> None:
    sampled = Sampled(3, -0.5, 1, ((3, -0.5),))
    assert sampled_token(sampled, SamplingPlan(0, 0, 0)) == SampledToken(3, None)
    told = sampled_token(sampled, SamplingPlan(0, 0, 0, logprobs=1))
    assert told.logprobs == TokenLogprobs(3, -0.5, 1, ((3, -0.5),))
