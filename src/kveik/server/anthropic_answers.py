"""Events of the engine as Anthropic's message, whole and as a stream of named events.

    message_start, content_block_start, ping, content_block_delta ..., content_block_stop,
    message_delta, message_stop

A message without text has no content block. usage: what came from the cache is
cache_read_input_tokens, wherever a breakpoint is; what this request computed and left in the cache
up to its last breakpoint is cache_creation_input_tokens; the rest is input_tokens. The three add up
to the prompt. What was reused approximately (of modules, behind something forgotten) is no read of
the cache: it is part of the rest, and told in usage.kveik. What lies behind the last breakpoint is
cached too, as plain use that promises no time, so that it is not counted as written. message_start
tells what is expected to be written, message_delta what was.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from kveik.engine.request import (
    ChoiceDelta,
    ChoiceFinished,
    FinishReason,
    PromptReady,
    RequestFinished,
)
from kveik.errors import KveikError
from kveik.server import anthropic_errors
from kveik.server.bridge import Tagged
from kveik.server.cache_report import Account
from kveik.server.sse import frame

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Breakpoints:
    """prompt: its tokens. hour, last: the tokens up to the last breakpoint that lasts an hour, and
    up to the last one of any kind."""

    prompt: int
    hour: int = 0
    last: int = 0

    def usage(self, cached: int, stored: int) -> Json:
        """stored: prompt tokens that were computed and left in the cache, behind the cached."""
        end = cached + stored
        written = max(0, min(end, self.last) - cached)
        hour = max(0, min(end, self.hour) - cached)
        return {
            "input_tokens": self.prompt - cached - written,
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": cached,
            "cache_creation": {
                "ephemeral_5m_input_tokens": written - hour,
                "ephemeral_1h_input_tokens": hour,
            },
        }


class MessageAnswer:
    """One message while it grows. overlong: max_tokens is more than the context has room for."""

    ping = frame({"type": "ping"}, "ping")

    def __init__(
        self,
        model: str,
        breakpoints: Breakpoints,
        request_id: str,
        account: Account,
        *,
        stores: bool,
        overlong: bool,
    ) -> None:
        self._id = f"msg_{uuid.uuid4().hex}"
        self._model = model
        self._breakpoints = breakpoints
        self._request_id = request_id
        self._account = account
        self._stores = stores
        self._overlong = overlong
        self._text: list[str] = []
        self._stop: Json = {"stop_reason": None, "stop_sequence": None}
        self._usage: Json = {}

    def take(self, tagged: Tagged) -> None:
        event = tagged[1]
        if isinstance(event, PromptReady):
            self._account.ready(event)
            reused = event.cached_tokens + event.approximate_cached_tokens
            expected = self._breakpoints.prompt - reused if self._stores else 0
            self._usage = {
                **self._breakpoints.usage(event.cached_tokens, expected),
                "output_tokens": 0,
            }
        elif isinstance(event, ChoiceDelta):
            if event.text:
                self._text.append(event.text)
        elif isinstance(event, ChoiceFinished):
            self._stop = self._stopped(event.finish_reason, event.stop_reason)
        elif isinstance(event, RequestFinished):
            used = event.usage
            self._usage = {
                **self._breakpoints.usage(used.cached_tokens, used.stored_tokens),
                "output_tokens": used.completion_tokens,
                "kveik": self._account.json(used),
            }

    def whole(self) -> Json:
        text = "".join(self._text)
        return self._message([{"type": "text", "text": text}] if text else [])

    def frames(self, tagged: Tagged) -> bytes:
        event = tagged[1]
        begun = bool(self._text)
        self.take(tagged)
        if isinstance(event, PromptReady):
            return _named("message_start", message=self._message([]))
        if isinstance(event, ChoiceDelta) and event.text:
            delta = {"type": "text_delta", "text": event.text}
            grown = _named("content_block_delta", index=0, delta=delta)
            return grown if begun else self._open_block() + grown
        if isinstance(event, RequestFinished):
            closed = _named("content_block_stop", index=0) if begun else b""
            usage = {name: n for name, n in self._usage.items() if name != "cache_creation"}
            return closed + _named("message_delta", delta=self._stop, usage=usage)
        return b""

    def ending(self) -> bytes:
        return _named("message_stop")

    def failure(self, error: KveikError) -> bytes:
        return frame(anthropic_errors.body(error, self._request_id), "error")

    def _open_block(self) -> bytes:
        block = {"type": "text", "text": ""}
        return _named("content_block_start", index=0, content_block=block) + self.ping

    def _message(self, content: list[Json]) -> Json:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            **self._stop,
            "usage": self._usage,
        }

    def _stopped(self, finish: FinishReason, stop: str | int | None) -> Json:
        if finish == "length":
            reason = "model_context_window_exceeded" if self._overlong else "max_tokens"
            return {"stop_reason": reason, "stop_sequence": None}
        if isinstance(stop, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": stop}
        return {"stop_reason": "end_turn", "stop_sequence": None}


def _named(kind: str, **fields: Any) -> bytes:
    return frame({"type": kind, **fields}, kind)
