"""Rows keep their bits under every BLAS kernel, thread count and instruction set.

BLAS changes its order of summation with the number of rows on most CPUs, and the CPU that runs
this test may be one that hides it, so the grid runs with kernels of other CPUs too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import blas
import numpy as np
import pytest

GRID = Path(__file__).parent / "exact_grid.py"
CORES = ("", *blas.NEEDS)


def dependent_ops(**environment: str) -> str:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(GRID)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("core", CORES)
def test_rows_keep_their_bits(core: str, threads: str) -> None:
    chosen = blas.environment(core) if core else {}
    assert dependent_ops(OPENBLAS_NUM_THREADS=threads, **chosen) == ""


def test_rows_keep_their_bits_without_wide_instructions() -> None:
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    if not found:
        pytest.skip("numpy found nothing beyond its baseline on this machine")
    assert (
        dependent_ops(NPY_DISABLE_CPU_FEATURES=" ".join(found), OPENBLAS_CORETYPE="Nehalem") == ""
    )
