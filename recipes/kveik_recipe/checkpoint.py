"""Resumable training state: model, optimiser, counters and the log so far."""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .model import Llama, ModelShape


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    decay_start: int | None = None
    log: list[dict[str, float]] = field(default_factory=list)


def save_checkpoint(
    path: Path, model: Llama, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write beside the old checkpoint, then replace it, so that a kill leaves one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    state = {
        "shape": asdict(model.shape),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": asdict(progress),
    }
    torch.save(state, partial)
    os.replace(partial, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def load_model(path: Path) -> Llama:
    """The model of a checkpoint, for measuring and exporting."""
    state = load_checkpoint(path)
    model = Llama(ModelShape(**state["shape"]))
    model.load_state_dict(state["model"])
    return model.eval()
