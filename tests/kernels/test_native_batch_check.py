"""A native step refuses a batch whose integers name what is not there, before it touches memory.

Two sequences in one step: rows 0..2 see two segments, row 3 sees one; 8 blocks of 4 slots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from kveik.kernels.extension import native_extension
from kveik.kernels.ops import AttentionSpec, Batch, GroupBatch, KvSpec, RopeSpec

if native_extension()[0] is None:
    pytest.skip("the native extension is not built", allow_module_level=True)

from kveik.kernels.native import native_ops

OPS = native_ops("portable", 2)
WIDTH, VOCABULARY, LENGTH = 8, 6, 20
KV = KvSpec(2, 8, 4, 1, WIDTH)
SPEC = AttentionSpec(1, 1, WIDTH, 0.5, RopeSpec((1.0, 0.1)))
FAR = 2**53


@dataclass
class Step:
    """A recorded forward pass over two groups, and arenas for it."""

    run: Callable[[Batch, Any], Any]
    arenas: list[Any]

    def bits(self) -> list[bytes]:
        return [np.asarray(p).tobytes() for a in self.arenas for p in (a.keys, a.values)]


@pytest.fixture
def step() -> Step:
    rng = np.random.default_rng(0)

    def pack(rows: int, kind: Any) -> Any:
        return OPS.pack_weight(rng.standard_normal((rows, WIDTH), np.float32), kind, None)

    table, places = pack(VOCABULARY, "embedding"), pack(LENGTH, "embedding")
    head = pack(VOCABULARY, "linear")

    def forward(batch: Batch, arenas: Any) -> Any:
        x = OPS.embed_add(OPS.embed(table, batch.token_ids), places, batch.positions)
        for group, arena in zip(batch.groups, arenas, strict=True):
            for layer in range(KV.num_layers):
                OPS.rope_write_kv(x, x, arena, layer, group, SPEC)
                x = OPS.paged_attention(x, arena, layer, group, SPEC)
        return OPS.logits(OPS.take_rows(x, batch.logit_rows), head)

    return Step(OPS.capture(forward, 4), [OPS.allocate_kv(KV), OPS.allocate_kv(KV)])


def ids(*values: Any) -> np.ndarray:
    return np.array(values, np.int64)


def group_batch() -> GroupBatch:
    return GroupBatch(
        slots=ids(8, 9, 10, 28),
        key_positions=ids(4, 5, 6, 0),
        spans=ids((0, 3, 0, 2), (3, 1, 2, 1)),
        segments=ids((0, 1, 0), (1, 1, 4), (2, 1, 0)),
        blocks=ids(5, 2, 7),
        windows=ids(
            (4, 0, -1), (4, 0, 0),  # sees nothing of the first segment
            (5, 0, -1), (5, 0, 1),
            (6, 0, -1), (6, 0, 2),
            (0, 0, 0),
        ),
        block_size=4,
    )  # fmt: skip


def right_batch() -> Batch:
    return Batch(ids(0, 5, 1, 2), ids(4, 5, 6, 0), ids(2, 3), (group_batch(), group_batch()))


def test_a_right_batch_runs(step: Step) -> None:
    assert np.isfinite(step.run(right_batch(), step.arenas)).all()


def test_the_last_ones_that_exist_are_right(step: Step) -> None:
    batch, group = right_batch(), group_batch()
    batch.token_ids[:], batch.positions[:] = VOCABULARY - 1, LENGTH - 1
    group.slots[3], group.blocks[2] = 31, 7
    group.windows[6] = FAR, 0, 3
    group.segments[2, 2], group.key_positions[0] = -FAR, -FAR
    step.run(replace(batch, groups=(group, group)), step.arenas)


@pytest.mark.parametrize(
    ("field", "index", "value", "message"),
    [
        ("token_ids", 1, VOCABULARY, r"token_ids[1] = 6 is outside 0 .. 5"),
        ("positions", 3, -1, r"positions[3] = -1 is outside 0 .. 19"),
        ("logit_rows", 1, 4, r"logit_rows[1] = 4 is outside 0 .. 3"),
    ],
)
def test_a_wrong_id_is_named(step: Step, field: str, index: int, value: int, message: str) -> None:
    batch = right_batch()
    getattr(batch, field)[index] = value
    refused(step, batch, IndexError, message)


@pytest.mark.parametrize(
    ("field", "index", "value", "message"),
    [
        ("slots", 2, 32, "slots[2] = 32 is outside 0 .. 31"),
        ("slots", 0, -1, "slots[0] = -1 is outside 0 .. 31"),
        ("key_positions", 1, FAR + 1, f"key_positions[1] = {FAR + 1} is outside -{FAR} .. {FAR}"),
        ("key_positions", 1, -(2**63), f"key_positions[1] = {-(2**63)} is outside -{FAR} .. {FAR}"),
        ("spans", (1, 0), 4, "spans[1].first_row = 4 is outside 0 .. 3"),
        ("spans", (0, 0), -1, "spans[0].first_row = -1 is outside 0 .. 1"),
        ("spans", (0, 1), 5, "spans[0].rows = 5 is outside 0 .. 4"),
        ("spans", (0, 1), -3, "spans[0].rows = -3 is outside 0 .. 4"),
        ("spans", (1, 2), 3, "spans[1].first_segment = 3 is outside 0 .. 2"),
        ("spans", (0, 2), -1, "spans[0].first_segment = -1 is outside 0 .. 1"),
        ("spans", (0, 3), 4, "spans[0].segments = 4 is outside 0 .. 3"),
        ("spans", (0, 3), -2, "spans[0].segments = -2 is outside 0 .. 3"),
        ("segments", (2, 0), 3, "segments[2].first_block = 3 is outside 0 .. 2"),
        ("segments", (0, 0), -1, "segments[0].first_block = -1 is outside 0 .. 2"),
        ("segments", (1, 1), 4, "segments[1].blocks = 4 is outside 0 .. 3"),
        ("segments", (1, 1), -1, "segments[1].blocks = -1 is outside 0 .. 3"),
        ("segments", (2, 2), FAR + 1, f"segments[2].home = {FAR + 1} is outside -{FAR} .. {FAR}"),
        ("blocks", 1, 8, "blocks[1] = 8 is outside 0 .. 7"),
        ("blocks", 2, -1, "blocks[2] = -1 is outside 0 .. 7"),
        ("windows", (3, 0), -FAR - 1, f"windows[3].query_position = {-FAR - 1} is outside"),
        ("windows", (3, 1), -1, "windows[3].first_slot = -1 is outside 0 .. 3"),
        ("windows", (5, 2), 4, "windows[5].last_slot = 4 is outside 0 .. 3"),
        ("windows", (2, 1), 2**62, f"windows[2].first_slot = {2**62} is outside -{FAR} .. {FAR}"),
        ("windows", (2, 2), -(2**62), f"windows[2].last_slot = {-(2**62)} is outside"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("number", [0, 1])
def test_a_wrong_entry_is_named(
    step: Step, number: int, field: str, index: Any, value: int, message: str
) -> None:
    batch = right_batch()
    getattr(batch.groups[number], field)[index] = value
    refused(step, batch, IndexError, f"groups[{number}].{message}")


@pytest.mark.parametrize(
    ("field", "rows", "message"),
    [
        ("windows", 6, "groups[0].windows has 6 entries, its spans want 7"),
        ("spans", 1, "groups[0].windows has 7 entries, its spans want 6"),
        ("blocks", 2, "groups[0].segments[2].first_block = 2 is outside 0 .. 1"),
        ("slots", 3, "slots and key_positions differ in length"),
        ("key_positions", 3, "slots and key_positions differ in length"),
    ],
)
def test_an_array_that_is_too_short_is_named(
    step: Step, field: str, rows: int, message: str
) -> None:
    batch, group = right_batch(), group_batch()
    group = replace(group, **{field: getattr(group, field)[:rows]})
    refused(step, replace(batch, groups=(group, group)), (IndexError, ValueError), message)


def test_rows_of_another_length_are_refused(step: Step) -> None:
    for field in ("spans", "segments", "windows"):
        group = group_batch()
        group = replace(group, **{field: getattr(group, field).reshape(-1)[:-1]})
        message = "spans are rows of 4, segments and windows rows of 3"
        refused(step, replace(right_batch(), groups=(group, group)), ValueError, message)


def test_a_step_of_another_size_than_its_arrays_is_refused(step: Step) -> None:
    batch = right_batch()
    short = replace(batch, token_ids=batch.token_ids[:3])
    refused(step, short, ValueError, "groups[0].slots has 4 entries, the step 3 rows")
    short = replace(batch, positions=batch.positions[:3])
    refused(step, short, ValueError, "positions has 3 entries, the step 4 rows")
    short = replace(batch, groups=batch.groups[:1])
    refused(step, short, ValueError, "attention of group 1 in a step of 1 groups and 2 arenas")


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (replace(KV, block_size=8), ValueError, "groups[1].block_size is 4, that of its arena 8"),
        (replace(KV, num_blocks=7), IndexError, "groups[1].slots[3] = 28 is outside 0 .. 27"),
        (replace(KV, num_layers=1), IndexError,
         "layer = 1 is outside 0 .. 0 of the arena of groups[1]"),
        (replace(KV, num_kv_heads=2), ValueError,
         "the arena of groups[1] has 2 KV heads of 8 numbers, attention has 1 of 8"),
        (replace(KV, head_dim=4), ValueError,
         "the arena of groups[1] has 1 KV heads of 4 numbers, attention has 1 of 8"),
    ],
)  # fmt: skip
def test_an_arena_of_another_shape_is_refused(
    step: Step, other: KvSpec, error: type[Exception], message: str
) -> None:
    step.arenas[1] = OPS.allocate_kv(other)
    refused(step, right_batch(), error, message)


def refused(step: Step, batch: Batch, error: Any, message: str) -> None:
    before = step.bits()
    with pytest.raises(error) as caught:
        step.run(batch, step.arenas)
    assert message in str(caught.value)
    assert step.bits() == before


def test_widths_that_are_not_those_of_the_heads_are_refused() -> None:
    arena, group = OPS.allocate_kv(KV), group_batch()
    rows = np.zeros((4, WIDTH), np.float32)
    with pytest.raises(ValueError, match="queries differ from the heads"):
        OPS.paged_attention(rows[:, :4], arena, 0, group, SPEC)
    with pytest.raises(ValueError, match="keys and values differ from the KV heads"):
        OPS.rope_write_kv(rows, rows[:, :4], arena, 0, group, SPEC)
    with pytest.raises(ValueError, match="groups of equal size"):
        OPS.paged_attention(rows, arena, 0, group, replace(SPEC, num_heads=3, num_kv_heads=2))
    rope = RopeSpec((1.0,) * 5)
    with pytest.raises(ValueError, match="two numbers for each frequency"):
        OPS.paged_attention(rows, arena, 0, group, replace(SPEC, rope=rope))
    with pytest.raises(IndexError, match=r"layer = -1 is outside 0 \.\. 1"):
        OPS.paged_attention(rows, arena, -1, group, SPEC)


def test_inputs_of_another_length_are_refused() -> None:
    x, y = np.zeros((4, 3), np.float32), np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="an input of a step of 4 rows x 3 has 2 x 3"):
        OPS.add(x, y)
