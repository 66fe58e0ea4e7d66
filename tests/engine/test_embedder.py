"""The embedding model beside the model: vectors as transformers computes them, in any company."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_encoder import tiny_encoder

from kveik.config import EngineConfig
from kveik.engine.embedder import Embedder
from kveik.errors import ConfigError, ContextLengthExceeded, InvalidRequest, ModelLoadError
from kveik.kernels.extension import native_extension

TEXTS = ["The ship lay in the bay.", "sea", "A boat sailed out to sea, " * 6, "church [SEP] was"]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert mean": ("bert", {}),
    "bert cls": ("bert", {"pooling": "cls"}),
    "bert not normalised": ("bert", {"normalizes": False}),
    "bert without steps": ("bert", {"pooling": None}),
    "bert gelu_new": ("bert", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}),
    "roberta": ("roberta", {"pad_token_id": 0, "type_vocab_size": 1}),
    "xlm-roberta": ("xlm-roberta", {"pad_token_id": 0, "type_vocab_size": 1, "pooling": "cls"}),
}


def load(folder: Path, kernels: Any = "reference", **options: Any) -> Embedder:
    return Embedder.load(
        EngineConfig(embedding_model=str(folder), kernels=kernels, **options), "kveik-default"
    )


def vectors(embedder: Embedder, prompts: list[list[int]]) -> np.ndarray:
    found = [one for part in embedder.batches(prompts) for one in embedder.vectors(part)]
    return np.array(found)


def truth(folder: Path, prompts: list[list[int]], options: dict[str, Any]) -> np.ndarray:
    """float64 [prompts, H], by transformers and numpy."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    rows = []
    with torch.no_grad():
        for ids in prompts:
            hidden = model(torch.tensor([ids])).last_hidden_state[0].double()
            rows.append(hidden[0] if options.get("pooling") == "cls" else hidden.mean(0))
    found = np.array([row.numpy() for row in rows])
    if options.get("normalizes", True):
        found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


@pytest.mark.parametrize("name", CASES)
def test_vectors_equal_transformers(name: str, tmp_path: Path) -> None:
    family, options = CASES[name]
    folder = tiny_encoder(tmp_path / "small", family, **options)
    embedder = load(folder)
    prompts = [embedder.encode(text) for text in TEXTS]
    assert max(map(len, prompts)) > 48  # the tokenizer's own cutting and padding is off
    wanted = truth(folder, prompts, options)
    assert np.abs(wanted[0] - wanted[2]).max() > 0.05  # or nothing would be compared
    np.testing.assert_allclose(vectors(embedder, prompts), wanted, atol=1e-5, rtol=0)
    assert (embedder.model_id, embedder.dimensions) == ("small", 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(
        tmp_path_factory.mktemp("models") / "small", settings={"max_seq_length": 70}
    )


@pytest.mark.parametrize("kernels", ["reference", "auto"])
def test_company_does_not_show(folder: Path, kernels: str) -> None:
    embedder = load(folder, kernels)
    generator = np.random.default_rng(1)
    lengths = [*generator.integers(1, 71, 60), 70, 1]
    prompts = [generator.integers(0, 60, length).tolist() for length in lengths]
    parts = list(embedder.batches(prompts))
    assert len(parts) > 2
    assert [one for part in parts for one in part] == prompts
    together = vectors(embedder, prompts)
    alone = np.array([embedder.vectors([ids])[0] for ids in prompts])
    assert (together == alone).all()


def test_native_kernels_agree(folder: Path) -> None:
    if native_extension()[0] is None:
        pytest.skip("no native kernels here")
    embedder = load(folder, "auto")
    prompts = [embedder.encode(text) for text in TEXTS]
    cosines = (vectors(embedder, prompts) * truth(folder, prompts, {})).sum(axis=1)
    assert cosines.min() > 0.999  # weights are kept in bfloat16


def test_ids_are_those_of_transformers(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = load(folder)
    for text in TEXTS[:3]:
        assert ours.encode(text) == theirs(text, truncation=False, padding=False)["input_ids"]
    assert (
        3 not in ours.encode("church [SEP] was")[1:-1]
    )  # what a text says is never a special token


def test_what_cannot_be_embedded(folder: Path) -> None:
    embedder = load(folder)
    assert embedder.max_tokens == 70  # max_seq_length, though there are 80 positions
    embedder.check([5] * 70, "input")
    with pytest.raises(
        ContextLengthExceeded, match=r"input\[1\]: has 71 tokens, and small reads 70"
    ):
        embedder.check([5] * 71, "input[1]")
    for ids in ([], [-1], [len(set(range(2000)))]):
        with pytest.raises(InvalidRequest, match="input: "):
            embedder.check(ids, "input")


def test_texts_are_lowered_where_the_model_says_so(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path, settings={"do_lower_case": True})
    backend = json.loads((folder / "tokenizer.json").read_text())
    backend["normalizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(backend))
    embedder = load(folder)
    assert embedder.encode("The SHIP") == embedder.encode("the ship")


def changed(folder: Path, file: str, **values: Any) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **values}))


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "decoder": ("config.json", {"model_type": "llama"}, "model_type is 'llama'.*--model"),
    "relative": (
        "config.json",
        {"position_embedding_type": "relative_key"},
        "position_embedding_type is 'relative_key'",
    ),
    "relu": ("config.json", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
    "heads": ("config.json", {"num_attention_heads": 5}, "64 is no multiple"),
    "quantised": ("config.json", {"quantization_config": {"bits": 4}}, "unquantised"),
    "layers": ("config.json", {"num_hidden_layers": 3}, "missing tensors encoder.layer.2"),
    "max pooling": (
        "1_Pooling/config.json",
        {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True},
        "pooling_mode_max_tokens is set",
    ),
    "two poolings": (
        "1_Pooling/config.json",
        {"pooling_mode_cls_token": True},
        "pooling_mode_cls_token, pooling_mode_mean_tokens is set",
    ),
    "no pooling": (
        "1_Pooling/config.json",
        {"pooling_mode_mean_tokens": False},
        "no pooling mode is set",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_folder_that_cannot_be_loaded_says_why(name: str, tmp_path: Path) -> None:
    file, values, message = BAD[name]
    folder = tiny_encoder(tmp_path)
    changed(folder, file, **values)
    with pytest.raises(ModelLoadError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"type": "x.Transformer", "path": "../x"}], "expected a folder beside"),
        ([{"type": "x.Transformer", "path": ""}], "has the steps Transformer;"),
        (
            [{"type": f"x.{kind}", "path": ""} for kind in ("Transformer", "Pooling", "Dense")],
            "Transformer, Pooling, Dense",
        ),
        (["x"], "step 0 is 'x'"),
        ({}, "expected a JSON list"),
    ],
)
def test_steps_that_are_not_computed_here(steps: Any, message: str, tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path)
    (folder / "modules.json").write_text(json.dumps(steps))
    with pytest.raises(ModelLoadError, match=message):
        load(folder)


def test_folders_and_names(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="embedding_model: no/such is no folder here"):
        load(Path("no/such"))
    with pytest.raises(ModelLoadError, match=r"config\.json: not found"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="served_model_name"):
        Embedder.load(EngineConfig(embedding_model=str(folder), kernels="reference"), "small")
