"""Forgotten middles on a real (tiny, random) model: the same bits however they are computed, and
the logits of an independent version in torch.

The truth keeps keys before RoPE, each in the order in which it was computed and with the company
that it had then, and turns them for every query to the positions 0 .. n-1 that are left when the
gap has closed. It knows no block, no shift and no home.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grid
import pytest
import tiny
from talk import encode, shortened, text
from test_stream_truth import ROPES, kernels_here, rotate

from kveik.cache.directive import Directive
from kveik.engine.forgetting import forget_words, going_on
from kveik.engine.parts import EngineParts
from kveik.engine.past import Kept, Past, marked
from kveik.errors import UnsupportedFeature

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Step:
    """A turn: what the user says, what is forgotten with it, what stands as the answer."""

    said: list[int]
    answer: list[int]
    forget: Mapping[str, Any] | None = None


SCRIPT = (
    Step(grid.prompt(23, 1), grid.prompt(9, 2)),
    Step(grid.prompt(40, 3), grid.prompt(17, 4)),
    Step(grid.prompt(21, 5), grid.prompt(12, 6)),
    Step(grid.prompt(14, 7), grid.prompt(15, 8), {"turns": [2]}),
    Step(grid.prompt(33, 9), grid.prompt(8, 10)),
    Step(grid.prompt(12, 11), grid.prompt(8, 12), {"turns": [1, 4]}),
    Step(grid.prompt(5, 13), [], None),
)


@dataclass
class Told:
    """A step as it is asked: ids of its prompt, how it is joined, and the pieces it comes from."""

    ids: tuple[int, ...]
    kept: Kept | None
    longer: list[tuple[int, ...]]  # the prompts from which it was made, the longest first

    def request(self, **params: Any) -> Any:
        joined = self.kept.joined if self.kept is not None else None
        return replace(grid.request(self.ids, **params), joined=joined)


def told(script: Sequence[Step] = SCRIPT) -> list[Told]:
    steps: list[Told] = []
    messages: list[Any] = [{"role": "system", "content": text(grid.prompt(6, 99))}]
    past = Past((), (), 0)
    for step in script:
        new = {"role": "user", "content": text(step.said)}
        kept, longer = None, []
        if past.messages:
            wanted = None if step.forget is None else forget_words(step.forget)
            going = going_on(past, [new], wanted, "forget")
            messages = going.messages
            longer = [encode([*gone.of(past.messages), new]).token_ids for gone in going.gaps[:-1]]
            longer.insert(0, encode([*past.messages, new]).token_ids)
            if going.changes:
                kept = going.kept(encode, encode(messages).token_ids, Directive(session="s"))
        else:
            messages = [*messages, new]
        ids = encode(messages).token_ids
        steps.append(Told(ids, kept, longer))
        said = (*messages, {"role": "assistant", "content": text(step.answer)})
        known = (kept.marks, kept.turns) if kept is not None else (past.marks, past.turns)
        marks, turns = marked(said, *known, ())
        joined, forgotten = (kept.joined, kept.forgotten) if kept is not None else (None, 0)
        past = Past(said, marks, turns, ids, joined, forgotten)
    return steps


STEPS = told()
GAPS = [number for number, one in enumerate(STEPS) if one.kept is not None and one.kept.joined]


def test_the_script_forgets_in_what_is_left_of_a_gap() -> None:
    assert GAPS == [3, 4, 5, 6]
    assert [STEPS[one].kept.joined.depth for one in GAPS] == [1, 1, 2, 2]  # type: ignore[union-attr]


@pytest.fixture(scope="module", params=["reference", "auto"])
def parts(tiny_folder: Callable[..., Path], request: pytest.FixtureRequest) -> EngineParts:
    return grid.parts_of(str(tiny_folder()), kernels=request.param)


@pytest.fixture(scope="module")
def cold(parts: EngineParts) -> list[Any]:
    """Every step in an engine of its own, which makes all that it needs."""
    return [grid.run(grid.engine(parts), [one.request()])[0] for one in STEPS]


def test_a_session_step_by_step_has_the_bits_of_every_step_alone(
    parts: EngineParts, cold: list[Any]
) -> None:
    subject = grid.engine(parts)
    for step, alone in zip(STEPS, cold, strict=True):
        [warm] = grid.run(subject, [step.request()])
        assert warm.chosen == alone.chosen
        [again] = grid.run(subject, [step.request()])
        assert again.usage is not None
        assert again.usage.computed_prompt_tokens == 1
        assert again.chosen == alone.chosen


@pytest.mark.parametrize(
    "config", [{"max_num_batched_tokens": 16}, {"max_num_batched_tokens": 33}, {"blocks": 34}]
)
def test_bits_do_not_depend_on_chunks_company_or_room(
    parts: EngineParts, cold: list[Any], config: dict[str, int]
) -> None:
    for number in (3, 5):
        subject = grid.engine(parts, **config)
        company = [grid.request(grid.prompt(length, length)) for length in (34, 20, 61)]
        others = [STEPS[other].request() for other in (6, 2, 4)]
        runs = grid.run(
            subject, [company[0], others[0], STEPS[number].request(), *others, *company], apart=1
        )
        assert runs[2].chosen == cold[number].chosen
        assert runs[1].chosen == cold[6].chosen


def test_choices_are_requests_of_their_own(parts: EngineParts) -> None:
    [three] = grid.run(grid.engine(parts), [STEPS[5].request(n=3)])
    alone = [
        grid.run(grid.engine(parts), [STEPS[5].request(first_choice=k)])[0].chosen[0]
        for k in range(3)
    ]
    assert three.chosen == alone


# --- against torch


class Rows:
    """What the truth computes: tokens with the rows that each sees, at positions 0, 1, 2 ..."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.sees: list[list[int]] = []  # rows, in the order of their positions; itself the last

    def compute(self, entries: Sequence[tuple[int, int | None]]) -> list[tuple[int, int]]:
        """A row for every token that has none."""
        done: list[tuple[int, int]] = []
        for token, row in entries:
            if row is None:
                row = len(self.tokens)
                self.tokens.append(token)
                self.sees.append([*(one for _, one in done), row])
            done.append((token, row))
        return done


