"""`llm.embed` with an embedding model: on the caller's thread, beside the engine."""

from __future__ import annotations

from collections.abc import Sequence

from kveik.engine.embedder import Embedder
from kveik.engine.request import Usage
from kveik.outputs import EmbeddingOutput, EmbeddingRequestOutput
from kveik.prompting import Prompt, prompt_content


def embed_beside(embedder: Embedder, prompts: Sequence[Prompt]) -> list[EmbeddingRequestOutput]:
    """Vectors of texts, or of ids of the embedding model's vocabulary, in their order. Raises
    InvalidRequest and its kin for the first prompt that cannot be embedded."""
    encoded: list[Sequence[int]] = []
    for index, prompt in enumerate(prompts):
        content = prompt_content(prompt)
        ids = embedder.encode(content) if isinstance(content, str) else content
        embedder.check(ids, "prompt" if len(prompts) == 1 else f"prompts[{index}]")
        encoded.append(ids)
    vectors = [one for batch in embedder.batches(encoded) for one in embedder.vectors(batch)]
    return [
        EmbeddingRequestOutput(
            str(number),
            EmbeddingOutput(vector.tolist()),
            list(ids),
            Usage(len(ids), computed_prompt_tokens=len(ids)),
        )
        for number, (ids, vector) in enumerate(zip(encoded, vectors, strict=True))
    ]
