"""Which topic a session's request is about when its caller announces no context.

`context` is asked when the blocks of a request are opened and answers with the name of a topic
("#3.2": the second topic of the third session that was followed), which then is the context of
the request; `answered` takes the whole conversation when the turn has finished. What is new in a
prompt is what lies behind the longest prompt or conversation of the session that it goes on from:
those are remembered as keyed digests, so that resent history is never mistaken for news.

What is known of a session hangs on its record and goes with it. Bounded: sessions followed (those
used longest ago are forgotten first), profiles and digests per session, namespaces. Namespaces
and salts share nothing, and no token can be read back. Standard library only; no clock.
"""

from __future__ import annotations

import hashlib
import itertools
import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeAlias

from kveik.cache.followed import Followed, Scope
from kveik.cache.prefix import unpack_tokens
from kveik.cache.relevance import Features, TopicSpace, Tracker
from kveik.cache.sessions import Session

MOST_SESSIONS = 256  # followed at a time, of about 0.6 MB each
MOST_SPACES = 64

MakeTracker: TypeAlias = Callable[[Features, TopicSpace], Tracker]


def is_topic(context: str) -> bool:
    """Was this context found here, and not announced? (What callers announce has no such sign.)"""
    return context.startswith("#")


class Topics:
    """See the module. make: of a tracker, the seam for another scorer."""

    def __init__(self, make: MakeTracker) -> None:
        self._make = make
        self._key = secrets.token_bytes(32)
        self._features = Features(secrets.token_bytes(64))
        self._numbers = itertools.count(1)
        self._spaces: OrderedDict[Scope, TopicSpace] = OrderedDict()
        self._sessions: OrderedDict[int, Session] = OrderedDict()  # by number, as used

    def context(self, session: Session, scope: Scope, prompt: bytes) -> str:
        """The topic of this prompt (packed tokens). A prompt that goes on from one whose turn is
        still open belongs to that turn: it was preempted, or is asked once more."""
        followed = self._follow(session, scope)
        shared = self._shared(followed, prompt)
        if not 0 < followed.open <= shared:
            turn = followed.tracker.turn(unpack_tokens(prompt[shared:]))
            followed.context = f"#{followed.number}.{turn.topic}"
            followed.open = len(prompt)
            followed.remember(len(prompt), self._digest(prompt))
        return followed.context

    def answered(self, session: Session, conversation: bytes) -> None:
        """The open turn has finished; conversation: its prompt and what was generated for it."""
        followed = session.followed
        if followed is None or not followed.open:
            return
        followed.tracker.answer(unpack_tokens(conversation[followed.open :]))
        followed.remember(len(conversation), self._digest(conversation))
        followed.open = 0

    def forget(self, namespace: str) -> None:
        """Nothing is known of this namespace any more."""
        for scope in [scope for scope in self._spaces if scope[0] == namespace]:
            del self._spaces[scope]
        for session in self._sessions.values():
            if session.followed is not None and session.followed.scope[0] == namespace:
                session.followed = None

    def _follow(self, session: Session, scope: Scope) -> Followed:
        followed = session.followed
        if followed is None or followed.scope != scope:
            tracker = self._make(self._features, self._space(scope))
            session.followed = followed = Followed(next(self._numbers), scope, tracker)
            self._sessions[followed.number] = session
            while len(self._sessions) > MOST_SESSIONS:
                number, oldest = self._sessions.popitem(last=False)
                if oldest.followed is not None and oldest.followed.number == number:
                    oldest.followed = None
        self._sessions.move_to_end(followed.number)
        return followed

    def _space(self, scope: Scope) -> TopicSpace:
        found = self._spaces.setdefault(scope, TopicSpace())
        self._spaces.move_to_end(scope)
        if len(self._spaces) > MOST_SPACES:
            self._spaces.popitem(last=False)
        return found

    def _digest(self, data: bytes) -> bytes:
        return hashlib.blake2b(data, key=self._key, digest_size=16).digest()

    def _shared(self, followed: Followed, data: bytes) -> int:
        """Bytes of the longest remembered prompt or conversation that `data` begins with."""
        digest, at, shared = hashlib.blake2b(key=self._key, digest_size=16), 0, 0
        for length in sorted(followed.ends):
            if length > len(data):
                break
            digest.update(data[at:length])
            at = length
            if digest.copy().digest() == followed.ends[length]:
                shared = length
        return shared
