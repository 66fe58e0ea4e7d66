"""Quantised folders on the native kernels: as near to the reference as plain bfloat16 weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import packing
import pytest
from quantized_folders import (
    Config,
    Writer,
    awq_config,
    by,
    compressed_config,
    gptq_config,
    logits_of,
    write_folders,
)

from kveik.kernels.extension import native_extension
from kveik.kernels.reference import reference_ops
from kveik.models import load_model

if native_extension().module is None:
    pytest.skip(native_extension().missing, allow_module_level=True)

from kveik.kernels.native import WeightBits, native_ops

# wide enough for groups of 128
SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_attention_heads": 4,
    "head_dim": 64,
}
BY_ROW = compressed_config("int-quantized")
IN_64 = compressed_config(weights={"num_bits": 4, "strategy": "group", "group_size": 64})
CASES: dict[str, tuple[Config, Callable[[np.ndarray], packing.Quantised], Writer]] = {
    "gptq": (gptq_config(group_size=128, sym=False), by(4, 128, symmetric=False), packing.gptq),
    "gptq by row": (gptq_config(group_size=-1), by(4, -1), packing.gptq),
    "gptq in groups of 32": (gptq_config(), by(4, 32), packing.gptq),
    "gptq out of order": (gptq_config(), by(4, 32, shuffled=True), packing.gptq),
    "gptq 8 bits": (gptq_config(bits=8, group_size=128), by(8, 128), packing.gptq),
    "awq": (awq_config(group_size=128), by(4, 128, symmetric=False), packing.awq),
    "int8": (BY_ROW, by(8, -1), packing.int8),
    "packed": (IN_64, by(4, 64), packing.packed),
}


@pytest.mark.parametrize("case", CASES)
def test_native_logits_are_near_those_of_the_reference(case: str, tmp_path: Path) -> None:
    folder, plain = write_folders(tmp_path, *CASES[case], **SIZES)
    truth, native = logits_of(plain, reference_ops()), native_ops(threads=2)

    def distance(other: Path) -> float:
        """Root mean square, in units of the logits' own."""
        difference = logits_of(other, native) - truth
        return float(np.sqrt(np.square(difference).mean() / np.square(truth).mean()))

    assert distance(plain) < 0.02
    # groups of 32 are rounded a second time
    allowed = 3.0 if case == "gptq in groups of 32" else 1.1
    assert distance(folder) <= allowed * distance(plain)


def test_what_a_checkpoint_stores_quantised_stays_so_whatever_is_asked_for(tmp_path: Path) -> None:
    folder, plain = write_folders(tmp_path, *CASES["awq"], **SIZES)

    def kept(folder: Path, weights: WeightBits) -> str:
        return load_model(str(folder), native_ops(threads=1, weights=weights)).weights

    assert kept(plain, "bf16") == "bf16"
    assert kept(plain, "int4") == "int4, int8 in 1 of 15 matrices"
    assert kept(folder, "bf16") == "int4, bf16 in 1 of 15 matrices"
    assert kept(folder, "int8") == "int4, int8 in 1 of 15 matrices"
