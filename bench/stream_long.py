"""One endless stream over a novel that is repeated, through the door and the scheduler.

    2  memory of the process flat (bar: within 1 %), perplexity of one passage the same at its first
       and its last repetition (bar: within 2 %), time per token flat

The stream is an open session: turns of 4096 tokens of text, each of which goes on from the window.
Every turn ends with one generated token, which is made to be the next one of the novel (its bias is
100), so that the stream reads the novel and nothing else; its log-probability, which is of the raw
logits, is how a passage is scored: turns of 16 tokens, one score each. Behind the passage an answer
of 128 tokens is generated and timed.

`make soak` reads 400,000 tokens; the issue's figure is --tokens 4000000.

Usage: python bench/stream_long.py [--text FILE] [--tokens N] [--quick]
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from novel import (
    EMBEDDED,
    Floats,
    ids_of,
    note_text,
    opening,
    parser_with_text,
    perplexity,
    picture,
    ratio,
    there,
)
from report import Report

from kveik import LLM, CacheOptions, SamplingParams
from kveik.outputs import RequestOutput

WINDOW = "4+1020"
TURN = 4096  # tokens of a turn outside of the passage
REPETITIONS = 4
PASSAGE = range(2048, 2048 + 8192)  # of the novel
SCORED = 16  # one token of so many in the passage
DECODED = 128  # tokens that are generated and timed behind it
SESSION = "novel"


def resident_bytes() -> int:
    """Memory of this process; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Turn:
    """What was seen behind a long turn. tokens: of the stream so far."""

    tokens: int
    seconds: float  # per token
    resident: int


@dataclass
class Stream:
    """The open session."""

    llm: LLM
    tokens: int = 0
    evicted: int = 0
    turns: list[Turn] = field(default_factory=list)

    def read(self, ids: Sequence[int]) -> float:
        """Go on with these tokens, the last of which is generated; its log-probability."""
        *told, following = ids
        bias = {following: 100.0}
        params = SamplingParams(temperature=0, max_tokens=1, logprobs=0, logit_bias=bias)
        start = time.perf_counter()
        choice = self._send(told, params).outputs[0]
        seconds = time.perf_counter() - start
        assert choice.logprobs is not None
        if choice.token_ids != [following]:
            raise SystemExit(f"{choice.token_ids} was generated, not the novel's {following}")
        if len(ids) > TURN // 2:
            self.turns.append(Turn(self.tokens, seconds / len(ids), resident_bytes()))
        return choice.logprobs[0][following].logprob

    def answer(self, ids: Sequence[int]) -> float:
        """Seconds per token of an answer to these."""
        params = SamplingParams(temperature=0, max_tokens=DECODED, ignore_eos=True)
        metrics = self._send(ids, params).metrics
        assert metrics is not None
        assert metrics.time_to_first_token is not None
        return (metrics.seconds - metrics.time_to_first_token) / (DECODED - 1)

    def _send(self, ids: Sequence[int], params: SamplingParams) -> RequestOutput:
        begins = not self.tokens
        prompt = {"prompt_token_ids": [*(opening(EMBEDDED) if begins else ()), *ids]}
        options = CacheOptions(
            session=SESSION, stream_window=WINDOW if begins else None, resumes=not begins
        )
        [output] = self.llm.generate([prompt], params, use_tqdm=False, cache=options)
        assert output.usage is not None
        self.tokens += output.usage.prompt_tokens + output.usage.completion_tokens
        self.evicted = output.usage.evicted_tokens or 0
        return output


def pieces(length: int, scored: bool) -> Iterator[tuple[int, int]]:
    """Where the turns of one repetition begin and end; in a scored passage they are short."""
    start = 0
    while start < length:
        if scored and start in PASSAGE:
            stop = start + SCORED
        elif scored and start < PASSAGE.start:
            stop = min(start + TURN, PASSAGE.start)
        else:
            stop = start + TURN
        if length - stop < 2:  # a turn has two tokens at least
            stop = length
        yield start, min(stop, length)
        start = stop