def logits(folder: Path, rows: Rows) -> Any:
    """[rows, vocabulary]; all rows of a layer at once, which see rows before them only."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    most = max(map(len, rows.sees))
    members = torch.tensor([seen + [0] * (most - len(seen)) for seen in rows.sees])
    there = torch.arange(most) < torch.tensor([[len(seen)] for seen in rows.sees])
    with torch.no_grad():
        x = model.model.embed_tokens(torch.tensor(rows.tokens))
        cos, sin = (one[0] for one in model.model.rotary_emb(x[None], torch.arange(most)[None]))
        for layer in model.model.layers:
            x = x + attend(layer.self_attn, layer.input_layernorm(x), members, there, cos, sin)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return model.lm_head(model.model.norm(x))


def attend(block: Any, x: Any, members: Any, there: Any, cos: Any, sin: Any) -> Any:
    """Keys are turned for every row to where that row sees them."""
    rows, width = len(x), block.head_dim
    q, k, v = (one(x).view(rows, -1, width) for one in (block.q_proj, block.k_proj, block.v_proj))
    if hasattr(block, "q_norm"):
        q, k = block.q_norm(q), block.k_norm(k)
    own = there.sum(dim=1) - 1
    q = rotate(q, cos[own][:, None], sin[own][:, None])
    keys = rotate(k[members], cos[None, :, None], sin[None, :, None])
    share = q.shape[1] // k.shape[1]
    keys, values = (one.repeat_interleave(share, dim=2) for one in (keys, v[members]))
    scores = torch.einsum("thd,tchd->thc", q, keys) * width**-0.5
    scores = scores.masked_fill(~there[:, None], float("-inf"))
    seen = torch.einsum("thc,tchd->thd", scores.softmax(dim=-1), values)
    return block.o_proj(seen.reshape(rows, -1))


def expected(folder: Path, answers: Sequence[Sequence[int]]) -> list[Any]:
    """Log-probabilities of what was generated in every step of the script."""
    rows, places = Rows(), []
    entries: list[tuple[int, int | None]] = []
    for step, asked, answer in zip(SCRIPT, STEPS, answers, strict=True):
        if asked.longer:
            # the answer that stands in the conversation, but for its last token
            longest = asked.longer[0]
            settled = len(entries) - 1
            entries = [*entries[:settled], *((one, None) for one in longest[settled:])]
            for shorter in [*asked.longer[1:], asked.ids]:
                entries = shortened(entries, shorter)
        else:
            entries = [(token, None) for token in asked.ids]
        prompt = rows.compute(entries)
        generated = rows.compute([*prompt, *((token, None) for token in answer)])
        places.append([row for _, row in generated[len(prompt) - 1 : -1]])
        entries = list(rows.compute([*prompt, *((token, None) for token in step.answer)]))
    found = torch.log_softmax(logits(folder, rows), dim=-1)
    return [found[place] for place in places]


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("kernels", kernels_here())
def test_logits_equal_an_independent_version(
    tiny_folder: Callable[..., Path], rope: str, kernels: str
) -> None:
    folder = tiny_folder(**ROPES[rope])
    subject = grid.engine(
        grid.parts_of(str(folder), kernels=kernels, dtype="float32", kv_dtype="float32")
    )
    runs = [grid.run(subject, [one.request()])[0] for one in STEPS]
    answers = [[one.token_id for one in run.chosen[0]] for run in runs]
    wanted = expected(folder, answers)
    for run, rows in zip(runs, wanted, strict=True):
        for row, one in zip(rows, run.chosen[0], strict=True):
            for token, logprob in (*one.top, (one.token_id, one.logprob)):
                assert abs(logprob - float(row[token])) < TOLERANCE
    fresh = grid.run(grid.engine(subject._parts), [grid.request(STEPS[3].ids)])[0]
    nearly = [one.logprob for one in fresh.chosen[0]][:1] != [runs[3].chosen[0][0].logprob]
    assert nearly, "what follows still carries what was forgotten"


# --- where it is not defined


@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_models_without_shift_or_with_windows_refuse(tmp_path: Path, family: str) -> None:
    folder = tiny.tiny_transformers(tmp_path / family, family)
    subject = grid.engine(grid.parts_of(str(folder), kernels="reference"))
    with pytest.raises(UnsupportedFeature, match=r"^forget: .*another session") as caught:
        grid.run(subject, [STEPS[3].request()])
    assert caught.value.param == "forget"
