"""From a checked body to engine requests: model name, sampling parameters, token ids.

Everything that can be refused is refused here or in `Engine.submit`, before an answer begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from kveik.cache.directive import Directive, DocumentSpan
from kveik.engine.documents import document_parts, document_spans
from kveik.engine.engine import Engine
from kveik.engine.forgetting import GoingOn, of_session
from kveik.engine.module_parts import (
    chat_layout,
    has_modules,
    join,
    refuse_join,
    refuse_modules,
)
from kveik.engine.modules.layout import Layout
from kveik.engine.modules.pml import read_prompt
from kveik.engine.past import Kept
from kveik.engine.request import Request, SamplingParams
from kveik.engine.token_memory import Encoded
from kveik.engine.tokenizer import Tokenizer
from kveik.errors import ContextLengthExceeded, InvalidRequest, KveikError, NotFound
from kveik.server.messages import Conversation, text_size
from kveik.server.protocol import ChatCompletion, Completion, Generation, Prompt
from kveik.server.retention_fields import Retention, breakpoint_spans, retention

LONG_TEXT = 8192  # characters from which text is encoded beside the event loop

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Origin:
    """Of a request: whose cache, and the id that logs and answers share."""

    namespace: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Job:
    """What one HTTP request asks of the engine. prompts: the texts, for `echo`. remembered: tokens
    of each prompt that were not encoded again."""

    requests: tuple[Request, ...]
    params: SamplingParams
    prompts: tuple[str, ...] = ()
    remembered: tuple[int, ...] = ()


def check_model(engine: Engine, name: str | None) -> None:
    """Raise NotFound unless the model is the one that is served (None: any)."""
    if name is not None and name != engine.info.model_id:
        if engine.embedder is not None and name == engine.embedder.model_id:
            raise NotFound(
                f"the model {name!r} makes embeddings only: POST /v1/embeddings; this takes "
                f"{engine.info.model_id!r}",
                param="model",
                code="model_not_found",
            )
        raise NotFound(
            f"the model {name!r} does not exist here; GET /v1/models lists what is served",
            param="model",
            code="model_not_found",
        )


async def chat_job(engine: Engine, body: ChatCompletion, origin: Origin) -> Job:
    check_model(engine, body.model)
    both = (body.max_completion_tokens, body.max_tokens)
    wanted = next((count for count in both if count is not None), None)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = _sampling(body, engine.info.defaults, wanted, logprobs, body.prompt_logprobs)
    asked = retention(body, [mark for _, mark in body.messages.marks])
    prepared = await chat_request(engine, body.messages, asked, params, origin)
    return Job((prepared.request,), params, remembered=(prepared.remembered,))


@dataclass(frozen=True, slots=True)
class Prepared:
    """A conversation as the engine takes it. mark_ends: the token position behind each breakpoint,
    in the order of `Conversation.marks`. remembered: tokens that were not encoded again."""

    request: Request
    mark_ends: tuple[int, ...] = ()
    remembered: int = 0


async def chat_request(
    engine: Engine,
    conversation: Conversation,
    asked: Retention,
    params: SamplingParams,
    origin: Origin,
) -> Prepared:
    """Put what the request continues before it, encode it as a whole, and tell the engine where its
    labelled parts stand. In a stream that is open only what comes next in it is encoded."""
    if asked.continues and engine.has_stream(origin.namespace, asked.directive.session):
        return await _next_turn(engine, conversation, asked, params, origin)
    going = _going_on(engine, _labelled(conversation), asked, origin.namespace)
    if going is not None:
        messages: Sequence[Mapping[str, Any]] = going.messages
    else:
        messages = _whole(engine, _labelled(conversation), asked, origin.namespace)
    before = len(messages) - len(conversation.messages)
    documents = document_parts(messages)
    places = [one.place for one in documents]
    places += [(message + before, part) for (message, part), _ in conversation.marks]
    modular = has_modules(messages)
    if not modular:
        refuse_join(asked.join, "kveik.join")
    encoded, layout = await beside_loop(
        LONG_TEXT + 1 if modular else text_size(messages),
        lambda: _encoded(engine, messages, places, asked, origin),
    )
    ends = tuple(end for _, end in encoded.spans[len(documents) :])
    timed = breakpoint_spans([mark for _, mark in conversation.marks], ends)
    directive = replace(
        asked.directive,
        ttl=None if timed else asked.directive.ttl,
        spans=timed,
        documents=document_spans(documents, encoded.spans[: len(documents)]),
        write_until=_last_breakpoint(conversation, ends) if asked.write_to_mark else None,
    )
    asked = replace(asked, directive=directive)
    request = _request(engine, encoded.token_ids, params, origin, asked, messages)
    if layout is not None:
        _, joined = join(layout, asked.join, directive, engine.info.block_size)
        # the window that a server gives to whoever asks for none is not for modules
        request = replace(request, joined=joined, stream=asked.stream or None)
    if going is not None:
        kept = await beside_loop(
            text_size(messages), lambda: _kept(engine, going, encoded, directive, asked, origin)
        )
        # nor for what is left of a session that forgets
        request = replace(request, joined=kept.joined, kept=kept, stream=asked.stream or None)
    return Prepared(request, ends, encoded.remembered)


def _going_on(
    engine: Engine, messages: Sequence[Mapping[str, Any]], asked: Retention, namespace: str
) -> GoingOn | None:
    """The conversation of a session that forgets something now or did before; None: of others."""
    session = asked.directive.session
    if session is None or not (asked.continues or asked.forget):
        return None
    going = of_session(
        engine.history,
        (namespace, session),
        messages,
        asked.forget,
        continues=asked.continues,
        field="kveik.forget",
    )
    return going if going.changes else None


def _kept(
    engine: Engine,
    going: GoingOn,
    encoded: Encoded,
    directive: Directive,
    asked: Retention,
    origin: Origin,
) -> Kept:
    def encode(messages: Sequence[Mapping[str, Any]], places: Sequence[tuple[int, int]]) -> Encoded:
        return _encoded(engine, messages, places, asked, origin)[0]

    return going.kept(encode, encoded.token_ids, directive)


async def _next_turn(
    engine: Engine,
    conversation: Conversation,
    asked: Retention,
    params: SamplingParams,
    origin: Origin,
) -> Prepared:
    """The request that goes on from the open stream of its session."""
    if asked.idle:
        raise InvalidRequest(
            f"{asked.idle[0]}: has no effect in a stream that goes on; leave it out",
            param=asked.idle[0],
        )
    if asked.forget is not None:
        raise InvalidRequest(
            "kveik.forget: an open stream forgets what leaves its window, and nothing else; "
            "leave it out, or begin another session without stream_window",
            param="kveik.forget",
        )
    messages = _labelled(conversation)
    refuse_modules(messages)
    ids = await beside_loop(
        text_size(messages), lambda: tuple(engine.tokenizer.encode_next_turn(messages))
    )
    labels = [(one.document, one.version) for one in document_parts(messages)]
    documents = tuple(DocumentSpan(*label, 0, len(ids)) for label in labels)
    asked = replace(asked, directive=replace(asked.directive, documents=documents))
    request = _request(engine, ids, params, origin, asked, messages)
    return Prepared(replace(request, stream=asked.stream or None, resumes=True))


def answer_in_one_piece(engine: Engine, request: Request) -> Request:
    """A stream has no longest answer, a body in one piece has: that of the context."""
    if request.params.max_tokens is not None or not (request.stream or request.resumes):
        return request
    return replace(request, params=replace(request.params, max_tokens=engine.info.max_model_len))


def _encoded(
    engine: Engine,
    messages: Sequence[Mapping[str, Any]],
    places: Sequence[tuple[int, int]],
    asked: Retention,
    origin: Origin,
) -> tuple[Encoded, Layout | None]:
    """The ids of a conversation, where the places stand in them, and how its modules do."""
    memory = engine.token_memory
    if has_modules(messages):
        encode = partial(
            memory.encode_piece, namespace=origin.namespace, salt=asked.salt, keep=asked.keep
        )
        made = chat_layout(
            engine.tokenizer, engine.schemas, origin.namespace, messages, places, encode
        )
        return Encoded(made.layout.token_ids, made.remembered, made.spans), made.layout
    encoded = memory.encode_chat(
        messages,
        places,
        namespace=origin.namespace,
        salt=asked.salt,
        keep=asked.keep,
    )
    return encoded, None


def _labelled(conversation: Conversation) -> list[dict[str, Any]]:
    """The messages with documents beside their parts, where the session's history finds them."""
    messages = [dict(message) for message in conversation.messages]
    for (index, part), document, version in conversation.documents:
        parts = list(messages[index]["content"])
        parts[part] = {**parts[part], "document": f"{document}@{version}"}
        messages[index]["content"] = parts
    return messages


