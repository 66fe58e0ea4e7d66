"""The columns of the comparison, measured inside the engine's process. Standard library.

Every column draws its own token ids from (round, column, number), the same for all engines. A time
is seconds to the first token (`ttft_16`, `prefill_*`, `repeat_1024`), a rate is new tokens per
second; a column is repeated while it is quick and its median counts.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from protocol import Answer, Engine, Setting, Unsupported

QUICK_SECONDS = 6.0  # a column is repeated until it has taken this long
LONGEST = 8320  # tokens of a sequence
SHORT = 16  # tokens of a prompt where its length should not matter


@dataclass(frozen=True)
class Column:
    """unit "s": less is better; "tok/s": more is. repeat: at most so often in one process."""

    title: str
    unit: str
    repeat: int


COLUMNS = {
    "start": Column("start to first token", "s", 1),
    "ttft_16": Column("first token of 16", "s", 7),
    "decode": Column("decode, b=1", "tok/s", 3),
    "prefill_1024": Column("prefill 1024", "s", 3),
    "repeat_1024": Column("the same prompt again", "s", 5),
    "prefill_4096": Column("prefill 4096", "s", 1),
    "batch_16": Column("16 x (128 + 64)", "tok/s", 1),
    "shared_16": Column("16 x (1024 shared + 64 + 32)", "tok/s", 1),
    "decode_8k": Column("decode behind 8k, b=1", "tok/s", 1),
    "decode_8k_8": Column("decode behind 8k shared, b=8", "tok/s", 1),
}


@dataclass
class Round:
    """One engine in one round; hands out token ids."""

    engine: Engine
    vocabulary: int
    number: int
    column: str = ""
    drawn: int = 0

    def prompt(self, length: int) -> list[int]:
        """Ids that no other prompt of the round begins with."""
        self.drawn += 1
        source = random.Random(f"{self.number}/{self.column}/{self.drawn}")
        return [source.randrange(300, self.vocabulary) for _ in range(length)]

    def generate(self, prompts: Sequence[list[int]], new_tokens: int) -> tuple[float, list[Answer]]:
        """When it began, and the answers."""
        start = time.monotonic()
        answers = self.engine.generate(prompts, new_tokens)
        for answer in answers:
            if not len(answer.tokens) == len(answer.times) == new_tokens:
                raise RuntimeError(f"{len(answer.tokens)} tokens came, {new_tokens} were asked for")
        return start, answers


def first_token(run: Round, length: int) -> tuple[float, list[int]]:
    start, (answer,) = run.generate([run.prompt(length)], 1)
    return answer.times[0] - start, answer.tokens


def decode(run: Round) -> tuple[float, list[int]]:
    _, (answer,) = run.generate([run.prompt(SHORT)], 65)
    return 64 / (answer.times[-1] - answer.times[0]), answer.tokens


def again(run: Round) -> tuple[float, list[int]]:
    """The prompt that `prefill_1024` computed first."""
    if not run.engine.reuses:
        raise Unsupported("it keeps no cache between prompts")
    length, run.drawn = 1024, 0
    run.column = "prefill_1024"
    prompt = run.prompt(length)
    run.generate([prompt], 1)  # in the cache from here on, were another column to come between
    start, (answer,) = run.generate([prompt], 1)
    return answer.times[0] - start, answer.tokens


def batch(run: Round, shared: int, own: int, new_tokens: int) -> tuple[float, list[int]]:
    head = run.prompt(shared)
    start, answers = run.generate([head + run.prompt(own) for _ in range(16)], new_tokens)
    seconds = max(answer.times[-1] for answer in answers) - start
    return 16 * new_tokens / seconds, answers[0].tokens


def decode_behind(run: Round, shared: int, count: int) -> tuple[float, list[int]]:
    """The rate from where the last of the prompts has its first token."""
    if count > 1 and not run.engine.shares:
        raise Unsupported("it shares no prefix between prompts")
    head = run.prompt(shared)
    prompts = [head + run.prompt(SHORT) for _ in range(count)]
    if count > 1 and run.engine.reuses:
        run.generate(prompts[:1], 1)
    _, answers = run.generate(prompts, 33)
    begin = max(answer.times[0] for answer in answers)
    counted = sum(time > begin for answer in answers for time in answer.times)
    return counted / (max(answer.times[-1] for answer in answers) - begin), answers[0].tokens


MEASURES: dict[str, Callable[[Round], tuple[float, list[int]]]] = {
    "ttft_16": lambda run: first_token(run, SHORT),
    "decode": decode,
    "prefill_1024": lambda run: first_token(run, 1024),
    "repeat_1024": again,
    "prefill_4096": lambda run: first_token(run, 4096),
    "batch_16": lambda run: batch(run, 0, 128, 64),
    "shared_16": lambda run: batch(run, 1024, 64, 32),
    "decode_8k": lambda run: decode_behind(run, 8192, 1),
    "decode_8k_8": lambda run: decode_behind(run, 8192, 8),
}


def measure(
    engine: Engine, setting: Setting, columns: Sequence[str], number: int, loaded: float
) -> Iterator[dict[str, Any]]:
    """A record per column. `start` has the moment of the first token; the harness knows the other.
    A column that the engine lacks has "unsupported", one that fails has "failed"."""
    run = Round(engine, setting.vocabulary, number, "start")
    _, (answer,) = run.generate([run.prompt(SHORT)], 1)
    yield {"column": "start", "loaded": loaded, "first_token": answer.times[0]}
    run.generate([run.prompt(SHORT) for _ in range(setting.sequences)], 4)  # warm-up
    for name in columns:
        if name not in MEASURES:
            continue
        begin = time.monotonic()
        try:
            record = _repeated(run, name)
        except Unsupported as reason:
            record = {"unsupported": str(reason)}
        except Exception as error:
            record = {"failed": f"{type(error).__name__}: {error}"[:300]}
        yield {"column": name, **record, "took": time.monotonic() - begin}


def _repeated(run: Round, name: str) -> dict[str, Any]:
    run.column, run.drawn = name, 0
    begin, found = time.monotonic(), []
    tokens: list[int] = []
    while len(found) < COLUMNS[name].repeat and (
        not found or time.monotonic() - begin < QUICK_SECONDS
    ):
        value, new_tokens = MEASURES[name](run)
        found.append(value)
        tokens = tokens or new_tokens[:16]
    return {"value": statistics.median(found), "all": found, "tokens": tokens}
