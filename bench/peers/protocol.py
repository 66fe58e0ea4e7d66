"""What an engine's runner and the harness say to each other. Standard library: it is imported by
every engine's own interpreter.

A runner (`peer_NAME.py`) reads one job, a JSON object, from stdin and writes JSON lines to stdout:
any number of {"column": name, ...}, then {"done": true} or {"error": text}. What the engine itself
prints goes to stderr, which the harness keeps in a log file.

Jobs, by "task":
    convert  source, target, width            makes what `load` reads from a Hugging Face folder
    measure  the fields of `Setting`, columns, round   the columns of workload.py
    exact    the fields of `Setting`                   the answers of exactness.py

A runner has, at its top level (the harness imports it too, so nothing of the engine's is imported
there):
    NAME       of the engine, as the tables show it
    WIDTHS     weight widths that it offers, of bf16, int8, int4
    PACKAGES   arguments of pip, one call after another; CONVERTER, where `convert` needs more
    environment(home)           variables for its process; home: its virtual environment
    load(setting) -> Engine
    convert(source, target, width)   where `load` cannot read the Hugging Face folder; where it can
                                     for some widths, READS_CHECKPOINT names these
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol


class Unsupported(Exception):
    """This engine does not offer what was asked for; the message says what."""


@dataclass(frozen=True)
class Setting:
    """How an engine is to be loaded."""

    folder: str  # Hugging Face folder, or what `convert` made of it
    width: str  # of the weights: bf16, int8, int4
    vocabulary: int
    max_tokens: int  # longest sequence
    kv_bytes: int  # of the KV pool
    sequences: int  # computed together at most
    threads: int


@dataclass
class Answer:
    """New tokens of one prompt. times: when each was known (time.monotonic). logprobs: one number
    per token whose bits follow from the logits; empty where none was asked for or is offered."""

    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class Engine(Protocol):
    """A loaded model. reuses: a prompt seen before is served from a cache; shares: so is a prefix
    that several prompts have in common."""

    version: str
    reuses: bool
    shares: bool

    def generate(
        self, prompts: Sequence[list[int]], new_tokens: int, *, logprobs: bool = False
    ) -> list[Answer]:
        """Greedy, exactly new_tokens each (the end token is ignored), computed together."""
        ...

    def forget(self) -> None:
        """Empties the cache of prompts."""
        ...


Load = Callable[[Setting], Engine]
Convert = Callable[[Path, Path, str], None]
Send = Callable[[dict[str, Any]], None]


def read_setting(job: dict[str, Any]) -> Setting:
    return Setting(**{one.name: job[one.name] for one in fields(Setting)})


def main(load: Load, convert: Convert | None = None) -> None:
    """The whole life of a runner's process."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # engines print; the channel is not theirs

    def send(record: dict[str, Any]) -> None:
        channel.write(json.dumps(record) + "\n")
        channel.flush()

    try:
        perform(json.loads(sys.stdin.read()), load, convert, send)
        send({"done": True})
    except Exception as error:
        traceback.print_exc()
        send({"error": f"{type(error).__name__}: {error}"[:500]})
    os._exit(0)  # some engines hang or crash in their destructors


def perform(job: dict[str, Any], load: Load, convert: Convert | None, send: Send) -> None:
    import exactness
    import workload

    if job["task"] == "convert":
        if convert is None:
            raise Unsupported("it reads Hugging Face folders")
        convert(Path(job["source"]), Path(job["target"]), job["width"])
        return
    setting = read_setting(job)
    engine = load(setting)
    loaded = time.monotonic()
    send({"column": "engine", "version": engine.version})
    if job["task"] == "exact":
        send({"column": "exact", **exactness.answers(engine, setting)})
        return
    for record in workload.measure(engine, setting, job["columns"], job["round"], loaded):
        send(record)
