"""The finished turns of sessions: what `continue: true` puts before the messages of a request.

    begin   a request of a session was accepted: its turn is open
    finish  it ended well: the conversation, answer included, takes the place of the one before
    drop    it was aborted or failed: nothing changes

So the next prompt is always the last finished conversation and the new message, whatever was cut
in between. Of two turns that run at the same time, the one that finishes last is kept.

What is kept is bounded per namespace, by conversations and by bytes (the least recently used go
first), and it is gone when the session ends, idles, is invalidated, or its time to live deletes
it; a turn that was open then is not entered either. Any thread. Standard library only.
"""

from __future__ import annotations

import math
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kveik.cache.directive import Directive, Selector
from kveik.cache.join import JoinedPrompt
from kveik.cache.window import StreamWindow
from kveik.config import LIMITS
from kveik.engine.past import Kept, Mark, Message, Past, marked
from kveik.errors import Conflict

_MESSAGE_BYTES = 128  # of a message beside its text: keys and records
_TOKEN_BYTES = 4
_ID_BYTES = 8  # of a pointer to a shared number
_STREAM_PROMPT = 4096  # token ids of the beginning of a stream that are kept


@dataclass(slots=True, eq=False)
class Turn:
    """One request of a session, from its acceptance on. The caller only hands it back."""

    namespace: str
    session: str
    messages: tuple[Message, ...]
    prompt: array[int]  # its token ids
    directives: tuple[Directive, ...]  # of this turn and of the finished ones that it goes on from
    started: tuple[float, ...]  # when each of them began
    used: float  # last
    size: int = 0  # bytes
    answer: tuple[Message, ...] = ()
    window: StreamWindow | None = None  # of a stream, whose whole text nobody keeps
    marks: tuple[Mark, ...] = ()  # of messages and answer
    turns: int = 0
    joined: JoinedPrompt | None = None  # see Past
    forgotten: int = 0

    def deadline(self) -> float | None:
        """When the first part of it is to be deleted."""
        ends = [
            (started if ttl.clock == "first_use" else self.used) + ttl.seconds
            for one, started in zip(self.directives, self.started, strict=True)
            for ttl in (one.ttl, *(span.ttl for span in one.spans))
            if ttl is not None and ttl.mode == "delete"
        ]
        return min(ends, default=None)

    def matches(self, selector: Selector, now: float) -> bool:
        """Does a part of this conversation come under the selector?"""
        if selector.namespace != self.namespace or selector.name is not None or selector.adapter:
            return False
        if selector.session not in (None, self.session):
            return False
        prefix = array("I", selector.prefix)
        if self.window is not None:  # what is not kept of it might match
            prefix = prefix[: len(self.prompt)]
        if prefix != self.prompt[: len(prefix)]:
            return False
        return any(
            _matches(one, now - started, selector)
            for one, started in zip(self.directives, self.started, strict=True)
        )


@dataclass(slots=True)
class _Shelf:
    """The conversations of one namespace by session, the least recently used first."""

    turns: dict[str, Turn] = field(default_factory=dict)
    size: int = 0

    def put(self, turn: Turn) -> None:
        self.take(turn.session)
        self.turns[turn.session] = turn
        self.size += turn.size
        most, bytes_ = int(LIMITS["history_sessions"].high), int(LIMITS["history_bytes"].high)
        while len(self.turns) > most or self.size > bytes_:
            self.take(next(iter(self.turns)))

    def take(self, session: str) -> Turn | None:
        turn = self.turns.pop(session, None)
        self.size -= turn.size if turn is not None else 0
        return turn


