"""The cache's own routes: named caches, sessions, documents, invalidation, listing, explanation.

A key manages its own namespace. `?namespace=NAME` (of the keys file) is for operators; a data key
is refused whatever name it sends, and everything else that is not its own is answered exactly like
what does not exist. An operator's listing of all namespaces has sizes and ages, and no labels.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kveik.cache.directive import BlockView, Receipt, Selector
from kveik.config import LIMITS, check_limit
from kveik.engine.engine import Engine
from kveik.engine.named_records import KEEP, NamedCache, NamedSpec
from kveik.engine.request import SamplingParams
from kveik.engine.token_memory import Encoded
from kveik.engine.warm import hot_entries
from kveik.engine.words import document_id, identifier, salt_digest
from kveik.errors import InvalidRequest, NotFound
from kveik.server.auth import Caller
from kveik.server.cache_bodies import (
    Announce,
    ChangeCache,
    Content,
    CreateCache,
    ExplainPrompt,
    Invalidate,
)
from kveik.server.handlers import caller_of, json_response, read_body
from kveik.server.jobs import beside_loop, check_model
from kveik.server.service import Service

Json = dict[str, Any]

_DEFAULT_TOP = 100


async def create_cache(service: Service, request: Request) -> Response:
    """Compute a prompt once and keep it under a name."""
    engine = service.serving.engine
    body = await read_body(service, request, CreateCache)
    check_model(engine, body.model)
    if body.public:
        caller_of(request).require_operator()
    messages = body.messages.messages if body.messages is not None else ()
    spec = NamedSpec(
        namespace=namespace_of(service, request),
        name=body.name,
        messages=tuple(messages),
        prompt=body.prompt,
        tokens=body.tokens or (),
        ttl=body.time_to_live(),
        tags=body.tags or (),
        priority=body.priority or "normal",
        pin=bool(body.pin),
        public=bool(body.public),
        background=body.wait is False,
    )
    created = await _created(engine, spec, _size(body), wait=body.wait is not False)
    return json_response(cache_object(created, caller_of(request)))


async def _created(engine: Engine, spec: NamedSpec, size: int, *, wait: bool) -> NamedCache:
    """wait: until it is computed. A client that leaves does not stop the computation."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[NamedCache] = loop.create_future()

    def arrived(cache: NamedCache) -> None:
        if not ended.done():  # the client may have left
            ended.set_result(cache)

    def done(cache: NamedCache) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(arrived, cache)

    begun = await beside_loop(size, lambda: engine.named.create(spec, done if wait else None))
    if not wait:
        return begun
    cache = await ended
    if cache.error is not None:
        raise cache.error
    return cache


async def list_caches(service: Service, request: Request) -> Response:
    engine, caller = service.serving.engine, caller_of(request)
    caches = engine.named.list(namespace_of(service, request))
    return json_response({"object": "list", "data": [cache_object(one, caller) for one in caches]})


async def get_cache(service: Service, request: Request) -> Response:
    engine = service.serving.engine
    found = engine.named.get(*_named(service, request))
    return json_response(cache_object(found, caller_of(request)))


async def change_cache(service: Service, request: Request) -> Response:
    """Change ttl, pin or tags. A new ttl begins now."""
    engine = service.serving.engine
    namespace, name = _named(service, request)
    body = await read_body(service, request, ChangeCache)
    changed = engine.named.update(
        namespace,
        name,
        ttl=body.time_to_live() if "ttl" in body.model_fields_set else KEEP,
        pin=KEEP if body.pin is None else body.pin,
        tags=KEEP if body.tags is None else body.tags,
        operator=caller_of(request).operator,
    )
    return json_response(cache_object(changed, caller_of(request)))


async def delete_cache(service: Service, request: Request) -> Response:
    engine = service.serving.engine
    operator = caller_of(request).operator
    receipt = engine.named.delete(*_named(service, request), operator=operator)
    return json_response(receipt_object(receipt))


async def invalidate(service: Service, request: Request) -> Response:
    """Nothing that the selector names is found any more once this has answered."""
    engine = service.serving.engine
    body = await read_body(service, request, Invalidate)
    check_model(engine, body.model)
    prefix = body.tokens or ()
    if body.prefix is not None:
        text = body.prefix
        prefix = tuple(await beside_loop(len(text), lambda: engine.tokenizer.encode(text)))
    selector = Selector(
        namespace=namespace_of(service, request),
        name=body.name,
        tag=body.tag,
        document=body.document,
        version=body.version,
        not_version=body.not_version,
        session=body.session,
        context=body.context,
        prefix=prefix,
        older_than=body.older_than,
    )
    return json_response(receipt_object(engine.invalidate(selector)))


async def sessions(service: Service, request: Request) -> Response:
    engine = service.serving.engine
    data = [
        {"session": one.session, "idle": one.idle, "blocks": one.blocks, "tokens": one.tokens}
        for one in engine.sessions(namespace_of(service, request))
    ]
    return json_response({"object": "list", "data": data})


async def end_session(service: Service, request: Request) -> Response:
    """What the session alone computed goes at once; what others share stays."""
    engine = service.serving.engine
    name = path_word(request, "session", identifier)
    receipt = engine.end_session(namespace_of(service, request), name)
    if receipt is None:
        raise NotFound("session: there is no such session", param="session")
    return json_response(receipt_object(receipt))


