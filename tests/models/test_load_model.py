"""What `load_model` reports, and that networks touch arrays only through Ops."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from drive import Sequencer
from kernels.recording import recording
from safetensors.numpy import load_file, save_file

from kveik.cache.segments import Segment
from kveik.errors import UnsupportedFeature
from kveik.kernels.ops import Ops
from kveik.kernels.reference import reference_ops
from kveik.models import checkpoint, load_model, refuse_shift

PROMPT = list(range(3, 73))
Folder = Callable[..., Path]


@pytest.fixture(scope="module")
def ops() -> Ops:
    return reference_ops()


def test_facts_of_a_folder(tiny_folder: Folder, ops: Ops) -> None:
    loaded = load_model(str(tiny_folder()), ops, max_model_len=100)
    weights = load_file(tiny_folder() / "model.safetensors")
    assert loaded.parameters == sum(weight.size for weight in weights.values())
    assert (loaded.architecture, loaded.dtype, loaded.kv_dtype) == ("llama", "float32", "float32")
    assert (loaded.folder, loaded.max_model_len) == (tiny_folder(), 100)
    assert loaded.weights == "float32"
    model = loaded.model
    assert (model.vocab_size, model.num_kv_heads, model.head_dim) == (tiny.VOCAB_SIZE, 2, 16)
    assert (model.max_position, model.can_shift) == (512, True)


def test_a_tied_head_counts_once(tiny_folder: Folder, ops: Ops) -> None:
    untied = load_model(str(tiny_folder()), ops).parameters
    tied = load_model(str(tiny_folder(tie_word_embeddings=True)), ops).parameters
    assert untied - tied == tiny.VOCAB_SIZE * 64


@pytest.mark.parametrize(("kv_dtype", "itemsize"), [("auto", 4), ("float32", 4), ("bfloat16", 2)])
def test_bytes_per_block_follow_the_kv_dtype(
    tiny_folder: Folder, ops: Ops, kv_dtype: str, itemsize: int
) -> None:
    (group,) = load_model(str(tiny_folder()), ops, kv_dtype=kv_dtype, block_size=32).model.groups
    assert group.bytes_per_block == 2 * 2 * 32 * 2 * 16 * itemsize


def test_dtype_bfloat16_rounds_the_weights(tiny_folder: Folder, ops: Ops, tmp_path: Path) -> None:
    rounded = tiny.tiny_llama(tmp_path, dtype="bfloat16")
    narrow = load_model(str(tiny_folder()), ops, dtype="bfloat16")
    assert narrow.dtype == "bfloat16"
    stored = logits_of(load_model(str(rounded), ops).model, ops)
    assert np.array_equal(logits_of(narrow.model, ops), stored)
    assert not np.array_equal(logits_of(load_model(str(tiny_folder()), ops).model, ops), stored)


@pytest.mark.parametrize("stored", ["float64", "float32", "float16", "bfloat16"])
def test_weights_reach_the_backend_as_views_of_the_file(
    ops: Ops, tmp_path: Path, stored: str
) -> None:
    seen: list[np.ndarray] = []

    def pack(array: Any, kind: Any, bias: Any) -> Any:
        seen.append(array)
        return ops.pack_weight(array, kind, bias)

    tiny.tiny_llama(tmp_path, dtype=stored)
    load_model(str(tmp_path), replace(ops, pack_weight=pack))
    assert {array.dtype.name for array in seen} == {stored}
    assert not any(array.flags.owndata or array.flags.writeable for array in seen)


def test_a_file_whose_data_begins_at_an_odd_byte(
    tiny_folder: Folder, ops: Ops, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder(), tmp_path / "odd")
    raw = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].rstrip()
    header += b" " * (len(header) % 2 + 1)
    (folder / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + raw[8 + length :]
    )
    taken = checkpoint.Checkpoint.open(folder).take("model.norm.weight")
    assert len(header) % 2
    assert taken.flags.aligned
    expected = load_model(str(tiny_folder()), ops).model
    assert np.array_equal(
        logits_of(load_model(str(folder), ops).model, ops), logits_of(expected, ops)
    )


def logits_of(model: Any, ops: Ops) -> np.ndarray:
    return Sequencer(model, ops, len(PROMPT)).feed(PROMPT)


def test_progress_ends_at_one(tiny_folder: Folder, ops: Ops) -> None:
    seen: list[tuple[str, float]] = []
    load_model(str(tiny_folder()), ops, progress=lambda *report: seen.append(report))
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert seen[-1] == ("weights", 1.0)


def test_rows_and_chunks_do_not_change_a_bit(tiny_folder: Folder, ops: Ops) -> None:
    model = load_model(str(tiny_folder()), ops).model
    whole = logits_of(model, ops)
    chunks = Sequencer(model, ops, len(PROMPT))
    rows = [chunks.feed(PROMPT[:33]), chunks.feed(PROMPT[33:34]), chunks.feed(PROMPT[34:])]
    assert np.array_equal(np.concatenate(rows), whole)
    picked = Sequencer(model, ops, len(PROMPT)).feed(PROMPT, rows=[5, 69])
    assert np.array_equal(picked, whole[[5, 69]])


def test_a_chunk_without_logits_still_writes_its_keys(tiny_folder: Folder, ops: Ops) -> None:
    model = load_model(str(tiny_folder()), ops).model
    sequence = Sequencer(model, ops, len(PROMPT))
    assert sequence.feed(PROMPT[:40], rows=[]).size == 0
    assert np.array_equal(sequence.feed(PROMPT[40:]), logits_of(model, ops)[40:])


FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("mistral", {"sliding_window": 24}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen3", {}),
]


@pytest.mark.parametrize(("family", "overrides"), FAMILIES)
def test_the_decoder_touches_arrays_only_through_ops(
    tiny_folder: Folder, ops: Ops, family: str, overrides: dict[str, Any]
) -> None:
    assert_only_through_ops(tiny_folder(model_type=family, **overrides), ops)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo"])
def test_gpt_touches_arrays_only_through_ops(family: str, ops: Ops, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    assert_only_through_ops(tiny.tiny_transformers(tmp_path, family), ops)


def assert_only_through_ops(folder: Path, ops: Ops) -> None:
    recorded, calls = recording(ops)
    model = load_model(str(folder), recorded).model
    sequence = Sequencer(model, recorded, len(PROMPT))
    assert np.array_equal(sequence.feed(PROMPT), logits_of(load_model(str(folder), ops).model, ops))
    layers = sum(len(group.layers) for group in model.groups)
    assert calls.count("paged_attention") == calls.count("rope_write_kv") == layers


def test_every_layer_has_its_own_place_in_its_groups_arena(tiny_folder: Folder, ops: Ops) -> None:
    options = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
    model = load_model(str(tiny_folder(model_type="qwen2", **options)), ops).model
    assert [group.layers for group in model.groups] == [(0,), (1,)]
    assert [group.window for group in model.groups] == [None, 24]


def test_the_fingerprint_follows_weights_rope_and_dtype(
    tiny_folder: Folder, ops: Ops, tmp_path: Path
) -> None:
    folder = str(tiny_folder())
    same = load_model(folder, ops).model.fingerprint
    assert load_model(folder, ops, max_model_len=64).model.fingerprint == same
    changed = shutil.copytree(folder, tmp_path / "changed")
    tensors = load_file(changed / "model.safetensors")
    tensors["model.norm.weight"][63] += np.float32(1e-6)
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    others = {
        load_model(str(changed), ops).model.fingerprint,
        load_model(folder, ops, rope_theta=9999.0).model.fingerprint,
        load_model(folder, ops, dtype="bfloat16").model.fingerprint,
        load_model(folder, ops, rope_scaling='{"type": "linear", "factor": 2}').model.fingerprint,
    }
    assert len(others) == 4
    assert same not in others
    assert len(same) == 32


def test_large_checkpoints_are_sampled(
    tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny_folder(), tmp_path / "model")
    file = folder / "model.safetensors"
    monkeypatch.setattr(checkpoint, "_HASH_EVERYTHING_BYTES", 0)
    first = checkpoint.Checkpoint.open(folder).digest()
    assert checkpoint.Checkpoint.open(folder).digest() == first
    os.utime(file, ns=(1, 1))
    assert checkpoint.Checkpoint.open(folder).digest() != first


def segment(shift: int) -> Segment:
    return Segment(blocks=(0,), home=0, skip=0, length=4, shift=shift)


def test_only_models_with_positions_in_the_query_may_shift(
    tiny_folder: Folder, ops: Ops, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    tables = [(segment(0),), (segment(0), segment(-16))]
    refuse_shift(load_model(str(tiny_folder()), ops).model, tables)
    gpt2 = load_model(str(tiny.tiny_transformers(tmp_path, "gpt2")), ops).model
    refuse_shift(gpt2, [(segment(0),)])
    with pytest.raises(UnsupportedFeature, match="cannot shift positions"):
        refuse_shift(gpt2, tables)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_layer_parameters_are_all_matrices_but_embedding_and_head(
    tmp_path: Path, family: str
) -> None:
    tiny.tiny_llama(tmp_path, model_type=family)
    loaded = load_model(str(tmp_path), reference_ops())
    config = json.loads((tmp_path / "config.json").read_text())
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    size = config.get("head_dim") or hidden // config["num_attention_heads"]
    query = config["num_attention_heads"] * size
    kv = config["num_key_value_heads"] * size
    one = 2 * hidden * query + 2 * hidden * kv + 3 * hidden * config["intermediate_size"]
    assert loaded.layer_parameters == layers * one
    assert loaded.attention_width == query
