"""The lines of a batch: one JSON object in, one result record out.

`parse_line` tells the two forms apart: kveik's own ({"prompt": ...}), and OpenAI's ({"custom_id",
"url", "body"}), which goes through the server's own checks and answers, so that its response is
what the HTTP interface would have sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

from kveik.engine.engine import Engine
from kveik.engine.request import (
    Event,
    Request,
    RequestAborted,
    RequestFailed,
    RequestFinished,
    SamplingParams,
)
from kveik.errors import InvalidRequest, KveikError, NotFound, Unavailable, UnsupportedFeature
from kveik.llm import LLM, RequestSink
from kveik.outputs import LogprobsAt
from kveik.prompting import Prompt

if TYPE_CHECKING:
    from kveik.server.jobs import Origin
    from kveik.server.protocol import Embeddings
    from kveik.server.sse import Whole

Record = dict[str, Any]
Work = list[tuple[Request, RequestSink]]

_PROMPT_FIELDS = ("prompt", "messages", "prompt_token_ids")
_SAMPLING_FIELDS = frozenset(field.name for field in fields(SamplingParams))
_OPENAI_FIELDS = frozenset({"custom_id", "url", "body", "method"})
_URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
_CHAT, _COMPLETIONS, _EMBEDDINGS = _URLS


class Line(Protocol):
    """A line that is being computed: its requests, and its record when all of them have ended."""

    key: str
    work: Work

    def record(self) -> Record: ...

    def error(self) -> KveikError | None: ...

    def failure(self, error: KveikError) -> Record: ...


def parse_line(llm: LLM, key: str, line: Mapping[str, Any], params: SamplingParams) -> Line:
    """params: for the fields that a line of kveik's form does not set. Raises InvalidRequest and
    its kin naming the field at fault."""
    if _is_openai(line):
        return OpenAiLine(llm.engine, key, line)
    return NativeLine(llm, key, line, params)


def failure_record(key: str, line: object, error: KveikError) -> Record:
    """The record of a line that could not be computed, in the form of the line."""
    if isinstance(line, Mapping) and _is_openai(line):
        return _openai_record(key, error.status, error.body())
    return {"id": key, **error.body()}


class NativeLine:
    """{"prompt" | "messages" | "prompt_token_ids": ..., sampling fields ...}"""

    def __init__(self, llm: LLM, key: str, line: Mapping[str, Any], params: SamplingParams) -> None:
        question = [name for name in _PROMPT_FIELDS if name in line]
        if len(question) != 1:
            raise InvalidRequest(f"expected one of {', '.join(_PROMPT_FIELDS)}", param="prompt")
        sampling = {name: line[name] for name in line if name not in (*question, "id")}
        own = _changed(params, sampling)
        if question[0] == "messages":
            request = llm.chat_request(line["messages"], own)
        else:
            request = llm.request(cast(Prompt, {question[0]: line[question[0]]}), own)
        self.key = key
        self._collector = llm.collector(request)
        self.work: Work = [(request, self._collector)]

    def error(self) -> KveikError | None:
        return self._collector.error

    def failure(self, error: KveikError) -> Record:
        return {"id": self.key, **error.body()}

    def record(self) -> Record:
        output = self._collector.output
        assert output.usage is not None
        choices = [
            {"index": choice.index, "text": choice.text, "finish_reason": choice.finish_reason}
            | ({} if choice.stop_reason is None else {"stop_reason": choice.stop_reason})
            | ({} if choice.logprobs is None else {"logprobs": _logprobs(choice.logprobs)})
            for choice in output.outputs
        ]
        return {"id": self.key, "choices": choices, "usage": asdict(output.usage)}


class OpenAiLine:
    """{"custom_id", "method": "POST", "url", "body"}; one request per prompt of the body, and none
    where the embedding model has computed the answer already."""

    def __init__(self, engine: Engine, key: str, line: Mapping[str, Any]) -> None:
        requests, self._answer = _openai_job(engine, line)
        self.key = key
        self.work: Work = [
            (request, _PromptSink(self._answer, index)) for index, request in enumerate(requests)
        ]

    def error(self) -> KveikError | None:
        return next((sink.error for _, sink in self.work if sink.error is not None), None)

    def failure(self, error: KveikError) -> Record:
        return _openai_record(self.key, error.status, error.body())

    def record(self) -> Record:
        return _openai_record(self.key, 200, self._answer.whole())


class _PromptSink:
    """Hands the events of one prompt to the answer of its line."""

    def __init__(self, answer: Whole, index: int) -> None:
        self.ended = False
        self.error: KveikError | None = None
        self._answer = answer
        self._index = index

    def __call__(self, event: Event) -> None:
        self._answer.take((self._index, event))
        if isinstance(event, RequestFailed):
            self.error = event.error
        elif isinstance(event, RequestAborted):
            self.error = Unavailable("the request was aborted")
        self.ended = isinstance(event, RequestFinished | RequestFailed | RequestAborted)


def _is_openai(line: Mapping[str, Any]) -> bool:
    return not _OPENAI_FIELDS.isdisjoint(line)


def _openai_job(engine: Engine, line: Mapping[str, Any]) -> tuple[Sequence[Request], Whole]:
    # pydantic is only imported for files of this form.
    from kveik.server.answers import ChatAnswer, CompletionAnswer
    from kveik.server.jobs import Origin, chat_job, completion_job
    from kveik.server.protocol import ChatCompletion, Completion, Embeddings, parse

    body = _openai_body(line)
    origin = Origin(namespace="", request_id=str(line["custom_id"]))
    if line["url"] == _EMBEDDINGS:
        return _embedding_job(engine, parse(Embeddings, body), origin)
    if line["url"] == _CHAT:
        chat = parse(ChatCompletion, body)
        job = asyncio.run(chat_job(engine, chat, origin))
        return job.requests, ChatAnswer(job, chat.model, engine.tokenizer)
    text = parse(Completion, body)
    job = asyncio.run(completion_job(engine, text, origin))
    shown = text.prompt_logprobs is not None
    answer = CompletionAnswer(job, text.model, engine.tokenizer, show_prompt_logprobs=shown)
    return job.requests, answer


def _embedding_job(
    engine: Engine, body: Embeddings, origin: Origin
) -> tuple[Sequence[Request], Whole]:
    from kveik.server.embeddings import EmbeddingAnswer, embedder_prompts, embedding_requests

    answer, embedder = EmbeddingAnswer(body), engine.embedder
    if embedder is None or body.model != embedder.model_id:
        return asyncio.run(embedding_requests(engine, body, origin)), answer
    prompts = asyncio.run(embedder_prompts(embedder, body))
    answer.vectors = [one for batch in embedder.batches(prompts) for one in embedder.vectors(batch)]
    answer.tokens = sum(map(len, prompts))
    return (), answer


def _openai_body(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """Checks everything around the body."""
    for name in line:
        if name not in _OPENAI_FIELDS:
            raise InvalidRequest(f"{name}: unknown field", param=name)
    if not isinstance(line.get("custom_id"), str):
        raise InvalidRequest("custom_id: expected a string", param="custom_id")
    if line.get("method", "POST") != "POST":
        raise InvalidRequest("method: expected POST", param="method")
    if line.get("url") not in _URLS:
        raise NotFound(f"url: expected {_CHAT}, {_COMPLETIONS} or {_EMBEDDINGS}", param="url")
    body = line.get("body")
    if not isinstance(body, Mapping):
        raise InvalidRequest("body: expected an object", param="body")
    if body.get("stream"):
        raise UnsupportedFeature("stream: a batch has no streams", param="stream")
    return body


def _openai_record(key: str, status: int, body: Mapping[str, Any]) -> Record:
    return {
        "id": f"batch_req_{key}",
        "custom_id": key,
        "response": {"status_code": status, "request_id": f"req_{key}", "body": body},
        "error": None,
    }


def _changed(params: SamplingParams, sampling: Mapping[str, Any]) -> SamplingParams:
    """`params` with the fields of one line. Raises InvalidRequest naming the field."""
    changes = {name: value for name, value in sampling.items() if value is not None}
    for name in sampling:
        if name not in _SAMPLING_FIELDS:
            raise InvalidRequest(f"{name}: unknown field", param=name, code="unknown_field")
    for name, check in _SHAPES.items():
        if name in changes:
            changes[name] = check(name, changes[name])
    return replace(params, **changes)


def _strings(name: str, value: object) -> tuple[str, ...]:
    items = (value,) if isinstance(value, str) else value
    if isinstance(items, list | tuple) and all(isinstance(item, str) for item in items):
        return tuple(items)
    raise InvalidRequest(f"{name}: expected a string or a list of strings", param=name)


def _integers(name: str, value: object) -> tuple[int, ...]:
    if isinstance(value, list) and all(type(item) is int for item in value):
        return tuple(value)
    raise InvalidRequest(f"{name}: expected a list of integers", param=name)


def _biases(name: str, value: object) -> dict[int, float]:
    if isinstance(value, Mapping) and all(str(token_id).isdecimal() for token_id in value):
        return {int(token_id): bias for token_id, bias in value.items()}
    raise InvalidRequest(f"{name}: expected token ids and their biases", param=name)


def _switch(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name}: expected true or false", param=name)
    return value


_SHAPES: Mapping[str, Callable[[str, object], Any]] = {
    "stop": _strings,
    "stop_token_ids": _integers,
    "logit_bias": _biases,
} | dict.fromkeys(
    ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens", "use_cache"), _switch
)


def _logprobs(places: list[LogprobsAt]) -> list[Record]:
    return [{str(token_id): asdict(entry) for token_id, entry in at.items()} for at in places]