def repetition(stream: Stream, novel: Sequence[int], scored: bool) -> tuple[Floats, float]:
    """Nats of the scored tokens of the passage, and seconds per token of an answer behind it."""
    losses, token = [], 0.0
    for start, stop in pieces(len(novel), scored):
        logprob = stream.read(novel[start:stop])
        if not scored or start not in PASSAGE:
            continue
        losses.append(-logprob)
        if stop == PASSAGE.stop:
            token = stream.answer(novel[stop : stop + SCORED])
    return np.array(losses), token


def measure(report: Report, novel: Sequence[int], repetitions: int) -> list[Turn]:
    with LLM(kv_memory="64MiB") as llm:
        stream = Stream(llm)
        first, token = repetition(stream, novel, scored=True)
        for _ in range(repetitions - 2):
            repetition(stream, novel, scored=False)
        last, last_token = repetition(stream, novel, scored=True)
        pool = llm.engine.info.pool_bytes
    turns = stream.turns
    name = f"{stream.tokens:,} tokens in one stream"
    report.figure(f"{name}: evicted", stream.evicted, "tokens")
    report_memory(report, name, turns, pool)
    value, error = ratio(last, first)
    report.figure(
        f"{name}: PPL of a passage, repetition {repetitions} / 1",
        value,
        "x",
        bar=1.02,
        sense="<=",
        standard_error=error,
        first=perplexity(first),
        last=perplexity(last),
        scored=len(first),
    )
    quarter = len(turns) // 4
    seconds = [turn.seconds for turn in turns]
    early, late = seconds[1 : quarter + 1], seconds[-quarter:]
    report.ratio(
        f"{name}: us per token read, last quarter / first",
        1e6 * statistics.median(late),
        1e6 * statistics.median(early),
    )
    report.ratio(
        f"{name}: ms per token generated, repetition {repetitions} / 1",
        1e3 * last_token,
        1e3 * token,
    )
    return turns


def report_memory(report: Report, name: str, turns: Sequence[Turn], pool: int) -> None:
    """From a tenth of the stream on; what comes before is start-up."""
    settled = [turn.resident for turn in turns if turn.tokens >= turns[-1].tokens / 10]
    if not settled[0]:
        report.note("The system does not tell the memory of a process: not measured.")
        return
    report.figure(
        f"{name}: resident memory, most / least",
        max(settled) / min(settled),
        "x",
        bar=1.01,
        sense="<=",
        least_mib=min(settled) / 2**20,
        most_mib=max(settled) / 2**20,
        pool_mib=pool / 2**20,
    )


def draw(turns: Sequence[Turn]) -> None:
    with picture("stream_long", height=2.4) as axes:
        if axes is None:
            return
        tokens = [turn.tokens for turn in turns]
        axes.plot(tokens, [turn.resident / 2**20 for turn in turns], label="resident MiB")
        axes.plot(tokens, [1e6 * turn.seconds for turn in turns], label="us per token read")
        axes.set(xlabel="tokens", ylim=(0, None))
        axes.legend(fontsize=7)


def main() -> None:
    parser = parser_with_text(__doc__)
    parser.add_argument("--tokens", type=int, help="of the stream; default: 400,000")
    options = parser.parse_args()
    if not there(options.text):
        return
    tokens = options.tokens or (100_000 if options.quick else 400_000)
    novel = ids_of(EMBEDDED, options.text, tokens // REPETITIONS)
    repetitions = math.ceil(tokens / len(novel))
    report = Report("stream_long")
    turns = measure(report, novel, repetitions)
    if not options.quick:
        draw(turns)
    note_text(report, options.text, len(novel))
    report.note(
        f"Read {repetitions} times. The passage: tokens {PASSAGE.start} to {PASSAGE.stop}, every "
        f"{SCORED}th scored. The whole embedded model (6 layers), window {WINDOW}."
    )
    report.finish()


if __name__ == "__main__":
    main()
