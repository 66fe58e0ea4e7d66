"""Makes the recipe importable and gives the tests a tiny corpus."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the recipe needs torch")
pytest.importorskip("tokenizers", reason="the recipe needs tokenizers")

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "recipes"))

PARAGRAPH = (
    "The old {a} stood beside the {b} and looked at the water for a long time,\n"
    "while {n} and {m} walked slowly home through the {c} without a word to anybody.\n\n"
)
SPEECHES = "“Good morning,” said {n}.\n\n“Good morning to you, {n},” answered {m}.\n\n"
NAMES = ("Harriet", "Edmund", "Rachel", "Walter")
WORDS = ("captain", "harbour", "garden", "window", "lantern", "village", "carriage", "river")


def tiny_text() -> str:
    """About 60,000 characters of prose and dialogue made from a few words."""
    parts = []
    for number in range(240):
        names = {"n": NAMES[number % 4], "m": NAMES[(number + 1) % 4]}
        words = {key: WORDS[(number + step) % 8] for step, key in enumerate("abc")}
        parts.append(PARAGRAPH.format(**names, **words))
        parts.append(SPEECHES.format(**names))
    return "".join(parts)


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "book.txt").write_text(tiny_text(), encoding="utf-8")
    return folder


@pytest.fixture
def tiny_arguments(corpus_folder: Path, tmp_path: Path) -> list[str]:
    """A run of a few float32 steps."""
    return [
        *("--data", str(corpus_folder), "--out", str(tmp_path / "run")),
        *("--no-bf16", "--no-compile", "--warmup", "2", "--curriculum", "4"),
        *("--batch-tokens", "128", "--micro-tokens", "64"),
        *(
            "--context",
            "64",
            "--short-context",
            "32",
            "--copying-context",
            "16",
            "--vocab-size",
            "320",
        ),
        *("--hidden", "32", "--intermediate", "48", "--layers", "2"),
        *("--heads", "2", "--kv-heads", "1"),
    ]