async def announce_document(service: Service, request: Request) -> Response:
    """What came from any other version of the document is invalidated."""
    engine = service.serving.engine
    name = path_word(request, "document", document_id)
    body = await read_body(service, request, Announce)
    receipt = engine.announce_document(namespace_of(service, request), name, body.version)
    return json_response(receipt_object(receipt))


async def listing(service: Service, request: Request) -> Response:
    """What is cached, hottest first; with ?scope=all of every namespace (operators only)."""
    engine = service.serving.engine
    scope = request.query_params.get("scope", "own")
    if scope not in ("own", "all"):
        raise InvalidRequest("scope: expected own or all", param="scope")
    top = number_of(request, "top", "listing_count", _DEFAULT_TOP)
    if scope == "all":
        caller_of(request).require_operator()
        views = engine.cache_listing(None, top=top)
        data = [{"namespace": _shown(service, one), **_block(one)} for one in views]
        return json_response({"object": "cache.listing", "data": data})
    views = engine.cache_listing(namespace_of(service, request), top=top)
    data = [{**_block(one), "claims": list(one.claims)} for one in views]
    return json_response({"object": "cache.listing", "data": data})


async def manifest(service: Service, request: Request) -> Response:
    """What is hot now, as entries of a manifest that warms it (--warm)."""
    engine = service.serving.engine
    top = number_of(request, "top", "listing_count", _DEFAULT_TOP)
    namespace = namespace_of(service, request)
    return json_response({"entries": await asyncio.to_thread(hot_entries, engine, namespace, top)})


async def explain(service: Service, request: Request) -> Response:
    """What a request with this prompt would find now, where that ends, and why."""
    engine = service.serving.engine
    body = await read_body(service, request, ExplainPrompt)
    check_model(engine, body.model)
    salt = "" if body.cache_salt is None else salt_digest(body.cache_salt)
    namespace = namespace_of(service, request)
    encoded = await beside_loop(_size(body), lambda: _encoded(engine, body, namespace, salt))
    found = await asyncio.to_thread(
        engine.explain_prompt,
        encoded.token_ids,
        namespace,
        salt,
        encoded.remembered,
        engine.stream_for(body.stream_window, SamplingParams()),
    )
    return json_response(found.as_json())


def _encoded(engine: Engine, body: Content, namespace: str, salt: str) -> Encoded:
    """As a request would find it; the question leaves no trace of the text."""
    memory = engine.token_memory
    if body.messages is not None:
        messages = body.messages.messages
        return memory.encode_chat(messages, namespace=namespace, salt=salt, keep=0)
    if body.prompt is not None:
        return memory.encode(body.prompt, namespace=namespace, salt=salt, keep=0)
    ids, highest = body.tokens or (), engine.info.vocab_size - 1
    if max(ids) > highest:
        raise InvalidRequest(
            f"tokens: a token id is outside the vocabulary 0 .. {highest}", param="tokens"
        )
    return Encoded(ids, 0)


def _size(body: Content) -> int:
    return body.messages.characters if body.messages is not None else len(body.prompt or "")


def namespace_of(service: Service, request: Request) -> str:
    """The caller's own, or for an operator the one of the tenant that ?namespace= names."""
    caller = caller_of(request)
    name = request.query_params.get("namespace")
    if name is None:
        return caller.namespace
    caller.require_operator()
    return service.keys.namespace_of(name)


def _named(service: Service, request: Request) -> tuple[str, str]:
    return namespace_of(service, request), path_word(request, "name", identifier)


def path_word(request: Request, param: str, check: Callable[[object], str]) -> str:
    try:
        return check(request.path_params[param])
    except ValueError as error:
        raise InvalidRequest(f"{param}: {error}", param=param) from None


def number_of(request: Request, param: str, limit: str, default: int) -> int:
    """A query parameter that counts something, within a limit of the table."""
    text = request.query_params.get(param, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        low, high = LIMITS[limit].low, LIMITS[limit].high
        raise InvalidRequest(f"{param}: expected a number from {low} to {high}", param=param)
    check_limit(limit, int(text), param=param)
    return int(text)


def _shown(service: Service, view: BlockView) -> str:
    """A tenant by its name; a namespace that has none by its digest."""
    return service.keys.name_of(view.namespace) or view.namespace


def _block(view: BlockView) -> Json:
    return {
        "tokens": view.tokens,
        "depth": view.depth,
        "hits": view.hits,
        "age": view.age,
        "idle": view.idle,
        "time_left": view.time_left,
        "priority": view.priority,
        "demoted": view.demoted,
        "pinned": view.pinned,
        "readers": view.readers,
    }


def receipt_object(receipt: Receipt) -> Json:
    return {
        "blocks": receipt.blocks,
        "tokens": receipt.tokens,
        "bytes": dict(receipt.bytes_by_tier),
        "deferred": receipt.deferred,
    }


def cache_object(cache: NamedCache, caller: Caller) -> Json:
    """status evicted: its blocks went, its next use computes them again. How often others use a
    public cache is for operators."""
    counted = caller.operator or not cache.public
    return {
        "object": "cache",
        "name": cache.name,
        "status": cache.status,
        "kind": cache.kind,
        "tokens": cache.tokens,
        "bytes": cache.bytes,
        "seconds": cache.seconds,
        "hits": cache.hits if counted else None,
        "created": cache.created,
        "last_use": cache.last_use if counted else None,
        "time_left": cache.time_left,
        "tags": list(cache.tags),
        "priority": cache.priority,
        "pinned": cache.pinned,
        "public": cache.public,
        "error": None if cache.error is None else cache.error.message,
    }
