"""From the files of an embedding model's folder to the shape of its encoder and what is made of it.

Read as sentence-transformers writes them: config.json of a BERT-like encoder, modules.json (which
steps there are), 1_Pooling/config.json (what is taken of the hidden states) and
sentence_bert_config.json (the longest text). Without modules.json it is the mean, of length 1.
Whatever would change the vectors and is not computed here is refused, never left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from kveik.errors import ModelLoadError
from kveik.models.fields import Fields, read_json, read_json_list

Gelu = Literal["tanh", "erf"]

_ACTIVATIONS: Mapping[str, Gelu] = {
    "gelu": "erf",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
}
# Roberta's first position is the one behind the padding's; its checkpoints keep the rows before.
_FAMILIES = {"bert": False, "roberta": True, "xlm-roberta": True}
_MODES: Mapping[str, Literal["cls", "mean"]] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
}


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """first_position: row of the position table that the first token gets."""

    vocab_size: int
    hidden_size: int
    inner_size: int
    num_layers: int
    num_heads: int
    positions: int
    first_position: int
    token_types: int
    norm_eps: float
    gelu: Gelu
    prefix: str  # that a checkpoint of the whole family may put before every name

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True, slots=True)
class EncoderSetup:
    """folder: of weights and tokenizer. pooling: over all tokens, or the first one's state.
    max_tokens: of a text with its special tokens. lowers: texts are written small first."""

    folder: Path
    shape: EncoderShape
    pooling: Literal["cls", "mean"]
    normalizes: bool
    max_tokens: int
    lowers: bool


def read_encoder(path: str) -> EncoderSetup:
    """Raises ModelLoadError naming file, key and remedy."""
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ModelLoadError(
            f"embedding_model: {path} is no folder here; give the folder of a checkpoint as "
            "sentence-transformers writes it (config.json, model.safetensors, tokenizer.json)"
        )
    folder, pooling, normalizes = _steps(root)
    shape = _shape(folder / "config.json")
    limits = root / "sentence_bert_config.json"
    if not limits.is_file():
        limits = folder / "sentence_bert_config.json"
    fields = Fields(str(limits), read_json(limits) if limits.is_file() else {})
    longest = shape.positions - shape.first_position
    return EncoderSetup(
        folder=folder,
        shape=shape,
        pooling=pooling,
        normalizes=normalizes,
        max_tokens=min(longest, fields.integer("max_seq_length", longest)),
        lowers=fields.flag("do_lower_case", False),
    )


def _steps(root: Path) -> tuple[Path, Literal["cls", "mean"], bool]:
    """(folder of the encoder, pooling, whether vectors get length 1)"""
    file = root / "modules.json"
    if not file.is_file():
        return root, "mean", True
    steps = _modules(file)
    kinds = [kind for kind, _ in steps]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ModelLoadError(
            f"{file}: has the steps {', '.join(kinds)}; kveik computes Transformer, Pooling and "
            "Normalize, in this order: use a model without others"
        )
    pooling = _pooling(root / steps[1][1] / "config.json")
    return root / steps[0][1], pooling, kinds[-1] == "Normalize"


def _modules(file: Path) -> list[tuple[str, str]]:
    """(kind, subfolder) of every step."""
    steps = []
    for number, value in enumerate(read_json_list(file)):
        if not isinstance(value, dict):
            raise ModelLoadError(f"{file}: step {number} is {value!r}; expected an object")
        step = Fields(f"{file}: step {number}", cast("Mapping[str, object]", value))
        path = step.text("path", "")
        if Path(path).name != path:
            raise step.fail(f"path is {path!r}; expected a folder beside this file")
        steps.append((step.text("type").rpartition(".")[2], path))
    return steps


def _pooling(file: Path) -> Literal["cls", "mean"]:
    values = read_json(file)
    fields = Fields(str(file), values)
    chosen = [
        name for name in values if name.startswith("pooling_mode_") and fields.flag(name, False)
    ]
    if len(chosen) != 1 or chosen[0] not in _MODES:
        raise fields.fail(
            f"{', '.join(chosen) or 'no pooling mode'} is set; kveik computes one of "
            f"{' and '.join(_MODES)}: use a model with such a pooling"
        )
    return _MODES[chosen[0]]


def _shape(file: Path) -> EncoderShape:
    if not file.is_file():
        raise ModelLoadError(f"{file}: not found; the folder of an embedding model has one")
    fields = Fields(str(file), read_json(file))
    family = fields.text("model_type")
    if family not in _FAMILIES:
        raise fields.fail(
            f"model_type is {family!r}; embedding models can be of the kinds "
            f"{', '.join(_FAMILIES)}. A model that writes text is served as --model and embeds too"
        )
    for name, plain in (("position_embedding_type", "absolute"), ("is_decoder", False)):
        if fields.get(name) not in (None, plain):
            raise fields.fail(f"{name} is {fields.get(name)!r}; only {plain!r} is computed here")
    if fields.get("quantization_config") is not None:
        raise fields.fail("quantization_config: embedding models are loaded unquantised only")
    gelu = _ACTIVATIONS.get(fields.text("hidden_act", "gelu"))
    if gelu is None:
        raise fields.fail(
            f"hidden_act is {fields.get('hidden_act')!r}; expected {', '.join(_ACTIVATIONS)}"
        )
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if hidden % heads:
        raise fields.fail(f"hidden_size {hidden} is no multiple of num_attention_heads {heads}")
    first = fields.integer("pad_token_id", 1, low=0) + 1 if _FAMILIES[family] else 0
    return EncoderShape(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        inner_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=heads,
        positions=fields.integer("max_position_embeddings", low=first + 1),
        first_position=first,
        token_types=fields.integer("type_vocab_size"),
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        gelu=gelu,
        prefix="bert." if family == "bert" else "roberta.",
    )
