"""A model of plain Python lists behind the real `Ops` record, for the engine and its runner.

The K/V of a token is its id; a row's state is the digest of every id that its windows let it see,
its own included, read from the arena through slots, segments and blocks exactly as a kernel would.
So a wrong slot, window, position or move changes the text. `faults` plants exceptions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from toy import ByteTokenizer, absorb, draw

from kveik.cache.segments import KvGroup
from kveik.config import EngineConfig
from kveik.engine.engine import Engine
from kveik.engine.parts import EngineParts
from kveik.kernels.ops import Batch, GroupBatch, Ops, Sampled, SampleRow

VOCABULARY = 257
BLOCK_BYTES = 64


@dataclass
class Faults:
    """Called with what a stage is about to work on; raising there is the planted fault."""

    forward: Callable[[list[int]], None] = lambda token_ids: None
    sample: Callable[[Sequence[SampleRow]], None] = lambda rows: None
    moves: Callable[[], None] = lambda: None


def _shaped(values: Sequence[int], shape: tuple[int, ...]) -> list[Any]:
    flat = list(values)
    if len(shape) == 1:
        assert len(flat) == shape[0]
        return flat
    rows, columns = shape
    assert len(flat) == rows * columns
    return [flat[row * columns : (row + 1) * columns] for row in range(rows)]


def toy_ops(faults: Faults) -> Ops:
    def copy_blocks(arena: dict[int, int], moves: Sequence[tuple[int, int, int]]) -> None:
        faults.moves()
        size = arena[-1]
        for source, target, count in moves:
            for offset in range(count):
                arena[target * size + offset] = arena[source * size + offset]

    def erase_blocks(arena: dict[int, int], blocks: Sequence[int]) -> None:
        size = arena[-1]
        for slot in [slot for slot in arena if slot >= 0 and slot // size in blocks]:
            del arena[slot]

    def sample(logits: list[bytes], rows: Sequence[SampleRow]) -> list[Sampled]:
        faults.sample(rows)
        return [_sampled(logits[row.row], row) for row in rows]

    table: dict[str, Any] = dict.fromkeys(field.name for field in fields(Ops))
    table |= {
        "name": "toy",
        "level": "toy (python)",
        "numerics_version": "toy",
        "allocate_kv": lambda spec: {-1: spec.block_size},
        "upload": _shaped,
        "download": lambda array: array,
        "sample": sample,
        "take_rows": lambda states, rows: [states[row] for row in rows],
        "sum_rows": lambda states, ranges: [
            [sum(int.from_bytes(one, "big") for one in states[first : first + count])]
            for first, count in ranges
        ],
        "copy_blocks": copy_blocks,
        "erase_blocks": erase_blocks,
        "capture": lambda forward, bucket: forward,
    }
    return Ops(**table)


def _sampled(state: bytes, row: SampleRow) -> Sampled:
    """Greedy rows take the digest; others mix the uniform number in. Banned ids are skipped."""
    token = row.target if row.target >= 0 else draw(state, int(row.uniform * 2**53), 0, 0) % 256
    while row.target < 0 and token in row.banned:
        token = (token + 1) % VOCABULARY
    for wanted, bias in row.logit_bias:
        token = wanted if bias >= 100 and row.target < 0 else token
    top = tuple((index, -float(index + 1)) for index in range(row.logprobs or 0))
    return Sampled(token, -(state[0] + 1) / 256, 1, top)


@dataclass
class ToyModel:
    groups: tuple[KvGroup, ...] = (KvGroup((0,), bytes_per_block=BLOCK_BYTES),)
    faults: Faults = field(default_factory=Faults)
    num_kv_heads: int = 1
    head_dim: int = 1
    vocab_size: int = VOCABULARY
    max_position: int = 256
    can_shift: bool = True
    fingerprint: bytes = b"toy"
    rows: int = 0

    def forward(self, batch: Batch, arenas: Sequence[dict[int, int]]) -> list[bytes]:
        return self.logits(self.hidden(batch, arenas))

    def logits(self, hidden: list[bytes]) -> list[bytes]:
        return hidden

    def hidden(self, batch: Batch, arenas: Sequence[dict[int, int]]) -> list[bytes]:
        self.faults.forward(batch.token_ids)
        self.rows += len(batch.token_ids)
        states: list[list[bytes]] = []
        for group, arena in zip(batch.groups, arenas, strict=True):
            for slot, token in zip(group.slots, batch.token_ids, strict=True):
                arena[slot] = token
            states.append([self._state(group, arena, seen) for seen in _windows(group)])
        merged = [b"".join(parts) for parts in zip(*states, strict=True)]
        return [merged[row] for row in batch.logit_rows]

    @staticmethod
    def _state(
        group: GroupBatch, arena: dict[int, int], seen: list[tuple[list[int], list[int]]]
    ) -> bytes:
        state, size = b"", group.block_size
        for (first_block, _, home), (query, first, last) in seen:
            for slot in range(first, last + 1):
                block = group.blocks[first_block + slot // size]
                distance = query - home - slot
                state = absorb(state, arena[block * size + slot % size] * 1000 + distance)
        return state


def _windows(group: GroupBatch) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Per row: its (segment, window) pairs, in the nesting order of GroupBatch.windows."""
    at, row = 0, 0
    for first_row, rows, first_segment, segments in group.spans:
        assert first_row == row
        for _ in range(rows):
            pairs = group.windows[at : at + segments]
            yield list(zip(group.segments[first_segment:][:segments], pairs, strict=True))
            at, row = at + segments, row + 1
    assert (at, row) == (len(group.windows), len(group.slots))


def toy_text(
    prompt: Sequence[int], count: int, *, group: KvGroup | None = None, uniform: float = 0.0
) -> list[int]:
    """The greedy text of one group, from the definition."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        state, last = b"", len(tokens) - 1
        window = group.window if group is not None and group.window else len(tokens)
        for position in range(max(0, last - window + 1), last + 1):
            state = absorb(state, tokens[position] * 1000 + last - position)
        tokens.append(draw(state, int(uniform * 2**53), 0, 0) % 256)
    return tokens[len(prompt) :]


def toy_engine(
    model: ToyModel | None = None,
    *,
    tokenizer: Any = None,
    blocks: int = 64,
    clock: Callable[[], float] = lambda: 0.0,
    **config: Any,
) -> Engine:
    model = model or ToyModel()
    parts = EngineParts(
        model=model,
        ops=toy_ops(model.faults),
        tokenizer=tokenizer or ByteTokenizer(),
        config=EngineConfig(**config),
        end_ids=(256,),
        model_id="toy",
        pool_blocks=(blocks,) * len(model.groups),
    )
    return Engine(parts, clock=clock)
