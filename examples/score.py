"""Which sentence does the model find likelier? Log-probability per token, higher is likelier."""

from kveik import LLM

sentences = [
    "She looked at him and smiled.",
    "Smiled him at and looked she.",
    "She looked at him and potato.",
]

with LLM() as llm:
    for sentence, score in zip(sentences, llm.score(sentences), strict=True):
        values = [value for value in score.logprobs if value is not None]
        print(f"{sum(values) / len(values):8.3f} per token  {sentence}")
