"""Every fault of a weights file is one ModelLoadError that names file and tensor."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from kveik.errors import ModelLoadError
from kveik.kernels.reference import reference_ops
from kveik.models import load_model

QUERY = "model.layers.1.self_attn.q_proj.weight"
Tensors = dict[str, np.ndarray]


@pytest.fixture
def folder(tiny_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """A fresh copy that a test may damage."""
    return Path(shutil.copytree(tiny_folder(), tmp_path / "model"))


def refusal(folder: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(folder), reference_ops())
    assert "\n" not in caught.value.message
    return caught.value.message


def rewrite(folder: Path, change: Callable[[Tensors], object]) -> Path:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return file


def rewrite_header(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def shard(folder: Path) -> tuple[Path, Path, Path]:
    """Split the single file in two; returns (first, second, index)."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    files = tuple(folder / f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    index = folder / "model.safetensors.index.json"
    places = {}
    for file, half in zip(files, halves, strict=True):
        save_file({name: tensors[name] for name in half}, file)
        places.update(dict.fromkeys(half, file.name))
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return files[0], files[1], index


def test_shards_load_as_the_single_file_does(folder: Path) -> None:
    single = load_model(str(folder), reference_ops())
    shard(folder)
    assert load_model(str(folder), reference_ops()).parameters == single.parameters


def test_the_single_file_wins_over_a_stale_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"w": "gone.safetensors"}}'
    )
    load_model(str(folder), reference_ops())


def test_missing_tensor(folder: Path) -> None:
    file = rewrite(folder, lambda tensors: tensors.pop(QUERY))
    message = refusal(folder)
    assert str(file) in message
    assert f"missing tensor {QUERY}" in message


def test_unexpected_tensor(folder: Path) -> None:
    file = rewrite(folder, lambda tensors: tensors.update({"lora.A": np.zeros(3, np.float32)}))
    message = refusal(folder)
    assert str(file) in message
    assert "unexpected tensor lora.A" in message


