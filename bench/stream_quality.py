"""What forgetting costs a stream: perplexity of a held-out novel in windows of all sizes.

    PPL             of the last half of the text, each token given what its window holds
    recomputation   the bar of StreamingLLM: the last C - 1 tokens computed anew for every token,
                    here for every --every-th one, beside the same tokens in the stream
    s               for the whole text, prompt chunks as the engine cuts them

The twelve sinks and windows are those of the paper's tables 2 and 6, as far as the embedded model
sees (1,024 tokens); the last rows forget in batches. Text: corpora/eval/war_and_peace_2600.txt.

Usage: python bench/stream_quality.py [--text FILE] [--tokens N] [--every N] [--quick]
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

from report import ROOT, Report, arguments

from kveik import LLM, CacheOptions, SamplingParams, StreamWindow

TEXT = ROOT / "corpora" / "eval" / "war_and_peace_2600.txt"
SINKS, SIZES, BATCHES = (0, 1, 2, 4, 8), (256, 512, 1024), (16, 128)


class Novel:
    """The ids of a piece of the text, and their log-probabilities in some window."""

    def __init__(self, llm: LLM, text: str, tokens: int) -> None:
        start = len(text) // 3  # away from the publisher's words
        encode = llm.get_tokenizer().encode
        self.ids = encode(text[start : start + 8 * tokens])[:tokens]
        self._llm = llm

    def logprobs(self, ids: Sequence[int], window: StreamWindow) -> list[float]:
        """Of ids[1:], each given those before it that the window holds."""
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
        options = CacheOptions(stream_window=window, write=False)
        prompt = {"prompt_token_ids": list(ids)}
        [output] = self._llm.generate(prompt, params, cache=options)  # type: ignore[arg-type]
        assert output.prompt_logprobs is not None
        rows = zip(ids[1:], output.prompt_logprobs[1:], strict=True)
        return [row[token].logprob for token, row in rows if row is not None]

    def recomputed(self, size: int, places: Sequence[int]) -> list[float]:
        """Of the tokens at these places, with the size - 1 before them computed anew (in a window
        that they just fill, so that one more token has a place)."""
        whole = StreamWindow(0, size)
        return [self.logprobs(self.ids[at - size + 1 : at + 1], whole)[-1] for at in places]


def perplexity(logprobs: Sequence[float]) -> float:
    return math.exp(-sum(logprobs) / len(logprobs))


def measure(report: Report, novel: Novel, every: int) -> None:
    half = len(novel.ids) // 2
    places = range(max(half, max(SIZES)), len(novel.ids), every)
    for size in SIZES:
        fresh = perplexity(novel.recomputed(size, places))
        report.figure(f"{size}: PPL with recomputation", fresh, "")
        windows = [StreamWindow(sinks, size - sinks) for sinks in SINKS]
        windows += [StreamWindow(4, size - 4, batch) for batch in BATCHES]
        for window in windows:
            name = f"{window.sinks}+{window.window}"
            name += f"/{window.evict}" if window.evict > 1 else ""
            began = time.perf_counter()
            found = novel.logprobs(novel.ids, window)
            seconds = time.perf_counter() - began
            report.figure(f"{name}: PPL", perplexity(found[half:]), "", seconds=seconds)
            same = perplexity([found[at - 1] for at in places])
            bar = 1.01 if window.sinks == 4 and window.evict == 1 else None
            report.ratio(f"{name}: PPL against recomputation", same, fresh, bar=bar, sense="<=")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--text", type=Path, default=TEXT, help="a novel in plain text")
    parser.add_argument("--tokens", type=int, default=40_000, help="of the novel")
    parser.add_argument("--every", type=int, default=97, help="tokens between recomputed ones")
    options = parser.parse_args()
    if not options.text.is_file():
        print(f"{options.text}: no such file; --text names a novel in plain text")
        return
    tokens = 4_000 if options.quick else options.tokens
    report = Report("stream_quality")
    with LLM() as llm:
        novel = Novel(llm, options.text.read_text(encoding="utf-8-sig"), tokens)
        measure(report, novel, options.every)
    report.note(f"{len(novel.ids)} tokens of {options.text.name}, scored from {tokens // 2} on")
    report.finish()


if __name__ == "__main__":
    main()
