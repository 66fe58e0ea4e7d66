"""How long a replica takes: five times and a limit, given in a file or read out of `kveik bench`.

A prefill computes the tokens of a prompt that the cache does not have, each of which looks at all
tokens before it. A step gives one token to every running sequence. Standard library only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from kveik.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ServiceTimes:
    """Seconds: of a prefill, for each token it computes, for each token that a computed one looks
    at; of a step, for each sequence in it. batch: sequences that run together at most."""

    prefill_seconds: float
    prefill_token_seconds: float
    prefill_pair_seconds: float
    step_seconds: float
    step_sequence_seconds: float
    batch: int

    def prefill(self, cached: int, length: int) -> float:
        """Seconds for the tokens of a prompt behind the cached ones."""
        pairs = (length * (length + 1) - cached * (cached + 1)) // 2
        return (
            self.prefill_seconds
            + self.prefill_token_seconds * (length - cached)
            + self.prefill_pair_seconds * pairs
        )

    def step(self, sequences: int) -> float:
        """Seconds of one step."""
        return self.step_seconds + self.step_sequence_seconds * sequences


DEFAULT = ServiceTimes(
    prefill_seconds=0.0018,
    prefill_token_seconds=4.7e-5,
    prefill_pair_seconds=3.2e-8,
    step_seconds=0.00027,
    step_sequence_seconds=0.00015,
    batch=8,
)
"""What `kveik bench` says of the embedded model on one thread of an AMD EPYC: see docs/SCALE.md."""


def read_service(paths: Sequence[Path]) -> ServiceTimes:
    """One file with the fields of ServiceTimes, or what `kveik bench --json` printed: of one prompt
    length, or of several, which tell what attention costs.

    Raises ConfigError naming --service, the file and the field."""
    read = [(path, _object(path)) for path in paths]
    if len(read) == 1 and "ttft_cold_seconds" not in read[0][1]:
        return _times(*read[0])
    return calibrated([_measured(path, found) for path, found in read])


@dataclass(frozen=True, slots=True)
class Measured:
    """What `kveik bench` says, in its words."""

    prompt: int
    output: int
    batch: int
    ttft_cold_seconds: float
    ttft_warm_seconds: float
    decode_tokens_per_second: float
    batch_tokens_per_second: float

    @property
    def single_step(self) -> float:
        """Seconds of a step with one sequence: its first token is that of a warm prompt."""
        whole = self.output / self.decode_tokens_per_second
        return (whole - self.ttft_warm_seconds) / (self.output - 1)

    @property
    def batch_step(self) -> float:
        """Seconds of a step with all of them, whose prompts are computed one after the other."""
        whole = self.batch * self.output / self.batch_tokens_per_second
        return (whole - self.batch * self.ttft_cold_seconds) / (self.output - 1)


def calibrated(runs: Sequence[Measured]) -> ServiceTimes:
    """The times of these runs of one model on one machine.

    A warm prompt computes one token: that is the prefill's fixed part. What a cold one takes longer
    is for its tokens; with two lengths of prompts, the shortest and the longest, it is also for the
    pairs of tokens. Steps are those of the shortest prompts. What a measurement's noise would make
    negative is 0."""
    short, long = min(runs, key=_length), max(runs, key=_length)
    fixed = short.ttft_warm_seconds
    pair = 0.0
    if long.prompt > short.prompt:
        # each token of a prompt of n looks at (n + 1) / 2 tokens on average
        slope = (_per_token(long) - _per_token(short)) * 2 / (long.prompt - short.prompt)
        pair = max(slope, 0.0)
    token = max(_per_token(short) - pair * (short.prompt + 1) / 2, 0.0)
    each = max(short.batch_step - short.single_step, 0.0) / (short.batch - 1)
    return ServiceTimes(
        prefill_seconds=fixed,
        prefill_token_seconds=token,
        prefill_pair_seconds=pair,
        step_seconds=max(short.single_step - each, 0.0),
        step_sequence_seconds=each,
        batch=max(run.batch for run in runs),
    )


def _length(run: Measured) -> int:
    return run.prompt


def _per_token(run: Measured) -> float:
    return (run.ttft_cold_seconds - run.ttft_warm_seconds) / (run.prompt - 1)


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        _refuse(path, f"cannot be read as JSON ({error})")
    if not isinstance(found, dict):
        _refuse(path, "is not an object with times, nor what kveik bench --json prints")
    return found


def _times(path: Path, found: dict[str, Any]) -> ServiceTimes:
    names = [field.name for field in fields(ServiceTimes)]
    strange = sorted(set(found) - set(names))
    if strange:
        _refuse(path, f"knows no {strange[0]}; its fields are {', '.join(names)}")
    numbers = [_number(path, found, name, zero=True) for name in names[:-1]]
    fixed, token, pair, step, sequence = numbers
    return ServiceTimes(fixed, token, pair, step, sequence, _whole(path, found, "batch", least=1))


def _measured(path: Path, found: dict[str, Any]) -> Measured:
    prompt, output, batch = (
        _whole(path, found, name, least=2) for name in ("prompt", "output", "batch")
    )
    rates = [_number(path, found, field.name, zero=False) for field in fields(Measured)[3:]]
    cold, warm, alone, together = rates
    run = Measured(prompt, output, batch, cold, warm, alone, together)
    if run.ttft_cold_seconds < run.ttft_warm_seconds:
        _refuse(path, "has a warm first token later than the cold one; measure longer prompts")
    return run


def _number(path: Path, found: dict[str, Any], name: str, *, zero: bool) -> float:
    """zero: may it be 0?"""
    value = found.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not _sound(value, zero):
        _refuse(path, f"{name} {value!r} is not a number {'from 0 on' if zero else 'above 0'}")
    return float(value)


def _sound(value: float, zero: bool) -> bool:
    return math.isfinite(value) and (value >= 0 if zero else value > 0)


def _whole(path: Path, found: dict[str, Any], name: str, least: int) -> int:
    value = found.get(name)
    if type(value) is not int or value < least:
        _refuse(path, f"{name} {value!r} is not a whole number from {least} on")
    return value


def _refuse(path: Path, why: str) -> NoReturn:
    raise ConfigError(f"--service: {path} {why}", param="service")
