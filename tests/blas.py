"""BLAS kernels of other processors, as far as this one can run them."""

from __future__ import annotations

from pathlib import Path

import pytest

NEEDS = {"Nehalem": "sse4_2", "Haswell": "avx2", "SkylakeX": "avx512f"}


def environment(core: str) -> dict[str, str]:
    """What chooses the kernels of `core`; the test is skipped where they would be illegal."""
    processor = Path("/proc/cpuinfo")
    if not (processor.exists() and NEEDS[core] in processor.read_text()):
        pytest.skip(f"this processor cannot run the kernels for {core}")
    return {"OPENBLAS_CORETYPE": core}
