"""An agent reasons, acts and observes: tools are modules, history is a prefix, a script thinks."""

import re

from kveik import LLM, SamplingParams

TOOLS = {
    "timetable": ("the hour at which a ferry leaves on a day of the week", {"Saturday": "7:40"}),
    "price": ("what a thing costs, in dollars", {"museum": "8.00"}),
    "weather": ("what the weather will be on a day of the week", {"Saturday": "rain"}),
}
SCRIPT = (
    "Thought: First the weather. Action: weather(Saturday)",
    "Thought: In the rain a museum is better, across the water. Action: timetable(Saturday)",
    "Thought: What is the museum? Action: price(museum)",
    "Thought: Enough. Answer: Take the ferry at 7:40, with 8.00 dollars for the museum.",
)


def run(llm: LLM, tools: list[str]) -> int:
    """Prompt tokens computed by an agent that is told its tools in this order."""
    texts = [f"{name}(x) tells {TOOLS[name][0]}: write Action: {name}(x).\n" for name in tools]
    parts = [{"type": "text", "text": text, "cache": "module"} for text in texts]
    messages: list[dict[str, object]] = [{"role": "system", "content": parts}]
    told, computed = "Task: plan my Saturday.", 0
    for line in SCRIPT:
        messages.append({"role": "user", "content": told})
        usage = llm.chat(messages, SamplingParams(max_tokens=1))[0].usage
        computed += usage.computed_prompt_tokens
        print(f"{told}\n{line}  [{usage.computed_prompt_tokens} of {usage.prompt_tokens} tokens]")
        messages.append({"role": "assistant", "content": line})
        if action := re.search(r"Action: (\w+)\((\w+)\)", line):
            told = f"Observation: {TOOLS[action[1]][1][action[2]]}"
    return computed


with LLM() as llm:  # the second agent has the same tools in another order
    computed = [run(llm, list(TOOLS)), run(llm, list(TOOLS)[::-1])]
assert computed[1] < computed[0]
