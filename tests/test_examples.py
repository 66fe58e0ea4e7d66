"""The programs of examples/ are short and run."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kveik.config import DEFAULT_MODEL_PATH

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
RAG = FOLDER / "rag"
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


def test_there_are_eleven() -> None:
    assert len(EXAMPLES) >= 11


@needs_model
def test_passages_are_cited_and_their_order_costs_nothing() -> None:
    done = subprocess.run(
        [sys.executable, str(RAG / "rag.py")], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    as_text, as_modules = done.stdout.split("passages are modules")
    counts = {}
    for printed in (as_text, as_modules):
        answers = re.findall(r"^What .*|^Who .*", printed, re.M)
        assert len(answers) == 6
        for answer in answers:
            assert len(re.findall(r"\b[a-z]+#[01]", answer)) == 3, answer
        found = re.findall(r"\[(\d+), (\d+)\] \(best first, best last\)", printed)
        counts[printed] = [(int(first), int(last)) for first, last in found]
        assert len(found) == 6
    assert all(first > 100 and last > 100 for first, last in counts[as_text])
    assert all(abs(first - last) < 8 for first, last in counts[as_modules])
    assert all(first < 80 for first, _ in counts[as_modules])
    assert any(value in as_modules for value in ("7:40", "19:30", "green", "1648"))  # and reads


def rag_store() -> Any:
    spec = importlib.util.spec_from_file_location("rag_store", RAG / "store.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_store(module: Any, store: Any) -> None:
    passages = [module.Passage(f"a#{number}", f"text {number}") for number in range(3)]
    store.put(passages, np.array([[2.0, 0.0], [0.6, 0.8], [0.0, 1.0]]))
    assert store.nearest(np.array([0.0, 1.0]), 2) == [passages[2], passages[1]]
    newer = module.Passage("a#2", "another text")
    store.put([newer], np.array([[1.0, 0.0]]))
    assert store.nearest(np.array([0.0, 1.0]), 3)[0] == passages[1]
    assert set(store.nearest(np.array([1.0, 0.0]), 3)) == {passages[0], passages[1], newer}


def test_the_store_in_memory() -> None:
    module = rag_store()
    check_store(module, module.ArrayStore())


def test_the_store_of_lancedb(tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    module = rag_store()
    check_store(module, module.LanceStore(str(tmp_path)))
