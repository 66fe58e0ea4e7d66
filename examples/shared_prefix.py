"""Eight questions about one text: computed once with the cache, eight times without it."""

import time
from dataclasses import replace

from kveik import LLM, SamplingParams

names = ["Anna", "Boris", "Clara", "David", "Emma", "Felix", "Grace", "Henry"]
places = ["garden", "library", "stable", "kitchen", "church", "harbour", "forest", "cellar"]
facts = "\n".join(f"{name}: {place}" for name, place in zip(names, places, strict=True))
prompts = [f"{facts}\nWhere is {name}?\n{name}:" for name in names]
params = SamplingParams(temperature=0, max_tokens=4)

with LLM() as llm:
    llm.generate("warm up", params)
    texts = {}
    for use_cache in (True, False):
        start = time.perf_counter()
        outputs = llm.generate(prompts, replace(params, use_cache=use_cache))
        seconds = time.perf_counter() - start
        cached = sum(output.num_cached_tokens for output in outputs)
        texts[use_cache] = [output.outputs[0].text for output in outputs]
        print(f"use_cache={use_cache}: {seconds:.2f} s, {cached} prompt tokens from the cache")
    assert texts[True] == texts[False], "the cache never changes an answer"
    print(dict(zip(names, texts[True], strict=True)))
