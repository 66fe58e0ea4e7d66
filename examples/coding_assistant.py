"""A coding assistant whose user goes from one codebase to another."""

import fnmatch
import inspect
import textwrap
import time

from kveik import LLM, CacheOptions, SamplingParams

REPOS = {"repo-a": inspect.getsource(textwrap.indent), "repo-b": inspect.getsource(fnmatch.filter)}
QUESTIONS = ["What does it return?", "What can go wrong?", "How is it tested?"]
PARAMS = SamplingParams(temperature=0, max_tokens=6)


def prompt(repo: str, question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": REPOS[repo]}, {"role": "user", "content": question}]


def work(llm: LLM) -> int:
    """Prompt tokens computed. Who says what it is about lets the cache drop what it was about."""
    computed = 0
    for repo in REPOS:
        options = CacheOptions(session="dev", context=repo, relevance="delete")
        for question in QUESTIONS:
            output = llm.chat(prompt(repo, question), PARAMS, cache=options)[0]
            computed += output.usage.computed_prompt_tokens
    return computed


computed = {}
for on in (False, True):
    with LLM(enable_prefix_caching=on) as llm:
        started = time.perf_counter()
        computed[on] = work(llm)
        print(f"cache {on}: {computed[on]} tokens, {time.perf_counter() - started:.2f} s")
        for repo in REPOS if on else ():  # the codebase that was left is gone
            output = llm.chat(prompt(repo, "Hm?"), PARAMS, cache=CacheOptions(write=False))[0]
            assert (output.num_cached_tokens > 100) == (repo == "repo-b")
assert computed[True] < computed[False] / 2