def _whole(
    engine: Engine, messages: Sequence[Mapping[str, Any]], asked: Retention, namespace: str
) -> Sequence[Mapping[str, Any]]:
    """The messages behind the session's finished turns, or behind a named cache."""
    if asked.continues and asked.directive.session is not None:
        return engine.history.continued(namespace, asked.directive.session, messages)
    if asked.cached_content is not None:
        name = asked.cached_content
        return engine.named.expand(namespace, name, messages=messages).messages
    return messages


def _last_breakpoint(conversation: Conversation, ends: Sequence[int]) -> int:
    return max(
        end
        for (_, mark), end in zip(conversation.marks, ends, strict=True)
        if mark.field == "prompt_cache_breakpoint"
    )


async def completion_job(engine: Engine, body: Completion, origin: Origin) -> Job:
    check_model(engine, body.model)
    echoed = body.logprobs if body.echo else None
    counts = [count for count in (echoed, body.prompt_logprobs) if count is not None]
    params = _sampling(
        body,
        engine.info.defaults,
        _completion_tokens(body),
        body.logprobs,
        max(counts, default=None),
    )
    asked = retention(body)
    if asked.markup:
        return await _markup_job(engine, body, asked, params, origin)
    refuse_join(asked.join, "kveik.join")
    wanted = [_behind_cache(engine, one, asked, origin.namespace) for one in body.prompt]
    size = sum(len(prompt) for prompt in wanted)
    encoded = await beside_loop(
        size, lambda: [_encode(engine, one, asked, origin) for one in wanted]
    )
    prompts: tuple[str, ...] = ()
    if body.echo:
        prompts = tuple(_text(engine.tokenizer, one) for one in wanted)
    requests = tuple(_request(engine, one.token_ids, params, origin, asked) for one in encoded)
    return Job(requests, params, prompts, tuple(one.remembered for one in encoded))