class Sessions:
    """See the module. idle: seconds without a request after which a session is over."""

    def __init__(
        self,
        idle: float,
        clock: Callable[[], float],
        on_forget: Callable[[str, str], None] = lambda namespace, session: None,
    ) -> None:
        self._idle = idle
        self._clock = clock
        self._on_forget = on_forget  # hears of a session that is forgotten; must return at once
        self._lock = threading.Lock()
        self._shelves: dict[str, _Shelf] = {}
        self._open: set[Turn] = set()
        self._due = math.inf  # nothing ends before

    def continued(
        self, namespace: str, session: str, messages: Sequence[Message]
    ) -> tuple[Message, ...]:
        """The finished turns of a session with `messages` behind them.

        Raises Conflict where nothing is known of the session (any more)."""
        return (*self.past(namespace, session).messages, *messages)

    def past(self, namespace: str, session: str) -> Past:
        """The finished turns of a session. Raises Conflict like `continued`."""
        now = self._clock()
        with self._lock:
            self._expire(now)
            shelf = self._shelves.get(namespace)
            turn = shelf.turns.get(session) if shelf is not None else None
            if turn is not None and turn.window is not None:
                raise Conflict(
                    f"kveik.continue: the stream of the session {session!r} is answering, or was "
                    "cut in the middle of an answer; begin another one without continue",
                    param="kveik.continue",
                )
            if turn is None or shelf is None:
                raise Conflict(
                    f"kveik.continue: nothing is kept of the session {session!r}: it has no "
                    "finished turn, or it ended; send the whole conversation without continue",
                    param="kveik.continue",
                )
            turn.used = now
            shelf.turns[session] = shelf.turns.pop(session)
            said = (*turn.messages, *turn.answer)
            return Past(
                said, turn.marks, turn.turns, tuple(turn.prompt), turn.joined, turn.forgotten
            )

    def knows(self, namespace: str, session: str) -> bool:
        """Is a finished turn of the session kept?"""
        with self._lock:
            self._expire(self._clock())
            return self._known(namespace, session) is not None

    def retold(self, namespace: str, session: str, messages: Sequence[Message]) -> Past:
        """The same of a session whose conversation is sent again: all up to the last answer in
        `messages`. What the session knows of these turns it knows still."""
        ends = [place for place, one in enumerate(messages) if one.get("role") == "assistant"]
        said = tuple(messages[: ends[-1] + 1]) if ends else ()
        with self._lock:
            before = self._known(namespace, session)
            same = before is not None and _goes_on(said, before)
            known = (before.marks, before.turns) if before is not None and same else ((), 0)
        return Past(said, *marked(said, *known, ()))

    def begin(
        self,
        namespace: str,
        directive: Directive,
        messages: Sequence[Message],
        prompt: Sequence[int],
        window: StreamWindow | None = None,
        resumes: bool = False,
        kept: Kept | None = None,
    ) -> Turn | None:
        """Open a turn; None where the request belongs to no session or has no messages. window: it
        is a stream, of which the last message is kept; resumes: it goes on from the one before;
        kept: it does so without what was forgotten."""
        if directive.session is None or not (messages or window):
            return None
        now = self._clock()
        turn = Turn(
            namespace,
            directive.session,
            tuple(messages[-1:] if window else messages),
            array("I", prompt[:_STREAM_PROMPT] if window else prompt),
            (directive,),
            (now,),
            now,
            window=window,
        )
        known: tuple[tuple[Mark, ...], int] = ((), 0)
        if kept is not None:
            known = kept.marks, kept.turns
            turn.joined, turn.forgotten = kept.joined, kept.forgotten
        with self._lock:
            before = self._known(namespace, directive.session)
            if before is not None and resumes:
                turn.prompt = before.prompt
            same = before is not None and (resumes or _goes_on(turn.messages, before))
            if before is not None and same and kept is None:
                known = before.marks, before.turns
            if before is not None and (same or kept is not None):
                if directive in before.directives:  # what began earlier ends earlier
                    turn.directives, turn.started = before.directives, before.started
                else:
                    turn.directives = (*before.directives, directive)
                    turn.started = (*before.started, now)
            if window is None:
                turn.marks, turn.turns = marked(turn.messages, *known, directive.tags)
            self._open.add(turn)
        return turn

    def finish(self, turn: Turn, answer: str) -> None:
        """The turn ended well; `answer` is what the model said."""
        turn.answer = ({"role": "assistant", "content": answer},)
        turn.marks += turn.marks[-1:]
        turn.size = _size(turn)
        turn.used = self._clock()
        with self._lock:
            if turn not in self._open:
                self._on_forget(turn.namespace, turn.session)
            else:
                self._open.discard(turn)
                self._shelves.setdefault(turn.namespace, _Shelf()).put(turn)
                self._due = min(self._due, self._end_of(turn))

    def drop(self, turn: Turn) -> None:
        """The turn was cut: it never was."""
        with self._lock:
            self._open.discard(turn)

    def end(self, namespace: str, session: str) -> bool:
        """The session is over. False: nothing was kept of it."""
        with self._lock:
            open_turns = [one for one in self._open if _is_of(one, namespace, session)]
            self._open.difference_update(open_turns)
            shelf = self._shelves.get(namespace)
            return shelf is not None and shelf.take(session) is not None

    def invalidate(self, selector: Selector) -> None:
        """Forget every conversation, finished or open, that has a part under the selector."""
        now = self._clock()
        with self._lock:
            self._forget(lambda turn: turn.matches(selector, now))

    def reset(self, namespace: str | None = None) -> None:
        with self._lock:
            self._forget(lambda turn: namespace in (None, turn.namespace))

    def tick(self) -> None:
        """Drop what has idled or expired."""
        with self._lock:
            self._expire(self._clock())

    def next_deadline(self) -> float | None:
        """When `tick` has something to do at the latest."""
        return None if self._due == math.inf else self._due

    def sizes(self) -> tuple[int, int]:
        """(conversations, their bytes)"""
        with self._lock:
            shelves = self._shelves.values()
            return sum(len(one.turns) for one in shelves), sum(one.size for one in shelves)

    # ---- under the lock

    def _known(self, namespace: str, session: str) -> Turn | None:
        shelf = self._shelves.get(namespace)
        return shelf.turns.get(session) if shelf is not None else None

    def _kept(self) -> Iterator[Turn]:
        for shelf in self._shelves.values():
            yield from shelf.turns.values()

    def _end_of(self, turn: Turn) -> float:
        deadline, idle = turn.deadline(), turn.used + self._idle
        return idle if deadline is None else min(deadline, idle)

    def _expire(self, now: float) -> None:
        """Uses put ends off, so that `_due` is a lower bound and most calls have nothing to do."""
        if now >= self._due:
            self._forget(lambda turn: turn.answer != () and now >= self._end_of(turn))
            self._due = min(map(self._end_of, self._kept()), default=math.inf)

    def _forget(self, gone: Callable[[Turn], bool]) -> None:
        for turn in [turn for turn in self._kept() if gone(turn)]:
            self._shelves[turn.namespace].take(turn.session)
            self._on_forget(turn.namespace, turn.session)
        self._open = {turn for turn in self._open if not gone(turn)}
        self._shelves = {name: shelf for name, shelf in self._shelves.items() if shelf.turns}


