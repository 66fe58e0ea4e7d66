"""What each route does. Every handler gets the service and the request and returns a response.

Errors are raised, never returned: the gate turns them into OpenAI's error body.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from kveik import __version__
from kveik.engine.request import Request as EngineRequest
from kveik.errors import Conflict, InvalidRequest, KveikError, Unavailable
from kveik.server import dashboard, metrics, page
from kveik.server.answers import Answer, ChatAnswer, CompletionAnswer
from kveik.server.auth import Caller
from kveik.server.bridge import Feed
from kveik.server.jobs import (
    Job,
    Origin,
    answer_in_one_piece,
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
from kveik.server.sse import Chunks, Dialect, EventStream, StreamRules, Whole, collect

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


async def dashboard_file(service: Service, request: Request) -> Response:
    name, kind = dashboard.FILES[request.scope["pattern"]]
    return Response(dashboard.content(name), media_type=kind, headers=dashboard.HEADERS)


async def health(service: Service, request: Request) -> Response:
    """The process lives."""
    return json_response({"status": "ok"})


async def ready(service: Service, request: Request) -> Response:
    """Requests are served now; else 503. With ?warm=1 also 503 until the warm start is done."""
    _ = service.serving
    wanted = request.query_params.get("warm", "0")
    if wanted not in ("0", "1"):
        raise InvalidRequest("warm: expected 0 or 1", param="warm")
    if wanted == "0" or service.warm is None:
        return json_response({"status": "ready"})
    progress = service.warm.progress()
    if progress.finished:
        return json_response({"status": "ready", "warm": progress.as_json()})
    error = Unavailable(f"warming: {progress.done} of {progress.total} entries are computed")
    response = json_response({**error.body(), "warm": progress.as_json()}, error.status)
    response.headers["retry-after"] = "1"
    return response


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


def _model_objects(serving: Serving) -> list[dict[str, Any]]:
    """The model that writes, first, and the one that embeds."""
    info, embedder = serving.engine.info, serving.engine.embedder
    served = [(info.model_id, info.max_model_len)]
    if embedder is not None:
        served.append((embedder.model_id, embedder.max_tokens))
    return [
        {
            "id": model_id,
            "object": "model",
            "created": _STARTED,
            "owned_by": "kveik",
            "max_model_len": longest,
        }
        for model_id, longest in served
    ]


async def models(service: Service, request: Request) -> Response:
    return json_response({"object": "list", "data": _model_objects(service.serving)})


async def model(service: Service, request: Request) -> Response:
    serving = service.serving
    name = request.path_params["model"]
    for one in _model_objects(serving):
        if one["id"] == name:
            return json_response(one)
    check_model(serving.engine, name)
    raise AssertionError("a model that is served is listed")


async def chat_completions(service: Service, request: Request) -> Response:
    serving = service.serving
    body = await read_body(service, request, ChatCompletion)
    job = await chat_job(serving.engine, body, origin_of(request))
    answer = ChatAnswer(job, body.model, serving.engine.tokenizer)
    return await generate(service, serving, request, _work(body, job, answer, "messages"))


async def completions(service: Service, request: Request) -> Response:
    serving = service.serving
    body = await read_body(service, request, Completion)
    job = await completion_job(serving.engine, body, origin_of(request))
    answer = CompletionAnswer(
        job,
        body.model,
        serving.engine.tokenizer,
        show_prompt_logprobs=body.prompt_logprobs is not None,
    )
    return await generate(service, serving, request, _work(body, job, answer, "prompt"))


@dataclass(frozen=True, slots=True)
class Work:
    """A job and how its answer is told. field: where the prompt was sent."""

    job: Job
    dialect: Dialect
    field: str
    streams: bool


def _work(body: Generation, job: Job, answer: Answer, field: str) -> Work:
    options = body.stream_options
    answer.keeps = not body.stream
    usage = bool(options and options.include_usage)
    return Work(job, Chunks(answer, usage=usage), field, bool(body.stream))


async def generate(service: Service, serving: Serving, request: Request, work: Work) -> Response:
    """Submit the job and answer with it, whole or as a stream."""
    limit = service.config.send_buffer_bytes if work.streams else None
    _ = service.serving  # draining may have begun while the body was read
    requests = work.job.requests
    if not work.streams:
        requests = tuple(answer_in_one_piece(serving.engine, one) for one in requests)
    feed = open_feed(serving, requests, limit, work.field)
    if work.streams:
        rules = StreamRules(service.ping_seconds, service.config.slow_reader_seconds)
        return EventStream(feed, work.dialect, rules, lambda: serving.bridge.close(feed))
    return await in_one_piece(serving, feed, work.dialect, request)


def open_feed(
    serving: Serving, requests: tuple[EngineRequest, ...], limit: int | None, field: str
) -> Feed:
    """Submit the requests, whose prompts came in this field."""
    try:
        return serving.bridge.open(requests, limit)
    except KveikError as error:
        raise named(error, field) from None


async def in_one_piece(serving: Serving, feed: Feed, answer: Whole, request: Request) -> Response:
    try:
        await collect(feed, answer, request.receive)
        return json_response(answer.whole())
    finally:
        serving.bridge.close(feed)


async def tokenize(service: Service, request: Request) -> Response:
    engine = service.serving.engine
    body = await read_body(service, request, Tokenize)
    check_model(engine, body.model)
    tokenizer, conversation, prompt = engine.tokenizer, body.messages, body.prompt or ""
    if conversation is None:
        special = body.add_special_tokens is not False
        ids = await beside_loop(
            len(prompt), lambda: tokenizer.encode(prompt, add_special_tokens=special)
        )
    else:
        turn = body.add_generation_prompt is not False
        ids = await beside_loop(
            conversation.characters,
            lambda: tokenizer.encode_chat(conversation.messages, add_generation_prompt=turn),
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
    body = await read_body(service, request, Detokenize)
    check_model(engine, body.model)
    if body.tokens and max(body.tokens) >= engine.info.vocab_size:
        raise InvalidRequest(
            f"tokens: a token id is outside the vocabulary 0 .. {engine.info.vocab_size - 1}",
            param="tokens",
        )
    text = await beside_loop(len(body.tokens), lambda: engine.tokenizer.decode(body.tokens))
    return json_response({"prompt": text})


async def read_body(service: Service, request: Request, kind: type[AnyBody]) -> AnyBody:
    value = await read_json_object(request, service.config.max_body_bytes)
    return parse(kind, value)


def origin_of(request: Request) -> Origin:
    return Origin(caller_of(request).namespace, request.scope["request_id"])
