"""Forgetting a middle: time to the first token, against computing what is left again.

A conversation forgets a stretch of its middle and brings a new message, three ways: the gap closes
(kveik.forget); the shorter conversation as an ordinary prompt, of which the cache serves what
stands before the gap; the same cold. And an ordinary prefix hit of that length, which nothing can
beat. Sides take turns, every call brings another message, a figure is the median of the ratios of
the rounds. Time runs from the tokens of the prompt to the first token of the answer.

Quality: forget_quality.py.

Usage: python bench/forget.py [--shape 1.1b] [--rounds N] [--quick]
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from gapped import UNSTORED, Case, gapped
from joined import FIRST_TOKEN, ordinary, run
from report import Report, arguments
from rounds import interleaved

sys.path.insert(0, str(Path(__file__).parent / "peers"))

import checkpoints

from kveik import LLM
from kveik.engine.request import Request

SMALL = (Case(64, 128, 256, 32), Case(64, 256, 512, 32), Case(64, 128, 768, 32))
LARGE = (Case(256, 1024, 1024), Case(256, 1024, 3072), Case(256, 1024, 5120))


class Conversation:
    """Random tokens whose whole is cached, and a new message for every call."""

    def __init__(self, llm: LLM, case: Case) -> None:
        self._llm, self._case, self._random = llm, case, random.Random(f"{case}")
        self._vocabulary = llm.engine.info.vocab_size
        self._said = self._tokens(case.settled)
        self._plain = self._tokens(case.before + case.behind)
        for tokens in (self._said, self._plain):
            run(llm, ordinary(tokens))

    def closed(self) -> None:
        run(self._llm, gapped(self._next(self._said), self._case))

    def prefix_only(self) -> None:
        """What is behind the gap is computed; it is not kept, so that no round finds it."""
        self._shorter(reuse=True)

    def cold(self) -> None:
        self._shorter(reuse=False)

    def prefix_hit(self) -> None:
        run(self._llm, ordinary(self._next(self._plain)))

    def _shorter(self, *, reuse: bool) -> None:
        tokens = tuple(self._case.shorter(self._next(self._said)))
        run(self._llm, Request(tokens, FIRST_TOKEN, directive=UNSTORED, reuse=reuse))

    def _next(self, said: Sequence[int]) -> list[int]:
        return [*said, *self._tokens(self._case.new)]

    def _tokens(self, count: int) -> list[int]:
        return self._random.choices(range(8, self._vocabulary), k=count)


def measure_time(report: Report, llm: LLM, name: str, case: Case, rounds: int) -> None:
    talk = Conversation(llm, case)
    sides: dict[str, Callable[[], None]] = {
        "closed": talk.closed,
        "prefix hit": talk.prefix_hit,
        "prefix before the gap": talk.prefix_only,
        "cold": talk.cold,
    }
    found = {
        side: [1e3 * one for one in times] for side, times in interleaved(sides, rounds).items()
    }
    for other in ("cold", "prefix before the gap"):
        title = f"{name}, {case.name}: first token, computed again ({other}) / gap closed"
        report.rounds(title, found[other], found["closed"])
    title = f"{name}, {case.name}: first token, gap closed / prefix hit of that length"
    report.rounds(title, found["closed"], found["prefix hit"])


def measure_shape(report: Report, shape: str, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as parent:
        folder = checkpoints.write(shape, Path(parent) / shape)
        with LLM(model=str(folder), kv_memory="1GiB", max_model_len=8192) as llm:
            for case in LARGE:
                measure_time(report, llm, f"{shape} shape", case, rounds)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shape", choices=sorted(checkpoints.SHAPES), help="random weights too")
    parser.add_argument("--rounds", type=int, help="default: 21; of a shape 3")
    options = parser.parse_args()
    report = Report("forget")
    with LLM(kv_memory="128MiB") as llm:
        for case in SMALL:
            rounds = options.rounds or (3 if options.quick else 21)
            measure_time(report, llm, "embedded model", case, rounds)
    if options.shape:
        measure_shape(report, options.shape, options.rounds or 3)
    report.finish()


if __name__ == "__main__":
    main()