def _is_of(turn: Turn, namespace: str, session: str) -> bool:
    return (turn.namespace, turn.session) == (namespace, session)


def _goes_on(messages: tuple[Message, ...], before: Turn) -> bool:
    """Do these messages begin with that conversation?"""
    said = (*before.messages, *before.answer)
    return messages[: len(said)] == said


def _matches(directive: Directive, age: float, selector: Selector) -> bool:
    if selector.tag is not None and selector.tag not in directive.tags:
        return False
    if selector.context not in (None, directive.context):
        return False
    if selector.older_than is not None and age < selector.older_than:
        return False
    return selector.document is None or any(
        one.document == selector.document
        and selector.version in (None, one.version)
        and selector.not_version != one.version
        for one in directive.documents
    )


def _size(turn: Turn) -> int:
    said = (*turn.messages, *turn.answer)
    ids = _TOKEN_BYTES * len(turn.prompt)
    if turn.joined is not None:
        ids += _ID_BYTES * turn.joined.kept_tokens
    return sum(map(text_bytes, said)) + _MESSAGE_BYTES * len(said) + ids


def text_bytes(value: object) -> int:
    """Bytes of all strings in a message."""
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, Mapping):
        return sum(map(text_bytes, value.values()))
    if isinstance(value, Sequence):
        return sum(map(text_bytes, value))
    return 0