def test_a_layer_too_many_is_unexpected(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    assert "model.layers.1." in refusal(folder)


def test_wrong_shape(folder: Path) -> None:
    zeros = np.zeros((64, 65), np.float32)
    file = rewrite(folder, lambda tensors: tensors.update({QUERY: zeros}))
    message = refusal(folder)
    assert str(file) in message
    assert f"tensor {QUERY} has shape [64, 65], config.json asks for [64, 64]" in message


def test_integer_weights(folder: Path) -> None:
    file = rewrite(folder, lambda tensors: tensors.update({QUERY: np.zeros((64, 64), np.int8)}))
    message = refusal(folder)
    assert str(file) in message
    assert f"{QUERY}: dtype I8" in message


def test_unknown_dtype(folder: Path) -> None:
    file = folder / "model.safetensors"
    rewrite_header(file, lambda header: header[QUERY].update(dtype="F4"))
    message = refusal(folder)
    assert str(file) in message
    assert f"{QUERY}: dtype F4" in message


def test_truncated_file(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    message = refusal(folder)
    assert str(file) in message
    assert "tensor " in message
    assert "truncated" in message


def test_trailing_bytes(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"junk")
    assert f"{file}: 4 bytes follow the last tensor" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff\xff\0\0\0\0\0\0{}"])
def test_header_larger_than_the_file(folder: Path, content: bytes) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(content)
    message = refusal(folder)
    assert f"{file}: the header should be" in message


def test_header_beyond_the_limit_is_not_read(folder: Path) -> None:
    file = folder / "model.safetensors"
    with file.open("wb") as stream:
        stream.write((200_000_000).to_bytes(8, "little"))
        stream.truncate(300_000_000)  # sparse
    assert f"{file}: a header of 200000000 bytes exceeds the limit" in refusal(folder)


@pytest.mark.parametrize("header", [b"{", b"[]", b"[" * 100_000, b'{"a": 1}', b"\xff\xfe"])
def test_header_that_is_not_one(folder: Path, header: bytes) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    assert str(file) in refusal(folder)


def test_name_twice_in_one_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    entry = b'"w": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}'
    header = b"{" + entry + b", " + entry + b"}"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    assert "w appears twice" in refusal(folder)


def test_overlapping_tensors(folder: Path) -> None:
    file = folder / "model.safetensors"

    def overlap(header: dict[str, Any]) -> None:
        start, end = header[QUERY]["data_offsets"]
        header[QUERY]["data_offsets"] = [start - 4, end - 4]

    rewrite_header(file, overlap)
    message = refusal(folder)
    assert str(file) in message
    assert "gap or overlap" in message


def test_extent_that_does_not_hold_the_shape(folder: Path) -> None:
    file = folder / "model.safetensors"
    rewrite_header(file, lambda header: header[QUERY].update(shape=[2**40, 2**40]))
    message = refusal(folder)
    assert str(file) in message
    assert f"tensor {QUERY}: 16384 bytes do not hold" in message


@pytest.mark.parametrize("shape", [[-64, -64], [64.0, 64], [True, 4096], "64"])
def test_shape_of_a_wrong_type(folder: Path, shape: object) -> None:
    file = folder / "model.safetensors"
    rewrite_header(file, lambda header: header[QUERY].update(shape=shape))
    assert f"{file}: tensor {QUERY}: expected dtype, shape and data_offsets" in refusal(folder)


def test_absent_shard(folder: Path) -> None:
    _, second, index = shard(folder)
    second.unlink()
    assert f"{index}: names {second.name}, which is absent" in refusal(folder)


def test_tensor_in_two_shards(folder: Path) -> None:
    first, second, _ = shard(folder)
    name = next(iter(load_file(first)))
    save_file({**load_file(second), name: load_file(first)[name]}, second)
    assert f"{second}: tensor {name} is also in {first.name}" in refusal(folder)


def test_index_that_points_at_the_wrong_shard(folder: Path) -> None:
    first, second, index = shard(folder)
    name = next(iter(load_file(first)))
    places = json.loads(index.read_text())
    places["weight_map"][name] = second.name
    index.write_text(json.dumps(places))
    message = refusal(folder)
    assert str(index) in message
    assert name in message


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd", "weights.bin"])
def test_index_that_leaves_the_folder(folder: Path, name: str) -> None:
    _, _, index = shard(folder)
    index.write_text(json.dumps({"weight_map": {QUERY: name}}))
    assert f"{index}: {name!r} is not the name" in refusal(folder)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}'])
def test_broken_index(folder: Path, content: str) -> None:
    _, _, index = shard(folder)
    index.write_text(content)
    assert str(index) in refusal(folder)


def test_two_files_without_an_index(folder: Path) -> None:
    shard(folder)[2].unlink()
    assert "no model.safetensors.index.json" in refusal(folder)


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (exec, ("raise SystemExit('a pickle was executed')",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused_unread(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    message = refusal(folder)
    assert name in message
    assert "safetensors" in message


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert f"{folder}: no model.safetensors found" in refusal(folder)


def test_harmless_extras_are_ignored(folder: Path) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(8, np.float32)}
    rewrite(folder, lambda tensors: tensors.update(extra))
    load_model(str(folder), reference_ops())


def test_tied_head_may_be_stored_and_untied_must_be(tmp_path: Path) -> None:
    tied = tiny.tiny_llama(tmp_path / "tied", tie_word_embeddings=True)
    rewrite(tied, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] * 2}))
    load_model(str(tied), reference_ops())
    untied = tiny.tiny_llama(tmp_path / "untied")
    rewrite(untied, lambda tensors: tensors.pop("lm_head.weight"))
    assert "missing tensor lm_head.weight" in refusal(untied)


def test_any_damaged_byte_of_the_header_is_a_clear_error_or_harmless(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    generator = np.random.default_rng(0)
    messages = []
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[int(generator.integers(8 + length))] = int(generator.integers(256))
        file.write_bytes(damaged)
        try:
            load_model(str(folder), reference_ops())
        except ModelLoadError as error:
            messages.append(error.message)
    assert len(messages) > 100
    assert all(str(file) in message for message in messages)
