"""POST /v1/responses."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from kveik.engine.request import SamplingParams
from kveik.server.cache_report import Account
from kveik.server.handlers import Work, generate, origin_of, read_body
from kveik.server.jobs import (
    Job,
    answer_in_one_piece,
    chat_request,
    check_model,
    preferences,
)
from kveik.server.responses_answers import ResponseAnswer
from kveik.server.responses_fields import ResponseRequest
from kveik.server.service import Service


async def responses(service: Service, request: Request) -> Response:
    serving, origin = service.serving, origin_of(request)
    engine = serving.engine
    body = await read_body(service, request, ResponseRequest)
    check_model(engine, body.model)
    params = SamplingParams(
        **preferences(body, engine.info.defaults), max_tokens=body.max_output_tokens
    )
    conversation = body.conversation()
    asked = body.retention(conversation)
    prepared = await chat_request(engine, conversation, asked, params, origin)
    answer = ResponseAnswer(body, params, Account(prepared, engine.tokenizer))
    asks = answer_in_one_piece(engine, prepared.request)  # the last event repeats the whole text
    work = Work(Job((asks,), params), answer, "input", bool(body.stream))
    return await generate(service, serving, request, work)
