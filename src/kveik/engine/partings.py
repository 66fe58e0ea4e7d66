"""Where the last requests left the cache, in token ids: the words of an explanation.

They are kept only for namespaces that somebody is watching, no longer than the text of the request
may be remembered, and go with anything that is forgotten in the namespace. Any thread. Standard
library only; the clock is handed in.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kveik.cache.directive import Divergence
from kveik.engine.explain import BEFORE_TOKENS
from kveik.engine.request import Request

KEPT = 256
"""Requests of one namespace."""

PER_SECOND = 10
"""Requests of which it is found out at most: looking takes time of the engine's thread."""


@dataclass(frozen=True, slots=True)
class Parting:
    """before: the last prompt tokens up to the divergence; until: when it must be forgotten."""

    before: tuple[int, ...]
    divergence: Divergence
    until: float


class Partings:
    """See the module. idle_seconds: for which they are kept at most."""

    def __init__(self, clock: Callable[[], float], idle_seconds: float) -> None:
        self._clock, self._idle_seconds = clock, idle_seconds
        self._lock = threading.Lock()
        self._watched: Counter[str] = Counter()
        self._forgotten: dict[str, float] = {}  # of watched namespaces: when they were forgotten
        self._known: dict[str, OrderedDict[int, Parting]] = {}
        self._due = math.inf
        self._asked_at = -math.inf

    @contextmanager
    def watching(self, namespace: str | None) -> Iterator[None]:
        """While somebody looks at a namespace its requests are asked where they leave the cache.
        None: of everybody there are no words."""
        if namespace is None:
            yield
            return
        with self._lock:
            self._watched[namespace] += 1
        try:
            yield
        finally:
            with self._lock:
                self._watched[namespace] -= 1
                if not self._watched[namespace]:
                    del self._watched[namespace]
                    self._forgotten.pop(namespace, None)

    def is_watched(self, namespace: str) -> bool:
        return namespace in self._watched

    def wants(self, namespace: str) -> bool:
        """Is a request that begins now to be asked where it leaves the cache? On one thread."""
        if namespace not in self._watched:
            return False
        now = self._clock()
        if 0 <= now - self._asked_at < 1 / PER_SECOND:
            return False
        self._asked_at = now
        return True

    def note(
        self, number: int, request: Request, divergence: Divergence | None, accepted_at: float
    ) -> None:
        """The request of that number (of the journal) is over. accepted_at: by the clock; what was
        asked before the namespace was forgotten is not kept."""
        namespace = request.namespace
        if divergence is None or namespace not in self._watched:
            return
        keep = min(self._idle_seconds, request.directive.text_seconds)
        with self._lock:
            if keep <= 0 or accepted_at <= self._forgotten.get(namespace, -math.inf):
                return
            end = divergence.position
            before = request.prompt_token_ids[max(0, end - BEFORE_TOKENS) : end]
            until = self._clock() + keep
            known = self._known.setdefault(namespace, OrderedDict())
            known[number] = Parting(before, divergence, until)
            self._due = min(self._due, until)
            if len(known) > KEPT:
                known.popitem(last=False)

    def of(self, namespace: str, number: int) -> Parting | None:
        """Of one request, where it is known still."""
        self.prune()
        with self._lock:
            known = self._known.get(namespace)
            return None if known is None else known.get(number)

    def forget(self, namespace: str | None = None) -> None:
        """Nothing is left of a namespace (None: of any), nor of what is being computed in it."""
        with self._lock:
            now = self._clock()
            for name in [*self._known] if namespace is None else [namespace]:
                self._known.pop(name, None)
            for name in [*self._watched] if namespace is None else [namespace]:
                if name in self._watched:
                    self._forgotten[name] = now

    def prune(self) -> None:
        """Drop what may be kept no longer."""
        now = self._clock()
        if now < self._due:
            return
        with self._lock:
            self._due = math.inf
            for namespace, known in [*self._known.items()]:
                for number in [number for number, one in known.items() if one.until <= now]:
                    del known[number]
                if not known:
                    del self._known[namespace]
                self._due = min([self._due, *(one.until for one in known.values())])

    def next_deadline(self) -> float | None:
        """When `prune` has something to do at the latest."""
        return None if self._due == math.inf else self._due
