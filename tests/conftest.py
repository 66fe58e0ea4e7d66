"""Puts tests/ on sys.path (for `tiny`) and offers tiny checkpoints, written once per session."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import serving
import tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_folder(**overrides)`: folder of a `tiny.tiny_llama` checkpoint, not to be changed."""
    root = tmp_path_factory.mktemp("tiny")
    made: dict[str, Path] = {}

    def folder(**overrides: Any) -> Path:
        key = repr(sorted(overrides.items()))
        if key not in made:
            made[key] = tiny.tiny_llama(root / f"model-{len(made)}", **overrides)
        return made[key]

    return folder


@pytest.fixture(scope="session")
def default_server() -> Iterator[str]:
    """Base URL of a `kveik serve` process with the embedded default model."""
    with serving.running_server() as url:
        yield url
