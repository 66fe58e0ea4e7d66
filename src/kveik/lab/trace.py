"""Traces of requests: lengths and equal beginnings, no text. JSON lines, as Mooncake has them.

One object a line: `timestamp` (ms), `input_length` and `output_length` (tokens), `hash_ids`: one
number for each block of the prompt, the last of which may be partly filled. Equal numbers stand for
equal beginnings up to the end of the block. What `kveik serve --record` writes says more:
`block_size` (tokens; Mooncake's is 512 and not said), `answer_ids` (the numbers that follow those
of the whole blocks of the prompt, when the answer stands behind it), `namespace` and `session`.
Standard library.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from kveik.errors import ConfigError

MOONCAKE_BLOCK = 512
"""Tokens of a block where a trace does not say it."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """seconds: arrival; input_length, output_length: tokens; blocks: those of the prompt, as
    numbers 0, 1, ... in the order in which the trace first names them. answer: those that take the
    place of the partial block at the end of the prompt, and follow it, when the answer is
    computed; empty where the trace does not know. namespace, session: digests, empty where the
    trace has none."""

    seconds: float
    input_length: int
    output_length: int
    blocks: tuple[int, ...]
    answer: tuple[int, ...] = ()
    namespace: str = ""
    session: str = ""

    def sequence(self, block_size: int) -> tuple[int, ...]:
        """The blocks that are there once the request is over."""
        if not self.answer:
            return self.blocks
        return self.blocks[: self.input_length // block_size] + self.answer


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in the order of their arrival."""

    name: str
    block_size: int  # tokens
    requests: tuple[TraceRequest, ...]

    @property
    def prompt_tokens(self) -> int:
        return sum(request.input_length for request in self.requests)

    @property
    def prompt_blocks(self) -> int:
        return sum(len(request.blocks) for request in self.requests)

    def first(self, count: int) -> Trace:
        """The same trace, cut behind so many requests."""
        return Trace(self.name, self.block_size, self.requests[:count])

    def faster(self, factor: float) -> Trace:
        """The same requests, arriving so many times as fast."""
        requests = (replace(one, seconds=one.seconds / factor) for one in self.requests)
        return Trace(self.name, self.block_size, tuple(requests))

    def resized(self, block_size: int) -> Trace:
        """The same prompts in blocks of so many tokens, all of them full, with one token of answer:
        what a small model can be asked to compute."""
        requests = tuple(
            replace(
                request,
                input_length=len(request.blocks) * block_size,
                output_length=1,
                answer=(),
            )
            for request in self.requests
        )
        return Trace(self.name, block_size, requests)


def read_trace(path: Path, block_size: int | None = None) -> Trace:
    """The trace in this file. block_size: what it has where it does not say so (None: Mooncake's).

    Raises ConfigError naming the line and the field of what is no trace."""
    try:
        with path.open(encoding="utf-8") as lines:
            return parse_trace(lines, path.name, block_size)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"trace: {path} cannot be read ({error})", param="trace") from None


def parse_trace(lines: Iterable[str], name: str, block_size: int | None = None) -> Trace:
    """The same of the lines of a file."""
    sizes: set[int] = set()
    numbers: dict[tuple[str, int], int] = {}
    requests: list[TraceRequest] = []
    for where, entry in _entries(lines, name):
        size = _count(entry, "block_size", where, block_size or MOONCAKE_BLOCK, least=1)
        sizes.add(size)
        requests.append(_request(entry, where, size, numbers))
    if not requests:
        raise ConfigError(f"trace: {name} holds no request", param="trace")
    if len(sizes) > 1:
        listed = ", ".join(map(str, sorted(sizes)))
        raise ConfigError(
            f"trace: {name} mixes blocks of {listed} tokens; record one trace for each block size",
            param="trace",
        )
    requests.sort(key=lambda request: request.seconds)  # stable: equal times keep their order
    return Trace(name, sizes.pop(), tuple(requests))


def _entries(lines: Iterable[str], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object with the words for where it stands."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"trace: {name} line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            _refuse(where, "is not JSON")
        if not isinstance(entry, dict):
            _refuse(where, "is not an object with timestamp, input_length and hash_ids")
        yield where, entry


def _request(
    entry: dict[str, Any], where: str, size: int, numbers: dict[tuple[str, int], int]
) -> TraceRequest:
    tokens = _count(entry, "input_length", where, least=1)
    output = _count(entry, "output_length", where, 0)
    ids, answer = _ids(entry, "hash_ids", where), _ids(entry, "answer_ids", where, [])
    if not tokens // size <= len(ids) <= -(-tokens // size):
        _refuse(
            where,
            f"has {len(ids)} hash_ids for input_length {tokens}; blocks of {size} tokens are "
            f"{-(-tokens // size)} (say --block-size)",
        )
    behind = computed_blocks(tokens, output, size)
    if answer and len(answer) != behind:
        _refuse(where, f"has {len(answer)} answer_ids where prompt and answer need {behind}")
    space = _text(entry, "namespace", where)
    return TraceRequest(
        _time(entry, where) / 1000,
        tokens,
        output,
        tuple(numbers.setdefault((space, one), len(numbers)) for one in ids),
        tuple(numbers.setdefault((space, one), len(numbers)) for one in answer),
        space,
        _text(entry, "session", where),
    )


def computed_blocks(input_length: int, output_length: int, size: int) -> int:
    """Blocks behind the whole ones of the prompt once the answer is computed; the last token of an
    answer never is."""
    return -(-(input_length + max(output_length - 1, 0)) // size) - input_length // size


def _ids(
    entry: dict[str, Any], name: str, where: str, default: list[int] | None = None
) -> list[int]:
    ids = entry.get(name, default)
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        _refuse(where, f"{name} is not a list of integers")
    return ids


def _time(entry: dict[str, Any], where: str) -> float:
    value = entry.get("timestamp")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
        _refuse(where, f"timestamp {value!r} is not a number of milliseconds")
    return float(value)


def _count(
    entry: dict[str, Any], name: str, where: str, default: int | None = None, least: int = 0
) -> int:
    value = entry.get(name, default)
    if type(value) is not int or not least <= value < 2**31:
        _refuse(where, f"{name} {value!r} is not a whole number from {least} on")
    return value


def _text(entry: dict[str, Any], name: str, where: str) -> str:
    value = entry.get(name, "")
    if not isinstance(value, str):
        _refuse(where, f"{name} {value!r} is not a string")
    return value


def _refuse(where: str, why: str) -> NoReturn:
    raise ConfigError(f"{where}: {why}", param="trace")
