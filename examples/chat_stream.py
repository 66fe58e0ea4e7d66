"""A conversation of three turns, streamed; each turn reuses the turns before it."""

from kveik import LLM, SamplingParams

questions = ["Good evening, sir.", "Where have you been?", "And what did you see there?"]
params = SamplingParams(temperature=0.7, max_tokens=40, seed=1)

with LLM() as llm:
    messages: list[dict[str, str]] = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        print(f"\n> {question}")
        answer = ""
        for delta in llm.stream(messages, params):
            answer += delta.text
            print(delta.text, end="", flush=True)
        messages.append({"role": "assistant", "content": answer})
        stats = llm.engine.stats().cache
        print(f"\n  [{stats.hit_tokens} of {stats.queried_tokens} prompt tokens from the cache]")
