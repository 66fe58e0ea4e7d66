"""The embedded model: decoding, sharing a prefix, the same prompt again, transformers beside.

1. tokens/s at batch 1 (bar >= 100)
2. 16 requests of 512 shared + 64 own tokens in, 32 out: prefix cache on and off (bar >= 2x)
3. the same 800-token prompt again, time to first token against cold (bar <= 0.15)
4. transformers' `generate` on the same folder, float32 and bfloat16, in the same run, as it is

Every figure is the median of several runs; ratios are taken within one process.

Usage: python bench/embedded.py [--quick]
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

from report import Report, arguments

from kveik import LLM, SamplingParams
from kveik.config import DEFAULT_MODEL_PATH

PromptIds = dict[str, list[int]]


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def random_prompt(generator: random.Random, count: int, vocabulary: int) -> list[int]:
    return [generator.randrange(8, vocabulary) for _ in range(count)]


def decoding(llm: LLM, report: Report, repeat: int) -> float:
    """tokens/s of one request of 16 tokens in, 128 out (the first token's time is not counted)."""
    generator = random.Random(1)
    params = SamplingParams(temperature=0, max_tokens=128, ignore_eos=True)
    first = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    rates = []
    for _ in range(repeat):
        prompt = {"prompt_token_ids": random_prompt(generator, 16, llm.engine.info.vocab_size)}
        prefill = seconds(lambda p=prompt: llm.generate([p], first, use_tqdm=False))
        llm.engine.reset_cache()
        whole = seconds(lambda p=prompt: llm.generate([p], params, use_tqdm=False))
        rates.append(127 / (whole - prefill))
    rate = statistics.median(rates)
    report.figure("decode at batch 1", rate, "tok/s", bar=100)
    return rate


def shared_prompts(llm: LLM, seed: int) -> list[PromptIds]:
    """16 prompts of 512 shared and 64 own tokens."""
    generator, size = random.Random(seed), llm.engine.info.vocab_size
    shared = random_prompt(generator, 512, size)
    return [{"prompt_token_ids": shared + random_prompt(generator, 64, size)} for _ in range(16)]


def shared_prefix(llm: LLM, report: Report, repeat: int) -> None:
    """Prefix cache on against off (every prompt computed for itself)."""
    params = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)
    pairs = []
    with LLM(seed=0, enable_prefix_caching=False) as alone:
        alone.generate("Warm up.", SamplingParams(max_tokens=8), use_tqdm=False)
        for attempt in range(repeat):
            prompts = shared_prompts(llm, 10 + attempt)
            llm.engine.reset_cache()
            on = seconds(lambda q=prompts: llm.generate(q, params, use_tqdm=False))
            off = seconds(lambda q=prompts: alone.generate(q, params, use_tqdm=False))
            pairs.append((off / on, off, on))
    _, off, on = sorted(pairs)[len(pairs) // 2]
    name = "16 x (512 shared + 64 + 32)"
    report.ratio(f"{name}: seconds, prefix cache off / on", off, on, bar=2.0)
    report.figure(f"{name}: throughput, cache on", 16 * 32 / on, "tok/s")


def again(llm: LLM, report: Report, repeat: int) -> None:
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    pairs = []
    for attempt in range(repeat):
        generator = random.Random(30 + attempt)
        ids = random_prompt(generator, 800, llm.engine.info.vocab_size)
        prompt: PromptIds = {"prompt_token_ids": ids}
        llm.engine.reset_cache()
        cold = seconds(lambda p=prompt: llm.generate([p], params, use_tqdm=False))
        warm = seconds(lambda p=prompt: llm.generate([p], params, use_tqdm=False))
        pairs.append((warm / cold, warm, cold))
    _, warm, cold = sorted(pairs)[len(pairs) // 2]
    report.ratio("800-token prompt: seconds again / cold", warm, cold, bar=0.15, sense="<=")


def transformers_beside(report: Report, ours: float, repeat: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(DEFAULT_MODEL_PATH, dtype=dtype)
        ids = torch.randint(8, model.config.vocab_size, (1, 16))

        def generate(count: int, model: object = model, ids: object = ids) -> None:
            model.generate(  # type: ignore[attr-defined]
                ids,
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
            )

        generate(4)
        times = [
            seconds(lambda: generate(33)) - seconds(lambda: generate(1)) for _ in range(repeat)
        ]
        rates[dtype] = 32 / statistics.median(times)
        report.figure(f"transformers generate, {dtype}", rates[dtype], "tok/s")
    report.ratio("decode at batch 1 against transformers' best", ours, max(rates.values()))


def main() -> None:
    options = arguments(__doc__).parse_args()
    repeat = 1 if options.quick else 5
    report = Report("embedded")
    with LLM(seed=0) as llm:
        llm.generate("Warm up.", SamplingParams(max_tokens=8), use_tqdm=False)
        rate = decoding(llm, report, repeat)
        again(llm, report, repeat)
        shared_prefix(llm, report, min(repeat, 3))
    transformers_beside(report, rate, min(repeat, 3))
    report.finish()


if __name__ == "__main__":
    main()
