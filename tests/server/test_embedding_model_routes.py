"""A server with an embedding model beside its model, by the real `openai` client."""

from __future__ import annotations

import base64
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from server_harness import MODEL, RunningServer, running, tiny_engine, until
from tiny_encoder import tiny_encoder

TEXTS = ["The ship lay in the bay.", "sea", "a boat " * 9]
GOOD = {"model": "small", "input": TEXTS}


@pytest.fixture(scope="module")
def both(
    tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    folder = tiny_encoder(tmp_path_factory.mktemp("models") / "small")
    engine = tiny_engine(
        tiny_folder(), embedding_model=str(folder), max_queued_requests=3, max_queued_tokens=1000
    )
    with running(engine) as one:
        yield one
    engine.stop()


@pytest.fixture(scope="module")
def vectors(both: RunningServer) -> list[list[float]]:
    embedder = both.engine.embedder
    assert embedder is not None
    return [one.tolist() for one in embedder.vectors([embedder.encode(text) for text in TEXTS])]


def test_each_model_by_its_name(both: RunningServer, vectors: list[list[float]]) -> None:
    with both.openai() as client:
        assert [one.id for one in client.models.list()] == [MODEL, "small"]
        assert client.models.retrieve("small").model_dump()["max_model_len"] == 80
        answer = client.embeddings.create(model="small", input=TEXTS, encoding_format="float")
        served = client.embeddings.create(model=MODEL, input=TEXTS[0], encoding_format="float")
        with pytest.raises(openai.NotFoundError, match="embeddings only: POST /v1/embeddings"):
            client.completions.create(model="small", prompt="a")
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("other")
    assert (answer.object, answer.model) == ("list", "small")
    assert [list(one.embedding) for one in answer.data] == vectors
    embedder = both.engine.embedder
    assert embedder is not None
    total = sum(len(embedder.encode(text)) for text in TEXTS)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (total, total)
    assert served.data[0].embedding != vectors[0]


def test_ids_base64_and_dimensions(both: RunningServer, vectors: list[list[float]]) -> None:
    embedder = both.engine.embedder
    assert embedder is not None
    body = {"model": "small", "input": [embedder.encode(TEXTS[1])], "dimensions": 64}
    with both.http() as http:
        answer = http.post("/v1/embeddings", json={**body, "encoding_format": "base64"}).json()
    packed = base64.b64decode(answer["data"][0]["embedding"])
    assert list(struct.unpack("<64f", packed)) == vectors[1]


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"dimensions": 32}, "dimensions", "invalid_value"),
        ({"input": ["a", [5] * 81]}, "input[1]", "context_length_exceeded"),
        ({"input": [5] * 81}, "input", "context_length_exceeded"),
        ({"input": [4000]}, "input", "invalid_value"),
    ],
)
def test_a_bad_body_names_its_field(
    both: RunningServer, change: Any, param: str, code: str
) -> None:
    with both.http() as http:
        response = http.post("/v1/embeddings", json={**GOOD, **change})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code)


@pytest.fixture
def held(both: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Batches of the embedding model wait for `go`; `seen`: the threads that computed them."""
    embedder = both.engine.embedder
    assert embedder is not None
    compute = embedder.vectors

    class Held:
        go = threading.Event()
        seen: list[str] = []  # noqa: RUF012

    def vectors(prompts: Any) -> Any:
        Held.seen.append(threading.current_thread().name)
        assert Held.go.wait(30)
        return compute(prompts)

    monkeypatch.setattr(embedder, "vectors", vectors)
    yield Held
    Held.go.set()


def test_computed_on_one_thread_of_its_own_while_others_are_served(
    both: RunningServer, held: Any, vectors: list[list[float]]
) -> None:
    with both.openai() as client, ThreadPoolExecutor() as threads:
        asked = [
            threads.submit(
                client.embeddings.create, model="small", input=TEXTS, encoding_format="float"
            )
            for _ in range(3)
        ]
        until(lambda: both.service.active == 3 and held.seen)
        assert client.completions.create(model=MODEL, prompt="a", max_tokens=2).choices
        with pytest.raises(openai.RateLimitError, match="too many texts wait"):
            client.embeddings.create(model="small", input="a")
        held.go.set()
        answers = [one.result() for one in asked]
    for answer in answers:
        assert [list(one.embedding) for one in answer.data] == vectors
    assert set(held.seen) == {"kveik-embedder_0"}


def test_tokens_that_wait_are_bounded(both: RunningServer) -> None:
    with both.openai() as client, pytest.raises(openai.RateLimitError, match="too many texts wait"):
        client.embeddings.create(model="small", input=[[5] * 80] * 13)


def test_a_client_that_leaves_costs_one_batch(both: RunningServer, held: Any) -> None:
    embedder = both.engine.embedder
    assert embedder is not None
    body = {"model": "small", "input": [[5] * 17] * 40}  # 80 blocks of 16: two batches
    assert len(list(embedder.batches(body["input"]))) == 2  # type: ignore[arg-type]
    with both.http() as http, ThreadPoolExecutor() as threads:
        asked = threads.submit(http.post, "/v1/embeddings", json=body, timeout=0.5)
        until(lambda: bool(held.seen))
        assert asked.exception() is not None
        held.go.set()
        until(lambda: both.service.active == 0)
    assert len(held.seen) == 1
