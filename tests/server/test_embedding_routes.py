"""POST /v1/embeddings by the real `openai` client, and by hand what the client would not send."""

from __future__ import annotations

import base64
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from server_harness import MODEL, Brake, RunningServer, until

from kveik import LLM
from kveik.server import embeddings

TEXTS = ["The captain lives in the harbour.", "the", "Where is the doctor? " * 6]
LOOP = "test-server"  # the thread of the event loop
GOOD = {"model": MODEL, "input": TEXTS}


@pytest.fixture(scope="module")
def vectors(tiny_folder: Callable[..., Path]) -> list[list[float]]:
    """What the Python door says of the same texts."""
    with LLM(tiny_folder(), kv_memory="4MiB") as llm:
        return [output.outputs.embedding for output in llm.embed(TEXTS)]


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}])
def test_texts(client: openai.OpenAI, vectors: list[list[float]], encoding: Any) -> None:
    answer = client.embeddings.create(model=MODEL, input=TEXTS, **encoding)
    assert (answer.object, answer.model) == ("list", MODEL)
    assert [(one.object, one.index) for one in answer.data] == [
        ("embedding", 0), ("embedding", 1), ("embedding", 2),
    ]  # fmt: skip
    assert [list(one.embedding) for one in answer.data] == vectors


def test_one_text_ids_and_usage(server: RunningServer, client: openai.OpenAI) -> None:
    encode = server.engine.tokenizer.encode
    ids = [encode(text) for text in TEXTS]
    [one] = client.embeddings.create(model=MODEL, input=TEXTS[0]).data
    [same] = client.embeddings.create(model=MODEL, input=ids[0], dimensions=64).data
    listed = client.embeddings.create(model=MODEL, input=ids, user="somebody")
    assert one.embedding == same.embedding == listed.data[0].embedding
    total = sum(len(one) for one in ids)
    assert (listed.usage.prompt_tokens, listed.usage.total_tokens) == (total, total)


def test_base64_is_float32_with_the_lowest_byte_first(
    server: RunningServer, vectors: list[list[float]]
) -> None:
    with server.http() as http:
        answer = http.post("/v1/embeddings", json={**GOOD, "encoding_format": "base64"}).json()
    packed = base64.b64decode(answer["data"][2]["embedding"])
    assert list(struct.unpack("<64f", packed)) == vectors[2]


def test_embeddings_are_computed_beside_a_stream(
    server: RunningServer, client: openai.OpenAI, vectors: list[list[float]]
) -> None:
    plain = client.completions.create(model=MODEL, prompt="Once upon", max_tokens=40, seed=5)
    with Brake(server.engine) as brake, ThreadPoolExecutor() as threads:
        brake.step(3)
        stream = client.completions.create(
            model=MODEL, prompt="Once upon", max_tokens=40, seed=5, stream=True
        )
        text = next(iter(stream)).choices[0].text
        asked = threads.submit(client.embeddings.create, model=MODEL, input=TEXTS)
        until(lambda: server.engine.stats().waiting == len(TEXTS))
        brake.release()
        text += "".join(chunk.choices[0].text for chunk in stream)
        answer = asked.result()
    assert text == plain.choices[0].text
    assert [list(one.embedding) for one in answer.data] == vectors
    until(lambda: server.leased() == 0)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_long_answers_are_written_beside_the_event_loop(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    threads: dict[str, list[str]] = {"sums": [], "json": []}

    def watched(kind: str, work: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def run(value: Any) -> Any:
            threads[kind].append(threading.current_thread().name)
            return work(value)

        return run

    monkeypatch.setattr(embeddings, "unit_vector", watched("sums", embeddings.unit_vector))
    monkeypatch.setattr(embeddings, "_json", watched("json", embeddings._json))
    inputs = [[number] for number in range(1, 131)]  # 130 vectors of 64 numbers
    body = {"model": MODEL, "input": inputs, "encoding_format": encoding}
    with server.http() as http:
        answer = http.post("/v1/embeddings", json=body).json()
        assert [one["index"] for one in answer["data"]] == list(range(130))
        assert (len(threads["sums"]), len(threads["json"])) == (130, 131)  # one by one
        assert LOOP not in {*threads["sums"], *threads["json"]}
        http.post("/v1/embeddings", json={**body, "input": inputs[:1]})
    assert threads["json"][-1] == LOOP  # the watch sees it: a short answer takes no thread


BAD = [
    ({"model": MODEL}, "input"),
    ({**GOOD, "input": []}, "input"),
    ({**GOOD, "input": ""}, "input"),
    ({**GOOD, "input": ["a", ""]}, "input[1]"),
    ({**GOOD, "input": [[1], []]}, "input[1]"),
    ({**GOOD, "input": [[1], "a", 5]}, "input[2]"),
    ({**GOOD, "input": [1, "a"]}, "input"),
    ({**GOOD, "input": ["x"] * 1025}, "input"),
    ({**GOOD, "input": [320]}, "input"),
    ({**GOOD, "input": [5] * 513}, "input"),
    ({**GOOD, "encoding_format": "int8"}, "encoding_format"),
    ({**GOOD, "dimensions": 32}, "dimensions"),
    ({**GOOD, "dimensions": 65}, "dimensions"),
    ({**GOOD, "dimensions": 0}, "dimensions"),
    ({**GOOD, "dimensions": 2**20 + 1}, "dimensions"),
    ({**GOOD, "dimensions": True}, "dimensions"),
    ({**GOOD, "dimensions": "64"}, "dimensions"),
    ({**GOOD, "user": 5}, "user"),
    ({**GOOD, "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
]


@pytest.mark.parametrize(("body", "param"), BAD)
def test_a_bad_body_names_its_field(server: RunningServer, body: Any, param: str) -> None:
    with server.http() as http:
        response = http.post("/v1/embeddings", json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


def test_another_model_is_not_here(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="text-embedding-3-small", input="a")
