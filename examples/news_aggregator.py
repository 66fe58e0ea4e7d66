"""News that readers ask about all day, and that nobody shall hear of a day later."""

import time
from types import SimpleNamespace

from kveik import LLM, CacheOptions, SamplingParams

NEWS = {
    "harbour": "The old harbour was reopened today after nine years. Three ships came at noon.",
    "election": "The town elects a new council on Sunday. Five parties stand, two of them for the "
    "first time, and the schools are open to voters from eight to six.",
}
QUESTIONS = ["What happened?", "Since when?", "Who is concerned?"] * 6  # six readers
PARAMS = SamplingParams(temperature=0, max_tokens=3)


def a_day_of_reading(llm: LLM) -> int:
    computed = 0
    for topic, article in NEWS.items():
        options = CacheOptions(tags=["news", topic], ttl="1d", clock="first_use")
        for question in QUESTIONS:
            output = llm.generate(f"{article}\n{question}\n", PARAMS, cache=options)[0]
            computed += output.usage.computed_prompt_tokens
    return computed


computed = {}  # prompt tokens
clock = SimpleNamespace(now=0.0)  # the program passes time itself; by default it just passes
for on in (False, True):
    # A small pool: with the cache new blocks are filled, and fresh memory is slow to touch once.
    with LLM(enable_prefix_caching=on, kv_memory="16MiB", clock=lambda: clock.now) as llm:
        started = time.perf_counter()
        computed[on] = a_day_of_reading(llm)
        print(f"cache {on}: {computed[on]} tokens, {time.perf_counter() - started:.2f} s")
        if on:
            assert llm.invalidate(tag="election").tokens > 0, "the election was called off"
            clock.now += 24 * 3600
            assert not llm.cache.listing(), "yesterday's news are gone"
assert computed[True] < computed[False] / 5
