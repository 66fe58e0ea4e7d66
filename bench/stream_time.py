"""What a token of an endless stream costs, through the engine.

    3  time per token against plain decoding behind as many keys (bar <= 1.05x), and against
       computing the window again for every token, caches of 256 / 512 / 1024 tokens
    5  evicting 1, 16 or 128 tokens at a time: time per token, and how many blocks 16 streams hold
       that began with the same prompt (its perplexity: stream_quality.py)

Sides take turns; a figure is the median of the ratios of the rounds. Plain decoding grows while it
is measured, so its last token sees as many keys as the cache has, and it is compared with a stream
of the size that it has on average. A stream is measured behind its first eviction, when it has two
segments. The embedded model, and where wanted random weights of a shape (in a temporary folder).

Usage: python bench/stream_time.py [--shape 1.1b] [--rounds N] [--quick]
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from report import Report, arguments
from rounds import interleaved

sys.path.insert(0, str(Path(__file__).parent / "peers"))

import checkpoints

from kveik import LLM, CacheOptions, SamplingParams
from kveik.cache.window import StreamWindow

CACHES = (256, 512, 1024)
EVICTED = (1, 16, 128)
SINKS = 4
WARM, STEPS = 16, 32  # tokens that are generated, and those behind them that are timed
BEYOND = 256  # tokens of a stream's prompt behind its first window
STREAMS, ANSWER = 16, 64

Prompt = list[int]


def prompt_of(llm: LLM, count: int, seed: int = 0) -> Prompt:
    generator = random.Random(seed)
    return generator.choices(range(8, llm.engine.info.vocab_size), k=count)


def token_seconds(
    llm: LLM, prompt: Prompt, tokens: int, cache: CacheOptions | None = None
) -> float:
    """Seconds of a step that yields one token, behind the first `WARM` of an answer: before these
    the processor's caches hold what the prompt needed."""
    engine = llm.engine
    params = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    request = llm.request({"prompt_token_ids": prompt}, params, cache)
    goal = engine.stats().generation_tokens + WARM
    handle = engine.submit(request, llm.collector(request))
    while engine.stats().generation_tokens < goal:
        engine.step()
    start = time.perf_counter()
    for _ in range(tokens):
        engine.step()
    taken = time.perf_counter() - start
    assert engine.stats().generation_tokens == goal + tokens
    engine.abort(handle)
    engine.step()
    return taken / tokens


class Timed:
    """Sides whose own clock counts, not the call's: only what comes behind the first token."""

    def __init__(self, sides: dict[str, Callable[[], float]]) -> None:
        self._sides = sides

    def rounds(self, count: int) -> dict[str, list[float]]:
        names = list(self._sides)
        found: dict[str, list[float]] = {name: [] for name in names}
        for number in range(-1, count):  # the first round warms up
            first = number % len(names)
            for name in names[first:] + names[:first]:
                taken = self._sides[name]()
                if number >= 0:
                    found[name].append(taken)
        return found


def stream_side(llm: LLM, window: StreamWindow, steps: int) -> Callable[[], float]:
    """ms per token behind the first eviction."""
    prompt = prompt_of(llm, window.size + BEYOND)
    options = CacheOptions(stream_window=window)
    return lambda: 1e3 * token_seconds(llm, prompt, steps, options)


def plain_side(llm: LLM, cache: int, steps: int) -> Callable[[], float]:
    """ms per token, up to `cache` keys."""
    prompt = prompt_of(llm, cache - steps - WARM - 1)
    return lambda: 1e3 * token_seconds(llm, prompt, steps)


def again_side(llm: LLM, cache: int) -> Callable[[], None]:
    """A token of a window that is computed anew."""
    prompt = prompt_of(llm, cache - 1)  # with the new token as many as the context has
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)

    def side() -> None:
        llm.engine.reset_cache()
        llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)

    return side


