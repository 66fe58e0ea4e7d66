"""Write a trained model as a Hugging Face checkpoint folder in bfloat16."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from .model import Llama, ModelShape
from .tokenizer import BEGIN, END, PAD, save_tokenizer, set_first_token, special_id


def export_config(shape: ModelShape, tokenizer: Tokenizer, folder: Path, first_token: bool) -> None:
    """config.json, generation_config.json and the tokenizer's two files."""
    set_first_token(tokenizer, first_token)
    save_tokenizer(tokenizer, folder, shape.context, first_token)
    ids = {
        "bos_token_id": special_id(tokenizer, BEGIN) if first_token else None,
        "eos_token_id": [special_id(tokenizer, END)],
        "pad_token_id": special_id(tokenizer, PAD),
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_size,
        "max_position_embeddings": shape.context,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        **ids,
    }
    _write_json(folder / "config.json", config)
    generation = {**ids, "do_sample": True, "temperature": 0.8, "top_p": 0.95}
    _write_json(folder / "generation_config.json", generation)


def export_model(model: Llama, tokenizer: Tokenizer, folder: Path, first_token: bool) -> None:
    """The whole folder: configuration, tokenizer and weights."""
    export_config(model.shape, tokenizer, folder, first_token)
    weights = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
