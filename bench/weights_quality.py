"""What int8 and int4 weights cost in quality: the embedded model on a held-out novel.

For every way of keeping the weights, the same windows of 1,024 tokens (teacher forcing, native
kernels), each position beside bfloat16 weights:

    KLD       mean Kullback-Leibler divergence from the probabilities of bfloat16, nats (bar 1e-3
              for int8 as it is shipped)
    PPL       perplexity, relative to that of bfloat16
    changed   positions whose likeliest token is another one

Rows that are not shipped show what was chosen between: activations of 16 bits and of 8 without
the rotation (one scale a row), other groups, a head of 4 bits. Windows are spread over the novel;
default: corpora/eval/war_and_peace_2600.txt (Project Gutenberg's number 2600). Without a
text there is nothing to measure.

Usage: python bench/weights_quality.py [--text FILE] [--windows N] [--quick]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from report import ROOT, Report, arguments
from tokenizers import Tokenizer

from kveik.config import DEFAULT_MODEL_PATH
from kveik.kernels.extension import native_extension
from kveik.kernels.native import native_ops
from kveik.kernels.ops import Batch, GroupBatch, KvSpec, Ops
from kveik.models import Model, load_model

TEXT = ROOT / "corpora" / "eval" / "war_and_peace_2600.txt"
WINDOW = 1024
BLOCK = 16


class Forward:
    """Log-probabilities of every position of a window, by one way of keeping weights."""

    def __init__(self, ops: Ops) -> None:
        self._model: Model = load_model(str(DEFAULT_MODEL_PATH), ops, block_size=BLOCK).model
        self._ops = ops
        (group,) = self._model.groups
        self._arena = ops.allocate_kv(
            KvSpec(
                len(group.layers),
                WINDOW // BLOCK,
                BLOCK,
                self._model.num_kv_heads,
                self._model.head_dim,
                ops.dtype,
            )
        )

    def __call__(self, ids: Sequence[int]) -> Any:
        """float64 [WINDOW, V]"""
        upload, positions = self._ops.upload, np.arange(WINDOW)
        rows = upload(positions, (WINDOW,))
        windows = np.stack((positions, np.zeros_like(positions), positions), axis=1)
        group = GroupBatch(
            slots=rows,
            key_positions=rows,
            spans=upload([0, WINDOW, 0, 1], (1, 4)),
            segments=upload([0, WINDOW // BLOCK, 0], (1, 3)),
            blocks=upload(range(WINDOW // BLOCK), (WINDOW // BLOCK,)),
            windows=upload(windows, (WINDOW, 3)),
            block_size=BLOCK,
        )
        batch = Batch(upload(ids, (WINDOW,)), rows, rows, (group,))
        logits = np.asarray(self._model.forward(batch, [self._arena]), np.float64)
        logits -= logits.max(1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def packed(bits: int, group: int, head: tuple[int, int], rotated: bool = True) -> Ops:
    """Native ops that quantise to `bits` with groups of `group` inputs (0: a row), the head as
    (bits, group) says. Not rotated: activations have 16 bits."""
    own, module = native_ops(), native_extension().module
    assert module is not None
    pool = module.Pool(2)

    def pack(array: Any, kind: Any, bias: Any) -> Any:
        if kind not in ("linear", "head"):
            return own.pack_weight(array, kind, bias)
        width = head if kind == "head" else (bits, group)
        return module.quantize(pool, np.asarray(array).view(np.uint16), bias, *width, rotated)

    return replace(own, pack_weight=pack)


def eight_bit_rows(own: Ops) -> Ops:
    """Inputs of every product rounded to 8 bits, one scale a row."""

    def rounded(x: Any) -> Any:
        step = np.abs(x).max(1, keepdims=True) / np.float32(127)
        return np.rint(x / np.where(step == 0, 1, step)) * step

    return replace(
        own,
        linear=lambda x, weight, adapters: own.linear(rounded(x), weight, adapters),
        logits=lambda x, head: own.logits(rounded(x), head),
    )


def cases() -> Iterator[tuple[str, Ops, bool]]:
    """(name, ops, whether it is shipped)"""
    row = (8, 0)
    yield "int8 (one scale a row)", native_ops(weights="int8"), True
    yield "int4 (groups of 128, head int8)", native_ops(weights="int4"), True
    yield "int8, no rotation, 16-bit activations", packed(8, 0, row, False), False
    yield "int8, no rotation, 8-bit activations", eight_bit_rows(packed(8, 0, row, False)), False
    yield "int4, no rotation, 16-bit activations", packed(4, 128, row, False), False
    yield "int8, groups of 128", packed(8, 128, (8, 128)), False
    yield "int4, groups of 64, head int8", packed(4, 64, row), False
    yield "int4, groups of 256, head int8", packed(4, 256, row), False
    yield "int4, groups of 128, head int4", packed(4, 128, (4, 128)), False


def read_windows(path: Path, count: int) -> list[list[int]]:
    """The first token of the model, then 1,023 of the text from a place of its own; the places are
    spread evenly and leave out the ends, which are the publisher's."""
    tokenizer = Tokenizer.from_file(str(DEFAULT_MODEL_PATH / "tokenizer.json"))
    text = path.read_text(encoding="utf-8-sig")
    starts = [len(text) * (index + 1) // (count + 2) for index in range(count)]
    pieces = [text[start : start + WINDOW * 8] for start in starts]
    encoded = [tokenizer.encode(piece, add_special_tokens=False).ids for piece in pieces]
    return [[0, *ids[: WINDOW - 1]] for ids in encoded]


def compare(plain: Forward, other: Forward, windows: list[list[int]]) -> tuple[float, float, float]:
    """KLD, PPL / PPL of bfloat16, share of changed positions."""
    divergence = loss = changed = 0.0
    for ids in windows:
        expected, got = plain(ids), other(ids)
        divergence += float((np.exp(expected) * (expected - got)).sum())
        changed += float((expected.argmax(1) != got.argmax(1)).sum())
        scored, following = np.arange(WINDOW - 1), np.array(ids[1:])
        loss += float((expected - got)[scored, following].sum())
    count = len(windows)
    ratio = math.exp(loss / (count * (WINDOW - 1)))
    return divergence / (count * WINDOW), ratio, changed / (count * WINDOW)


def perplexity(forward: Callable[[list[int]], Any], windows: list[list[int]]) -> float:
    scored = np.arange(WINDOW - 1)
    losses = [-forward(ids)[scored, ids[1:]].mean() for ids in windows]
    return math.exp(sum(losses) / len(losses))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--text", type=Path, default=TEXT, help="a novel in plain text")
    parser.add_argument("--windows", type=int, default=24, help="windows of 1,024 tokens")
    options = parser.parse_args()
    if not options.text.is_file():
        print(f"{options.text}: no such file; --text names a novel in plain text")
        return
    windows = read_windows(options.text, 2 if options.quick else options.windows)
    report = Report("weights_quality")
    plain = Forward(native_ops())
    report.figure("bf16: PPL", perplexity(plain, windows), "")
    for name, ops, shipped in cases():
        divergence, ratio, changed = compare(plain, Forward(ops), windows)
        bar = 1e-3 if shipped and name.startswith("int8") else None
        report.figure(f"{name}: KLD", divergence, "nats", bar=bar, sense="<=")
        report.figure(f"{name}: PPL against bf16", 100 * (ratio - 1), "%")
        report.figure(f"{name}: changed", 100 * changed, "%")
    report.note(f"{len(windows)} windows of {WINDOW} tokens of {options.text.name}")
    report.note(
        "The embedded model is small (256 wide), which is where few bits hurt most. Shipped rows "
        "are rotated (QuaRot, Ashkboos et al. 2024) and activations have 8 bits; checkpoints that "
        "are quantised already are not rotated and meet activations of 16 bits."
    )
    report.finish()


if __name__ == "__main__":
    main()
