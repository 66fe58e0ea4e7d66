"""config.json and generation_config.json: bounds, families, layer groups, clear refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from kveik.errors import ConfigError, KveikError, ModelLoadError
from kveik.kernels.reference import reference_ops
from kveik.models import load_model
from kveik.models.architecture import Architecture, read_architecture

LLAMA_2_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "pretraining_tp": 1,
    "rope_scaling": None,
}
LLAMA_3_70B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}
MISTRAL_7B = {
    "model_type": "mistral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
}
QWEN2 = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "sliding_window": 4096,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
}
GPT_NEO = {
    "model_type": "gpt_neo",
    "vocab_size": 50257,
    "hidden_size": 2048,
    "num_heads": 16,
    "num_layers": 24,
    "attention_types": [[["global", "local"], 12]],
    "max_position_embeddings": 2048,
}


def architecture(folder: Path, config: dict[str, Any]) -> Architecture:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return read_architecture(folder)


def refusal(folder: Path, config: dict[str, Any]) -> str:
    with pytest.raises(ModelLoadError) as caught:
        architecture(folder, config)
    assert str(folder / "config.json") in caught.value.message
    return caught.value.message


def bytes_per_token(found: Architecture, itemsize: int) -> int:
    return sum(group.bytes_per_block for group in found.groups(16, itemsize)) // 16


def test_llama_2_has_one_kv_head_per_head(tmp_path: Path) -> None:
    found = architecture(tmp_path, LLAMA_2_7B)
    assert (found.num_kv_heads, found.head_dim, found.tied_head) == (32, 128, False)
    assert bytes_per_token(found, 2) == 524_288


def test_llama_3_70b_needs_327680_bytes_per_token(tmp_path: Path) -> None:
    assert bytes_per_token(architecture(tmp_path, LLAMA_3_70B), 2) == 327_680


@pytest.mark.parametrize(
    ("change", "window"),
    [({}, 4096), ({"sliding_window": None}, None), ({"sliding_window": 32768}, None)],
)
def test_mistral_windows(tmp_path: Path, change: dict[str, Any], window: int | None) -> None:
    (group,) = architecture(tmp_path, {**MISTRAL_7B, **change}).groups(16, 4)
    assert (group.kind, group.window) == ("window" if window else "full", window)
    assert group.layers == tuple(range(32))
    assert group.bytes_per_block == 32 * 2 * 16 * 8 * 128 * 4


def test_an_absent_window_of_mistral_is_4096(tmp_path: Path) -> None:
    config = {name: value for name, value in MISTRAL_7B.items() if name != "sliding_window"}
    assert set(architecture(tmp_path, config).windows) == {4096}


def test_qwen2_has_two_groups_only_when_the_window_is_used(tmp_path: Path) -> None:
    assert len(architecture(tmp_path, QWEN2).groups(16, 4)) == 1
    full, window = architecture(tmp_path, {**QWEN2, "use_sliding_window": True}).groups(16, 4)
    assert (full.kind, full.layers) == ("full", tuple(range(21)))
    assert (window.kind, window.window, window.layers) == ("window", 4096, (21, 22, 23))


def test_layer_types_decide_over_max_window_layers(tmp_path: Path) -> None:
    types = ["sliding_attention", "full_attention"] * 12
    config = {**QWEN2, "use_sliding_window": True, "layer_types": types}
    _, window = architecture(tmp_path, config).groups(16, 4)
    assert window.layers == tuple(range(0, 24, 2))


def test_gpt_neo_alternates_and_cannot_shift(tmp_path: Path) -> None:
    found = architecture(tmp_path, GPT_NEO)
    full, window = found.groups(16, 2)
    assert full.layers == tuple(range(0, 24, 2))
    assert (window.layers, window.window) == (tuple(range(1, 24, 2)), 256)
    assert not found.can_shift
    assert found.scales == (1.0,) * 24


def test_unknown_model_type_lists_what_is_supported(tmp_path: Path) -> None:
    message = refusal(tmp_path, {**LLAMA_2_7B, "model_type": "mamba"})
    for name in ("'mamba'", "llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neo"):
        assert name in message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_key_value_heads": 5}, "num_attention_heads 32 is not a multiple"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3}, "hidden_size 4096"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": 2**40}, "hidden_size is"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps is 'tiny'"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"head_dim": 127}, "even number of dimensions"),
        ({"rope_theta": -1}, "rope_theta is -1"),
        ({"rope_scaling": {"type": "longrope"}}, "longrope"),
        ({"rope_scaling": {"type": "spiral"}}, "'spiral' is unknown"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor is 0"),
        ({"rope_scaling": [1]}, "rope_scaling is [1]"),
        ({"rope_parameters": {"full_attention": {}}}, "differ between layers"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: quant_method is None"),
        ({"layer_types": ["sliding_attention"] * 32}, "layer_types"),
        ({"layer_types": ["full_attention"]}, "layer_types: expected 32 entries"),
    ],
)
def test_impossible_values_are_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    assert named in refusal(tmp_path, {**LLAMA_2_7B, **change})


@pytest.mark.parametrize(
    "types", [[[["global", "local"], 11]], [[["round"], 24]], [["global"]], [[["global"], -1]]]
)
def test_impossible_attention_types(tmp_path: Path, types: object) -> None:
    assert "attention_types" in refusal(tmp_path, {**GPT_NEO, "attention_types": types})


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, "\ufeff{}"])
def test_config_that_is_not_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        read_architecture(tmp_path)


ODD = [None, -1, 0, 2**62, 1e300, True, "x", [], [[]], {}, {"a": {}}]


@pytest.mark.parametrize("base", [LLAMA_3_70B, MISTRAL_7B, QWEN2, GPT_NEO])
def test_odd_values_never_escape_the_error_tree(tmp_path: Path, base: dict[str, Any]) -> None:
    extra = {"rope_scaling": 0, "rope_parameters": 0, "layer_types": 0, "attention_types": 0}
    messages = []
    for name in [*base, *extra, "head_dim", "partial_rotary_factor", "window_size"]:
        for value in ODD:
            try:
                architecture(tmp_path, {**base, name: value})
            except KveikError as error:
                messages.append(error.message)
    assert messages
    assert all("config.json" in message for message in messages)


def with_generation(tiny_folder: Callable[..., Path], tmp_path: Path, text: str) -> Path:
    folder = Path(shutil.copytree(tiny_folder(), tmp_path / "model"))
    (folder / "generation_config.json").write_text(text)
    return folder


def test_generation_config_gives_end_ids_and_defaults(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    text = '{"eos_token_id": [2, 7, 2], "temperature": 0.7, "top_k": 20, "top_p": 0.8, "x": 1}'
    loaded = load_model(str(with_generation(tiny_folder, tmp_path, text)), reference_ops())
    assert loaded.end_ids == (2, 7)
    assert loaded.sampling_defaults == {"temperature": 0.7, "top_k": 20, "top_p": 0.8}


def test_end_ids_fall_back_to_config(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = with_generation(tiny_folder, tmp_path, "{}")
    assert load_model(str(folder), reference_ops()).end_ids == (tiny.IM_END_ID,)
    (folder / "generation_config.json").unlink()
    assert load_model(str(folder), reference_ops()).end_ids == (tiny.IM_END_ID,)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"eos_token_id": 320}', "eos_token_id 320"),
        ('{"eos_token_id": "end"}', "eos_token_id 'end'"),
        ('{"temperature": -1}', "temperature is -1"),
        ('{"top_k": 1.5}', "top_k is 1.5"),
        ("{", "not valid JSON"),
    ],
)
def test_impossible_generation_config(
    tiny_folder: Callable[..., Path], tmp_path: Path, text: str, named: str
) -> None:
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(with_generation(tiny_folder, tmp_path, text)), reference_ops())
    assert "generation_config.json" in caught.value.message
    assert named in caught.value.message


@pytest.mark.parametrize("length", [0, -5, 513])
def test_max_model_len_beyond_the_positions(tiny_folder: Callable[..., Path], length: int) -> None:
    with pytest.raises(ConfigError, match=r"1 \.\. 512") as caught:
        load_model(str(tiny_folder()), reference_ops(), max_model_len=length)
    assert caught.value.param == "max_model_len"


@pytest.mark.parametrize("option", ["dtype", "kv_dtype"])
def test_unknown_dtype_option(tiny_folder: Callable[..., Path], option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} is 'int4'"):
        load_model(str(tiny_folder()), reference_ops(), **{option: "int4"})
