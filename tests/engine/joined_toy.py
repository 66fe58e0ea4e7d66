"""A toy whose K/V show everything that a row sees, and at which distance; and the same, naively.

The K/V of a token is a digest of the token and of (distance, K/V) of every slot that its row sees,
through the windows that the kernel would get. So a wrong slot, shift, home or mask changes the
text. `expected` computes the text of a joined prompt from its definition, without any cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from toy import BLOCK, Bench, ToyRunner, draw

from kveik.cache.join import JoinedPrompt, Stretch, Unit
from kveik.cache.segments import KvGroup
from kveik.cache.window import merge, span_view
from kveik.engine.plan import SequencePlan, SequenceResult, TokenLogprobs

FULL = KvGroup((0,))
Visible = list[tuple[int, bytes]]  # seen position, K/V


def value(token: int, at: int, visible: Visible) -> bytes:
    seen = b"".join((at - where).to_bytes(4, "little") + one for where, one in visible)
    return blake2b(token.to_bytes(8, "little") + seen, digest_size=8).digest()


class AttentionToy(ToyRunner):
    """Keys know the home position with which they were turned when they were written."""

    def _sequence(self, plan: SequencePlan) -> SequenceResult:
        if self.faulty(plan):
            return SequenceResult(plan.sequence_id, error="planted fault")
        table = merge(plan.tables[0], self.block_size)
        tokens = iter(plan.token_ids)
        state = b""
        for first, count in plan.spans:
            view = span_view(FULL, table, first, count, self.block_size)
            windows = iter(view.windows)
            for slot, key_position in zip(view.slots, view.key_positions, strict=True):
                token = next(tokens)
                assert isinstance(token, int)
                seen: Visible = []
                for segment in table:
                    query, low, high = next(windows), next(windows), next(windows)
                    for place in range(low, high + 1):
                        where = segment.blocks[place // self.block_size] * self.block_size
                        where += place % self.block_size
                        if where == slot:
                            continue  # its own
                        assert segment.home + place == self.homes[where], "a key was turned wrong"
                        seen.append((-(query - segment.home - place), self.slots[0, where]))
                state = value(token, 0, seen)
                self.slots[0, slot], self.homes[slot] = state, key_position
                self.rows += 1
        draws = tuple(self._draw(state, sampling) for sampling in plan.samples)
        rows = tuple(TokenLogprobs(token, -1.0, 1) for token in plan.targets if token >= 0)
        return SequenceResult(plan.sequence_id, draws, rows)

    @property
    def homes(self) -> dict[int, int]:
        if not hasattr(self, "_homes"):
            self._homes: dict[int, int] = {}
        return self._homes

    def run(self, plan):  # type: ignore[no-untyped-def]
        for move in plan.moves:
            if hasattr(move, "src"):
                for offset in range(move.count):
                    source = move.src * self.block_size + offset
                    self.homes[move.dst * self.block_size + offset] = self.homes[source]
        return super().run(plan)


def bench(**sizes: int) -> Bench:
    made = Bench(**sizes)
    made.runner = AttentionToy()
    return made


def exact_values(tokens: Sequence[int]) -> list[bytes]:
    seen: Visible = []
    for at, token in enumerate(tokens):
        seen.append((at, value(token, at, seen)))
    return [one for _, one in seen]


def prompt_values(tokens: Sequence[int], prompt: JoinedPrompt) -> Visible:
    """Of every token of a joined prompt: where it is seen, and its K/V."""
    units = [unit_values(unit) for unit in prompt.units]
    seen: Visible = []
    for stretch in prompt.stretches:
        for index in range(stretch.length):
            at, token = stretch.seen + index, tokens[stretch.first + index]
            held = units[stretch.unit][stretch.offset + index] if stretch.unit >= 0 else None
            seen.append((at, held or value(token, at, seen)))
    return seen


def unit_values(unit: Unit) -> list[bytes]:
    if unit.joined is None:
        return exact_values(unit.tokens)
    return [one for _, one in prompt_values(unit.tokens, unit.joined)]


def expected(
    tokens: Sequence[int], prompt: JoinedPrompt, count: int, seed: int = 0, choice: int = 0
) -> list[int]:
    """What a request with this prompt must generate."""
    seen = prompt_values(tokens, prompt)
    text: list[int] = []
    for at in range(prompt.seen_end, prompt.seen_end + count):
        text.append(draw(seen[-1][1], seed, choice, len(tokens) + len(text)))
        seen.append((at, value(text[-1], at, seen)))
    return text


class Builder:
    """Writes a joined prompt piece by piece; packed, but for `gap`."""

    def __init__(self, lead: Sequence[int]) -> None:
        self.lead = tuple(lead)
        self.tokens: list[int] = []
        self.stretches: list[Stretch] = []
        self.units: dict[tuple[int, ...], int] = {}
        self.made: list[Unit] = []
        self.seen = 0
        self.fresh(lead)

    def fresh(self, tokens: Sequence[int]) -> Builder:
        if tokens:
            self.stretches.append(Stretch(len(self.tokens), len(tokens), self.seen))
            self._append(tokens)
        return self

    def gap(self, size: int) -> Builder:
        self.seen += size
        return self

    def module(self, text: Sequence[int], skip: int = 0, directive=None) -> Builder:  # type: ignore[no-untyped-def]
        """The text of a module without its first `skip` tokens."""
        unit = (*self.lead, *text)
        if unit not in self.units:
            self.units[unit] = len(self.made)
            more = {} if directive is None else {"directive": directive}
            self.made.append(Unit(unit, len(self.lead), **more))
        offset, rest = len(self.lead) + skip, text[skip:]
        place = Stretch(len(self.tokens), len(rest), self.seen, self.units[unit], offset)
        self.stretches.append(place)
        self._append(rest)
        return self

    def prompt_units(self) -> list[list[int]]:
        return [list(unit.tokens) for unit in self.made]

    def _append(self, tokens: Sequence[int]) -> None:
        self.tokens += tokens
        self.seen += len(tokens)

    def prompt(self, recipe: str = "link/1") -> JoinedPrompt:
        return JoinedPrompt(tuple(self.stretches), tuple(self.made), recipe)


def add(made: Bench, handle: int, built: Builder, **params: object):  # type: ignore[no-untyped-def]
    return made.add(handle, built.tokens, joined=built.prompt(), **params)


__all__ = ["BLOCK", "Builder", "add", "bench", "expected"]
