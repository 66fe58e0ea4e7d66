"""A trace of live traffic: when prompts came, how long they were, which began alike. No text.

    sink of a request  -> note     a bounded queue; never waits
    thread of its own  -> lines    keyed digests, JSON, one write per request

Each line is what docs/POLICY_LABORATORY.md describes: Mooncake's fields (`timestamp` in ms since
the start, `input_length`, `output_length`, `hash_ids`), and `block_size`, `answer_ids`, `namespace`
and `session` beside them. A digest is keyed with a random key of the file, which nobody keeps: it
says that two beginnings are equal and nothing about what they are. Lines are in the order in which
requests end. What is recorded is what the cache sees as one sequence from its beginning: neither
streams, nor prompts joined from modules, nor requests that may reuse nothing.

Recording never stands in the way of serving: what cannot be queued or written is not recorded, and
the log says so once.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from kveik.engine.request import (
    ChoiceDelta,
    Event,
    EventSink,
    Request,
    RequestAborted,
    RequestFinished,
)
from kveik.errors import ConfigError

_log = logging.getLogger(__name__)

MOST_WAITING = 1024
"""Requests that wait to be written; and so many thousand tokens of theirs."""

MOST_BYTES = 2**30
"""Size at which a trace ends."""

_ID_BITS = 53
"""Of a hash id, so that every reader of JSON keeps it whole."""


@dataclass(slots=True)
class _Entry:
    """One request. seconds: its arrival since the recorder's start."""

    seconds: float
    request: Request
    output: list[int] = field(default_factory=list)  # of the first choice

    @property
    def tokens(self) -> int:
        return len(self.request.prompt_token_ids) + len(self.output)


class Recorder:
    """Writes a new file. ConfigError when it is there already or cannot be made."""

    def __init__(self, path: Path, block_size: int, clock: Callable[[], float]) -> None:
        try:
            self._file = open(path, "xb", buffering=0)  # noqa: SIM115  (closed by `close`)
        except FileExistsError:
            raise ConfigError(
                f"record: {path} is there already; name a new file", param="record"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"record: {path} cannot be written ({error})", param="record"
            ) from None
        self._path, self._clock, self._started = path, clock, clock()
        self._digests = _Digests(block_size)
        self._changed = threading.Condition()  # guards the fields below
        self._waiting: deque[_Entry] = deque()
        self._tokens = 0  # of what waits
        self._closing = False
        self._ended = False  # nothing more is written
        self._told = False  # that something was left out
        self._thread = threading.Thread(target=self._loop, name="kveik-recorder", daemon=True)
        self._thread.start()

    # ---- whoever submits, and the thread that makes texts

    def listen(self, request: Request, sink: EventSink) -> EventSink:
        """A sink that passes everything on and notes the request when it is over."""
        if self._ended or not _is_plain(request):
            return sink
        entry = _Entry(self._clock() - self._started, request)

        def heard(event: Event) -> None:
            if isinstance(event, ChoiceDelta):
                if not event.choice:
                    entry.output.extend(event.token_ids)
            elif isinstance(event, RequestFinished | RequestAborted):
                self._note(entry)
            sink(event)

        return heard

    def _note(self, entry: _Entry) -> None:
        with self._changed:
            full = len(self._waiting) >= MOST_WAITING or self._tokens > 1000 * MOST_WAITING
            if not (full or self._ended or self._closing):
                self._waiting.append(entry)
                self._tokens += entry.tokens
                self._changed.notify_all()
        if full and not self._told:
            self._told = True
            _log.warning(
                "record: requests end faster than %s can be written; some are left out", self._path
            )

    def close(self) -> None:
        """Write what waits, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    # ---- the recorder's thread

    def _loop(self) -> None:
        try:
            while (entry := self._next()) is not None:
                self._write(self._digests.line(entry.seconds, entry.request, entry.output))
        except OSError as error:
            self._end(f"cannot be written ({error.strerror or error})")
        finally:
            with self._changed:
                self._ended = True
                self._waiting.clear()
            self._file.close()

    def _next(self) -> _Entry | None:
        """The next one; None when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if not self._waiting or self._ended:
                return None
            entry = self._waiting.popleft()
            self._tokens -= entry.tokens
            return entry

    def _write(self, line: bytes) -> None:
        """The whole line or nothing of it."""
        before = self._file.tell()
        if before + len(line) > MOST_BYTES:
            self._end(f"has reached {MOST_BYTES:,} bytes")
            return
        try:
            left = memoryview(line)
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            os.truncate(self._file.fileno(), before)
            raise

    def _end(self, why: str) -> None:
        self._ended = True
        _log.warning(
            "record: %s %s; nothing more is recorded, requests are served as before",
            self._path,
            why,
        )


class _Digests:
    """Lines of a trace, under a key of its own."""

    def __init__(self, block_size: int) -> None:
        self._key = secrets.token_bytes(32)
        self._size = block_size

    def line(self, seconds: float, request: Request, output: Sequence[int]) -> bytes:
        prompt = array("I", request.prompt_token_ids)
        whole = len(prompt) // self._size
        space = self._name("namespace", request.namespace, request.salt)
        ids, state = self._chain(space.encode(), prompt[: whole * self._size])
        behind = prompt[whole * self._size :]
        tail, _ = self._chain(state, behind)
        answer, _ = self._chain(state, behind + array("I", output[:-1]))
        session = request.directive.session
        entry = {
            "timestamp": max(round(1000 * seconds), 0),
            "input_length": len(prompt),
            "output_length": len(output),
            "hash_ids": ids + tail,
            "answer_ids": answer,
            "block_size": self._size,
            "namespace": space,
            "session": "" if session is None else self._name("session", space, session),
        }
        return json.dumps(entry, separators=(",", ":")).encode() + b"\n"

    def _chain(self, state: bytes, tokens: array[int]) -> tuple[list[int], bytes]:
        """A number for each block, of all up to its end; and what a next one would go on from."""
        ids = []
        for start in range(0, len(tokens), self._size):
            block = tokens[start : start + self._size].tobytes()
            state = blake2b(state + block, digest_size=32, key=self._key).digest()
            ids.append(int.from_bytes(state[:8]) >> (64 - _ID_BITS))
        return ids, state

    def _name(self, kind: str, *parts: str) -> str:
        """A digest of a name; of the namespace of a server without keys nothing."""
        if not any(parts):
            return ""
        text = "\0".join((kind, *parts)).encode("utf-8", "surrogatepass")
        return blake2b(text, digest_size=8, key=self._key).hexdigest()


def _is_plain(request: Request) -> bool:
    """Does the cache see it as one sequence from its beginning, and may it reuse all of that?"""
    return (
        request.reuse
        and request.params.use_cache
        and request.params.prompt_logprobs is None
        and not request.embed
        and request.joined is None
        and request.stream is None
        and not request.resumes
    )
