"""From a checked body to engine requests: model name, sampling parameters, token ids.

Everything that can be refused is refused here or in `Engine.submit`, before an answer begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from kveik.engine.engine import Engine
from kveik.engine.request import Request, SamplingParams
from kveik.engine.tokenizer import Tokenizer
from kveik.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    KveikError,
    NotFound,
    UnsupportedFeature,
)
from kveik.server.messages import Conversation
from kveik.server.protocol import ChatCompletion, Completion, Generation, Prompt
from kveik.server.retention_fields import Retention, retention

LONG_TEXT = 8192  # characters from which text is encoded beside the event loop

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Origin:
    """Of a request: whose cache, and the id that logs and answers share."""

    namespace: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Job:
    """What one HTTP request asks of the engine. prompts: the texts, for `echo`."""

    requests: tuple[Request, ...]
    params: SamplingParams
    prompts: tuple[str, ...] = ()


def check_model(engine: Engine, name: str | None) -> None:
    """Raise NotFound unless the model is the one that is served (None: any)."""
    if name is not None and name != engine.info.model_id:
        raise NotFound(
            f"the model {name!r} does not exist here; GET /v1/models lists what is served",
            param="model",
            code="model_not_found",
        )


async def chat_job(engine: Engine, body: ChatCompletion, origin: Origin) -> Job:
    check_model(engine, body.model)
    wanted = body.max_completion_tokens or body.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = _sampling(body, engine.info.defaults, wanted, logprobs, body.prompt_logprobs)
    asked = retention(body, [mark for _, mark in body.messages.marks])
    request = await chat_request(engine, body.messages, asked, params, origin)
    return Job((request,), params)


async def chat_request(
    engine: Engine,
    conversation: Conversation,
    asked: Retention,
    params: SamplingParams,
    origin: Origin,
) -> Request:
    """A conversation as the engine takes it, with what it asks of the cache."""
    if conversation.documents or asked.write_to_mark or asked.continues or asked.cached_content:
        raise UnsupportedFeature("messages: this cache field is not served yet")
    messages = conversation.messages
    ids = await beside_loop(conversation.characters, lambda: engine.tokenizer.encode_chat(messages))
    return _request(ids, params, origin, asked, messages)


async def completion_job(engine: Engine, body: Completion, origin: Origin) -> Job:
    check_model(engine, body.model)
    echoed = body.logprobs if body.echo else None
    counts = [count for count in (echoed, body.prompt_logprobs) if count is not None]
    params = _sampling(
        body,
        engine.info.defaults,
        body.max_tokens or SamplingParams().max_tokens,
        body.logprobs,
        max(counts, default=None),
    )
    size = sum(len(prompt) for prompt in body.prompt)
    tokenizer = engine.tokenizer
    encoded = await beside_loop(size, lambda: [_encode(tokenizer, one) for one in body.prompt])
    prompts: tuple[str, ...] = ()
    if body.echo:
        prompts = tuple(_text(tokenizer, one) for one in body.prompt)
    asked = retention(body)
    requests = tuple(_request(ids, params, origin, asked) for ids in encoded)
    return Job(requests, params, prompts)


def named(error: KveikError, field: str) -> KveikError:
    """An engine's error about "the prompt", told in terms of the field that the client sent."""
    if error.param not in ("prompt", "prompt_token_ids") or field == error.param:
        return error
    if isinstance(error, InvalidRequest):
        kind = ContextLengthExceeded if isinstance(error, ContextLengthExceeded) else InvalidRequest
        return kind(error.message, param=field, code=error.code)
    return error


async def beside_loop(size: int, work: Callable[[], Result]) -> Result:
    """Long texts are encoded on another thread so that running streams do not wait for them."""
    return await asyncio.to_thread(work) if size > LONG_TEXT else work()


def _encode(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    return tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)


def _text(tokenizer: Tokenizer, prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)


def _request(
    ids: list[int],
    params: SamplingParams,
    origin: Origin,
    asked: Retention,
    messages: Sequence[Mapping[str, Any]] = (),
) -> Request:
    return Request(
        tuple(ids),
        params,
        namespace=origin.namespace,
        request_id=origin.request_id,
        directive=asked.directive,
        salt=asked.salt,
        reuse=asked.reuse,
        explain=asked.explain,
        messages=tuple(messages),
    )


def _sampling(
    body: Generation,
    defaults: Mapping[str, float],
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None,
) -> SamplingParams:
    return SamplingParams(
        **preferences(body, defaults),
        n=body.n or 1,
        logit_bias=body.logit_bias,
        seed=body.seed,
        max_tokens=max_tokens,
        min_tokens=body.min_tokens or 0,
        stop=body.stop,
        stop_token_ids=body.stop_token_ids,
        include_stop_str_in_output=bool(body.include_stop_str_in_output),
        ignore_eos=bool(body.ignore_eos),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        skip_special_tokens=body.skip_special_tokens is not False,
    )


def preferences(body: object, defaults: Mapping[str, float]) -> dict[str, Any]:
    """How to sample: what the client sent, else generation_config.json, else OpenAI's defaults."""
    chosen = {name: getattr(body, name, None) for name in _PREFERENCES}
    plain = SamplingParams()
    values = {
        name: defaults.get(name, getattr(plain, name)) if value is None else value
        for name, value in chosen.items()
    }
    return {**values, "top_k": int(values["top_k"])}


_PREFERENCES = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
