"""`kveik bench`: a few figures of this model on this machine, in a minute.

Prompts are random token ids, so that only the prompts meant to be warm are found in the cache.
Every figure is the median of `repeat` runs.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import typer

from kveik import __version__
from kveik.commands.info import machine
from kveik.engine.request import SamplingParams
from kveik.errors import ConfigError
from kveik.llm import LLM
from kveik.prompting import TokensPrompt


@dataclass(frozen=True, slots=True)
class BenchSizes:
    """Lengths in tokens; batch: sequences computed together."""

    prompt: int = 256
    output: int = 64
    batch: int = 8
    repeat: int = 3


@dataclass(frozen=True, slots=True)
class BenchFigures:
    """Seconds, and tokens per second."""

    decode_tokens_per_second: float
    batch_tokens_per_second: float
    ttft_cold_seconds: float
    ttft_warm_seconds: float
    use_cache_seconds: float
    no_cache_seconds: float


def bench(llm: LLM, sizes: BenchSizes, *, as_json: bool) -> None:
    """Measure and print a table, or JSON with the machine beside the figures."""
    info = llm.engine.info
    if sizes.prompt + sizes.output > info.max_model_len:
        raise ConfigError(
            f"--prompt-tokens + --output-tokens: {sizes.prompt} + {sizes.output} is more than the "
            f"{info.max_model_len} tokens of this model"
        )
    figures = measure(llm, sizes)
    if as_json:
        facts = {
            "kveik": __version__,
            "model": info.model_id,
            "kernel": info.kernel,
            "weights": info.weights,
            **machine(),
        }
        typer.echo(json.dumps(facts | asdict(sizes) | asdict(figures), indent=2))
    else:
        typer.echo(_table(llm, sizes, figures))


def measure(llm: LLM, sizes: BenchSizes) -> BenchFigures:
    prompts = _Prompts(llm.engine.info.vocab_size, sizes.prompt)
    params = SamplingParams(temperature=0.0, max_tokens=sizes.output, ignore_eos=True)
    first = replace(params, max_tokens=1)
    llm.generate(prompts.new(), params)

    def seconds(action: Callable[[], object]) -> float:
        started = time.perf_counter()
        action()
        return time.perf_counter() - started

    def median(action: Callable[[], float]) -> float:
        return statistics.median(action() for _ in range(sizes.repeat))

    def cold() -> float:
        return seconds(lambda: llm.generate(prompts.new(), first))

    def decode() -> float:
        prompt = prompts.new()
        llm.generate(prompt, first)
        return seconds(lambda: llm.generate(prompt, params))

    def batch() -> float:
        together = [prompts.new() for _ in range(sizes.batch)]
        return seconds(lambda: llm.generate(together, params, use_tqdm=False))

    def whole(use_cache: bool) -> float:
        chosen = replace(params, use_cache=use_cache)
        return seconds(lambda: llm.generate(prompts.new(), chosen))

    known = prompts.new()
    llm.generate(known, first)
    return BenchFigures(
        decode_tokens_per_second=sizes.output / median(decode),
        batch_tokens_per_second=sizes.batch * sizes.output / median(batch),
        ttft_cold_seconds=median(cold),
        ttft_warm_seconds=median(lambda: seconds(lambda: llm.generate(known, first))),
        use_cache_seconds=median(lambda: whole(True)),
        no_cache_seconds=median(lambda: whole(False)),
    )


class _Prompts:
    """Random prompts, none of which begins like another."""

    def __init__(self, vocab_size: int, length: int) -> None:
        self._random = random.Random(0)
        self._vocab_size = vocab_size
        self._length = length

    def new(self) -> TokensPrompt:
        ids = [self._random.randrange(self._vocab_size) for _ in range(self._length)]
        return {"prompt_token_ids": ids}


def _table(llm: LLM, sizes: BenchSizes, figures: BenchFigures) -> str:
    info = llm.engine.info
    ratio = figures.no_cache_seconds / figures.use_cache_seconds
    warm = figures.ttft_warm_seconds / figures.ttft_cold_seconds
    rows = [
        ("one sequence", f"{figures.decode_tokens_per_second:.1f} tokens/s"),
        (f"{sizes.batch} sequences", f"{figures.batch_tokens_per_second:.1f} tokens/s"),
        ("first token, cold", f"{figures.ttft_cold_seconds * 1000:.1f} ms"),
        ("first token, warm", f"{figures.ttft_warm_seconds * 1000:.1f} ms ({warm:.2f} of cold)"),
        ("KV cache on", f"{figures.use_cache_seconds:.3f} s"),
        ("KV cache off", f"{figures.no_cache_seconds:.3f} s ({ratio:.1f} x as long)"),
    ]
    head = (
        f"{info.model_id} on {info.kernel}, weights {info.weights}; "
        f"prompt {sizes.prompt}, output {sizes.output} tokens, median of {sizes.repeat}"
    )
    return "\n".join([head, *(f"{label:<18}  {value}" for label, value in rows)])