async def _markup_job(
    engine: Engine, body: Completion, asked: Retention, params: SamplingParams, origin: Origin
) -> Job:
    """Prompts that take modules from a schema."""
    texts = [one for one in body.prompt if isinstance(one, str)]

    def prepared(text: str) -> Request:
        layout = engine.schemas.layout(origin.namespace, read_prompt(text))
        made = join(layout, asked.join, asked.directive, engine.info.block_size)
        request = _request(engine, made.token_ids, params, origin, asked)
        return replace(request, joined=made.joined, stream=asked.stream or None)

    requests = await beside_loop(LONG_TEXT + 1, lambda: tuple(map(prepared, texts)))
    return Job(requests, params, remembered=(0,) * len(requests))


def _completion_tokens(body: Completion) -> int | None:
    """OpenAI's default is short; who asks for a stream did not ask for that."""
    asked = body.stream_window or (body.kveik is not None and body.kveik.stream_window)
    if body.max_tokens is None and asked:
        return None
    return SamplingParams().max_tokens if body.max_tokens is None else body.max_tokens


def _behind_cache(engine: Engine, prompt: Prompt, asked: Retention, namespace: str) -> Prompt:
    if asked.cached_content is None:
        return prompt
    return engine.named.expand(namespace, asked.cached_content, prompt=prompt).prompt


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


def _encode(engine: Engine, prompt: Prompt, asked: Retention, origin: Origin) -> Encoded:
    if not isinstance(prompt, str):
        return Encoded(prompt, 0)
    return engine.token_memory.encode(
        prompt, namespace=origin.namespace, salt=asked.salt, keep=asked.keep
    )


def _text(tokenizer: Tokenizer, prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)


def _request(
    engine: Engine,
    ids: tuple[int, ...],
    params: SamplingParams,
    origin: Origin,
    asked: Retention,
    messages: Sequence[Mapping[str, Any]] = (),
) -> Request:
    return Request(
        ids,
        params,
        namespace=origin.namespace,
        request_id=origin.request_id,
        directive=asked.directive,
        salt=asked.salt,
        reuse=asked.reuse,
        explain=asked.explain,
        messages=tuple(messages),
        stream=engine.stream_for(asked.stream, params),
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
