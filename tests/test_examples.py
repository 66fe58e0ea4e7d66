"""The programs of examples/ are short and run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kveik.config import DEFAULT_MODEL_PATH

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
needs_model = pytest.mark.skipif(
    not (DEFAULT_MODEL_PATH / "model.safetensors").exists(), reason="no embedded model here"
)


@needs_model
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path, request: pytest.FixtureRequest) -> None:
    arguments = [sys.executable, str(path)]
    if path.stem == "openai_client":
        arguments.append(request.getfixturevalue("default_server") + "/v1")
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 40


def test_there_are_nine() -> None:
    assert len(EXAMPLES) >= 9
