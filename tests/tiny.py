"""Random tiny checkpoints in Hugging Face format, for every room's tests.

    tiny_llama(path, **overrides)          llama, mistral, qwen2 or qwen3; numpy only, no torch
    tiny_transformers(path, family, ...)   any family, written by transformers (the truth)
    write_tokenizer(path, vocab_size)      byte-level tokenizer, chat template, generation_config

The same arguments give the same bytes. A checkpoint is about 500 kB and takes milliseconds.
Token ids: 0 <|bos|>, 1 <|im_start|>, 2 <|im_end|> (the end id), 3..258 the 256 bytes, then merges.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

VOCAB_SIZE = 320
BOS_ID, IM_START_ID, IM_END_ID = 0, 1, 2
BYTE_OFFSET = 3
SPECIAL_TOKENS = ("<|bos|>", "<|im_start|>", "<|im_end|>")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' ~ message['role']) }}{% endif %}"
    "{{ '<|im_start|>' ~ message['role'] ~ '\\n' ~ message['content'] ~ '<|im_end|>' ~ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_MERGES = (
    "Ġ t, Ġ a, h e, i n, r e, o n, Ġt he, e r, Ġ s, a t, Ġ w, Ġ o, e n, Ġ c, i t, i s, a n, o r,"
    "e s, Ġ b, e d, Ġ f, in g, Ġ p, o u, Ġa n, a l, a r, Ġt o, Ġ m, Ġo f, Ġ in, Ġ d, Ġ h, Ġan d,"
    "i c, a s, l e, Ġt h, i on, o m, l l, en t, Ġ n, Ġ l, s t, Ġ re, v e, Ġ e, r o, l y, Ġb e,"
    "Ġ g, Ġ T, c t, Ġ S, i d, o t, Ġ I, u t, e t, Ġ A"
)


def _byte_symbols() -> list[str]:
    """The printable stand-in of each byte, as in GPT-2's byte-level BPE."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    stand_ins = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in stand_ins:
            stand_ins[byte] = chr(256 + len(stand_ins) - len(printable))
    return [stand_ins[byte] for byte in range(256)]


def write_tokenizer(
    path: Path,
    vocab_size: int = VOCAB_SIZE,
    *,
    chat_template: str | None = CHAT_TEMPLATE,
    generation: dict[str, Any] | None = None,
) -> None:
    """tokenizer.json, tokenizer_config.json and generation_config.json for `vocab_size` ids.

    Ids beyond the known merges have no token (as in checkpoints with a padded vocabulary)."""
    vocab = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *_byte_symbols()])}
    merges = []
    for pair in (" ".join(merge.split()) for merge in _MERGES.split(",")):
        token = pair.replace(" ", "")
        if len(vocab) < vocab_size and token not in vocab:
            vocab[token] = len(vocab)
            merges.append(pair)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for index, token in enumerate(SPECIAL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<|bos|>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"SpecialToken": {"id": "<|bos|>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [0], "tokens": ["<|bos|>"]}},
        },
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|im_end|>",
        "clean_up_tokenization_spaces": False,
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    generation = generation or {"bos_token_id": BOS_ID, "eos_token_id": [IM_END_ID]}
    path.mkdir(parents=True, exist_ok=True)
    _write_json(path / "tokenizer.json", tokenizer)
    _write_json(path / "tokenizer_config.json", config)
    _write_json(path / "generation_config.json", generation)


def tiny_llama(path: Path, *, seed: int = 0, dtype: str = "float32", **overrides: Any) -> Path:
    """Write a random checkpoint of the Llama family and its tokenizer to `path`; returns `path`.

    overrides: keys of config.json, model_type among them (llama, mistral, qwen2, qwen3).
    dtype: of the stored weights, "float32" or "bfloat16". Needs neither torch nor transformers.
    """
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": BOS_ID,
        "eos_token_id": IM_END_ID,
        "torch_dtype": dtype,
        **overrides,
    }
    path.mkdir(parents=True, exist_ok=True)
    _write_json(path / "config.json", config)
    stored = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    save_file(
        {name: value.astype(stored) for name, value in llama_tensors(config, seed).items()},
        str(path / "model.safetensors"),
        metadata={"format": "pt"},
    )
    write_tokenizer(path, int(config["vocab_size"]))
    return path


