"""Folders of GPTQ, AWQ and compressed-tensors load to the network of their dequantised weights."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import packing
import pytest
import tiny
from drive import Sequencer
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_folders import (
    PROMPT,
    Config,
    Writer,
    awq_config,
    by,
    compressed_config,
    gptq_config,
    logits_of,
    write_folders,
)
from safetensors.numpy import load_file, save_file

from kveik.errors import ModelLoadError
from kveik.kernels.ops import QuantizedArray
from kveik.kernels.reference import reference_ops
from kveik.models import load_model
from kveik.models.fields import Fields
from kveik.models.quantization_config import read_quantization

OPS = reference_ops()
QUERY = "model.layers.1.self_attn.q_proj"


def kinds_packed(folder: Path) -> list[type]:
    """What reached pack_weight as a linear weight."""
    seen: list[type] = []

    def pack(array: Any, kind: Any, bias: Any) -> Any:
        if kind in ("linear", "head"):
            seen.append(type(array))
        return OPS.pack_weight(array, kind, bias)

    load_model(str(folder), replace(OPS, pack_weight=pack))
    return seen


LINEARS = 14  # of two layers; the head comes on top
WEIGHTS_4 = {"num_bits": 4, "strategy": "group", "group_size": 32}
CASES: dict[str, tuple[Config, Callable[[np.ndarray], packing.Quantised], Writer]] = {
    "gptq": (gptq_config(), by(4, 32), packing.gptq),
    "gptq asymmetric": (
        gptq_config(sym=False),
        by(4, 32, symmetric=False),
        packing.gptq,
    ),
    "gptq by row": (gptq_config(group_size=-1), by(4, -1), packing.gptq),
    "gptq v2": (
        gptq_config(checkpoint_format="gptq_v2"),
        by(4, 32, symmetric=False),
        lambda q: packing.gptq(q, less_one=False),
    ),
    "gptq 8 bits": (gptq_config(bits=8), by(8, 32), packing.gptq),
    "awq": (awq_config(), by(4, 32, symmetric=False), packing.awq),
    "awq by row": (awq_config(group_size=-1), by(4, -1, symmetric=False), packing.awq),
    "int8 by row": (compressed_config("int-quantized"), by(8, -1), packing.int8),
    "int8 naive in groups": (
        compressed_config("naive-quantized", {"strategy": "group", "group_size": 32}),
        by(8, 32),
        packing.int8,
    ),
    "packed 8 bits": (compressed_config(), by(8, -1), packing.packed),
    "packed 4 bits": (compressed_config(weights=WEIGHTS_4), by(4, 32), packing.packed),
    "packed 4 bits asymmetric": (
        compressed_config(weights={**WEIGHTS_4, "symmetric": False}),
        by(4, 32, symmetric=False),
        lambda q: packing.packed(q, asymmetric=True),
    ),
}
DEQUANTISED: dict[str, tuple[Config, Callable[[np.ndarray], packing.Quantised], Writer]] = {
    "gptq desc_act": (gptq_config(desc_act=True), by(4, 32, shuffled=True), packing.gptq),
    "gptq 8 bits asymmetric": (
        gptq_config(bits=8, sym=False),
        by(8, 32, symmetric=False),
        packing.gptq,
    ),
    "packed out of order": (
        compressed_config(weights={**WEIGHTS_4, "actorder": "group"}),
        by(4, 32, shuffled=True),
        lambda q: packing.packed(q, with_order=True),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_dequantised_weights(case: str, tmp_path: Path) -> None:
    folder, plain = write_folders(tmp_path, *CASES[case])
    np.testing.assert_array_equal(logits_of(folder), logits_of(plain))
    kinds = kinds_packed(folder)
    assert (kinds.count(QuantizedArray), len(kinds)) == (LINEARS, LINEARS + 1)


@pytest.mark.parametrize("case", DEQUANTISED)
def test_what_no_record_describes_is_dequantised_and_said_once(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, plain = write_folders(tmp_path, *DEQUANTISED[case])
    with caplog.at_level(logging.WARNING, "kveik"):
        np.testing.assert_array_equal(logits_of(folder), logits_of(plain))
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder}: 14 of 14 quantised matrices were dequantised at load and take the room of "
        "plain ones: groups out of order (desc_act) or of unequal size, or zero points of 8 bits"
    ]
    assert QuantizedArray not in kinds_packed(folder)


def test_nothing_is_said_of_what_stays_quantised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = write_folders(tmp_path, *CASES["gptq"])
    with caplog.at_level(logging.DEBUG, "kveik"):
        load_model(str(folder), OPS)
    assert caplog.records == []


@pytest.mark.parametrize("case", ["gptq", "awq", "packed 4 bits"])
def test_the_bias_of_qkv_stays(case: str, tmp_path: Path) -> None:
    folder, plain = write_folders(tmp_path, *CASES[case], model_type="qwen2")
    np.testing.assert_array_equal(logits_of(folder), logits_of(plain))


def test_old_writers_of_gptq_add_biases_of_zeros(tmp_path: Path) -> None:
    def write(q: packing.Quantised) -> packing.Tensors:
        return {**packing.gptq(q), "bias": np.zeros(len(q.values), np.float16)}

    folder, plain = write_folders(tmp_path, gptq_config(), by(4, 32), write)
    np.testing.assert_array_equal(logits_of(folder), logits_of(plain))


EVERYTHING = r"model\.layers\..*_proj|lm_head"


@pytest.mark.parametrize(
    ("config", "write"),
    [
        (gptq_config(lm_head=True), packing.gptq),
        ({**compressed_config(weights=WEIGHTS_4), "ignore": []}, packing.packed),
    ],
)
def test_a_quantised_head(tmp_path: Path, config: Config, write: Writer) -> None:
    folder, plain = write_folders(tmp_path, config, by(4, 32), write, EVERYTHING)
    np.testing.assert_array_equal(logits_of(folder), logits_of(plain))
    assert kinds_packed(folder).count(QuantizedArray) == LINEARS + 1


def targets(*names: str, ignore: tuple[str, ...] = ()) -> Config:
    config = compressed_config(weights=WEIGHTS_4)
    config["config_groups"]["group_0"]["targets"] = list(names)
    return {**config, "ignore": [*ignore, "lm_head"]}


@pytest.mark.parametrize(
    ("config", "write", "chosen"),
    [
        (awq_config(modules_to_not_convert=["mlp"]), packing.awq, r".*self_attn.*_proj"),
        (awq_config(modules_to_not_convert=["layers.0."]), packing.awq, r".*layers\.1\..*_proj"),
        (
            gptq_config(modules_in_block_to_quantize=[["mlp.up_proj"], ["mlp.down_proj"]]),
            packing.gptq,
            r".*(up|down)_proj",
        ),
        (targets("Linear", ignore=("re:.*self_attn.*",)), packing.packed, r".*mlp.*_proj"),
        (targets("Linear", ignore=(QUERY,)), packing.packed, rf"(?!{QUERY})model.*_proj"),
        (targets("re:.*(up|gate)_proj$"), packing.packed, r".*(up|gate)_proj"),
        (targets(QUERY), packing.packed, QUERY),
    ],
)
def test_modules_that_stay_as_they_are(
    tmp_path: Path, config: Config, write: Writer, chosen: str
) -> None:
    folder, plain = write_folders(tmp_path, config, by(4, 32), write, chosen)
    np.testing.assert_array_equal(logits_of(folder), logits_of(plain))
    assert 0 < kinds_packed(folder).count(QuantizedArray) < LINEARS


def test_groups_of_a_config_have_settings_of_their_own(tmp_path: Path) -> None:
    """A name wins over a pattern, a pattern over the class, whatever their order."""
    config = compressed_config(weights=WEIGHTS_4)
    eight = compressed_config("int-quantized")["config_groups"]["group_0"]
    config["config_groups"]["group_1"] = {
        **eight,
        "targets": ["re:.*down_proj"],
        "format": "int-quantized",
        "input_activations": {"num_bits": 8, "dynamic": True},
    }
    config["format"] = "mixed-precision"
    config["config_groups"]["group_0"]["format"] = "pack-quantized"

    def quantise(matrix: np.ndarray) -> packing.Quantised:
        down = matrix.shape == (64, 96)
        return packing.quantise(matrix, 8 if down else 4, -1 if down else 32)

    def write(q: packing.Quantised) -> packing.Tensors:
        return packing.int8(q) if q.bits == 8 else packing.packed(q)

    folder, plain = write_folders(tmp_path, config, quantise, write)
    np.testing.assert_array_equal(logits_of(folder), logits_of(plain))


def test_scales_of_activations_are_not_read(tmp_path: Path) -> None:
    def write(q: packing.Quantised) -> packing.Tensors:
        return {**packing.int8(q), "input_scale": np.ones(1, np.float32)}

    config = compressed_config("int-quantized")
    folder, plain = write_folders(tmp_path, config, by(8, -1), write)
    np.testing.assert_array_equal(logits_of(folder), logits_of(plain))


def test_dtype_bfloat16_rounds_the_rest_and_not_the_quantised(tmp_path: Path) -> None:
    folder, plain = write_folders(tmp_path, *CASES["gptq"])
    tensors = load_file(plain / "model.safetensors")
    for name, value in tensors.items():
        if not re.fullmatch(r"model\.layers\..*_proj\.weight", name):
            tensors[name] = value.astype(ml_dtypes.bfloat16).astype(np.float32)
    save_file(tensors, plain / "model.safetensors")
    model = load_model(str(folder), OPS, dtype="bfloat16").model
    np.testing.assert_array_equal(Sequencer(model, OPS, len(PROMPT)).feed(PROMPT), logits_of(plain))


def test_facts_and_progress_count_the_matrices_not_their_parts(tmp_path: Path) -> None:
    folder, plain = write_folders(tmp_path, *CASES["awq"])
    seen: list[float] = []
    loaded = load_model(str(folder), OPS, progress=lambda _, share: seen.append(share))
    truth = load_model(str(plain), OPS)
    assert loaded.parameters == truth.parameters
    assert loaded.layer_parameters == truth.layer_parameters
    assert seen == sorted(seen)
    assert (seen[-1], len(seen)) == (1.0, len(set(seen)))


def test_the_fingerprint_follows_the_configuration(tmp_path: Path) -> None:
    folder, _ = write_folders(tmp_path, *CASES["gptq"])
    first = load_model(str(folder), OPS).model.fingerprint
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = "gptq_v2"
    (folder / "config.json").write_text(json.dumps(config))
    assert load_model(str(folder), OPS).model.fingerprint != first


# ---- faults ------------------------------------------------------------------------------------


def refusal(folder: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(folder), OPS)
    assert "\n" not in caught.value.message
    return caught.value.message


def without_part(part: str) -> Callable[[packing.Tensors], object]:
    return lambda tensors: tensors.pop(f"{QUERY}.{part}")


def with_part(part: str, value: np.ndarray) -> Callable[[packing.Tensors], object]:
    return lambda tensors: tensors.update({f"{QUERY}.{part}": value})


FAULTS: list[tuple[str, Callable[[packing.Tensors], object], str]] = [
    ("gptq", without_part("qzeros"), f"missing tensor {QUERY}.qzeros"),
    ("gptq", without_part("scales"), f"missing tensor {QUERY}.scales"),
    ("awq", without_part("qzeros"), f"missing tensor {QUERY}.qzeros"),
    ("packed 4 bits asymmetric", without_part("weight_zero_point"), "missing tensor"),
    ("packed 4 bits", without_part("weight_shape"), f"missing tensor {QUERY}.weight_shape"),
    (
        "gptq",
        with_part("qweight", np.zeros((64, 8), np.int32)),
        f"tensor {QUERY}.qweight has shape [64, 8], config.json asks for [8, 64]",
    ),
    (
        "gptq",
        with_part("scales", np.zeros((1, 64), np.float16)),
        f"tensor {QUERY}.scales has shape [1, 64], config.json asks for [2, 64]",
    ),
    (
        "gptq",
        with_part("qweight", np.zeros((8, 64), np.float32)),
        f"tensor {QUERY}.qweight: dtype F32 is not supported for weights; supported: I32",
    ),
    (
        "awq",
        with_part("scales", np.zeros((2, 64), np.int32)),
        f"tensor {QUERY}.scales: dtype I32 is not supported",
    ),
    (
        "int8 by row",
        with_part("weight", np.zeros((64, 64), np.float32)),
        f"tensor {QUERY}.weight: dtype F32 is not supported for weights; supported: I8",
    ),
    ("gptq", with_part("weight", np.zeros((64, 64), np.float32)), "unexpected tensor"),
    ("gptq", with_part("bias", np.ones(64, np.float16)), f"{QUERY}: bias is not zero"),
    ("gptq", with_part("g_idx", np.full(64, 2, np.int32)), f"{QUERY}: the groups of its inputs"),
    (
        "packed 4 bits",
        with_part("weight_shape", np.array([64, 65])),
        f"{QUERY}: weight_shape says [64, 65], config.json asks for [64, 64]",
    ),
]


@pytest.mark.parametrize(("case", "change", "named"), FAULTS)
def test_faults_of_the_weights_name_file_and_tensor(
    tmp_path: Path, case: str, change: Callable[[packing.Tensors], object], named: str
) -> None:
    folder, _ = write_folders(tmp_path, *CASES[case])
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    message = refusal(folder)
    assert str(file) in message
    assert named in message


def test_weights_of_other_bits_than_the_config_says(tmp_path: Path) -> None:
    folder, _ = write_folders(tmp_path, gptq_config(bits=8), by(4, 32), packing.gptq)
    message = refusal(folder)
    assert "down_proj.qweight has shape [12, 64], config.json asks for [24, 64]" in message


def test_quantised_weights_without_a_config(tmp_path: Path) -> None:
    folder, plain = write_folders(tmp_path, *CASES["gptq"])
    (folder / "config.json").write_bytes((plain / "config.json").read_bytes())
    assert "missing tensors" in refusal(folder)


WEIGHTS = "config_groups: 'group_0': weights"


def group_with(**keys: Any) -> Config:
    config = compressed_config()
    config["config_groups"]["group_0"].update(keys)
    return config


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"bits": 4}, "quant_method is None"),
        ({"quant_method": "bitsandbytes"}, "quant_method is 'bitsandbytes'; kveik reads gptq, awq"),
        (gptq_config(bits=3), "bits is 3; kveik reads 4, 8"),
        (gptq_config(bits=True), "bits is True; kveik reads 4, 8"),
        (gptq_config(bits=None), "bits is None; kveik reads 4, 8"),
        (gptq_config(group_size=0), "group_size is 0; expected an integer of 1"),
        (gptq_config(group_size="128"), "group_size is '128'; expected an integer"),
        (gptq_config(checkpoint_format="marlin"), "checkpoint_format is 'marlin'"),
        (gptq_config(format="gptq_p"), "format is 'gptq_p'"),
        (gptq_config(is_marlin_format=True), "is_marlin_format is True"),
        (gptq_config(pack_dtype="int64"), "pack_dtype is 'int64'"),
        (gptq_config(dynamic={"-:.*mlp.*": {}}), "dynamic is {'-:.*mlp.*': {}}"),
        (gptq_config(modules_in_block_to_quantize=[[1]]), "modules_in_block_to_quantize holds 1"),
        (awq_config(bits=8), "bits is 8; kveik reads 4"),
        (awq_config(version="GEMV"), "version is 'GEMV'; kveik reads gemm"),
        (awq_config(backend="llm-awq"), "backend is 'llm-awq'"),
        (compressed_config("float-quantized"), "format is 'float-quantized'"),
        (compressed_config(weights={"type": "float"}), f"{WEIGHTS}: type is 'float'"),
        (compressed_config(weights={"num_bits": 2}), f"{WEIGHTS}: num_bits is 2"),
        (compressed_config(weights={"strategy": "block"}), f"{WEIGHTS}: strategy is 'block'"),
        (compressed_config(weights={"strategy": "group"}), f"{WEIGHTS}: group_size is missing"),
        (group_with(targets=["re:("]), "'re:(' is not a regular expression"),
        (group_with(targets=["re:a{9999999999}"]), "is not a regular expression (the repetition"),
        (
            group_with(targets=["re:" + 5000 * "("]),
            "is not a regular expression (maximum recursion",
        ),
        (group_with(targets=[3]), "targets holds 3"),
        (group_with(weights=None), "config_groups quantises no weights"),
        (group_with(format="nvfp4-pack-quantized"), "'group_0': format is 'nvfp4-pack-quantized'"),
        ({**compressed_config(), "config_groups": {"a": 1}}, "config_groups: 'a' is 1"),
        ({**compressed_config(), "kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme is {"),
        (
            {**compressed_config(), "sparsity_config": {"format": "sparse-24-bitmask"}},
            "sparsity_config: format is 'sparse-24-bitmask'",
        ),
        (
            {**compressed_config(), "transform_config": {"config_groups": {"u": {}}}},
            "transform_config is",
        ),
    ],
)
def test_schemes_that_are_not_read(tmp_path: Path, config: Config, named: str) -> None:
    folder = tiny.tiny_llama(tmp_path, quantization_config=config)
    message = refusal(folder)
    assert f"{folder / 'config.json'}: quantization_config: " in message
    assert named in message


ODD = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from([-1, 0, 4, 2**62, 1e300, "", "x", "re:(", "re:a{9999999999}"]),
        st.sampled_from(["gptq", "awq", "compressed-tensors", "group", "int8", "Linear"]),
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
BASES = [gptq_config(), awq_config(), compressed_config(weights=WEIGHTS_4)]


def keys_of(config: Config) -> list[tuple[str, ...]]:
    """The path of every key, those inside objects too."""
    paths: list[tuple[str, ...]] = []
    for name, value in config.items():
        inner = keys_of(value) if isinstance(value, dict) else []
        paths += [(name,), *((name, *path) for path in inner)]
    return paths


@settings(max_examples=300, deadline=None)
@given(data=st.data(), value=ODD)
def test_odd_values_become_one_clear_line(data: st.DataObject, value: object) -> None:
    config = json.loads(json.dumps(data.draw(st.sampled_from(BASES))))
    extra = [("lm_head",), ("dynamic",), ("modules_to_not_convert",), ("transform_config",)]
    *path, last = data.draw(st.sampled_from([*keys_of(config), *extra]))
    inside = config
    for name in path:
        inside = inside[name]
    inside[last] = value
    try:
        read_quantization(Fields("config.json", {"quantization_config": config}))
    except ModelLoadError as error:
        assert error.message.startswith("config.json: quantization_config")
        assert "\n" not in error.message


def test_families_without_quantised_weights(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "vocab_size": 320, "quantization_config": gptq_config()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "quantization_config is set, which is read for llama" in refusal(tmp_path)


def test_the_old_name_of_the_configuration(tmp_path: Path) -> None:
    folder, plain = write_folders(tmp_path, *CASES["packed 4 bits"])
    config = json.loads((folder / "config.json").read_text())
    config["compression_config"] = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    np.testing.assert_array_equal(logits_of(folder), logits_of(plain))
