"""A server over a tiny engine whose clock the test moves: what a cache field does shows in
`cached_tokens`, whatever time it names."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server_harness import MODEL, RunningServer, running

from kveik.config import EngineConfig, ServerConfig
from kveik.engine.engine import Engine

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
_NUMBERS = itertools.count()


class Clock:
    """Monotonic seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class CacheServer:
    server: RunningServer
    clock: Clock
    key: str | None = None

    def send(self, method: str, path: str, body: Any = None, key: str | None = None) -> Any:
        key = key or self.key
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        with self.server.http() as http:
            return http.request(method, path, json=body, headers=headers)

    def post(self, path: str, body: Any, key: str | None = None) -> Any:
        response = self.send("POST", path, body, key)
        assert response.status_code == 200, response.text
        return response.json()

    def usage(self, prompt: Any, key: str | None = None, **fields: Any) -> Any:
        """Of one request. prompt: a text for completions, messages for chat."""
        body = {"model": MODEL, "max_tokens": 1, "temperature": 0, **fields}
        if isinstance(prompt, str):
            return self.post(TEXT, {**body, "prompt": prompt}, key)["usage"]
        return self.post(CHAT, {**body, "messages": prompt}, key)["usage"]

    def cached(self, prompt: Any, key: str | None = None, **fields: Any) -> int:
        return int(self.usage(prompt, key, **fields)["prompt_tokens_details"]["cached_tokens"])

    def peek(self, prompt: Any, key: str | None = None, **fields: Any) -> int:
        """What is cached of a prompt, leaving nothing behind."""
        fields.setdefault("kveik", {"write": False})
        return self.cached(prompt, key, **fields)


@contextlib.contextmanager
def cache_server(
    folder: Path, config: ServerConfig | None = None, key: str | None = None, **options: Any
) -> Iterator[CacheServer]:
    clock = Clock()
    options.setdefault("kv_memory", 4 * 2**20)
    settings = EngineConfig(model=str(folder), served_model_name=MODEL, **options)
    engine = Engine.load(settings, clock=clock)
    engine.start()
    try:
        with running(engine, config) as server:
            yield CacheServer(server, clock, key)
        engine.check()
    finally:
        engine.stop()


def fresh(words: int = 60) -> str:
    """A text that no other test has sent."""
    number = next(_NUMBERS)
    return " ".join(f"w{number}x{index}" for index in range(words))


def user(*parts: Any) -> list[dict[str, Any]]:
    """One message; a part is a text or a part with labels."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "text", **part}
        for part in parts
    ]
    return [{"role": "user", "content": content}]
