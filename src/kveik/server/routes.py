"""The one table of routes: it drives routing, access, OpenAPI and the test that no door is open.

Every route needs a key but those marked public.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute
from starlette.routing import Router

from kveik.server import (
    anthropic_handlers,
    cache_handlers,
    dashboard,
    embeddings,
    handlers,
    past_handlers,
    responses_handlers,
    schema_handlers,
    schemas,
    watch_handlers,
    watch_schemas,
)
from kveik.server.anthropic_fields import CountTokens, Messages
from kveik.server.cache_bodies import (
    ActOnTree,
    Announce,
    ChangeCache,
    CreateCache,
    ExplainPrompt,
    Invalidate,
)
from kveik.server.fields import Body
from kveik.server.handlers import Handler
from kveik.server.openapi import Operation, document
from kveik.server.protocol import (
    ChatCompletion,
    Completion,
    Detokenize,
    Embeddings,
    Tokenize,
)
from kveik.server.responses_fields import ResponseRequest
from kveik.server.service import Service

Json = dict[str, Any]


Method = Literal["GET", "POST", "PATCH", "DELETE"]


@dataclass(frozen=True, slots=True)
class Route:
    method: Method
    path: str  # `{model:path}`: a path parameter that may hold slashes
    handler: Handler
    operation: Operation
    public: bool = False
    listed: bool = True  # in the OpenAPI document


def _of_tenant(
    method: Method,
    path: str,
    handler: Handler,
    summary: str,
    answer: schemas.Schema,
    body: type[Body] | None = None,
) -> Route:
    """A route about the caller's own namespace; an operator names another one."""
    return Route(method, path, handler, Operation(summary, answer, body, query=schemas.TENANT))


async def _openapi(service: Service, request: Request) -> Response:
    return handlers.json_response(openapi_document())


