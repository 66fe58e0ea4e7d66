"""KV cache on against off: the experiment of the KV-caching article.

The article: GPT-Neo-1.3B on a T4, "Why is a pour-over the only acceptable way to drink coffee?",
100 new tokens, mean of 10: 9.28 s without, 3.19 s with the cache: 2.9x. Here: a GPT-Neo-shaped
model with random weights (the shape of 125M by default; `--shape 350m` or `1.3b` for the larger
ones) on the reference kernels, a prompt of 13 tokens (the question in GPT-2's vocabulary).

Its count of query-key products (1, 3, 6 without and 1, 2, 3 with the cache) is a test:
tests/test_query_key_products.py.

Usage: python bench/cache_on_off.py [--shape 125m|350m|1.3b] [--repeat 10] [--quick]
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from report import ROOT, Report, arguments

from kveik import LLM, SamplingParams

SHAPES = {  # hidden, layers, heads
    "125m": (768, 12, 12),
    "350m": (1024, 24, 16),
    "1.3b": (2048, 24, 16),
}
PROMPT_TOKENS, NEW_TOKENS = 13, 100


def write_model(folder: Path, shape: str) -> None:
    """A random GPT-Neo checkpoint of this shape with a byte-level tokenizer."""
    import sys

    import torch
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    sys.path.insert(0, str(ROOT / "tests"))
    import tiny

    hidden, layers, heads = SHAPES[shape]
    config = GPTNeoConfig(
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        attention_types=[[["global", "local"], layers // 2]],
        max_position_embeddings=2048,
        window_size=256,
        vocab_size=50257,
    )
    torch.manual_seed(0)
    with torch.device("cpu"):
        GPTNeoForCausalLM(config).save_pretrained(folder)
    tiny.write_tokenizer(folder, config.vocab_size)


def timed(llm: LLM, prompt: list[int], use_cache: bool) -> float:
    llm.engine.reset_cache()
    params = SamplingParams(
        temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, use_cache=use_cache
    )
    start = time.perf_counter()
    llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
    return time.perf_counter() - start


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="125m")
    parser.add_argument("--repeat", type=int, default=10)
    options = parser.parse_args()
    repeat = 2 if options.quick else options.repeat
    report = Report("cache_on_off")
    prompt = [(37 * index) % 250 + 3 for index in range(PROMPT_TOKENS)]
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), options.shape)
        with LLM(model=folder, max_model_len=512, kv_memory="512MiB") as llm:
            timed(llm, prompt, use_cache=True)
            on = [timed(llm, prompt, use_cache=True) for _ in range(repeat)]
            off = [timed(llm, prompt, use_cache=False) for _ in range(repeat)]
    report.ratio(
        f"GPT-Neo {options.shape} shape, {NEW_TOKENS} new tokens: seconds off / on",
        statistics.mean(off),
        statistics.mean(on),
        bar=2.9,
        published=2.9,
        repeat=repeat,
    )
    report.finish()


if __name__ == "__main__":
    main()
