"""The shipped folder: within its limits, and the same model in transformers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

DEFAULT = Path(__file__).resolve().parents[2] / "src" / "kveik" / "assets" / "default"

pytestmark = pytest.mark.skipif(
    not (DEFAULT / "model.safetensors").exists(), reason="the built-in model is not here"
)


def test_it_is_small_and_bfloat16() -> None:
    assert (DEFAULT / "model.safetensors").stat().st_size <= 24_000_000
    with safe_open(DEFAULT / "model.safetensors", "pt") as weights:
        tensors = [weights.get_tensor(name) for name in weights.keys()]  # noqa: SIM118
    assert all(tensor.dtype == torch.bfloat16 for tensor in tensors)
    assert sum(tensor.numel() for tensor in tensors) <= 11_500_000


def test_its_configuration_names_every_end_token() -> None:
    generation = json.loads((DEFAULT / "generation_config.json").read_text())
    config = json.loads((DEFAULT / "config.json").read_text())
    assert generation["eos_token_id"] == config["eos_token_id"] == [1]
    assert config["max_position_embeddings"] == 1024
    assert config["bos_token_id"] == 0


def test_it_looks_up_and_stops_in_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="loads with transformers")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(DEFAULT)
    model = transformers.LlamaForCausalLM.from_pretrained(DEFAULT, dtype=torch.float32)
    message = "harbour: 4821\ngarden: Harriet\nwindow: 17\nWhat is the garden?"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    out = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
    assert out[-1] == 1
    assert tokenizer.decode(out, skip_special_tokens=True) == "The garden is Harriet."