ROUTES: tuple[Route, ...] = (
    Route("GET", "/", handlers.index, Operation("The page of this server", schemas.HTML), True),
    *(
        Route(
            "GET",
            path,
            handlers.dashboard_file,
            Operation("The dashboard", schemas.HTML),
            public=True,
            listed=path == dashboard.PAGE,
        )
        for path in dashboard.FILES
    ),
    Route("GET", "/health", handlers.health, Operation("The process lives", schemas.STATUS), True),
    Route(
        "GET",
        "/ready",
        handlers.ready,
        Operation("Requests are served", schemas.READY, query=schemas.WARM),
        True,
    ),
    Route("GET", "/version", handlers.version, Operation("Of kveik", schemas.VERSION)),
    Route("GET", "/metrics", handlers.prometheus, Operation("For Prometheus", schemas.TEXT)),
    Route("GET", "/openapi.json", _openapi, Operation("This document", schemas.ANY)),
    Route("GET", "/v1/models", handlers.models, Operation("What is served", schemas.MODELS)),
    Route("GET", "/v1/models/{model:path}", handlers.model, Operation("One", schemas.MODEL)),
    Route(
        "POST",
        "/v1/chat/completions",
        handlers.chat_completions,
        Operation("Continue a conversation", schemas.CHAT, ChatCompletion, streams=True),
    ),
    Route(
        "POST",
        "/v1/completions",
        handlers.completions,
        Operation("Continue a text", schemas.COMPLETION, Completion, streams=True),
    ),
    Route(
        "POST",
        "/v1/embeddings",
        embeddings.embeddings,
        Operation("Vectors of texts", schemas.EMBEDDINGS, Embeddings),
    ),
    Route(
        "POST",
        "/v1/responses",
        responses_handlers.responses,
        Operation("Answer to a text", schemas.RESPONSE, ResponseRequest, streams=True),
    ),
    Route(
        "POST",
        "/v1/messages",
        anthropic_handlers.messages,
        Operation(
            "Continue a conversation (Anthropic)",
            schemas.MESSAGE,
            Messages,
            streams=True,
            anthropic=True,
        ),
    ),
    Route(
        "POST",
        "/v1/messages/count_tokens",
        anthropic_handlers.count_tokens,
        Operation("Tokens of a prompt", schemas.TOKEN_COUNT, CountTokens, anthropic=True),
    ),
    Route(
        "POST",
        "/tokenize",
        handlers.tokenize,
        Operation("Text or messages to token ids", schemas.TOKENS, Tokenize),
    ),
    Route(
        "POST",
        "/detokenize",
        handlers.detokenize,
        Operation("Token ids to text", schemas.PROMPT, Detokenize),
    ),
    _of_tenant(
        "POST",
        "/v1/caches",
        cache_handlers.create_cache,
        "Compute a prompt and name it",
        schemas.CACHE,
        CreateCache,
    ),
    _of_tenant("GET", "/v1/caches", cache_handlers.list_caches, "The named caches", schemas.CACHES),
    _of_tenant(
        "GET", "/v1/caches/{name:path}", cache_handlers.get_cache, "A named cache", schemas.CACHE
    ),
    _of_tenant(
        "PATCH",
        "/v1/caches/{name:path}",
        cache_handlers.change_cache,
        "Change ttl, pin or tags",
        schemas.CACHE,
        ChangeCache,
    ),
    _of_tenant(
        "DELETE",
        "/v1/caches/{name:path}",
        cache_handlers.delete_cache,
        "End a named cache",
        schemas.RECEIPT,
    ),
    _of_tenant(
        "POST",
        "/v1/schemas",
        schema_handlers.create_schema,
        "Register a schema of prompt modules",
        schemas.MODULE_SCHEMA,
        schema_handlers.CreateSchema,
    ),
    _of_tenant(
        "GET", "/v1/schemas", schema_handlers.list_schemas, "The schemas", schemas.MODULE_SCHEMAS
    ),
    _of_tenant(
        "GET",
        "/v1/schemas/{name:path}",
        schema_handlers.get_schema,
        "A schema",
        schemas.MODULE_SCHEMA,
    ),
    _of_tenant(
        "DELETE",
        "/v1/schemas/{name:path}",
        schema_handlers.delete_schema,
        "Forget a schema",
        schemas.DELETED,
    ),
    _of_tenant("GET", "/v1/sessions", cache_handlers.sessions, "The sessions", schemas.SESSIONS),
    _of_tenant(
        "DELETE",
        "/v1/sessions/{session:path}",
        cache_handlers.end_session,
        "End a session",
        schemas.RECEIPT,
    ),
    _of_tenant(
        "POST",
        "/v1/documents/{document:path}",
        cache_handlers.announce_document,
        "Announce a version",
        schemas.RECEIPT,
        Announce,
    ),
    Route(
        "GET",
        "/v1/cache",
        cache_handlers.listing,
        Operation("What is cached", schemas.LISTING, query=schemas.LISTING_QUERY),
    ),
    Route(
        "GET",
        "/v1/cache/manifest",
        cache_handlers.manifest,
        Operation("What is hot, to warm it", schemas.MANIFEST, query=schemas.MANIFEST_QUERY),
    ),
    Route(
        "GET",
        "/v1/cache/history",
        past_handlers.history,
        Operation("Hits and memory over time", schemas.HISTORY, query=schemas.HISTORY_QUERY),
    ),
    Route(
        "GET",
        "/v1/cache/requests",
        past_handlers.requests,
        Operation("The last requests", schemas.PAST_REQUESTS, query=schemas.LISTING_QUERY),
    ),
    Route(
        "GET",
        "/v1/cache/curve",
        past_handlers.curve,
        Operation("Hit rate against memory", schemas.CURVE),
    ),
    Route(
        "GET",
        "/v1/cache/requests/{number}",
        watch_handlers.one_request,
        Operation("Why one missed", watch_schemas.EXPLAINED, query=schemas.TENANT),
    ),
    Route(
        "GET",
        "/v1/cache/tree",
        watch_handlers.tree,
        Operation("The prefix tree", watch_schemas.TREE, query=watch_schemas.TREE_QUERY),
    ),
    Route(
        "POST",
        "/v1/cache/tree",
        watch_handlers.act_on_tree,
        Operation("Pin, unpin, expire or evict", schemas.RECEIPT, ActOnTree, query=schemas.TENANT),
    ),
    Route(
        "GET",
        "/v1/cache/watch",
        watch_handlers.watch,
        Operation("What changes, as events", watch_schemas.EVENTS, query=watch_schemas.WATCH_QUERY),
    ),
    _of_tenant(
        "POST",
        "/v1/cache/invalidate",
        cache_handlers.invalidate,
        "Invalidate",
        schemas.RECEIPT,
        Invalidate,
    ),
    _of_tenant(
        "POST",
        "/v1/cache/explain",
        cache_handlers.explain,
        "Why is it cached, or not",
        schemas.ANY,
        ExplainPrompt,
    ),
    Route(
        "POST",
        "/reset_prefix_cache",
        handlers.reset_prefix_cache,
        Operation("Forget what is cached", schemas.RESET, query=schemas.SCOPE),
    ),
)

PUBLIC_PATHS = frozenset(route.path for route in ROUTES if route.public)


def openapi_document() -> Json:
    listed = [route for route in ROUTES if route.listed]
    return document([(route.method, route.path, route.operation) for route in listed])


def build_router(service: Service) -> Router:
    routes = [
        StarletteRoute(route.path, _endpoint(service, route), methods=[route.method])
        for route in ROUTES
    ]
    return Router(routes, redirect_slashes=False)


def _endpoint(service: Service, route: Route) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        request.scope["pattern"] = route.path  # for logs and metrics, instead of what was sent
        return await route.handler(service, request)

    return endpoint
