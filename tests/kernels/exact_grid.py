"""Raw bits of every row-wise op of the reference backend, in a process of its own.

    python exact_grid.py        prints the names of ops whose rows depend on their neighbours

Each op computes 130 rows one at a time; then batches of 1..130 rows, at random offsets of a longer
buffer, in random order, must give every row the same bits. Attention: one sequence decoded row by
row, and in chunks, beside other sequences, in other blocks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kveik.kernels.ops import SampleRow
from kveik.kernels.reference import reference_ops

sys.path.insert(0, str(Path(__file__).parent))
from tables import attend, batch_of, random_case

ROWS = 130
OPS = reference_ops()
SHAPES = ((320, 320), (256, 769), (768, 256), (37, 51), (1024, 130), (2048, 48), (64, 4096))
Op = Callable[[np.ndarray], np.ndarray]


def row_ops(rng: np.random.Generator) -> dict[str, tuple[int, Op]]:
    """Name -> (columns of its input, op)."""

    def weights(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    ops: dict[str, tuple[int, Op]] = {}
    for inputs, outputs in SHAPES:
        packed = OPS.pack_weight(weights(outputs, inputs), "linear", weights(outputs))
        ops[f"linear {inputs} {outputs}"] = (inputs, lambda x, w=packed: OPS.linear(x, w, None))
    for width in (33, 256, 960):
        w, b = weights(width), weights(width)
        ops[f"rms_norm {width}"] = (width, lambda x, w=w: OPS.rms_norm(x, w, None, 1e-5, x)[0])
        ops[f"layer_norm {width}"] = (
            width, lambda x, w=w, b=b: OPS.layer_norm(x, w, b, 1e-5, None)[0],
        )  # fmt: skip
    head = weights(15)
    ops["qk_norm"] = (75, lambda x: OPS.qk_norm(x, head, 5, 1e-6))
    for width in (7, 769):
        ops[f"silu_mul {width}"] = (width, lambda x: OPS.silu_mul(x * 9, x))
        ops[f"gelu tanh {width}"] = (width, lambda x: OPS.gelu(x * 3, "tanh"))
        ops[f"gelu erf {width}"] = (width, lambda x: OPS.gelu(x * 3, "erf"))
    ops["sample"] = (333, sampled)
    return ops


def sampled(x: np.ndarray) -> np.ndarray:
    rows = [SampleRow(r, 0.37, 0.7, 50, 0.9, 0.01, logprobs=3) for r in range(len(x))]
    return np.array([(s.token_id, s.logprob, s.rank) for s in OPS.sample(x * 4, rows)])


def placed(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A contiguous copy of the rows at a random, usually unaligned place."""
    offset = int(rng.integers(0, 17))
    buffer = np.empty(rows.size + 16, np.float32)
    view = buffer[offset : offset + rows.size]
    view[:] = rows.reshape(-1)
    return view.reshape(rows.shape)


def rows_depend(columns: int, op: Op, rng: np.random.Generator) -> bool:
    x = rng.standard_normal((ROWS, columns), dtype=np.float32)
    alone = np.concatenate([op(x[row : row + 1]) for row in range(ROWS)])
    counts = sorted({*range(1, 34), *rng.integers(34, ROWS, 8).tolist(), 64, 127, 128, 129, ROWS})
    for count in counts:
        chosen = rng.permutation(ROWS)[:count]
        if op(placed(x[chosen], rng)).tobytes() != alone[chosen].tobytes():
            return True
    return False


def attention_depends(seed: int, rng: np.random.Generator) -> bool:
    case = random_case(seed, rows=70)
    if case.rows < 70:
        return attention_depends(seed + 1000, rng)
    arena = case.arena(OPS)
    case.write(OPS, arena)
    alone = attend(OPS, arena, case, 1)
    if any(attend(OPS, arena, case, c).tobytes() != alone.tobytes() for c in (5, 16, 33, 70)):
        return True
    moved = case.moved(rng)
    later = case.arena(OPS)
    for token in range(len(case.keys)):
        moved.write(OPS, later, [token])
    if attend(OPS, later, moved, 9).tobytes() != alone.tobytes():
        return True
    rows = [range(r, r + n) for r, n in ((0, 1), (7, 1), (3, 40), (69, 1), (8, 1), (60, 10))]
    queries, batch = batch_of([case] * len(rows), rows)
    together = OPS.paged_attention(queries, arena, 0, batch, case.spec)
    expected = np.concatenate([alone[r.start : r.stop] for r in rows])
    return bool(together.tobytes() != expected.reshape(together.shape).tobytes())


def main() -> None:
    rng = np.random.default_rng(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    failing = [name for name, op in row_ops(rng).items() if rows_depend(*op, rng)]
    failing += [f"attention {seed}" for seed in range(900, 908) if attention_depends(seed, rng)]
    print("\n".join(failing), end="")


if __name__ == "__main__":
    main()
