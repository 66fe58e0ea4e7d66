"""The bodies of the cache's own routes: named caches, invalidation, documents, explanations."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kveik.cache.directive import Clock, Priority, Ttl, TtlMode
from kveik.server.fields import Age, Body, DocumentId, Duration, Identifier, Tags, refuse
from kveik.server.protocol import Messages, TokenIds
from kveik.server.retention_fields import Salt, Window

Model = Annotated[str, Field(max_length=512)]


class Content(Body):
    """Exactly one of messages, prompt and tokens."""

    model: Model | None = None
    messages: Messages | None = None
    prompt: Annotated[str, Field(min_length=1)] | None = None
    tokens: TokenIds | None = None

    def check(self) -> None:
        given = [name for name in ("messages", "prompt", "tokens") if getattr(self, name)]
        if len(given) != 1:
            what = " and ".join(given) or "none"
            refuse("messages", f"send one of messages, prompt and tokens, got {what}")
        if self.messages is not None and self.messages.marks:
            refuse("messages", "breakpoints have no effect here; leave them out")


class Lifetime(Body):
    """How long: the same words as in the object "kveik" of a request."""

    ttl: Duration | None = None
    ttl_mode: TtlMode | None = None
    clock: Clock | None = None

    def time_to_live(self) -> Ttl | None:
        if self.ttl is None:
            return None
        return Ttl(self.ttl, self.clock or "last_use", self.ttl_mode or "delete")

    def check_lifetime(self) -> None:
        for name in ("ttl_mode", "clock"):
            if self.ttl is None and getattr(self, name) is not None:
                refuse(name, "needs ttl")


class CreateCache(Content, Lifetime):
    """POST /v1/caches. wait false: answers while it is still being computed, in the background."""

    name: Identifier
    tags: Tags | None = None
    priority: Priority | None = None
    pin: bool | None = None
    public: bool | None = None
    wait: bool | None = None

    def check(self) -> None:
        super().check()
        self.check_lifetime()


class ChangeCache(Lifetime):
    """PATCH /v1/caches/{name}: what is left out stays. ttl null: no deadline any more."""

    tags: Tags | None = None
    pin: bool | None = None

    def check(self) -> None:
        if not self.model_fields_set:
            refuse("ttl", "send at least one of ttl, pin and tags")
        self.check_lifetime()


class Invalidate(Body):
    """POST /v1/cache/invalidate: all conditions that are given must hold.

    prefix: as a text; its token ids, which the prompt must begin with, are those that the text has
    alone. older_than: since a block was computed. all: everything of the namespace."""

    all: Literal[True] | None = None
    model: Model | None = None
    name: Identifier | None = None
    tag: Identifier | None = None
    document: DocumentId | None = None
    version: Identifier | None = None
    not_version: Identifier | None = None
    session: Identifier | None = None
    context: Identifier | None = None
    prefix: Annotated[str, Field(min_length=1)] | None = None
    tokens: TokenIds | None = None
    older_than: Age | None = None

    def check(self) -> None:
        given = {name for name in self.model_fields_set if getattr(self, name)}
        if self.older_than is not None:
            given.add("older_than")
        if not given:
            refuse("tag", "name what to invalidate; all: true is everything of the namespace")
        if "all" in given and given - {"all", "model"}:
            refuse("all", "goes with no other condition")
        for name in ("version", "not_version"):
            if name in given and self.document is None:
                refuse(name, "needs document")
        if self.version is not None and self.not_version is not None:
            refuse("not_version", "send version or not_version, not both")
        if self.prefix is not None and self.tokens:
            refuse("tokens", "send prefix or tokens, not both")


class ActOnTree(Body):
    """POST /v1/cache/tree: a place of the tree, as GET /v1/cache/tree names it."""

    node: Annotated[str, Field(min_length=1, max_length=64)]
    action: Literal["pin", "unpin", "expire", "evict"]


class Announce(Body):
    """POST /v1/documents/{id}: from now on this version is the valid one."""

    version: Identifier


class ExplainPrompt(Content):
    """POST /v1/cache/explain: what a request with this prompt would find now."""

    cache_salt: Salt | None = None
    stream_window: Window | None = None
