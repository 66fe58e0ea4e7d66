"""Which conversations there are, and since when each is idle. Knows no blocks.

Standard library only; times are handed in.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

MOST_SESSIONS = 100_000
"""More conversations than that: the one that is idle for longest ends."""


@dataclass(slots=True)
class Session:
    """One conversation. turns: those that finished; open: leases that work on a turn; over: it has
    ended while they do."""

    last_use: float
    context: str | None = None
    turns: int = 0
    open: int = 0
    over: bool = False


class SessionTable:
    """In the order of last use. idle_limit: seconds after which an unused one ends."""

    def __init__(self, idle_limit: float) -> None:
        self.idle_limit = idle_limit
        self._sessions: OrderedDict[tuple[str, str], Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, namespace: str, session: str) -> Session | None:
        return self._sessions.get((namespace, session))

    def use(self, namespace: str, session: str, now: float) -> Session:
        """A turn begins, goes on or ends."""
        key = (namespace, session)
        entry = self._sessions.get(key)
        if entry is None:
            entry = self._sessions[key] = Session(now)
        entry.last_use = now
        self._sessions.move_to_end(key)
        return entry

    def forget(self, namespace: str, session: str) -> None:
        entry = self._sessions.pop((namespace, session), None)
        if entry is not None:
            entry.over = True

    def forget_namespace(self, namespace: str) -> None:
        for key in [key for key in self._sessions if key[0] == namespace]:
            self.forget(*key)

    def next_idle(self, now: float) -> tuple[str, str] | None:
        """A conversation that was idle for too long, or is one too many."""
        for _ in range(len(self._sessions)):
            key, entry = next(iter(self._sessions.items()))
            if entry.last_use + self.idle_limit > now and len(self._sessions) <= MOST_SESSIONS:
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
            if namespace in (None, space) and entry.turns
        ]
