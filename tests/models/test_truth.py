"""Logits and greedy tokens against transformers, for every family and rotary kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from drive import Sequencer

from kveik.kernels.ops import Ops
from kveik.kernels.reference import reference_ops
from kveik.models import Model, load_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROMPT, STEPS = 70, 32
TOLERANCE = 1e-4

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama gqa": ("llama", {}),
    "llama mha": ("llama", {"num_key_value_heads": 4}),
    "llama mqa": ("llama", {"num_key_value_heads": 1}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama head_dim": ("llama", {"head_dim": 24}),
    "llama sharded": ("llama", {"shard_size": "60KB"}),
    "llama theta": ("llama", {"rope_theta": 500000.0}),
    "rope linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "rope llama3": ("llama", {"rope_parameters": LLAMA3}),
    "rope yarn": ("llama", {"rope_parameters": YARN}),
    "rope yarn betas": (
        "llama",
        {"rope_parameters": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False}},
    ),
    "rope yarn mscale": (
        "llama",
        {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.2}},
    ),
    "rope yarn factor": ("llama", {"rope_parameters": {**YARN, "attention_factor": 1.3}}),
    "rope dynamic": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "mistral window": ("mistral", {}),
    "mistral full": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2 windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    ),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "qwen3 tied bias": ("qwen3", {"tie_word_embeddings": True, "attention_bias": True}),
    "gpt2": ("gpt2", {}),
    "gpt2 inverse layers": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2 unscaled": ("gpt2", {"scale_attn_weights": False, "activation_function": "gelu"}),
    "gpt_neo": ("gpt_neo", {}),
}


@pytest.fixture(scope="module")
def ops() -> Ops:
    return reference_ops()


def greedy_truth(folder: Path, prompt: list[int]) -> tuple[np.ndarray, list[int]]:
    """Logits [PROMPT + STEPS, V] of transformers with its own cache, and the greedy tokens."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    rows, tokens, cache, feed = [], [], None, prompt
    with torch.no_grad():
        for _ in range(STEPS + 1):
            out = model(torch.tensor([feed]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            rows.append(out.logits[0].numpy())
            tokens.append(int(out.logits[0, -1].argmax()))
            feed = tokens[-1:]
    return np.concatenate(rows), tokens


def greedy_ours(model: Model, ops: Ops, prompt: list[int]) -> tuple[np.ndarray, list[int]]:
    sequence = Sequencer(model, ops, PROMPT + STEPS)
    rows = [sequence.feed(prompt)]
    tokens = [int(rows[-1][-1].argmax())]
    for _ in range(STEPS):
        rows.append(sequence.feed(tokens[-1:]))
        tokens.append(int(rows[-1][-1].argmax()))
    return np.concatenate(rows), tokens


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_tokens_equal_transformers(case: str, ops: Ops, tmp_path: Path) -> None:
    family, overrides = CASES[case]
    folder = tiny.tiny_transformers(tmp_path, family, **overrides)
    prompt = np.random.default_rng(1).integers(3, tiny.VOCAB_SIZE, PROMPT).tolist()
    truth, truth_tokens = greedy_truth(folder, prompt)
    logits, tokens = greedy_ours(load_model(str(folder), ops).model, ops, prompt)
    assert truth.std() > 0.3  # or nothing would be compared
    np.testing.assert_allclose(logits, truth, atol=TOLERANCE, rtol=0)
    assert tokens == truth_tokens
