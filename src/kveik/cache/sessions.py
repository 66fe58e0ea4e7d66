"""Which conversations there are, and since when each is idle. Knows no blocks.

Standard library only; times are handed in.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice

from kveik.cache.followed import Followed

MOST_SESSIONS = 100_000
"""More conversations than that: the one that is idle for longest ends."""


_SWEPT = 64  # conversations that are over, which one look at the table forgets


@dataclass(slots=True)
class Space:
    """The conversations of a namespace since it was last forgotten; over: it was again."""

    count: int = 0
    over: bool = False


@dataclass(slots=True)
class Session:
    """One conversation. turns: those that finished; open: leases that work on a turn; followed:
    what `topics.py` knows of it."""

    last_use: float
    space: Space
    context: str | None = None
    followed: Followed | None = None
    turns: int = 0
    open: int = 0
    ended: bool = False

    @property
    def over(self) -> bool:
        """Has it ended? Leases may still work on it."""
        return self.ended or self.space.over


class SessionTable:
    """In the order of last use. idle_limit: seconds after which an unused one ends."""

    def __init__(self, idle_limit: float) -> None:
        self.idle_limit = idle_limit
        # Those of a namespace that was forgotten stay until they come first: there may be many.
        self._sessions: OrderedDict[tuple[str, str], Session] = OrderedDict()
        self._spaces: dict[str, Space] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def get(self, namespace: str, session: str) -> Session | None:
        entry = self._sessions.get((namespace, session))
        return None if entry is None or entry.over else entry

    def use(self, namespace: str, session: str, now: float) -> Session:
        """A turn begins, goes on or ends."""
        entry = self.get(namespace, session)
        if entry is None:
            space = self._spaces.setdefault(namespace, Space())
            space.count += 1
            self._count += 1
            entry = self._sessions[namespace, session] = Session(now, space)
        entry.last_use = now
        self._sessions.move_to_end((namespace, session))
        return entry

    def forget(self, namespace: str, session: str) -> None:
        entry = self._sessions.pop((namespace, session), None)
        if entry is not None and not entry.over:
            entry.ended, entry.followed = True, None
            entry.space.count -= 1
            self._count -= 1
            if not entry.space.count:
                del self._spaces[namespace]

    def forget_namespace(self, namespace: str) -> None:
        """In time that does not depend on how many they are."""
        space = self._spaces.pop(namespace, None)
        if space is not None:
            space.over = True
            self._count -= space.count

    @property
    def sweeping(self) -> bool:
        """Is there something to drop?"""
        return any(entry.over for entry in islice(self._sessions.values(), 1))

    def _sweep(self) -> None:
        """Drop what is over and comes first."""
        for _ in range(min(_SWEPT, len(self._sessions))):
            key, entry = next(iter(self._sessions.items()))
            if not entry.over:
                return
            entry.followed = None
            del self._sessions[key]

    def next_idle(self, now: float) -> tuple[str, str] | None:
        """A conversation that was idle for too long, or is one too many."""
        self._sweep()
        for _ in range(len(self._sessions)):
            key, entry = next(iter(self._sessions.items()))
            if entry.over or (
                entry.last_use + self.idle_limit > now and self._count <= MOST_SESSIONS
            ):
                return None
            if not entry.open:
                return key
            self.use(*key, now)  # somebody works on it
        return None

    def next_deadline(self) -> float | None:
        for entry in self._sessions.values():
            return entry.last_use + self.idle_limit
        return None

    def table(self, namespace: str | None) -> list[tuple[str, str, Session]]:
        """Those with a finished turn, the one used last first."""
        return [
            (space, session, entry)
            for (space, session), entry in reversed(self._sessions.items())
            if namespace in (None, space) and entry.turns and not entry.over
        ]
