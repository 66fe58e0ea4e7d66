"""From what a Python caller writes to the request that the engine computes. No state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import Any, TypeAlias, TypedDict, TypeGuard

from kveik.cache.directive import DocumentSpan
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
from kveik.engine.modules.prompt import SchemaPrompt
from kveik.engine.request import Request, SamplingParams
from kveik.engine.token_memory import Encoded
from kveik.errors import InvalidRequest
from kveik.managed import CacheOptions, refuse

Message: TypeAlias = Mapping[str, Any]


class TextPrompt(TypedDict):
    prompt: str


class TokensPrompt(TypedDict):
    prompt_token_ids: Sequence[int]


class MarkupPrompt(TypedDict):
    """`<prompt schema=...>`: modules of a schema by their names, and text."""

    prompt_markup: str


Prompt: TypeAlias = str | TextPrompt | TokensPrompt | MarkupPrompt | SchemaPrompt
Conversation: TypeAlias = Sequence[Message]


def prompt_request(
    engine: Engine, prompt: object, params: SamplingParams, cache: CacheOptions
) -> Request:
    """The tokenised request of one prompt; raises InvalidRequest."""
    modular = _modular(prompt)
    if modular is not None:
        if cache.cached_content is not None:
            refuse("cached_content", "stands before a plain prompt; leave it out here")
        layout = engine.schemas.layout(cache.namespace, modular)
        return _joined(engine, layout, params, cache)
    refuse_join(cache.join, "join")
    content = prompt_content(prompt)
    if cache.resumes and isinstance(content, str):
        ids = engine.tokenizer.encode(content, add_special_tokens=False)
        return _request(engine, tuple(ids), params, cache, content)
    if cache.cached_content is not None:
        named = engine.named.expand(cache.namespace, cache.cached_content, prompt=content)
        content = named.prompt
    if not isinstance(content, str):
        return _request(engine, content, params, cache)
    encoded = engine.token_memory.encode(
        content,
        namespace=cache.namespace,
        salt=cache.salt(),
        keep=cache.text_seconds(),
    )
    return _request(
        engine, encoded.token_ids, params, cache, content, remembered=encoded.remembered
    )


def chat_request(
    engine: Engine, messages: Conversation, params: SamplingParams, cache: CacheOptions
) -> Request:
    """The tokenised request of one conversation; raises InvalidRequest."""
    if cache.resumes:
        refuse_modules(messages)
        ids = tuple(engine.tokenizer.encode_next_turn(messages))
        labels = [(one.document, one.version) for one in document_parts(messages)]
        documents = tuple(DocumentSpan(*label, 0, len(ids)) for label in labels)
        return _request(engine, ids, params, cache, None, documents, messages=messages)
    if cache.cached_content is not None:
        named = engine.named.expand(cache.namespace, cache.cached_content, messages=messages)
        messages = named.messages
    going = _going_on(engine, messages, cache)
    if going is not None:
        messages = going.messages
    if has_modules(messages):
        labelled = document_parts(messages)
        places = [one.place for one in labelled]
        encode = partial(
            engine.token_memory.encode_piece,
            namespace=cache.namespace,
            salt=cache.salt(),
            keep=cache.text_seconds(),
        )
        made = chat_layout(
            engine.tokenizer, engine.schemas, cache.namespace, messages, places, encode
        )
        spans = document_spans(labelled, made.spans)
        return _joined(engine, made.layout, params, cache, spans, made.remembered)
    refuse_join(cache.join, "join")
    text = engine.tokenizer.render_chat(messages)
    parts = document_parts(messages)

    def encode_chat(listed: Conversation, places: Sequence[tuple[int, int]]) -> Encoded:
        return engine.token_memory.encode_chat(
            listed,
            places,
            namespace=cache.namespace,
            salt=cache.salt(),
            keep=cache.text_seconds(),
        )

    encoded = encode_chat(messages, [one.place for one in parts])
    documents = document_spans(parts, encoded.spans)
    said = messages if cache.session is not None else ()
    request = _request(
        engine, encoded.token_ids, params, cache, text, documents, encoded.remembered, said
    )
    if going is None or not going.changes:
        return request
    kept = going.kept(encode_chat, request.prompt_token_ids, request.directive)
    return replace(request, joined=kept.joined, kept=kept, stream=cache.window or None)


def _going_on(engine: Engine, messages: Conversation, cache: CacheOptions) -> GoingOn | None:
    """The conversation of a session whose finished turns come first, or go in part."""
    if cache.session is None or not (cache.continues or cache.forgets):
        return None
    key = cache.namespace, cache.session
    return of_session(engine.history, key, messages, cache.forgets, continues=cache.continues)


def _modular(prompt: object) -> SchemaPrompt | None:
    """A prompt of a schema, or None."""
    if isinstance(prompt, SchemaPrompt):
        return prompt
    if isinstance(prompt, Mapping) and "prompt_markup" in prompt:
        text = prompt["prompt_markup"]
        if not isinstance(text, str):
            refuse("prompt_markup", f"expected a string, got {type(text).__name__}")
        return read_prompt(text)
    return None


def _joined(
    engine: Engine,
    layout: Layout,
    params: SamplingParams,
    cache: CacheOptions,
    documents: Sequence[DocumentSpan] = (),
    remembered: int = 0,
) -> Request:
    directive = cache.directive(documents)
    ids, joined = join(layout, cache.join, directive, engine.info.block_size)
    text = engine.tokenizer.decode(ids, skip_special_tokens=False)
    request = _request(engine, ids, params, cache, text, documents, remembered)
    # the window that an engine gives to whoever asks for none is not for modules
    return replace(request, joined=joined, stream=cache.window or None)


def prompt_content(prompt: object) -> str | tuple[int, ...]:
    """The text of a plain prompt, or its ids; raises InvalidRequest."""
    fields: Mapping[str, object] = {"prompt": prompt} if isinstance(prompt, str) else {}
    if isinstance(prompt, Mapping):
        fields = prompt
    if "prompt_token_ids" in fields:
        return checked_ids(fields["prompt_token_ids"])
    text = fields.get("prompt")
    if isinstance(text, str):
        return text
    raise InvalidRequest(
        'prompt: expected a string, {"prompt": str} or {"prompt_token_ids": [...]}, '
        f"got {type(prompt).__name__}",
        param="prompt",
    )


def any_request(
    engine: Engine, prompt: Prompt | Conversation, params: SamplingParams, cache: CacheOptions
) -> Request:
    """The tokenised request of a prompt or of a conversation; raises InvalidRequest."""
    if is_conversation(prompt):
        return chat_request(engine, prompt, params, cache)
    return prompt_request(engine, prompt, params, cache)


def conversations(messages: Iterable[Any]) -> list[Conversation]:
    """One conversation, or each of several."""
    return [messages] if is_conversation(messages) else list(messages)


def is_conversation(value: object) -> TypeGuard[Conversation]:
    """A list of messages: its first item is an object with a role."""
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence) or not value:
        return False
    return isinstance(value[0], Mapping) and "role" in value[0]


def checked_ids(token_ids: object) -> tuple[int, ...]:
    if isinstance(token_ids, Sequence) and not isinstance(token_ids, str | bytes):
        ids = tuple(token_ids)
        if all(isinstance(one, Integral) and not isinstance(one, bool) for one in ids):
            return tuple(int(one) for one in ids)
    raise InvalidRequest("prompt_token_ids: expected a list of integers", param="prompt_token_ids")


def _request(
    engine: Engine,
    ids: tuple[int, ...],
    params: SamplingParams,
    cache: CacheOptions,
    text: str | None = None,
    documents: Sequence[DocumentSpan] = (),
    remembered: int = 0,
    messages: Conversation = (),
) -> Request:
    return Request(
        ids,
        params,
        namespace=cache.namespace,
        prompt=text,
        directive=cache.directive(documents),
        salt=cache.salt(),
        explain=cache.explain,
        remembered=remembered,
        messages=tuple(messages),
        stream=cache.window or None if cache.resumes else engine.stream_for(cache.window, params),
        resumes=cache.resumes,
    )