def compare_plain(report: Report, llm: LLM, name: str, cache: int, rounds: int) -> float:
    """Returns seconds of a token of the stream."""
    size = cache - STEPS // 2
    window = StreamWindow(SINKS, size - SINKS)
    sides = {"stream": stream_side(llm, window, STEPS), "plain": plain_side(llm, cache, STEPS)}
    found = Timed(sides).rounds(rounds)
    report.rounds(
        f"{name}: ms per token, stream {SINKS}+{window.window} / plain behind as many",
        found["stream"],
        found["plain"],
        bar=1.05,
        sense="<=",
    )
    return sorted(found["stream"])[len(found["stream"]) // 2] / 1e3


def compare_again(
    report: Report, llm: LLM, name: str, cache: int, token: float, rounds: int
) -> None:
    sides = {"again": again_side(llm, cache)}
    taken = interleaved(sides, rounds)["again"]
    report.rounds(
        f"{name}: ms per token, window of {cache} computed again / streamed",
        [1e3 * one for one in taken],
        [1e3 * token] * len(taken),
        published="up to 22.2x (a GPU, at 4096)",
    )


def compare_evictions(report: Report, llm: LLM, name: str, rounds: int) -> None:
    """Over one whole breath of the largest eviction."""
    size, steps = max(CACHES) - STEPS // 2, max(EVICTED)
    sides = {
        str(evict): stream_side(llm, StreamWindow(SINKS, size - SINKS, evict), steps)
        for evict in EVICTED
    }
    found = Timed(sides).rounds(rounds)
    for evict in EVICTED[1:]:
        report.rounds(
            f"{name}: ms per token, {evict} evicted at a time / 1", found[str(evict)], found["1"]
        )


def blocks_held(llm: LLM, window: StreamWindow) -> tuple[float, float]:
    """Blocks of the pool per stream, of 16 that began with one prompt and have written `ANSWER`
    tokens each; and how many one of them names."""
    engine = llm.engine
    engine.reset_cache()
    prompt = {"prompt_token_ids": prompt_of(llm, window.size)}
    options = CacheOptions(stream_window=window)
    llm.generate([prompt], SamplingParams(max_tokens=1), use_tqdm=False, cache=options)
    handles, sinks = [], []
    for seed in range(STREAMS):
        params = SamplingParams(temperature=1, seed=seed, max_tokens=None, ignore_eos=True)
        request = llm.request(prompt, params, options)
        sinks.append(llm.collector(request))
        handles.append(engine.submit(request, sinks[-1]))
    while min(len(sink.output.outputs[0].token_ids) for sink in sinks) < ANSWER:
        engine.step()
    held = engine.stats().cache.leased_blocks[0]
    for handle in handles:
        engine.abort(handle)
    engine.step()
    size, position = engine.info.block_size, window.size + ANSWER - 1
    first = window.first_recent(position)
    named = -(-window.sinks // size) + position // size + 1 - first // size
    return held / STREAMS, float(named)


def measure_blocks(report: Report, llm: LLM, name: str) -> None:
    for evict in EVICTED:
        window = StreamWindow(SINKS, 512 - SINKS, evict)
        held, named = blocks_held(llm, window)
        report.figure(
            f"{name}: blocks a stream, {STREAMS} of one prompt, {evict} evicted at a time",
            held,
            "blocks",
            alone=named,
            shared_share=1 - held / named,
        )


def measure(report: Report, llm: LLM, name: str, rounds: int) -> None:
    token_seconds(llm, prompt_of(llm, 64), 8)
    for cache in CACHES:
        token = compare_plain(report, llm, name, cache, rounds)
        compare_again(report, llm, name, cache, token, max(2, rounds // 3))
    compare_evictions(report, llm, name, max(2, rounds // 3))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shape", choices=sorted(checkpoints.SHAPES), help="random weights too")
    parser.add_argument("--rounds", type=int, help="default: 15; of a shape 5")
    options = parser.parse_args()
    report = Report("stream_time")
    with LLM(kv_memory="256MiB") as llm:
        rounds = options.rounds or (3 if options.quick else 15)
        measure(report, llm, "embedded model", rounds)
        measure_blocks(report, llm, "embedded model")
    if options.shape:
        with tempfile.TemporaryDirectory() as parent:
            folder = checkpoints.write(options.shape, Path(parent) / options.shape)
            with LLM(model=str(folder), kv_memory="512MiB", max_model_len=2048) as llm:
                measure(report, llm, f"{options.shape} shape", options.rounds or 5)
    report.note(
        f"A blocks figure counts what the pool holds for {STREAMS} streams, a {STREAMS}th each, "
        f"when each has written {ANSWER} tokens; alone (in the JSON): what one of them names."
    )
    report.finish()


if __name__ == "__main__":
    main()
