"""`llm.embed` beside transformers: the mean of the last hidden states, of length 1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from kveik import (
    LLM,
    CacheOptions,
    ContextLengthExceeded,
    InvalidRequest,
    Module,
    Role,
    Schema,
    SchemaPrompt,
    Use,
)

TEXTS = ["In the beginning there was the sea.", "the", "A" * 90]
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral window": ("mistral", {}),
    "qwen3": ("qwen3", {}),
    "gpt2": ("gpt2", {}),
    "gpt_neo": ("gpt_neo", {}),
}


def truth(folder: Path, prompts: list[list[int]]) -> np.ndarray:
    """float64 [prompts, H], by transformers and numpy."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        rows = [model(torch.tensor([ids])).last_hidden_state[0].double() for ids in prompts]
    means = np.array([hidden.mean(0).numpy() for hidden in rows])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_embeddings_equal_transformers(name: str, tmp_path: Path) -> None:
    family, overrides = FAMILIES[name]
    folder = tiny.tiny_transformers(tmp_path, family, **overrides)
    with LLM(folder, kernels="reference", kv_memory="4MiB", max_num_batched_tokens=32) as llm:
        outputs = llm.embed(TEXTS)
    found = np.array([output.outputs.embedding for output in outputs])
    wanted = truth(folder, [output.prompt_token_ids for output in outputs])
    assert np.abs(wanted[0] - wanted[2]).max() > 0.05  # or nothing would be compared
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def llm(tiny_folder: Callable[..., Path]) -> Any:
    with LLM(tiny_folder(), kv_memory="4MiB", block_size=8) as made:
        yield made


def test_one_text_or_several_as_text_or_ids(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode(TEXTS[0])
    together = llm.embed([*TEXTS, {"prompt_token_ids": ids}])
    alone = [llm.embed(text)[0] for text in TEXTS]
    vectors = [output.outputs.embedding for output in together]
    assert vectors[:3] == [output.outputs.embedding for output in alone]
    assert vectors[3] == vectors[0]
    assert together[0].prompt_token_ids == ids
    assert together[0].outputs.hidden_size == 64
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-6)
    assert together[0].usage is not None
    assert together[0].usage.completion_tokens == 0


def test_nothing_is_left_in_the_cache_unless_it_is_asked_for(llm: LLM) -> None:
    text = "A passage that nobody goes on from, of some length."
    llm.embed(text)
    assert llm.generate(text)[0].num_cached_tokens == 0
    kept = "Another passage, which is the beginning of a prompt."
    llm.embed(kept, cache=CacheOptions(tags=["kept"]))
    assert llm.generate(kept)[0].num_cached_tokens > 8


def test_what_cannot_be_embedded(llm: LLM) -> None:
    with pytest.raises(ContextLengthExceeded):
        llm.embed({"prompt_token_ids": [5] * 513})
    with pytest.raises(InvalidRequest, match="at least one token"):
        llm.embed({"prompt_token_ids": []})
    with pytest.raises(InvalidRequest, match="nothing of an embedding"):
        llm.embed(TEXTS, cache=CacheOptions(explain=True))
    llm.schemas.add(Schema("sea", Role("user", "Read. ", Module("blue", "The sea is blue. " * 4))))
    with pytest.raises(InvalidRequest, match="without modules"):
        llm.embed(SchemaPrompt("sea", (Use("blue"),), "Why?"))
