"""The warm start: compute the prompts of a manifest in the background, one after the other.

They are background requests, so that a user who comes while it warms waits for one step at most. An
entry that fails is noted and the next one begins. What is hot now can be written as a manifest.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kveik.cache.directive import PUBLIC, BlockView, Directive, DocumentSpan
from kveik.engine.documents import encode_with_documents
from kveik.engine.engine import Engine
from kveik.engine.manifest import Entry, Manifest
from kveik.engine.named_records import NamedCache, NamedSpec
from kveik.engine.request import (
    Event,
    Request,
    RequestAborted,
    RequestFailed,
    RequestFinished,
    SamplingParams,
)
from kveik.errors import ConfigError, KveikError, Overloaded, Unavailable, fault

_log = logging.getLogger(__name__)

_WARM = SamplingParams(max_tokens=0, temperature=0.0)
_SCAN = 400  # hot blocks looked at for one manifest
_CUT = 8  # tokens that the end of a text may lose so that it is the text of its tokens


@dataclass(frozen=True, slots=True)
class WarmProgress:
    """How far it is. tokens: of the prompts that are computed; errors: label of the entry and what
    went wrong."""

    total: int
    done: int = 0
    tokens: int = 0
    errors: tuple[tuple[str, str], ...] = ()

    @property
    def failed(self) -> int:
        return len(self.errors)

    @property
    def finished(self) -> bool:
        return self.done + self.failed == self.total

    def as_json(self) -> dict[str, Any]:
        """Figures only: nothing that a manifest says."""
        return {
            "total": self.total,
            "done": self.done,
            "failed": self.failed,
            "tokens": self.tokens,
            "finished": self.finished,
        }


class WarmStart:
    """Warms one engine from one manifest.

    namespace_of: of a tenant by its name; None: of whoever has no name. Raises ConfigError at once
    where a tenant is unknown. step: makes the engine go on, where no thread of its own does."""

    def __init__(
        self,
        engine: Engine,
        manifest: Manifest,
        namespace_of: Callable[[str | None], str],
        step: Callable[[], object] | None = None,
    ) -> None:
        self._engine = engine
        self._step = step
        self._manifest = manifest
        self._namespaces = namespaces_of(manifest, namespace_of)
        self._progress = WarmProgress(len(manifest.entries))
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, on a thread of its own. A second call does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self.run, name="kveik-warm", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Begin no further entry; returns at once."""
        self._stopping.set()

    def progress(self) -> WarmProgress:
        return self._progress

    def run(self) -> None:
        """Warm everything on this thread."""
        for index, (entry, namespace) in enumerate(
            zip(self._manifest.entries, self._namespaces, strict=True)
        ):
            if self._stopping.is_set():
                return
            self._progress = self._after(index, entry, namespace)
        if self._progress.total:
            _log.info(
                "warmed %d of %d entries, %d tokens",
                self._progress.done,
                self._progress.total,
                self._progress.tokens,
            )

    def _after(self, index: int, entry: Entry, namespace: str) -> WarmProgress:
        """Compute one entry; the progress behind it."""
        before = self._progress
        try:
            tokens = self._patiently(entry, namespace)
        except KveikError as error:
            message = error.message
        except Exception as error:
            _log.error("a warm entry failed: %s", fault(error))
            message = f"failed ({type(error).__name__})"
        else:
            return replace(before, done=before.done + 1, tokens=before.tokens + tokens)
        label = self._manifest.label(index)
        _log.warning("%s: %s", label, message)
        return replace(before, errors=(*before.errors, (label, message)))

    def _patiently(self, entry: Entry, namespace: str) -> int:
        """Wait while the queue is full: warming never takes a place that a user needs."""
        while True:
            try:
                return self._compute(entry, namespace)
            except Overloaded as error:
                if self._stopping.wait(error.retry_after):
                    raise

    def _compute(self, entry: Entry, namespace: str) -> int:
        """Tokens of the computed prompt."""
        ended = _Ended()
        if entry.name is not None:
            self._engine.named.create(_spec(entry, entry.name, namespace), ended.named)
        else:
            request = warm_request(self._engine, entry, namespace)
            self._engine.submit(request, ended.event)
        while self._step is not None and not ended.is_set:
            self._step()
        return ended.wait()


def namespaces_of(manifest: Manifest, namespace_of: Callable[[str | None], str]) -> list[str]:
    """Of every entry. Raises ConfigError that names the entry where `namespace_of` does."""
    found = []
    for index, entry in enumerate(manifest.entries):
        try:
            found.append(PUBLIC if entry.public else namespace_of(entry.tenant))
        except ConfigError as error:
            raise ConfigError(f"{manifest.label(index)}: {error.message}", param="warm") from None
    return found


