"""KV cache on against off: the experiment of the KV-caching article.

The article: GPT-Neo-1.3B on a T4, "Why is a pour-over the only acceptable way to drink coffee?",
100 new tokens, mean of 10: 9.28 s without, 3.19 s with the cache: 2.9x. Here: models of GPT-Neo's
shapes with random bfloat16 weights, a prompt of 13 tokens (the question in GPT-2's vocabulary), the
kernels that `kveik serve` would take (--kernels reference: numpy). With and without take turns.

Without the cache a token costs the prefill of all before it. Where kernels are as fast as a step of
many tokens can be, that prefill lasts hardly longer than reading the weights once, and the ratio
falls: it says as much about the prefill as about the cache.

Its count of query-key products (1, 3, 6 without and 1, 2, 3 with the cache) is a test:
tests/test_query_key_products.py.

Usage: python bench/cache_on_off.py [--shape 125m 350m 1.3b] [--repeat N] [--kernels NAME] [--quick]
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import Report, arguments

sys.path.insert(0, str(Path(__file__).parent / "peers"))

import checkpoints

from kveik import LLM, SamplingParams
from kveik.models.architecture import read_architecture
from kveik.models.gpt2 import tensor_shapes

SHAPES = {  # hidden, layers, heads
    "125m": (768, 12, 12),
    "350m": (1024, 24, 16),
    "1.3b": (2048, 24, 16),
}
REPEAT = {"125m": 10, "350m": 5, "1.3b": 2}  # each costs 100 prefills
PROMPT_TOKENS, NEW_TOKENS = 13, 100
PROMPT = [(37 * index) % 250 + 3 for index in range(PROMPT_TOKENS)]


def config_of(shape: str) -> dict[str, Any]:
    hidden, layers, heads = SHAPES[shape]
    return {
        "architectures": ["GPTNeoForCausalLM"],
        "model_type": "gpt_neo",
        "vocab_size": 50257,
        "hidden_size": hidden,
        "num_layers": layers,
        "num_heads": heads,
        "attention_types": [[["global", "local"], layers // 2]],
        "max_position_embeddings": 2048,
        "window_size": 256,
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }


def write_model(folder: Path, config: dict[str, Any]) -> None:
    """A random GPT-Neo checkpoint; of the largest shape 2.6 GB."""
    (folder / "config.json").write_text(json.dumps(config))
    shapes = tensor_shapes(read_architecture(folder))
    checkpoints.write_tensors(folder / "model.safetensors", shapes, tied=True)
    checkpoints.write_tokenizer(folder, config["vocab_size"])


def timed(llm: LLM, use_cache: bool) -> float:
    """Seconds of the whole answer, its prompt included."""
    llm.engine.reset_cache()
    params = SamplingParams(
        temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, use_cache=use_cache
    )
    start = time.perf_counter()
    llm.generate([{"prompt_token_ids": PROMPT}], params, use_tqdm=False)
    return time.perf_counter() - start


def measure(report: Report, shape: str, repeat: int, kernels: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), config_of(shape))
        options = {"max_model_len": 512, "kv_memory": "512MiB", "kernels": kernels}
        with LLM(model=folder, **options) as llm:
            timed(llm, use_cache=True)
            pairs = [(timed(llm, False), timed(llm, True)) for _ in range(repeat)]
            computed = llm.engine.info.kernel
    off, on = zip(*pairs, strict=True)
    report.rounds(
        f"GPT-Neo {shape} shape, {NEW_TOKENS} new tokens: seconds off / on",
        off,
        on,
        bar=2.9,
        published=2.9,
        computed_by=computed,
        mean_off=statistics.mean(off),
        mean_on=statistics.mean(on),
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shape", nargs="+", choices=sorted(SHAPES), help="default: 125m 1.3b")
    parser.add_argument("--repeat", type=int, help=f"default: {REPEAT}")
    parser.add_argument("--kernels", default="auto", help="as in kveik serve")
    options = parser.parse_args()
    report = Report("cache_on_off")
    for shape in options.shape or (["125m"] if options.quick else ["125m", "1.3b"]):
        repeat = options.repeat or (1 if options.quick else REPEAT[shape])
        measure(report, shape, repeat, options.kernels)
    report.finish()


if __name__ == "__main__":
    main()
