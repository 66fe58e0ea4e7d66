"""Verbs that delete: what one of them names goes from every book at once, and all are told here.

blocks    the cache room: not found from now on, overwritten in the next steps
names     named caches             history   conversations, and with them their streams
texts     what can be read of prompts beside the blocks: token memory, partings
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from kveik.cache.directive import Receipt, Selector
from kveik.cache.manager import CacheManager
from kveik.engine.history import Sessions
from kveik.engine.named import NamedCaches
from kveik.engine.resting import RestingStreams


class Deletion:
    """See the module. Any thread. forget_texts: of a namespace, None: of all; disturb: wakes an
    engine that is idle, so that it overwrites what was deleted."""

    def __init__(
        self,
        cache: CacheManager,
        streams: RestingStreams,
        named: NamedCaches,
        history: Sessions,
        *,
        forget_texts: Callable[[str | None], None],
        lock: AbstractContextManager[Any],
        clock: Callable[[], float],
        disturb: Callable[[], None],
    ) -> None:
        self._cache = cache
        self._streams = streams
        self._named = named
        self._history = history
        self._forget_texts = forget_texts
        self._lock = lock
        self._clock = clock
        self._disturb = disturb

    @contextmanager
    def changing(self) -> Iterator[float]:
        """The books are about to change: the lock, the time, and a nudge for an idle engine."""
        with self._lock:
            yield self._clock()
        self._disturb()

    def reset(self, namespace: str | None) -> bool:
        """See Engine.reset_cache."""
        with self.changing() as now:
            done = self._cache.reset(namespace)
            if done:
                self._streams.end_of(namespace, now)
                self._history.reset(namespace)
                self._forget_texts(namespace)
            return done

    def invalidate(self, selector: Selector) -> Receipt:
        """See Engine.invalidate."""
        with self.changing() as now:
            receipt = self._cache.invalidate(selector, now)
            self._forget(selector)
            return receipt

    def announce_document(self, namespace: str, document: str, version: str) -> Receipt:
        """See Engine.announce_document."""
        with self.changing() as now:
            receipt = self._cache.announce_document(namespace, document, version, now)
            self._forget(Selector(namespace, document=document, not_version=version))
            return receipt

    def end_session(self, namespace: str, session: str) -> Receipt | None:
        """See Engine.end_session."""
        with self.changing() as now:
            receipt = self._cache.end_session(namespace, session, now)
            known = self._history.end(namespace, session)
            self._forget_texts(namespace)
            return Receipt() if receipt is None and known else receipt

    def _forget(self, selector: Selector) -> None:
        self._named.invalidate(selector)
        self._history.invalidate(selector)
        self._forget_texts(selector.namespace)
