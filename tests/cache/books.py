"""What the cache tests share: a manager that launches a step per move and checks itself."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from kveik.cache.directive import Directive
from kveik.cache.manager import CacheManager, Lease, Opened
from kveik.cache.segments import KvGroup

FULL = KvGroup((0,))
PROMPT = list(range(40))  # ten blocks of four
OTHER = list(range(100, 140))


class Books(CacheManager):
    """A manager with shortcuts for tests; every shortcut ends with `check()`."""

    def __init__(
        self, blocks: int = 10, size: int = 16, groups: Sequence[KvGroup] = (FULL,), **options: Any
    ) -> None:
        super().__init__(groups, [blocks] * len(groups), size, **options)
        self.steps = itertools.count()

    def step(self) -> None:
        """Launch and acknowledge one step."""
        step = next(self.steps)
        self.launched(step)
        self.acknowledge(step)
        self.check()

    def start(self, tokens: Sequence[int], wanted: int = 0, **options: object) -> Lease:
        """Open, run the moves."""
        result = self.open(tokens, wanted or len(tokens), **options)  # type: ignore[arg-type]
        assert isinstance(result, Opened), result
        self.check()
        self.step()
        return result.lease

    def run(self, tokens: Sequence[int], **options: object) -> Lease:
        """Open and compute the whole prompt."""
        lease = self.start(tokens, **options)
        self.commit(lease, tokens)
        self.check()
        return lease

    def end(self, lease: Lease, *, keep: bool = True, **options: object) -> None:
        self.release(lease, keep=keep, **options)  # type: ignore[arg-type]
        self.check()

    def pass_through(self, tokens: Sequence[int], **options: object) -> None:
        """One finished request."""
        self.end(self.run(tokens, **options), now=options.get("now", 0.0))

    def sweep(self, now: float = 0.0) -> None:
        """Tick until nothing is left to do."""
        while self.tick(now):
            self.check()
        self.check()

    def cached(self, tokens: Sequence[int], **options: object) -> int:
        return self.explain(tokens, **options).cached_tokens  # type: ignore[arg-type]

    def why(self, tokens: Sequence[int], **options: object) -> tuple[int, str]:
        miss = self.explain(tokens, **options).miss  # type: ignore[arg-type]
        assert miss is not None
        return miss.position, miss.reason


def blocks_of(lease: Lease, group: int = 0) -> tuple[int, ...]:
    return tuple(block for segment in lease.tables[group] for block in segment.blocks)


def small(blocks: int = 64, *more: KvGroup, **options: object) -> Books:
    """Blocks of four tokens."""
    return Books(blocks, 4, (FULL, *more), **options)


def session(name: str, **more: object) -> Directive:
    return Directive(session=name, **more)  # type: ignore[arg-type]
