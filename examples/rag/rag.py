"""Answers from documents, with citations. The passages nearest to a question become modules of its
prompt: computed once, whatever stands before them, so that their order is free."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from store import Passage, Store, open_store

from kveik import LLM, RequestOutput, SamplingParams

DOCUMENTS = Path(__file__).parent / "documents"
QUESTIONS = (
    "What is the lamp of the lighthouse?",
    "What is the curtain of the theatre?",
    "Who is the librarian?",
    "What is the cake of the baker?",
    "What is the ferry of the harbour?",
    "What is the oldest letter of the archive?",
)
SAMPLE = (  # what questions are like
    "What is the colour of the door?",
    "Who is the captain of the ship?",
    "What is the price of the hat?",
    "Who is the doctor?",
    "What is the name of the horse?",
    "What is the road to the village?",
)
PARAMS = SamplingParams(temperature=0, max_tokens=16)


def passages_of(document: str, text: str) -> list[Passage]:
    paragraphs = text.strip().split("\n\n")
    return [Passage(f"{document}#{number}", one) for number, one in enumerate(paragraphs)]


class Reader:
    """Documents in a store, and a model that reads what is nearest to a question.

    Vectors of a model that was trained to write have much in common: what all passages share, and
    what all questions share, is taken out first (Arora et al., ICLR 2017, do so with the first
    principal component)."""

    def __init__(self, llm: LLM, store: Store, documents: dict[str, str], *, modules: bool) -> None:
        self.computed = 0  # prompt tokens
        self._modules = modules
        self._llm = llm
        self._store = store
        self._versions: dict[str, int] = {}
        texts = [p.text for name, text in documents.items() for p in passages_of(name, text)]
        self._of_passages = self._vectors(texts).mean(0)
        self._of_questions = self._vectors(SAMPLE).mean(0)
        for name, text in documents.items():
            self.add(name, text)

    def add(self, document: str, text: str) -> None:
        """A new document, or a new version: what was computed from the one before is forgotten."""
        passages = passages_of(document, text)
        self._store.put(passages, self._vectors([p.text for p in passages]) - self._of_passages)
        self._versions[document] = self._versions.get(document, 0) + 1
        self._llm.document(document, version=str(self._versions[document]))
        if self._modules:  # each is computed now, before anybody asks
            for passage in passages:
                self.ask("What is this?", [passage])

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        """float64 [texts, H]"""
        return np.array([one.outputs.embedding for one in self._llm.embed(texts)])

    def find(self, question: str, count: int = 3) -> list[Passage]:
        """Best first."""
        [vector] = self._vectors([question]) - self._of_questions
        return self._store.nearest(vector, count)

    def ask(self, question: str, passages: Sequence[Passage]) -> RequestOutput:
        parts = [{"type": "text", "text": "Read this.\n"}]
        for passage in passages:
            document = passage.id.partition("#")[0]
            label = f"{document}@{self._versions[document]}"
            part = {"type": "text", "text": passage.text + "\n", "document": label}
            parts.append({**part, "cache": "module"} if self._modules else part)
        content = [*parts, {"type": "text", "text": question}]
        output = self._llm.chat([{"role": "user", "content": content}], PARAMS)[0]
        self.computed += output.usage.computed_prompt_tokens
        return output


def read(reader: Reader) -> None:
    """Ask everything, with the best passage first and with the best one last."""
    for question in QUESTIONS:
        found = reader.find(question)
        first, last = reader.ask(question, found), reader.ask(question, found[::-1])
        counts = [one.usage.computed_prompt_tokens for one in (first, last)]
        cited = ", ".join(passage.id for passage in found)
        print(f"{question} {first.outputs[0].text.strip()} [{cited}]")
        print(f"  of {first.usage.prompt_tokens} tokens: {counts} (best first, best last)")


def main() -> None:
    texts = {path.stem: path.read_text("utf-8") for path in sorted(DOCUMENTS.glob("*.txt"))}
    computed = {}
    for modules in (False, True):
        print("passages are modules" if modules else "passages are text")
        with LLM() as llm, tempfile.TemporaryDirectory() as folder:
            reader = Reader(llm, open_store(folder), texts, modules=modules)
            print(f"  {reader.computed} tokens computed when they were added")
            read(reader)
            computed[modules] = reader.computed
    saved = 1 - computed[True] / computed[False]
    print(f"computed {computed[False]} tokens, {computed[True]} with modules: {saved:.0%} saved")
    assert computed[True] < computed[False]


if __name__ == "__main__":
    main()
