"""Modules on a real (tiny, random) model: deterministic to the bit, and equal to an independent
computation with explicit position ids and a block attention mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grid
import pytest
import tiny
from joined_toy import Builder

from kveik.cache.join import JoinedPrompt
from kveik.engine.parts import EngineParts
from kveik.errors import UnsupportedFeature

LEAD = grid.prompt(5, 1)
A, B, C = grid.prompt(37, 2), grid.prompt(64, 3), grid.prompt(18, 4)
BLOCK = grid.BLOCK


def independent() -> Builder:
    built = Builder(LEAD).fresh(grid.prompt(6, 5)).module(B).fresh(grid.prompt(3, 6))
    return built.module(A).module(C).fresh(grid.prompt(9, 7))


def linked() -> Builder:
    built = Builder(LEAD).fresh(grid.prompt(6, 5))
    for text in (A, B, C):
        built.fresh(text[:BLOCK]).module(text, BLOCK)
    return built.fresh(grid.prompt(9, 7))


def gapped() -> Builder:
    return Builder(LEAD).gap(40).module(A).gap(7).fresh(B[:16]).module(B, 16).fresh(C)


def asked(built: Builder, **params: Any) -> Any:
    return replace(grid.request(built.tokens, **params), joined=built.prompt())


@pytest.fixture(scope="module", params=["reference", "auto"])
def parts(tiny_folder: Callable[..., Path], request: pytest.FixtureRequest) -> EngineParts:
    return grid.parts_of(str(tiny_folder()), kernels=request.param)


@pytest.mark.parametrize("build", [independent, linked, gapped])
def test_first_use_and_reuse_are_the_same_bits(
    parts: EngineParts, build: Callable[[], Builder]
) -> None:
    subject = grid.engine(parts)
    [first] = grid.run(subject, [asked(build())])
    [again] = grid.run(subject, [asked(build())])
    assert again.usage is not None
    assert again.usage.computed_prompt_tokens == 1
    assert again.chosen == first.chosen


@pytest.mark.parametrize("build", [independent, linked, gapped])
def test_bits_do_not_depend_on_chunks_company_or_room(
    parts: EngineParts, build: Callable[[], Builder]
) -> None:
    [alone] = grid.run(grid.engine(parts), [asked(build())])
    for config in ({"max_num_batched_tokens": 16}, {"max_num_batched_tokens": 33}, {"blocks": 28}):
        subject = grid.engine(parts, **config)
        company = [grid.request(grid.prompt(length, length)) for length in (34, 20, 61)]
        others = [asked(one()) for one in (linked, gapped, independent)]
        runs = grid.run(
            subject, [company[0], others[0], asked(build()), *others, *company], apart=1
        )
        assert runs[2].chosen == alone.chosen, config


def test_the_next_turn_is_the_same_with_and_without_its_recipe(parts: EngineParts) -> None:
    subject = grid.engine(parts)
    [first] = grid.run(subject, [asked(linked(), max_tokens=30)])
    turn = linked().fresh([one.token_id for one in first.chosen[0]]).fresh(grid.prompt(8, 9))
    [warm] = grid.run(subject, [asked(turn)])
    [cold] = grid.run(grid.engine(parts), [asked(turn)])
    assert warm.usage is not None
    assert warm.usage.computed_prompt_tokens == 8 + 1
    assert warm.chosen == cold.chosen


def test_choices_are_requests_of_their_own(parts: EngineParts) -> None:
    [three] = grid.run(grid.engine(parts), [asked(linked(), n=3)])
    alone = [
        grid.run(grid.engine(parts), [asked(linked(), first_choice=k)])[0].chosen[0]
        for k in range(3)
    ]
    assert three.chosen == alone


def test_a_prompt_without_modules_is_the_ordinary_one_to_the_bit(parts: EngineParts) -> None:
    """What `exact` joins, and what stands at its home behind the lead."""
    tokens = grid.prompt(75)
    [plain] = grid.run(grid.engine(parts), [grid.request(tokens)])
    whole = Builder(tokens[:9]).fresh(tokens[9:])
    [joined] = grid.run(grid.engine(parts), [asked(whole)])
    assert joined.chosen == plain.chosen


def truth(folder: Path, built: Builder, prompt: JoinedPrompt, answer: list[int]) -> Any:
    """Log-probabilities [len(answer), vocabulary] by transformers, in one forward pass.

    Every stretch of a unit is preceded by a private copy of what the unit holds before it; nobody
    but the stretch sees the copy."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokens: list[int] = []
    positions: list[int] = []
    sees: list[list[int]] = []  # of every row, the rows that it sees, itself included
    public: list[int] = []

    def append(token: int, position: int, visible: list[int]) -> int:
        row = len(tokens)
        tokens.append(token)
        positions.append(position)
        sees.append([*visible, row])
        return row

    for stretch in prompt.stretches:
        if stretch.unit < 0:
            for index in range(stretch.length):
                token = built.tokens[stretch.first + index]
                public.append(append(token, stretch.seen + index, public))
            continue
        own: list[int] = []
        start = stretch.seen - stretch.offset
        for index in range(stretch.offset + stretch.length):
            own.append(append(prompt.units[stretch.unit].tokens[index], start + index, own))
        public += own[stretch.offset :]
    for index, token in enumerate(answer):
        public.append(append(token, prompt.seen_end + index, public))
    mask = torch.full((len(tokens), len(tokens)), float("-inf"))
    for row, visible in enumerate(sees):
        mask[row, visible] = 0.0
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor([tokens]),
            position_ids=torch.tensor([positions]) + max(0, -min(positions)),
            attention_mask=mask[None, None],
            use_cache=False,
        ).logits[0]
    rows = public[-len(answer) - 1 : -1]
    return torch.log_softmax(logits.float(), dim=-1)[rows]


@pytest.mark.parametrize("build", [independent, linked, gapped])
def test_logits_equal_an_independent_computation(
    tiny_folder: Callable[..., Path], build: Callable[[], Builder]
) -> None:
    """On the numpy kernels, which compute in float32."""
    built, parts = build(), grid.parts_of(str(tiny_folder()), kernels="reference")
    [run] = grid.run(grid.engine(parts), [asked(built, max_tokens=12)])
    answer = [one.token_id for one in run.chosen[0]]
    expected = truth(tiny_folder(), built, built.prompt(), answer)
    plain = truth(tiny_folder(), built, Builder([]).fresh(built.tokens).prompt(), answer)
    assert abs(plain - expected).max() > 1e-2, "modules make a difference"
    for row, one in enumerate(run.chosen[0]):
        for token, logprob in (*one.top, (one.token_id, one.logprob)):
            assert logprob == pytest.approx(float(expected[row, token]), abs=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_models_without_shift_or_with_windows_refuse_modules(tmp_path: Path, family: str) -> None:
    folder = tiny.tiny_transformers(tmp_path / family, family)
    subject = grid.engine(grid.parts_of(str(folder), kernels="reference"))
    with pytest.raises(UnsupportedFeature, match="join them with exact") as caught:
        grid.run(subject, [asked(Builder(LEAD).fresh([7]).module(A[:8]).fresh([8]))])
    assert caught.value.param == "join"
