"""What each route does. Every handler gets the service and the request and returns a response.

Errors are raised, never returned: the gate turns them into OpenAI's error body.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from kveik import __version__
from kveik.errors import Conflict, InvalidRequest, KveikError
from kveik.server import metrics, page
from kveik.server.answers import Answer, ChatAnswer, CompletionAnswer
from kveik.server.auth import Caller
from kveik.server.jobs import (
    Job,
    Origin,
    beside_loop,
    chat_job,
    check_model,
    completion_job,
    named,
)
from kveik.server.json_body import read_json_object
from kveik.server.protocol import (
    AnyBody,
    ChatCompletion,
    Completion,
    Detokenize,
    Generation,
    Tokenize,
    parse,
)
from kveik.server.service import Service, Serving
from kveik.server.sse import EventStream, StreamRules, collect

Handler: TypeAlias = Callable[[Service, Request], Awaitable[Response]]

_STARTED = int(time.time())


def json_response(value: dict[str, Any], status: int = 200) -> Response:
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(body, status, media_type="application/json")


def caller_of(request: Request) -> Caller:
    caller: Caller = request.scope["caller"]
    return caller


async def index(service: Service, request: Request) -> Response:
    return Response(page.html(), media_type="text/html", headers=page.HEADERS)


async def health(service: Service, request: Request) -> Response:
    """The process lives."""
    return json_response({"status": "ok"})


async def ready(service: Service, request: Request) -> Response:
    """Requests are served now; else 503."""
    _ = service.serving
    return json_response({"status": "ready"})


async def version(service: Service, request: Request) -> Response:
    return json_response({"version": __version__})


async def prometheus(service: Service, request: Request) -> Response:
    caller_of(request).require_operator()
    text = await beside_loop(0, service.metrics.text)
    return Response(text, headers={"content-type": metrics.CONTENT_TYPE})


async def reset_prefix_cache(service: Service, request: Request) -> Response:
    """Forget what is cached for this key; with ?scope=all, for everybody (operators only)."""
    caller = caller_of(request)
    scope = request.query_params.get("scope", "own")
    if scope not in ("own", "all"):
        raise InvalidRequest("scope: expected own or all", param="scope")
    if scope == "all":
        caller.require_operator()
    engine = service.serving.engine
    if not engine.reset_cache(None if scope == "all" else caller.namespace):
        raise Conflict("running requests hold cached blocks; try again when they have ended")
    return json_response({"reset": True, "scope": scope})


def _model_object(serving: Serving) -> dict[str, Any]:
    info = serving.engine.info
    return {
        "id": info.model_id,
        "object": "model",
        "created": _STARTED,
        "owned_by": "kveik",
        "max_model_len": info.max_model_len,
    }


async def models(service: Service, request: Request) -> Response:
    return json_response({"object": "list", "data": [_model_object(service.serving)]})


async def model(service: Service, request: Request) -> Response:
    serving = service.serving
    check_model(serving.engine, request.path_params["model"])
    return json_response(_model_object(serving))


async def chat_completions(service: Service, request: Request) -> Response:
    serving = service.serving
    body = await _body(service, request, ChatCompletion)
    job = await chat_job(serving.engine, body, _origin(request))
    answer = ChatAnswer(job, body.model, serving.engine.tokenizer)
    return await _generate(service, serving, request, Work(body, job, answer, "messages"))


async def completions(service: Service, request: Request) -> Response:
    serving = service.serving
    body = await _body(service, request, Completion)
    job = await completion_job(serving.engine, body, _origin(request))
    answer = CompletionAnswer(
        job,
        body.model,
        serving.engine.tokenizer,
        show_prompt_logprobs=body.prompt_logprobs is not None,
    )
    return await _generate(service, serving, request, Work(body, job, answer, "prompt"))


class Work:
    """A job with what it came from and what it becomes. field: where the prompt was sent."""

    def __init__(self, body: Generation, job: Job, answer: Answer, field: str) -> None:
        self.body = body
        self.job = job
        self.answer = answer
        self.field = field


async def _generate(service: Service, serving: Serving, request: Request, work: Work) -> Response:
    streams = bool(work.body.stream)
    limit = service.config.send_buffer_bytes if streams else None
    _ = service.serving  # draining may have begun while the body was read
    try:
        feed = serving.bridge.open(work.job.requests, limit)
    except KveikError as error:
        raise named(error, work.field) from None
    if streams:
        options = work.body.stream_options
        rules = StreamRules(
            usage=bool(options and options.include_usage),
            ping_seconds=service.ping_seconds,
            slow_reader_seconds=service.config.slow_reader_seconds,
        )
        return EventStream(feed, work.answer, rules, lambda: serving.bridge.close(feed))
    try:
        return json_response(await collect(feed, work.answer, request.receive))
    finally:
        serving.bridge.close(feed)


async def tokenize(service: Service, request: Request) -> Response:
    engine = service.serving.engine
    body = await _body(service, request, Tokenize)
    check_model(engine, body.model)
    tokenizer, messages, prompt = engine.tokenizer, body.messages, body.prompt or ""
    if messages is None:
        special = body.add_special_tokens is not False
        ids = await beside_loop(
            len(prompt), lambda: tokenizer.encode(prompt, add_special_tokens=special)
        )
    else:
        turn = body.add_generation_prompt is not False
        size = sum(len(message["content"]) for message in messages)
        ids = await beside_loop(
            size, lambda: tokenizer.encode_chat(messages, add_generation_prompt=turn)
        )
    texts = [tokenizer.token_text(i) for i in ids] if body.return_token_strs else None
    return json_response(
        {
            "count": len(ids),
            "max_model_len": engine.info.max_model_len,
            "tokens": ids,
            "token_strs": texts,
        }
    )


async def detokenize(service: Service, request: Request) -> Response:
    engine = service.serving.engine
    body = await _body(service, request, Detokenize)
    check_model(engine, body.model)
    if body.tokens and max(body.tokens) >= engine.info.vocab_size:
        raise InvalidRequest(
            f"tokens: a token id is outside the vocabulary 0 .. {engine.info.vocab_size - 1}",
            param="tokens",
        )
    text = await beside_loop(len(body.tokens), lambda: engine.tokenizer.decode(body.tokens))
    return json_response({"prompt": text})


async def _body(service: Service, request: Request, kind: type[AnyBody]) -> AnyBody:
    value = await read_json_object(request, service.config.max_body_bytes)
    return parse(kind, value)


def _origin(request: Request) -> Origin:
    return Origin(caller_of(request).namespace, request.scope["request_id"])
