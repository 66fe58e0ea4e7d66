"""Folders of tiny models whose matrices are quantised, their plain twins, and what they answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import packing
import tiny
from drive import Sequencer
from safetensors.numpy import load_file, save_file

from kveik.kernels.ops import Ops
from kveik.kernels.reference import reference_ops
from kveik.models import load_model

PROMPT = list(range(3, 43))
Config = dict[str, Any]
Writer = Callable[[packing.Quantised], packing.Tensors]


def gptq_config(**keys: Any) -> Config:
    return {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, **keys}


def awq_config(**keys: Any) -> Config:
    return {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", **keys}


def compressed_config(form: str = "pack-quantized", weights: Config | None = None) -> Config:
    scheme = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    group = {"targets": ["Linear"], "weights": {**scheme, **(weights or {})}}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
        "kv_cache_scheme": None,
        "sparsity_config": {"format": "dense"},
    }


def write_folders(
    tmp_path: Path,
    config: Config,
    quantise: Callable[[np.ndarray], packing.Quantised],
    write: Writer,
    chosen: str = r"model\.layers\..*_proj",
    **overrides: Any,
) -> tuple[Path, Path]:
    """(quantised, plain): one tiny model with the `chosen` matrices packed, and with what they
    stand for."""
    plain = tiny.tiny_llama(tmp_path / "plain", **overrides)
    folder = tiny.tiny_llama(tmp_path / "quantised", **{**overrides, "quantization_config": config})
    tensors = load_file(plain / "model.safetensors")
    stored: packing.Tensors = {}
    for name, value in list(tensors.items()):
        module = name.removesuffix(".weight")
        if value.ndim == 2 and re.fullmatch(chosen, module):
            q = quantise(value)
            parts = write(q)
            if "weight_scale" in parts:
                q.scales = parts["weight_scale"]
            stored.update({f"{module}.{part}": tensor for part, tensor in parts.items()})
            tensors[name] = q.plain()
        else:
            stored[name] = value
    save_file(tensors, plain / "model.safetensors")
    save_file(stored, folder / "model.safetensors")
    return folder, plain


def logits_of(folder: Path, ops: Ops | None = None) -> np.ndarray:
    """Of PROMPT [40, V], on the reference kernels by default."""
    ops = ops or reference_ops()
    return Sequencer(load_model(str(folder), ops).model, ops, len(PROMPT)).feed(PROMPT)


def by(bits: int, group: int, **options: Any) -> Callable[[np.ndarray], packing.Quantised]:
    return lambda matrix: packing.quantise(matrix, bits, group, **options)
