"""Published sizes, and parameter counts beside transformers' own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kveik.commands.plan import size_text
from kveik.errors import ConfigError
from kveik.memory_plan import PRESETS, ModelShape, memory_plan, read_shape


def test_llama_3_70b() -> None:
    plan = memory_plan(PRESETS["llama-3-70b"], context=4000)
    assert plan.kv_per_token_own == 2_621_440
    assert size_text(plan.kv_per_token_own) == "2.62 MB (2.50 MiB)"
    assert size_text(plan.kv_context_own).startswith("10.49 GB")
    assert plan.kv_per_token == 327_680
    assert size_text(plan.kv_context).startswith("1.31 GB")


def test_other_presets() -> None:
    assert memory_plan(PRESETS["llama-2-70b"], context=4096).kv_context == 4096 * 327_680
    gpt3 = memory_plan(PRESETS["gpt-3"], context=2048)
    assert gpt3.kv_per_token == gpt3.kv_per_token_own == 2 * 96 * 96 * 128 * 2
    neo = memory_plan(PRESETS["gpt-neo-1.3b"], context=1000)
    assert neo.kv_context == 2 * 2048 * 2 * (12 * 1000 + 12 * 256)


def test_users_and_memory() -> None:
    shape = ModelShape("x", 2, 4, 2, 8, parameters=1000)
    plan = memory_plan(shape, context=10, users=3, dtype="float32", kv_dtype="float32", free=10_000)
    assert plan.kv_context == 2 * 2 * 2 * 8 * 4 * 10 == 2560
    assert plan.total == 3 * 2560 + 4000 == 11_680
    assert plan.fits is False
    assert plan.users_that_fit == (10_000 - 4000) // 2560
    assert memory_plan(shape, context=10, free=100_000).fits is True


def test_a_folder_is_counted_from_its_files(tiny_folder: Callable[..., Path]) -> None:
    import safetensors.numpy

    folder = tiny_folder()
    tensors = safetensors.numpy.load_file(str(folder / "model.safetensors"))
    shape = read_shape(str(folder))
    assert shape.parameters == sum(tensor.size for tensor in tensors.values())
    assert (shape.layers, shape.heads, shape.kv_heads, shape.head_dim) == (2, 4, 2, 16)
    assert shape.max_positions == 512


@pytest.mark.parametrize("family", ["LlamaConfig", "GPT2Config", "GPTNeoConfig"])
def test_parameters_without_files_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    import torch
    import transformers

    config = getattr(transformers, family)(vocab_size=1000)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert read_shape(str(tmp_path / "config.json")).parameters == model.num_parameters()


@pytest.mark.parametrize(
    ("config", "window", "layers"),
    [
        ({"sliding_window": 4096}, 4096, 4),
        ({"sliding_window": 64, "use_sliding_window": False}, None, 0),
        ({"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 3}, 64, 1),
        ({"sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"]}, 64, 1),
        ({"sliding_window": None}, None, 0),
        ({"model_type": "gpt_neo", "window_size": 256}, 256, 2),
    ],
)
def test_windows(tmp_path: Path, config: dict[str, object], window: int, layers: int) -> None:
    sizes = {"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(sizes | config))
    shape = read_shape(str(tmp_path))
    assert (shape.window, shape.windowed_layers) == (window, layers)


def test_errors_name_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="llama-3-70b"):
        read_shape("llama-4")
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2}')
    with pytest.raises(ConfigError, match="num_attention_heads or n_head"):
        read_shape(str(tmp_path))
    with pytest.raises(ConfigError, match="kv_heads: 3 does not divide"):
        ModelShape("x", 1, 8, 3, 4)
    with pytest.raises(ConfigError, match="users"):
        memory_plan(PRESETS["gpt-3"], context=1, users=0)


def test_a_damaged_weight_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 4}'
    )
    (tmp_path / "model.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(ConfigError, match=r"model\.safetensors.*larger than the file"):
        read_shape(str(tmp_path))
