"""Random checkpoints in Hugging Face format, in the shapes that the comparison uses.

Weights are bf16, drawn tensor by tensor from the tensor's name, so a folder has the same bytes
everywhere. The tokenizer knows every id (engines refuse prompts with others); nothing encodes
with it.
"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_act": "silu",
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}

SHAPES: dict[str, dict[str, Any]] = {
    "1.1b": _LLAMA
    | {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 64,
    },
    "0.5b": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "use_sliding_window": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    },
    "160m": _LLAMA
    | {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "head_dim": 64,
    },
}


_NORMS = ("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint and its shape."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    key = config["num_key_value_heads"] * config["head_dim"]
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        part = f"model.layers.{layer}."
        rows = {"q_proj": query, "k_proj": key, "v_proj": key}
        for name, size in rows.items():
            found[f"{part}self_attn.{name}.weight"] = (size, hidden)
            if config["model_type"] == "qwen2":
                found[f"{part}self_attn.{name}.bias"] = (size,)
        found[part + "self_attn.o_proj.weight"] = (hidden, query)
        found[part + "mlp.gate_proj.weight"] = (inner, hidden)
        found[part + "mlp.up_proj.weight"] = (inner, hidden)
        found[part + "mlp.down_proj.weight"] = (hidden, inner)
        found[part + "input_layernorm.weight"] = (hidden,)
        found[part + "post_attention_layernorm.weight"] = (hidden,)
    return found


def total_values(config: dict[str, Any]) -> int:
    return sum(int(np.prod(shape)) for shape in shapes(config).values())


def step_bytes(config: dict[str, Any]) -> int:
    """Bytes of bf16 weights that one decode step reads: all but the embedding, of which it reads a
    row; a tied one is read as the output layer."""
    untied = 0 if config["tie_word_embeddings"] else config["vocab_size"] * config["hidden_size"]
    return 2 * (total_values(config) - untied)


def kv_token_bytes(config: dict[str, Any]) -> int:
    """Of keys and values of one token in bf16."""
    return 4 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]


def write(shape: str, folder: Path) -> Path:
    """The checkpoint of SHAPES[shape] in `folder`, unless it is there."""
    if (folder / "complete").exists():
        return folder
    config = SHAPES[shape]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    tied = config["tie_word_embeddings"]
    write_tensors(folder / "model.safetensors", shapes(config), tied=tied)
    write_tokenizer(folder, config["vocab_size"])
    (folder / "complete").touch()
    return folder


def tensor(name: str, shape: tuple[int, ...], *, tied: bool) -> np.ndarray:
    """Random bf16 bits as uint16. Logits come out of order 1. An embedding of order 1 lets a token
    weigh as much as the layers, so that answers wander over the vocabulary and do not repeat one
    token; a tied one cannot be that large (its own token would always win)."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    values = generator.standard_normal(shape, dtype=np.float32)
    if name.endswith(_NORMS):
        values = 1.0 + 0.1 * values
    elif name.endswith("bias"):
        values *= 0.1
    elif tied or "embed" not in name:
        values *= np.float32(shape[-1] ** -0.5)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # to nearest, ties even


def write_tensors(path: Path, tensors: dict[str, tuple[int, ...]], *, tied: bool) -> None:
    """A safetensors file, one tensor in memory at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        begin, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors.items():
            file.write(tensor(name, shape, tied=tied).tobytes())


def write_tokenizer(folder: Path, size: int) -> None:
    """A byte-level BPE without merges: three special tokens, the 256 bytes, then filler."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        letters.setdefault(byte, chr(256 + len(letters) - len(printable)))
    special = ["<unk>", "<s>", "</s>"]
    words = [*special, *(letters[byte] for byte in range(256))]
    words += [f"<{number}>" for number in range(len(words), size)]
    tokenizer = Tokenizer(BPE({word: index for index, word in enumerate(words)}, []))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    named = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": 16384,
        "clean_up_tokenization_spaces": False,
    }
    generation = {"bos_token_id": 1, "eos_token_id": 2}
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(named, indent=1))
    (folder / "generation_config.json").write_text(json.dumps(generation))