class _Ended:
    """Waits for the end of a request or of a named cache. Events come on another thread."""

    def __init__(self) -> None:
        self._set = threading.Event()
        self._tokens = 0
        self._error: KveikError | None = None

    def event(self, event: Event) -> None:
        match event:
            case RequestFinished(usage):
                self._tokens = usage.prompt_tokens
            case RequestFailed(error):
                self._error = error
            case RequestAborted():
                self._error = Unavailable("the request was aborted")
            case _:
                return
        self._set.set()

    def named(self, cache: NamedCache) -> None:
        self._tokens, self._error = cache.tokens, cache.error
        self._set.set()

    @property
    def is_set(self) -> bool:
        return self._set.is_set()

    def wait(self) -> int:
        self._set.wait()
        if self._error is not None:
            raise self._error
        return self._tokens


def warm_request(engine: Engine, entry: Entry, namespace: str) -> Request:
    """A request that only computes the prompt of an entry that has no name.

    A conversation that ends with the user is computed up to where the answer begins; any other up
    to where the next message begins."""
    documents: tuple[DocumentSpan, ...] = ()
    tokenizer = engine.tokenizer
    if entry.messages is not None and entry.messages[-1]["role"] == "user":
        ids, documents = encode_with_documents(tokenizer, entry.messages)
    elif entry.messages is not None:
        ids = tokenizer.encode_chat(entry.messages, add_generation_prompt=False)
    else:
        ids = list(entry.tokens or ()) or tokenizer.encode(entry.prompt or "")
    directive = Directive(
        tags=entry.tags, ttl=entry.ttl, priority=entry.priority, documents=documents
    )
    return Request(tuple(ids), _WARM, namespace, directive=directive, background=True)


def _spec(entry: Entry, name: str, namespace: str) -> NamedSpec:
    return NamedSpec(
        namespace,
        name,
        messages=entry.messages or (),
        prompt=entry.prompt,
        tokens=entry.tokens or (),
        ttl=entry.ttl,
        tags=entry.tags,
        priority=entry.priority,
        pin=entry.pin,
        public=entry.public,
        background=True,
    )


# ---- writing one


def hot_entries(engine: Engine, namespace: str, top: int) -> list[dict[str, Any]]:
    """Entries of a manifest that computes again what is hot now in one namespace: the named caches
    that are hot, then the other prompts.

    A prompt whose continuations are much less hot stands for itself. It is text where its text has
    the same tokens, and token ids otherwise (chat templates put special tokens into a prompt, which
    no text may name)."""
    views = engine.cache_listing(namespace, top=_SCAN, with_path=True)
    ends = [view for view in views if not any(_stands_for(other, view) for other in views)]
    ends.sort(key=lambda view: (-view.hits, view.idle))
    specs = engine.named.specs(namespace)
    held = {name: specs[name] for view in views for name in _names(view) if name in specs}
    entries = [_named_entry(spec) for spec in held.values()]
    entries += [_entry(engine, view) for view in ends if held.keys().isdisjoint(_names(view))]
    return entries[:top]


def _names(view: BlockView) -> list[str]:
    """The named caches that hold the block."""
    return [claim.removeprefix("name:") for claim in view.claims if claim.startswith("name:")]


def _named_entry(spec: NamedSpec) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": spec.name}
    if spec.messages:
        entry["messages"] = [
            {field: message[field] for field in ("role", "content")} for message in spec.messages
        ]
    elif spec.prompt is not None:
        entry["prompt"] = spec.prompt
    else:
        entry["tokens"] = list(spec.tokens)
    if spec.ttl is not None:
        entry |= {"ttl": spec.ttl.seconds, "ttl_mode": spec.ttl.mode, "clock": spec.ttl.clock}
    if spec.tags:
        entry["tags"] = list(spec.tags)
    if spec.priority != "normal":
        entry["priority"] = spec.priority
    if spec.pin:
        entry["pin"] = True
    return entry


def _stands_for(other: BlockView, view: BlockView) -> bool:
    """`other` goes on from `view` and is about as hot: whoever computes it computes both."""
    return (
        other.depth > view.depth
        and 2 * other.hits >= view.hits
        and other.path[view.depth - 1] == view.path[-1]
        and other.path[: view.depth] == view.path
    )


def _entry(engine: Engine, view: BlockView) -> dict[str, Any]:
    entry = _content(engine, view.path)
    tags = [claim.removeprefix("tag:") for claim in view.claims if claim.startswith("tag:")]
    if tags:
        entry["tags"] = tags
    if view.priority != "normal":
        entry["priority"] = view.priority
    if view.time_left is not None:
        entry["ttl"] = max(1, round(view.time_left))
    return entry


def _content(engine: Engine, path: Sequence[int]) -> dict[str, Any]:
    tokenizer = engine.tokenizer
    for end in range(len(path), max(0, len(path) - _CUT), -1):
        text = tokenizer.decode(path[:end])
        if text and tuple(tokenizer.encode(text)) == tuple(path[:end]):
            return {"prompt": text}
    return {"tokens": list(path)}
