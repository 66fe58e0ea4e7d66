"""Where passages lie with their vectors: LanceDB in a folder, or arrays if it is not installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

try:
    import lancedb
except ImportError:
    lancedb = None


class Passage(NamedTuple):
    id: str  # "harbour#1": the second paragraph of harbour.txt
    text: str


class Store(Protocol):
    def put(self, passages: Sequence[Passage], vectors: np.ndarray) -> None:
        """Keep them, in place of those with the same ids."""

    def nearest(self, vector: np.ndarray, count: int) -> list[Passage]:
        """Best first, by the cosine."""


def open_store(folder: str) -> Store:
    return ArrayStore() if lancedb is None else LanceStore(folder)


class LanceStore:
    """A table in a folder: it is there again when the program starts again."""

    def __init__(self, folder: str) -> None:
        self._database = lancedb.connect(folder)
        self._table: Any = None

    def put(self, passages: Sequence[Passage], vectors: np.ndarray) -> None:
        pairs = zip(passages, vectors.tolist(), strict=True)
        rows = [{**passage._asdict(), "vector": vector} for passage, vector in pairs]
        if self._table is None:
            self._table = self._database.create_table("passages", rows, mode="overwrite")
            return
        merge = self._table.merge_insert("id")
        merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def nearest(self, vector: np.ndarray, count: int) -> list[Passage]:
        rows = self._table.search(vector).distance_type("cosine").limit(count).to_list()
        return [Passage(row["id"], row["text"]) for row in rows]


class ArrayStore:
    """The same in memory, for a few thousand passages."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[Passage, np.ndarray]] = {}

    def put(self, passages: Sequence[Passage], vectors: np.ndarray) -> None:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        pairs = zip(passages, unit, strict=True)
        self._rows.update({passage.id: (passage, vector) for passage, vector in pairs})

    def nearest(self, vector: np.ndarray, count: int) -> list[Passage]:
        passages, vectors = zip(*self._rows.values(), strict=True)
        cosines = np.array(vectors) @ vector  # [passages], times the length of `vector`
        return [passages[index] for index in np.argsort(-cosines, kind="stable")[:count]]