def llama_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 tensors under their Hugging Face names; logits come out of order 1."""
    generator = np.random.default_rng(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    key = config["num_key_value_heads"] * config["head_dim"]
    qkv_bias = config["model_type"] == "qwen2" or config.get("attention_bias", False)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return generator.normal(0.0, columns**-0.5, (rows, columns)).astype(np.float32)

    def vector(size: int, mean: float) -> np.ndarray:
        return generator.normal(mean, 0.1, size).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": matrix(config["vocab_size"], hidden) * np.float32(8.0),
        "model.norm.weight": vector(hidden, 1.0),
    }
    if not config.get("tie_word_embeddings", False):
        tensors["lm_head.weight"] = matrix(config["vocab_size"], hidden) * np.float32(2.0)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes = {
            "self_attn.q_proj": (query, hidden, qkv_bias),
            "self_attn.k_proj": (key, hidden, qkv_bias),
            "self_attn.v_proj": (key, hidden, qkv_bias),
            "self_attn.o_proj": (hidden, query, config.get("attention_bias", False)),
            "mlp.gate_proj": (inner, hidden, config.get("mlp_bias", False)),
            "mlp.up_proj": (inner, hidden, config.get("mlp_bias", False)),
            "mlp.down_proj": (hidden, inner, config.get("mlp_bias", False)),
        }
        for name, (rows, columns, bias) in shapes.items():
            tensors[prefix + name + ".weight"] = matrix(rows, columns)
            if bias:
                tensors[prefix + name + ".bias"] = vector(rows, 0.0)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[prefix + name + ".weight"] = vector(hidden, 1.0)
        if config["model_type"] == "qwen3":
            for name in ("self_attn.q_norm", "self_attn.k_norm"):
                tensors[prefix + name + ".weight"] = vector(config["head_dim"], 1.0)
    return tensors


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def tiny_transformers(path: Path, family: str, *, seed: int = 0, **overrides: Any) -> Path:
    """A checkpoint of `family` (a model_type) as transformers itself writes it; returns `path`.

    overrides: keys of the config. shard_size: "50KB" makes several files. Every parameter is
    random, biases and norms too, so that one left out shows. Needs torch and transformers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shard_size = overrides.pop("shard_size", "1GB")
    config = AutoConfig.for_model(family, **{**_SMALL[family], **overrides})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.1 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
            mean = 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
            parameter.normal_(mean, spread, generator=generator)
    model.save_pretrained(path, max_shard_size=shard_size)
    write_tokenizer(path, int(config.vocab_size))
    return path


_SMALL_LLAMA: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": BOS_ID,
    "eos_token_id": IM_END_ID,
}
_SMALL: dict[str, dict[str, Any]] = {
    "llama": _SMALL_LLAMA,
    "mistral": {**_SMALL_LLAMA, "sliding_window": 24},
    "qwen2": _SMALL_LLAMA,
    "qwen3": {**_SMALL_LLAMA, "head_dim": 32},
    "gpt2": {
        "vocab_size": VOCAB_SIZE,
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 3,
        "n_positions": 256,
        "bos_token_id": BOS_ID,
        "eos_token_id": IM_END_ID,
    },
    "gpt_neo": {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "num_heads": 4,
        "num_layers": 4,
        "attention_types": [[["global", "local"], 2]],
        "window_size": 24,
        "max_position_embeddings": 256,
        "bos_token_id": BOS_ID,
        "eos_token_id": IM_END_ID,
    },
}
