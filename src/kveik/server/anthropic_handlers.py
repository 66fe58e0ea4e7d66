"""POST /v1/messages and /v1/messages/count_tokens.

A breakpoint of 5 minutes or an hour gives the tokens up to it that time to live, counted from the
last use, after which they are deleted; where two breakpoints divide the prompt, each range has its
own. Behind the last breakpoint the prompt is plain use. max_tokens 0 computes the prompt and leaves
it in the cache: no content, stop_reason max_tokens. max_tokens beyond the context is cut to it, and
an answer that reaches the end of the context says model_context_window_exceeded.
"""

from __future__ import annotations

from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from kveik.engine.engine import Engine
from kveik.engine.request import SamplingParams
from kveik.server.anthropic_answers import Breakpoints, MessageAnswer
from kveik.server.anthropic_fields import CountTokens, Messages
from kveik.server.cache_report import Account
from kveik.server.handlers import Work, generate, json_response, origin_of, read_body
from kveik.server.jobs import Job, beside_loop, chat_request, check_model, preferences
from kveik.server.service import Service

AN_HOUR = 3600.0


async def messages(service: Service, request: Request) -> Response:
    serving, origin = service.serving, origin_of(request)
    engine = serving.engine
    body = await read_body(service, request, Messages)
    check_model(engine, body.model)
    conversation = body.conversation()
    asked = body.retention(conversation)
    prepared = await chat_request(engine, conversation, asked, _sampling(engine, body), origin)
    asks, prompt = prepared.request, len(prepared.request.prompt_token_ids)
    endless = asks.stream is not None or asks.resumes
    overlong = not endless and prompt + body.max_tokens > engine.info.max_model_len
    if overlong:
        asks = replace(asks, params=replace(asks.params, max_tokens=None))
    hours = [span.end for span in asks.directive.spans if span.ttl.seconds >= AN_HOUR]
    answer = MessageAnswer(
        body.model,
        Breakpoints(prompt, max(hours, default=0), max(prepared.mark_ends, default=0)),
        origin.request_id,
        Account(prepared, engine.tokenizer),
        stores=asks.directive.write != "none",
        overlong=overlong,
    )
    work = Work(Job((asks,), asks.params), answer, "messages", bool(body.stream))
    return await generate(service, serving, request, work)


async def count_tokens(service: Service, request: Request) -> Response:
    engine = service.serving.engine
    body = await read_body(service, request, CountTokens)
    check_model(engine, body.model)
    conversation = body.conversation()
    ids = await beside_loop(
        conversation.characters, lambda: engine.tokenizer.encode_chat(conversation.messages)
    )
    return json_response({"input_tokens": len(ids)})


def _sampling(engine: Engine, body: Messages) -> SamplingParams:
    return SamplingParams(
        **preferences(body, engine.info.defaults),
        max_tokens=body.max_tokens,
        stop=tuple(body.stop_sequences or ()),
    )
