"""Logits and greedy tokens against transformers, for every family and rotary kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from drive import Sequencer
from safetensors.numpy import load_file, save_file

from kveik.kernels.ops import Ops
from kveik.kernels.reference import reference_ops
from kveik.models import Model, load_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROMPT, STEPS = 70, 32  # the prompt is longer than every sliding window
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


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """More threads slow such small matrices down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def truth_of(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()


def greedy_truth(model: Any, prompt: list[int]) -> tuple[np.ndarray, list[int]]:
    """Logits [PROMPT + STEPS, V] of transformers with its own cache, and the greedy tokens."""
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
    assert_equal_generation(load_model(str(folder), ops).model, ops, truth_of(folder))


def assert_equal_generation(model: Model, ops: Ops, truth: Any) -> None:
    prompt = np.random.default_rng(1).integers(3, tiny.VOCAB_SIZE, PROMPT).tolist()
    wanted, wanted_tokens = greedy_truth(truth, prompt)
    logits, tokens = greedy_ours(model, ops, prompt)
    assert wanted.std() > 0.3  # or nothing would be compared
    np.testing.assert_allclose(logits, wanted, atol=TOLERANCE, rtol=0)
    assert tokens == wanted_tokens


def test_partial_rotary_equals_phi3(ops: Ops, tmp_path: Path) -> None:
    """transformers turns every dimension of a Llama, so Phi-3 is the truth here: the same
    network with fused projections."""
    folder = tiny.tiny_llama(tmp_path, partial_rotary_factor=0.5, max_position_embeddings=256)
    tensors = load_file(folder / "model.safetensors")
    config = transformers.Phi3Config(
        vocab_size=tiny.VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        original_max_position_embeddings=256,
        partial_rotary_factor=0.5,
        rms_norm_eps=1e-5,
        sliding_window=None,
        pad_token_id=None,
        attn_implementation="eager",
    )
    for layer in range(2):
        for fused, parts in FUSED.items():
            prefix = f"model.layers.{layer}."
            rows = [tensors.pop(f"{prefix}{part}.weight") for part in parts]
            tensors[f"{prefix}{fused}.weight"] = np.concatenate(rows)
    truth = transformers.Phi3ForCausalLM(config).eval()
    truth.load_state_dict({name: torch.tensor(rows) for name, rows in tensors.items()})
    assert_equal_generation(load_model(str(folder), ops).model, ops, truth)


FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}


def test_older_spellings_of_config_json_mean_the_same(ops: Ops, tmp_path: Path) -> None:
    """A checkpoint as transformers 4 wrote it: rope_theta and rope_scaling at the top."""
    old = {name: value for name, value in LLAMA3.items() if name != "rope_theta"}
    folder = tiny.tiny_llama(
        tmp_path, rope_theta=10000.0, rope_scaling=old, max_position_embeddings=256
    )
    assert_equal_generation(load_model(str(folder), ops).model, ops, truth_of(folder))


def test_stored_bfloat16_equals_transformers(ops: Ops, tmp_path: Path) -> None:
    folder = tiny.tiny_llama(tmp_path, dtype="bfloat16", max_position_embeddings=256)
    assert_equal_generation(load_model(str(folder), ops).model, ops, truth_of(folder))


def test_a_base_model_of_gpt2_has_no_prefix(ops: Ops, tmp_path: Path) -> None:
    """The checkpoints of OpenAI name their tensors without "transformer." and store masks."""
    folder = tiny.tiny_transformers(tmp_path, "gpt2")
    truth = truth_of(folder)
    tensors = load_file(folder / "model.safetensors")
    plain = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    masks = {f"h.{layer}.attn.bias": np.tri(256, dtype=np.float32) for layer in range(3)}
    save_file({**plain, **masks}, folder / "model.safetensors")
    assert_equal_generation(load_model(str(folder), ops).model, ops, truth)
