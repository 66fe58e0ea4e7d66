"""What a server does on which thread: the engine's has neither tokenizer, nor text, nor HTTP."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from server_harness import MODEL, RunningServer, sse

from kveik.engine import detokenizer
from kveik.engine.runner import Runner
from kveik.engine.scheduler import Scheduler
from kveik.engine.tokenizer import Tokenizer
from kveik.server import sse as streams
from kveik.server.bridge import Feed

STREAMS = 6
ENGINE, TEXTS, LOOP = "kveik-engine", "kveik-texts", "test-server"

# name, where it is looked up, the function
WATCHED: tuple[tuple[str, Any, str], ...] = (
    ("plan", Scheduler, "plan_step"),
    ("run", Runner, "_compute"),
    ("apply", Scheduler, "apply"),
    ("encode", Tokenizer, "encode"),
    ("encode chat", Tokenizer, "encode_piece"),
    ("text", detokenizer.ByteDetokenizer, "push"),
    ("text", detokenizer.WindowDetokenizer, "push"),
    ("feed", Feed, "put"),
    ("json", streams, "frame"),
)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Names of the threads by what was done on them."""
    seen: dict[str, set[str]] = defaultdict(set)

    def watch(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            seen[name].add(threading.current_thread().name)
            return inner(*args, **kwargs)

        return watched

    for name, owner, function in WATCHED:
        monkeypatch.setattr(owner, function, watch(name, getattr(owner, function)))
    return seen


def test_each_thread_does_its_own_work(server: RunningServer, threads: dict[str, set[str]]) -> None:
    def ask(index: int) -> list[Any]:
        body: dict[str, Any] = {"model": MODEL, "max_tokens": 12, "stream": True, "stop": ["zqx"]}
        with server.http() as http:
            if index % 2:
                body["messages"] = [{"role": "user", "content": f"threads {index} " * 5}]
                return sse(http.post("/v1/chat/completions", json=body).text)
            body["prompt"] = f"threads {index} " * 10
            return sse(http.post("/v1/completions", json=body).text)

    with ThreadPoolExecutor(STREAMS) as clients:
        answers = list(clients.map(ask, range(STREAMS)))
    assert all(events[-1] == "[DONE]" for events in answers)
    for name in ("plan", "run", "apply"):
        assert threads.pop(name) == {ENGINE}
    assert threads.pop("text") == {TEXTS}
    assert threads.pop("feed") == threads.pop("json") == {LOOP}
    assert threads, "nothing was encoded"
    assert not set().union(*threads.values()) & {ENGINE, TEXTS}
