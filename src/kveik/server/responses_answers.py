"""Events of the engine as OpenAI's response object, whole and as a stream of typed events.

    response.created, response.in_progress, response.output_item.added,
    response.content_part.added, response.output_text.delta ..., response.output_text.done,
    response.content_part.done, response.output_item.done,
    response.completed | response.incomplete | response.failed

The output is one message with one text. sequence_number counts the events of a stream from 0.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from kveik.engine.request import (
    ChoiceDelta,
    ChoiceFinished,
    PromptReady,
    RequestFinished,
    SamplingParams,
    Usage,
)
from kveik.errors import KveikError
from kveik.server.bridge import Tagged
from kveik.server.cache_report import Account
from kveik.server.responses_fields import ResponseRequest
from kveik.server.sse import PING, frame

Json = dict[str, Any]

_PLACE = {"output_index": 0, "content_index": 0}


class ResponseAnswer:
    """One response while it grows."""

    ping = PING

    def __init__(self, body: ResponseRequest, params: SamplingParams, account: Account) -> None:
        self._id = f"resp_{uuid.uuid4().hex}"
        self._item = f"msg_{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._body = body
        self._params = params
        self._account = account
        self._begun = False
        self._text: list[str] = []
        self._status = "in_progress"
        self._usage: Json | None = None
        self._error: Json | None = None
        self._sent = 0

    def take(self, tagged: Tagged) -> None:
        event = tagged[1]
        if isinstance(event, PromptReady):
            self._account.ready(event)
        elif isinstance(event, ChoiceDelta):
            self._text.append(event.text)
        elif isinstance(event, ChoiceFinished):
            self._status = "incomplete" if event.finish_reason == "length" else "completed"
        elif isinstance(event, RequestFinished):
            self._usage = {**_usage(event.usage), "kveik": self._account.json(event.usage)}

    def whole(self) -> Json:
        return self._response([self._message()])

    def frames(self, tagged: Tagged) -> bytes:
        event = tagged[1]
        self.take(tagged)
        if isinstance(event, PromptReady):
            return self._opening()
        if isinstance(event, ChoiceDelta) and event.text:
            return self._part("output_text.delta", delta=event.text, logprobs=[])
        if isinstance(event, RequestFinished):
            return self._closing()
        return b""

    def ending(self) -> bytes:
        """The last event has come with the usage."""
        return b""

    def failure(self, error: KveikError) -> bytes:
        told = {"code": error.code, "message": error.message, "param": error.param}
        frames = self._event("error", **told)
        if not self._begun:
            return frames
        self._status = "failed"
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        self._error = {"code": code, "message": error.message}
        return frames + self._event("response.failed", response=self._response([]))

    def _opening(self) -> bytes:
        self._begun = True
        return b"".join(
            (
                self._event("response.created", response=self._response([])),
                self._event("response.in_progress", response=self._response([])),
                self._output("output_item.added", {**self._message(), "content": []}),
                self._part("content_part.added", part=_text_part("")),
            )
        )

    def _closing(self) -> bytes:
        text = "".join(self._text)
        message = self._message()
        return b"".join(
            (
                self._part("output_text.done", text=text, logprobs=[]),
                self._part("content_part.done", part=_text_part(text)),
                self._output("output_item.done", message),
                self._event(f"response.{self._status}", response=self._response([message])),
            )
        )

    def _event(self, kind: str, **fields: Any) -> bytes:
        number = self._sent
        self._sent += 1
        return frame({"type": kind, "sequence_number": number, **fields}, kind)

    def _part(self, kind: str, **fields: Any) -> bytes:
        return self._event(f"response.{kind}", item_id=self._item, **_PLACE, **fields)

    def _output(self, kind: str, item: Json) -> bytes:
        return self._event(f"response.{kind}", output_index=0, item=item)

    def _message(self) -> Json:
        return {
            "id": self._item,
            "type": "message",
            "status": self._status,
            "role": "assistant",
            "content": [_text_part("".join(self._text))],
        }

    def _response(self, output: list[Json]) -> Json:
        body, incomplete = self._body, self._status == "incomplete"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": self._status,
            "background": False,
            "error": self._error,
            "incomplete_details": {"reason": "max_output_tokens"} if incomplete else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": body.model,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "prompt_cache_key": body.prompt_cache_key,
            "store": False,
            "temperature": self._params.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": self._params.top_p,
            "truncation": "disabled",
            "usage": self._usage,
            "user": body.user,
        }


def _text_part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(used: Usage) -> Json:
    """Extension, as in chat: `approximate_cached_tokens`, never counted as cached."""
    details = {"cached_tokens": used.cached_tokens, "cache_write_tokens": used.stored_tokens}
    if used.approximate_cached_tokens:
        details["approximate_cached_tokens"] = used.approximate_cached_tokens
    return {
        "input_tokens": used.prompt_tokens,
        "input_tokens_details": details,
        "output_tokens": used.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used.prompt_tokens + used.completion_tokens,
    }
