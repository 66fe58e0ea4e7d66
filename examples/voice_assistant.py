"""A voice assistant that is warm before its first user asks."""

import time
from pathlib import Path

from kveik import LLM, SamplingParams

RULES = {"role": "system", "content": "You are a voice assistant. Answer in one short sentence."}
QUESTIONS = ["What's the weather today?", "Set a timer"]
PARAMS = SamplingParams(temperature=0, max_tokens=8)


def first_users(llm: LLM) -> tuple[int, list[str]]:
    """Tokens that were computed while users waited, and what they heard."""
    computed, answers = 0, []
    for question in QUESTIONS:
        started = time.perf_counter()
        output = llm.chat([RULES, {"role": "user", "content": question}], PARAMS)[0]
        computed += output.usage.computed_prompt_tokens
        answers.append(output.outputs[0].text)
        print(f"  {question} answered after {time.perf_counter() - started:.3f} s")
    return computed, answers


results = {}
for warm in (False, True):
    with LLM() as llm:
        if warm:
            assert llm.warm(Path(__file__).with_name("warm.yaml")).done == 2
        print("warm:" if warm else "cold:")
        results[warm] = first_users(llm)

cold, warm = results[False][0], results[True][0]
print(f"{cold} tokens computed while users wait, {warm} after a warm start")
assert warm == len(QUESTIONS), "one token per question: what the model continues from"
assert results[True][1] == results[False][1], "the cache never changes an answer"
