"""Batches from and to JSONL: both forms, bad lines, and picking up where a run was cut off."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_encoder import tiny_encoder

from kveik import LLM, ConfigError, SamplingParams
from kveik.batch import BatchSummary, run_batch

PARAMS = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny_folder: Callable[..., Path]) -> Iterator[LLM]:
    with LLM(tiny_folder(), kv_memory="2MiB", served_model_name="tiny") as made:
        yield made


def run(llm: LLM, folder: Path, lines: list[Any]) -> tuple[BatchSummary, dict[str, Any]]:
    source, target = folder / "in.jsonl", folder / "out.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    source.write_text("\n".join(texts) + "\n")
    summary = run_batch(llm, source, target, PARAMS)
    records = [json.loads(line) for line in target.read_text().splitlines()]
    return summary, {str(record.get("custom_id", record["id"])): record for record in records}


def chat(custom_id: str, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hi"}]
    body = {"model": "tiny", "messages": messages, "max_tokens": 3, "temperature": 0, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def embeddings(custom_id: str, texts: Any, model: str = "tiny", **body: Any) -> dict[str, Any]:
    body = {"model": model, "input": texts, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body}


def test_every_kind_of_question(llm: LLM, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    summary, records = run(
        llm,
        tmp_path,
        [
            {"id": "text", "prompt": "the end"},
            {"prompt_token_ids": [0, 7, 8], "max_tokens": 2},
            "",
            {"id": 7, "messages": messages, "n": 2, "seed": 1, "temperature": 1, "logprobs": 1},
            {"id": "stop", "prompt": "a", "stop_token_ids": [5], "logit_bias": {"5": 100}},
        ],
    )
    assert summary == BatchSummary(done=4, failed=0, skipped=0)
    assert set(records) == {"text", "2", "7", "stop"}
    expected = llm.generate("the end", PARAMS)[0].outputs[0]
    assert records["text"]["choices"] == [
        {"index": 0, "text": expected.text, "finish_reason": "length"}
    ]
    assert records["2"]["usage"]["completion_tokens"] == 2
    assert [choice["index"] for choice in records["7"]["choices"]] == [0, 1]
    assert len(records["7"]["choices"][0]["logprobs"]) == 4
    assert records["stop"]["choices"][0]["finish_reason"] == "stop"
    assert records["stop"]["choices"][0]["stop_reason"] == 5


def test_openai_s_form(llm: LLM, tmp_path: Path) -> None:
    completion = {
        "custom_id": "c",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"model": "tiny", "prompt": ["the", "end"], "max_tokens": 2, "logprobs": 1},
    }
    summary, records = run(llm, tmp_path, [chat("a", logprobs=True, n=2), completion])
    assert summary == BatchSummary(2, 0, 0)
    answer = records["a"]
    assert set(answer) == {"id", "custom_id", "response", "error"}
    assert answer["error"] is None
    assert answer["response"]["status_code"] == 200
    body = answer["response"]["body"]
    assert body["object"] == "chat.completion"
    params = SamplingParams(temperature=0, max_tokens=3)
    truth = llm.chat([{"role": "user", "content": "Hi"}], params)[0].outputs[0]
    assert [choice["message"]["content"] for choice in body["choices"]] == [truth.text] * 2
    assert len(body["choices"][0]["logprobs"]["content"]) == len(truth.token_ids)
    assert body["usage"]["total_tokens"] == sum(
        body["usage"][name] for name in ("prompt_tokens", "completion_tokens")
    )
    texts = records["c"]["response"]["body"]["choices"]
    assert [choice["index"] for choice in texts] == [0, 1]


TEXTS = ["the ship", "a boat lay out"]


def test_embeddings_in_openai_s_form(llm: LLM, tmp_path: Path) -> None:
    lines = [embeddings("e", TEXTS), chat("a"), embeddings("one", TEXTS[1])]
    summary, records = run(llm, tmp_path, lines)
    assert summary == BatchSummary(3, 0, 0)
    vectors = [output.outputs.embedding for output in llm.embed(TEXTS)]
    body = records["e"]["response"]["body"]
    assert [one["embedding"] for one in body["data"]] == vectors
    assert records["one"]["response"]["body"]["data"][0]["embedding"] == vectors[1]
    assert body["usage"]["prompt_tokens"] == sum(
        len(output.prompt_token_ids) for output in llm.embed(TEXTS)
    )


def test_embeddings_by_an_embedding_model(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "small")
    options: dict[str, Any] = {"embedding_model": str(folder), "served_model_name": "tiny"}
    with LLM(tiny_folder(), kv_memory="2MiB", **options) as both:
        lines = [
            embeddings("e", TEXTS, model="small"),
            embeddings("served", TEXTS),
            embeddings("bad", ["a", [5] * 99], model="small"),
        ]
        summary, records = run(both, tmp_path, lines)
        vectors = [output.outputs.embedding for output in both.embed(TEXTS)]
    assert summary == BatchSummary(done=2, failed=1, skipped=0)
    body = records["e"]["response"]["body"]
    assert [one["embedding"] for one in body["data"]] == vectors
    assert records["served"]["response"]["body"]["data"][0]["embedding"] != vectors[0]
    assert records["bad"]["response"]["body"]["error"]["param"] == "input[1]"
    assert run(both, tmp_path, lines)[0] == BatchSummary(0, 0, 3)


@pytest.mark.parametrize(
    ("line", "status", "param"),
    [
        (chat("x", temperature=9), 400, "temperature"),
        (chat("x", model="other"), 404, "model"),
        (chat("x", stream=True), 400, "stream"),
        (chat("x", messages=[{"role": "user"}]), 400, "messages[0].content"),
        (chat("x") | {"url": "/v1/responses"}, 404, "url"),
        (embeddings("x", [""]), 400, "input"),
        (embeddings("x", "a", model="other"), 404, "model"),
        (embeddings("x", "a", dimensions=3), 400, "dimensions"),
        (embeddings("x", [[5] * 600]), 400, None),
        (chat("x") | {"method": "GET"}, 400, "method"),
        (chat("x") | {"body": 3}, 400, "body"),
        (chat("x") | {"wrong": 3}, 400, "wrong"),
        (chat("x", max_tokens=100_000), 400, None),
    ],
)
def test_a_bad_openai_line_answers_with_its_status(
    llm: LLM, tmp_path: Path, line: dict[str, Any], status: int, param: str | None
) -> None:
    summary, records = run(llm, tmp_path, [line, chat("good")])
    assert summary == BatchSummary(1, 1, 0)
    assert records["x"]["response"]["status_code"] == status
    error = records["x"]["response"]["body"]["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert param is None or error["param"] == param


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("{", "JSON"),
        ("[1]", "object"),
        ("\\ud800", "JSON"),
        ({}, "prompt"),
        ({"prompt": "a", "messages": []}, "one of"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "\ud800"}, "Unicode"),
        ({"prompt": "a", "temprature": 1}, "temprature"),
        ({"prompt": "a", "temperature": "hot"}, "temperature"),
        ({"prompt": "a", "stop": [1]}, "stop"),
        ({"prompt": "a", "stop_token_ids": ["x"]}, "stop_token_ids"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
        ({"prompt": "a", "ignore_eos": 1}, "ignore_eos"),
        ({"prompt_token_ids": [10**6]}, "vocabulary"),
        ({"prompt_token_ids": [5] * 600}, "600"),
    ],
)
def test_a_bad_line_is_recorded_and_stops_nothing(
    llm: LLM, tmp_path: Path, line: Any, word: str
) -> None:
    summary, records = run(llm, tmp_path, [{"prompt": "a"}, line, {"prompt": "b"}])
    assert summary == BatchSummary(done=2, failed=1, skipped=0)
    assert word in records["2"]["error"]["message"]


def test_the_same_id_twice(llm: LLM, tmp_path: Path) -> None:
    summary, _ = run(llm, tmp_path, [{"id": "a", "prompt": "a"}, {"id": "a", "prompt": "b"}])
    assert summary == BatchSummary(1, 1, 0)


def test_a_second_run_computes_only_what_is_missing(llm: LLM, tmp_path: Path) -> None:
    lines: list[Any] = [{"id": f"n{number}", "prompt": f"text {number}"} for number in range(6)]
    lines += [chat("chat"), "not JSON"]
    summary, whole = run(llm, tmp_path, lines)
    assert summary == BatchSummary(7, 1, 0)
    target = tmp_path / "out.jsonl"
    kept = target.read_bytes().splitlines(keepends=True)
    for cut in (0, 1, len(kept[3]) // 2, len(kept[3]) - 1):
        target.write_bytes(b"".join(kept[:3]) + kept[3][:cut])
        summary, again = run(llm, tmp_path, lines)
        assert summary.skipped == 3
        assert summary.done + summary.failed == 5
        assert again.keys() == whole.keys()
        assert texts(again) == texts(whole)
    before = target.read_bytes()
    assert run(llm, tmp_path, lines)[0] == BatchSummary(0, 0, 8)
    assert target.read_bytes() == before


def texts(records: dict[str, Any]) -> dict[str, Any]:
    return {key: record.get("choices") for key, record in records.items()}


def test_results_are_on_disk_before_the_run_ends(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps, seen = llm.engine.step, 0, ""

    def failing_step() -> bool:
        nonlocal steps, seen
        steps += 1
        if steps == 12:
            seen = (tmp_path / "out.jsonl").read_text()
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(llm.engine, "step", failing_step)
    lines = [{"id": str(number), "prompt": "a", "max_tokens": 3 + 30 * number} for number in (0, 1)]
    with pytest.raises(KeyboardInterrupt):
        run(llm, tmp_path, lines)
    assert [json.loads(line)["id"] for line in seen.splitlines()] == ["0"]
    assert (tmp_path / "out.jsonl").read_text() == seen
    assert run(llm, tmp_path, lines)[0] == BatchSummary(1, 0, 1)


def test_another_file_is_not_overwritten(llm: LLM, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("my notes\n")
    with pytest.raises(ConfigError, match="choose another file"):
        run(llm, tmp_path, [{"prompt": "a"}])
    assert (tmp_path / "out.jsonl").read_text() == "my notes\n"
    with pytest.raises(ConfigError, match="--input"):
        run_batch(llm, tmp_path / "absent", tmp_path / "new.jsonl", PARAMS)
