"""`llm.inspect` beside transformers: keys, values and attention of every layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from kveik import LLM, InvalidRequest, Module, Role, SamplingParams, Schema, SchemaPrompt, Use
from kveik.engine import inspection
from kveik.kernels.extension import native_extension

TEXT = "The captain looked at the sea for a long time, and then at his hands."
FAMILIES = ("llama", "mistral", "qwen3", "gpt2", "gpt_neo")


def truth(folder: Path, ids: tuple[int, ...]) -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        return model(torch.tensor([ids]), output_attentions=True, use_cache=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_transformers(family: str, tmp_path: Path) -> None:
    folder = tiny.tiny_transformers(tmp_path, family)
    with LLM(folder, kernels="reference", kv_memory="4MiB") as llm:
        found = llm.inspect(TEXT)
        assert found.token_ids == tuple(llm.get_tokenizer().encode(TEXT))
    wanted = truth(folder, found.token_ids)
    layers = len(wanted.attentions)
    assert len(found.keys) == len(found.values) == len(found.attention) == layers
    assert len(found.token_ids) > 30  # longer than the windows of 24
    for layer in range(layers):
        cached = wanted.past_key_values.layers[layer]  # of a window, its last tokens
        seen = cached.keys.shape[2]
        for ours, theirs in (
            (found.keys[layer][:, -seen:], cached.keys[0]),
            (found.values[layer][:, -seen:], cached.values[0]),
            (found.attention[layer], wanted.attentions[layer][0]),
        ):
            assert ours.dtype == np.float32
            np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4, rtol=0)


def test_native_kernels_show_what_they_keep(tiny_folder: Callable[..., Path]) -> None:
    if native_extension().module is None:
        pytest.skip(native_extension().missing)
    with LLM(tiny_folder(), kv_memory="4MiB") as llm:
        before = llm.generate(TEXT, SamplingParams(temperature=0, max_tokens=5))[0].outputs[0]
        found = llm.inspect(TEXT)
        again = llm.generate(TEXT, SamplingParams(temperature=0, max_tokens=5))[0]
        assert again.outputs[0].token_ids == before.token_ids
        assert again.num_cached_tokens > 0
    with LLM(tiny_folder(), kernels="reference", kv_memory="4MiB") as llm:
        wanted = llm.inspect(TEXT)
    for ours, theirs in zip(found.keys, wanted.keys, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.1, rtol=0)
        assert not ours.view(np.uint32).astype(np.uint16).any()  # bfloat16: upper halves only
    for ours, theirs in zip(found.attention, wanted.attention, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.05, rtol=0)
        np.testing.assert_allclose(ours.sum(-1), 1.0, atol=1e-5, rtol=0)


def test_what_cannot_be_inspected(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with LLM(tiny_folder(), kv_memory="4MiB") as llm:
        with pytest.raises(InvalidRequest, match="1 to 512 tokens"):
            llm.inspect({"prompt_token_ids": [5] * 513})
        with pytest.raises(InvalidRequest, match="has 0 tokens"):
            llm.inspect({"prompt_token_ids": []})
        with pytest.raises(InvalidRequest, match="outside the vocabulary"):
            llm.inspect({"prompt_token_ids": [320]})
        monkeypatch.setattr(inspection, "MOST_WEIGHTS", 4 * 2 * 20**2)  # 4 heads, 2 layers
        assert llm.inspect({"prompt_token_ids": [5] * 20}).attention[1].shape == (4, 20, 20)
        with pytest.raises(InvalidRequest, match="1 to 20 tokens"):
            llm.inspect({"prompt_token_ids": [5] * 21})
        llm.schemas.add(
            Schema("sea", Role("user", "Read. ", Module("blue", "The sea is blue. " * 4)))
        )
        with pytest.raises(InvalidRequest, match="computed apart"):
            llm.inspect(SchemaPrompt("sea", (Use("blue"),), "Why?"))
