"""`LLM(embedding_model=...)`: vectors of the folder's model, beside the one that writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_encoder import tiny_encoder

from kveik import LLM, CacheOptions, ContextLengthExceeded, InvalidRequest, SamplingParams
from kveik.engine.embedder import Embedder

TEXTS = ["The ship lay in the bay.", "sea", "a boat " * 9]


@pytest.fixture(scope="module")
def llm(
    tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LLM]:
    folder = tiny_encoder(tmp_path_factory.mktemp("models") / "small")
    with LLM(tiny_folder(), kv_memory="4MiB", embedding_model=str(folder)) as made:
        yield made


def test_vectors_are_those_of_the_folder(llm: LLM) -> None:
    outputs = llm.embed(TEXTS)
    alone = Embedder.load(llm.engine.config, "")
    ids = [alone.encode(text) for text in TEXTS]
    assert [output.prompt_token_ids for output in outputs] == ids
    assert [output.outputs.embedding for output in outputs] == [
        one.tolist() for one in alone.vectors(ids)
    ]
    assert np.linalg.norm(outputs[0].outputs.embedding) == pytest.approx(1.0, abs=1e-6)
    usage = outputs[2].usage
    assert usage is not None
    assert usage.prompt_tokens == usage.computed_prompt_tokens == len(ids[2])
    [by_ids] = llm.embed({"prompt_token_ids": ids[0]})
    assert by_ids.outputs == outputs[0].outputs
    assert llm.engine.info.embedding_model == "small"


def test_the_model_that_writes_does_not_notice(llm: LLM, tiny_folder: Callable[..., Path]) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=5)
    with LLM(tiny_folder(), kv_memory="4MiB") as other:
        expected = other.generate("the end", params)[0].outputs[0].token_ids
    before = llm.engine.stats().prompt_tokens
    llm.embed(TEXTS)
    assert llm.engine.stats().prompt_tokens == before
    assert llm.generate("the end", params)[0].outputs[0].token_ids == expected


def test_what_cannot_be_embedded(llm: LLM) -> None:
    with pytest.raises(ContextLengthExceeded, match=r"prompts\[1\]: has 81 tokens"):
        llm.embed(["a", {"prompt_token_ids": [5] * 81}])
    with pytest.raises(InvalidRequest, match="prompt: at least one token"):
        llm.embed({"prompt_token_ids": []})
    with pytest.raises(InvalidRequest, match="cache: an embedding model keeps no keys"):
        llm.embed(TEXTS, cache=CacheOptions(tags=["kept"]))
    with pytest.raises(InvalidRequest, match="prompt: expected a string"):
        llm.embed({"prompt_markup": "<prompt/>"})
