"""Few-shot prompts whose examples are chosen for each query: every example is a module."""

from kveik import LLM, SamplingParams

EXAMPLES = {  # what somebody wrote, and whose desk it goes to
    "The ship came too late and the ferry did not wait for us.": "harbour",
    "The harbour is dark at night, and the boats cannot find the mole.": "harbour",
    "The play was long, and the actors could not be heard from the balcony.": "theatre",
    "My costume was torn when it came back from the stage.": "theatre",
    "The book that I asked for was lent to somebody else.": "library",
    "There is no light in the reading room for the newspapers.": "library",
    "The bread of the baker was old, and the plums were green.": "market",
    "The farmers shout so early that nobody can sleep on a Saturday.": "market",
}
QUERIES = ["The ferry was late.", "I could not hear the play.", "No bread at the market!"] * 2
SHOTS = 4
PARAMS = SamplingParams(temperature=0, max_tokens=4)


def vectors_of(llm: LLM, texts: list[str]) -> list[list[float]]:
    return [output.outputs.embedding for output in llm.embed(texts)]


with LLM() as llm:
    vectors = dict(zip(EXAMPLES, vectors_of(llm, list(EXAMPLES)), strict=True))
    computed = prompts = 0
    for query, vector in zip(QUERIES, vectors_of(llm, QUERIES), strict=True):
        cosines = {t: sum(map(float.__mul__, v, vector)) for t, v in vectors.items()}
        best = sorted(cosines, key=cosines.__getitem__)[-SHOTS:]  # the nearest beside the query
        shots = [f"Letter: {text}\nDesk: {EXAMPLES[text]}\n\n" for text in best]
        parts = [{"type": "text", "text": shot, "cache": "module"} for shot in shots]
        content = [*parts, {"type": "text", "text": f"Letter: {query}\nDesk:"}]
        output = llm.chat([{"role": "user", "content": content}], PARAMS)[0]
        computed += output.usage.computed_prompt_tokens
        prompts += output.usage.prompt_tokens
        print(f"{query} -> {output.outputs[0].text.strip()}  {output.usage.computed_prompt_tokens}")
    print(f"{computed} of {prompts} prompt tokens computed")
assert computed < prompts * 0.7
