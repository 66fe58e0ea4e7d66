"""Held-out prose for the benches of quality, and how its perplexity is told.

ids_of(folder, path, count)    tokens of the novel from a place behind the publisher's front matter
opening(folder)                the first token of the model's texts, where it has one
perplexity(losses)             of nats per token
ratio(ours, other)             PPL / PPL over the same tokens, with its standard error
picture(name)                  a drawing for docs/images, where matplotlib is there
"""

from __future__ import annotations

import argparse
import functools
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from report import ROOT, Report, arguments
from tokenizers import Tokenizer

from kveik.config import DEFAULT_MODEL_PATH

TEXT = ROOT / "corpora" / "eval" / "war_and_peace_2600.txt"
TWIN = ROOT / "recipes" / "twin"
FIRST_CHARACTER = 100_000  # behind the publisher's pages and the list of chapters
EMBEDDED = DEFAULT_MODEL_PATH

Floats = np.ndarray[Any, np.dtype[np.float64]]


def parser_with_text(description: str | None) -> argparse.ArgumentParser:
    parser = arguments(description)
    parser.add_argument("--text", type=Path, default=TEXT, help="a novel in plain text")
    return parser


def there(path: Path) -> bool:
    """Is the novel there? Says so where it is not."""
    if not path.is_file():
        print(f"nothing was measured: no file {path}; --text names a novel in plain text")
    return path.is_file()


@functools.cache
def tokenizer_of(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def encode(folder: Path, text: str) -> list[int]:
    """Ids of a text, special tokens in it included; nothing is put before it."""
    return list(tokenizer_of(folder).encode(text, add_special_tokens=False).ids)


def opening(folder: Path) -> list[int]:
    """[the first token], or nothing for a model that was trained without one."""
    name = json.loads((folder / "tokenizer_config.json").read_text())["bos_token"]
    return [] if name is None else [tokenizer_of(folder).token_to_id(name)]


def ids_of(folder: Path, path: Path, count: int | None = None) -> list[int]:
    """So many tokens of the novel, all of it where it is shorter or None is said."""
    text = path.read_text(encoding="utf-8-sig")[FIRST_CHARACTER:]
    if count is not None:
        text = text[: count * 8]
    return encode(folder, text)[:count]


def perplexity(losses: Floats) -> float:
    return math.exp(float(losses.mean()))


def ratio(ours: Floats, other: Floats) -> tuple[float, float]:
    """PPL of ours / PPL of other over the same tokens, and its standard error."""
    difference = ours - other
    value = math.exp(float(difference.mean()))
    return value, value * float(difference.std()) / math.sqrt(len(difference))


def note_text(report: Report, path: Path, count: int) -> None:
    report.note(f"{count:,} tokens of {path.name} from character {FIRST_CHARACTER:,} on, held out.")


@contextmanager
def picture(name: str, width: float = 7.0, height: float = 3.2) -> Iterator[Any]:
    """(axes) of docs/images/NAME.svg; None where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        yield None
        return
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = name  # equal figures give equal files
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(width, height))
    yield axes
    figure.tight_layout()
    path = ROOT / "docs" / "images" / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
