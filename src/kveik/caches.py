"""`llm.caches` and `llm.cache`: named caches, and what the whole cache holds.

Nothing runs between two calls of an LLM, so both let the engine do what is due (deadlines that
passed, bytes to overwrite) before they answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kveik.cache.curve import Curve
from kveik.cache.directive import BlockView, Clock, Priority, Receipt, TtlMode
from kveik.cache.lease import CacheStats
from kveik.engine.engine import Engine, SessionView
from kveik.engine.journal import Past, PastRequest
from kveik.engine.named_records import KEEP, Keep, NamedCache, NamedSpec
from kveik.engine.words import identifier, tag_list
from kveik.managed import CacheOptions, checked
from kveik.prompting import Conversation, checked_ids


class Caches:
    """Prompts that are computed once and kept under a name, to stand before other prompts:
    `cache=CacheOptions(cached_content=name)`."""

    def __init__(self, engine: Engine, step: Callable[[], None]) -> None:
        self._engine = engine
        self._step = step

    def create(
        self,
        name: str,
        *,
        messages: Conversation | None = None,
        prompt: str | None = None,
        tokens: Sequence[int] | None = None,
        ttl: float | str | None = None,
        ttl_mode: TtlMode | None = None,
        clock: Clock | None = None,
        tags: Sequence[str] = (),
        priority: Priority = "normal",
        pin: bool = False,
        public: bool = False,
        namespace: str = "",
    ) -> NamedCache:
        """Compute messages, a prompt or tokens now. The same name and content renews it.

        pin: never evicted, within the budget of pins. public: every namespace may use it. Raises
        Conflict where the name holds other content, PinBudgetExceeded, InvalidRequest (a chat
        template that does not keep its beginning, among others)."""
        words = CacheOptions(ttl=ttl, ttl_mode=ttl_mode, clock=clock, tags=tags, priority=priority)
        spec = NamedSpec(
            namespace,
            checked("name", identifier, name),
            messages=tuple(messages or ()),
            prompt=prompt,
            tokens=checked_ids(tokens) if tokens is not None else (),
            ttl=words.time_to_live(),
            tags=tuple(words.tags),
            priority=priority,
            pin=pin,
            public=public,
        )
        ended: list[NamedCache] = []
        self._engine.named.create(spec, ended.append)
        while not ended:
            self._step()
        if ended[0].error is not None:
            raise ended[0].error
        return ended[0]

    def get(self, name: str, *, namespace: str = "") -> NamedCache:
        """Raises NotFound: code cache_expired or cache_not_found."""
        return self._engine.named.get(namespace, name)

    def list(self, *, namespace: str = "") -> list[NamedCache]:
        """Those of the namespace, and the public ones."""
        return self._engine.named.list(namespace)

    def update(
        self,
        name: str,
        *,
        ttl: float | str | Keep | None = KEEP,
        ttl_mode: TtlMode | None = None,
        clock: Clock | None = None,
        pin: bool | Keep = KEEP,
        tags: Sequence[str] | Keep = KEEP,
        namespace: str = "",
    ) -> NamedCache:
        """Change what is given. A new ttl begins now; None: no deadline any more."""
        lifetime: CacheOptions | None = None
        if not isinstance(ttl, Keep):
            lifetime = CacheOptions(ttl=ttl, ttl_mode=ttl_mode, clock=clock)
        return self._engine.named.update(
            namespace,
            name,
            ttl=KEEP if lifetime is None else lifetime.time_to_live(),
            pin=pin,
            tags=tags if isinstance(tags, Keep) else checked("tags", tag_list, tags),
            operator=True,
        )

    def delete(self, name: str, *, namespace: str = "") -> Receipt:
        """Forget the name; what nobody else holds goes. Raises NotFound."""
        return self._engine.named.delete(namespace, name, operator=True)


class Cache:
    """The cache as a whole."""

    def __init__(self, engine: Engine, settle: Callable[[], None]) -> None:
        self._engine = engine
        self._settle = settle

    def stats(self) -> CacheStats:
        """Blocks by state, tokens asked for and served, evictions and misses by reason."""
        self._settle()
        return self._engine.stats().cache

    def listing(self, top: int = 100, *, namespace: str | None = None) -> list[BlockView]:
        """Cached blocks, the hottest first; namespace None: of all."""
        self._settle()
        return self._engine.cache_listing(namespace, top=top)

    def sessions(self, *, namespace: str | None = None) -> list[SessionView]:
        """Open conversations that hold blocks; namespace None: of all."""
        self._settle()
        return self._engine.sessions(namespace)

    def curve(self) -> Curve:
        """Hit rate against memory: what pools of other sizes would have served."""
        return self._engine.curve()

    def history(self, *, namespace: str | None = None, steps: int = 360) -> Past:
        """What the cache did in the last steps of ten seconds, and by day; namespace None: all."""
        return self._engine.past(namespace, steps=steps)

    def requests(self, top: int = 100, *, namespace: str | None = None) -> list[PastRequest]:
        """The last requests that ended, the newest first; namespace None: of all."""
        return self._engine.past_requests(namespace, top=top)

    def expire(self) -> None:
        """Do now what is due: free what expired, overwrite what was deleted."""
        self._settle()

    def reset(self, *, namespace: str | None = None) -> bool:
        """Forget everything cached. False, and nothing changed, while requests hold blocks."""
        return self._engine.reset_cache(namespace)
