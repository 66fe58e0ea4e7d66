"""Random tiny embedding models, written by transformers, in the layout of sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

_WORDS = ["the", "a", "ship", "lay", "in", "boat", "sailed", "sea", "church", ".", ",", "##s"]
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
_LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
VOCABULARY = [*SPECIAL.values(), *_WORDS, *_LETTERS, *(f"##{one}" for one in _LETTERS)]
VOCABULARY = list(dict.fromkeys(VOCABULARY))


def tiny_encoder(
    path: Path,
    family: str = "bert",
    *,
    pooling: str | None = "mean",
    normalizes: bool = True,
    settings: dict[str, Any] | None = None,
    **overrides: Any,
) -> Path:
    """pooling None: a plain transformers folder. settings: sentence_bert_config.json."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    kind = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}[family]
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=80,
        initializer_range=0.2,
        **overrides,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = getattr(transformers, f"{kind}Model")(config)
        for parameter in model.parameters():  # norms and biases of ones and zeros would hide a lot
            if parameter.dim() == 1:
                parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(path)
    _write_tokenizer(path)
    if pooling is not None:
        _write_steps(path, pooling, normalizes)
    if settings is not None:
        _write(path / "sentence_bert_config.json", settings)
    return path


def _write_tokenizer(path: Path) -> None:
    """WordPiece that cuts and pads, as published ones do, which embedding must not."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece

    ids = {token: number for number, token in enumerate(VOCABULARY)}
    backend = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(
        ("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])
    )
    backend.add_special_tokens(list(SPECIAL.values()))
    backend.enable_truncation(8)
    backend.enable_padding(length=8)
    backend.save(str(path / "tokenizer.json"))
    _write(path / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", **SPECIAL})


def _write_steps(path: Path, pooling: str, normalizes: bool) -> None:
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling")]
    kinds += [("Normalize", "2_Normalize")] if normalizes else []
    steps = [
        {"idx": n, "name": str(n), "path": where, "type": f"sentence_transformers.models.{kind}"}
        for n, (kind, where) in enumerate(kinds)
    ]
    _write(path / "modules.json", steps)
    modes = dict.fromkeys(("cls_token", "mean_tokens", "max_tokens", "lasttoken"), False)
    modes |= {{"mean": "mean_tokens", "cls": "cls_token"}.get(pooling, pooling): True}
    (path / "1_Pooling").mkdir(exist_ok=True)
    _write(
        path / "1_Pooling" / "config.json",
        {"word_embedding_dimension": 64}
        | {f"pooling_mode_{name}": chosen for name, chosen in modes.items()},
    )


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
