"""Load a model for a terminal command, telling on stderr what happens when it takes a while."""

from __future__ import annotations

import sys
import time

from kveik.config import EngineConfig
from kveik.llm import LLM

_PATIENCE = 1.0


def load(config: EngineConfig) -> LLM:
    """An LLM; a model that loads in less than a second loads silently."""
    started = time.monotonic()
    shown = False

    def progress(stage: str, share: float) -> None:
        nonlocal shown
        if sys.stderr.isatty() and time.monotonic() - started > _PATIENCE:
            shown = True
            sys.stderr.write(f"\r\x1b[K{stage} {share:4.0%}")
            sys.stderr.flush()

    llm = LLM.from_config(config, progress=progress)
    if shown:
        sys.stderr.write("\r\x1b[K")
    return llm
