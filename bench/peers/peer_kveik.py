"""kveik through its offline door, as `LLM(folder, weights=...)` with its defaults."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import protocol
from protocol import Answer, Setting

NAME = "kveik"
WIDTHS = ("bf16", "int8", "int4")
PACKAGES: tuple[tuple[str, ...], ...] = ()  # runs in the interpreter of the harness


def environment(home: Path) -> dict[str, str]:
    return {}


@dataclass
class Recorder:
    """An event sink that grows an Answer."""

    answer: Answer = field(default_factory=Answer)
    ended: bool = False
    error: Exception | None = None

    def __call__(self, event: Any) -> None:
        now = time.monotonic()
        kind = type(event).__name__
        if kind == "ChoiceDelta":
            self.answer.tokens.extend(event.token_ids)
            self.answer.times.extend([now] * len(event.token_ids))
            self.answer.logprobs.extend(place.logprob for place in event.logprobs)
        elif kind == "RequestFailed":
            self.error = event.error
        self.ended = self.ended or kind in ("RequestFinished", "RequestFailed", "RequestAborted")


class Kveik:
    reuses = True
    shares = True

    def __init__(self, setting: Setting) -> None:
        import kveik

        self.llm = kveik.LLM(
            setting.folder,
            max_model_len=setting.max_tokens,
            kv_memory=setting.kv_bytes,
            weights=setting.width,
        )
        self.params = kveik.SamplingParams
        self.version = kveik.__version__
        _files_written()

    def generate(
        self, prompts: Sequence[list[int]], new_tokens: int, *, logprobs: bool = False
    ) -> list[Answer]:
        params = self.params(
            temperature=0.0,
            max_tokens=new_tokens,
            ignore_eos=True,
            logprobs=0 if logprobs else None,
        )
        sinks = [Recorder() for _ in prompts]
        requests = [self.llm.request({"prompt_token_ids": ids}, params) for ids in prompts]
        for sink in self.llm.run(zip(requests, sinks, strict=True)):
            if sink.error is not None:
                raise sink.error
        return [sink.answer for sink in sinks]

    def forget(self) -> None:
        self.llm.engine.reset_cache()


def _files_written() -> None:
    """Packed weights for the next start are written on a thread, which would end with this process:
    protocol.py waits for nobody. A start that finds such a file has no such thread."""
    from kveik.models.weight_cache import WRITER

    for thread in threading.enumerate():
        if thread.name == WRITER:
            thread.join()


def load(setting: Setting) -> Kveik:
    return Kveik(setting)


if __name__ == "__main__":
    protocol.main(load)
