"""Complete a few prompts with the embedded model: the vLLM program, one import changed."""

from kveik import LLM, SamplingParams

prompts = ["It was a dark night, and", "The young lady looked at him and"]
params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=40, seed=7)

with LLM() as llm:
    for output in llm.generate(prompts, params):
        print(f"Prompt: {output.prompt!r}")
        print(f"Text:   {output.outputs[0].text!r} ({output.outputs[0].finish_reason})")
