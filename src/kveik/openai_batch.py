"""Lines of OpenAI's batch files: a request of the HTTP interface in, its response body out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kveik.errors import InvalidRequest, KveikError, NotFound, UnsupportedFeature
from kveik.outputs import CompletionOutput, RequestOutput

OPENAI_FIELDS = frozenset({"custom_id", "url", "body", "method"})

_CHAT = "/v1/chat/completions"
_COMPLETIONS = "/v1/completions"
# Fields of a body that change nothing in a batch.
_WITHOUT_EFFECT = frozenset({"model", "user", "metadata", "store", "service_tier"})


@dataclass(frozen=True, slots=True)
class OpenAiLine:
    """question: messages, prompt or prompt_token_ids; sampling: fields of SamplingParams."""

    custom_id: str
    url: str = _CHAT
    question: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)


def openai_line(key: str, record: Mapping[str, Any]) -> OpenAiLine:
    """Raises InvalidRequest, UnsupportedFeature or NotFound naming the field at fault."""
    unknown = record.keys() - OPENAI_FIELDS
    if unknown:
        raise InvalidRequest(f"{min(unknown)}: unknown field", param=min(unknown))
    for name in ("custom_id", "url"):
        if not isinstance(record.get(name), str):
            raise InvalidRequest(f"{name}: expected a string", param=name)
    if record.get("method", "POST") != "POST":
        raise InvalidRequest("method: expected POST", param="method")
    url, body = record["url"], record.get("body")
    if url not in (_CHAT, _COMPLETIONS):
        raise NotFound(f"url: expected {_CHAT} or {_COMPLETIONS}", param="url")
    if not isinstance(body, Mapping):
        raise InvalidRequest("body: expected an object", param="body")
    sampling = {name: value for name, value in body.items() if name not in _WITHOUT_EFFECT}
    if sampling.pop("stream", None):
        raise UnsupportedFeature("stream: a batch has no streams", param="stream")
    question = _chat_question(sampling) if url == _CHAT else _completion_question(sampling)
    return OpenAiLine(key, url, question, sampling)


def openai_result(
    line: OpenAiLine, result: RequestOutput | KveikError, model: str
) -> dict[str, Any]:
    """The output record: what the HTTP interface would have answered."""
    if isinstance(result, KveikError):
        status, body = result.status, dict[str, Any](result.body())
    else:
        status, body = 200, _body(line, result, model)
    return {
        "id": f"batch_req_{line.custom_id}",
        "custom_id": line.custom_id,
        "response": {"status_code": status, "request_id": f"req_{line.custom_id}", "body": body},
        "error": None,
    }


def _chat_question(body: dict[str, Any]) -> dict[str, Any]:
    """Takes messages out of `body` and translates the names that only chat has."""
    limit = body.pop("max_completion_tokens", None)
    if limit is not None:
        body["max_tokens"] = limit
    alternatives = body.pop("top_logprobs", None)
    if body.pop("logprobs", False):
        body["logprobs"] = alternatives or 0
    elif alternatives is not None:
        raise InvalidRequest("top_logprobs: needs logprobs: true", param="top_logprobs")
    if "messages" not in body:
        raise InvalidRequest("messages: missing", param="messages")
    return {"messages": body.pop("messages")}


def _completion_question(body: dict[str, Any]) -> dict[str, Any]:
    prompt = body.pop("prompt", None)
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if isinstance(prompt, list) and prompt and all(type(item) is int for item in prompt):
        return {"prompt_token_ids": prompt}
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        return {"prompt": prompt[0]}
    raise InvalidRequest("prompt: expected one string or one list of token ids", param="prompt")


def _body(line: OpenAiLine, output: RequestOutput, model: str) -> dict[str, Any]:
    assert output.usage is not None
    chat = line.url == _CHAT
    prefix, kind = ("chatcmpl", "chat.completion") if chat else ("cmpl", "text_completion")
    used = output.usage
    return {
        "id": f"{prefix}-{line.custom_id}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "choices": [
            _chat_choice(choice) if chat else _completion_choice(choice)
            for choice in output.outputs
        ],
        "usage": {
            "prompt_tokens": used.prompt_tokens,
            "completion_tokens": used.completion_tokens,
            "total_tokens": used.prompt_tokens + used.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": used.cached_tokens},
        },
    }


def _chat_choice(choice: CompletionOutput) -> dict[str, Any]:
    logprobs = None
    if choice.logprobs is not None:
        logprobs = {"content": [_chat_logprobs(choice, index) for index in _places(choice)]}
    return {
        "index": choice.index,
        "message": {"role": "assistant", "content": choice.text},
        "logprobs": logprobs,
        "finish_reason": choice.finish_reason,
    }


def _completion_choice(choice: CompletionOutput) -> dict[str, Any]:
    logprobs = None
    if choice.logprobs is not None:
        own = [choice.logprobs[index][choice.token_ids[index]] for index in _places(choice)]
        logprobs = {
            "tokens": [entry.decoded_token for entry in own],
            "token_logprobs": [entry.logprob for entry in own],
            "top_logprobs": [
                {entry.decoded_token: entry.logprob for entry in place.values()}
                for place in choice.logprobs
            ],
        }
    return {
        "index": choice.index,
        "text": choice.text,
        "logprobs": logprobs,
        "finish_reason": choice.finish_reason,
    }


def _places(choice: CompletionOutput) -> range:
    return range(len(choice.logprobs or ()))


def _chat_logprobs(choice: CompletionOutput, index: int) -> dict[str, Any]:
    assert choice.logprobs is not None
    place, own_id = choice.logprobs[index], choice.token_ids[index]
    entries = {
        token_id: {"token": entry.decoded_token, "logprob": entry.logprob, "bytes": None}
        for token_id, entry in place.items()
    }
    return {**entries[own_id], "top_logprobs": list(entries.values())}
