"""From tokens to the events of one request: text, stop strings, and exactly one ending.

A fault of the detokeniser or of the sink shows here as an exception; the engine ends this request
and no other (invariant 12). Nothing is sent after the ending.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TypeAlias

from kveik.engine.history import Sessions, Turn
from kveik.engine.request import (
    ChoiceDelta,
    ChoiceFinished,
    EventSink,
    FinishReason,
    PromptReady,
    Request,
    RequestAborted,
    RequestFailed,
    RequestFinished,
)
from kveik.engine.sequence import ChoiceEnded, TokenAccepted, Work
from kveik.engine.stop import ChoiceText, Piece
from kveik.engine.tokenizer import Tokenizer
from kveik.errors import KveikError

Ending: TypeAlias = RequestFinished | RequestFailed | RequestAborted
Told: TypeAlias = TokenAccepted | ChoiceEnded | PromptReady | Ending
"""What the engine's thread says of a request. Usage counts the tokens that were computed."""


_STREAM_PIECES = 64


class Delivery:
    """Sends the events of one request to its sink. `tell` is called by one thread: the one that
    makes texts (engine/outbox.py). has_text: the request is to have tokens at all; may_stop: its
    text may end it; at_once: its news may not wait for that thread."""

    def __init__(
        self, request: Request, sink: EventSink, tokenizer: Tokenizer, history: Sessions
    ) -> None:
        params = request.params
        self.request = request
        self.has_text = params.max_tokens != 0
        self.may_stop = bool(params.stop)
        # A stream that stays open must not compute a token behind its stop string.
        stays = request.stream is not None and request.directive.session is not None
        self.at_once = not self.has_text or (self.may_stop and stays)
        self.work: Work | None = None  # set when the scheduler has taken the request; not read here
        self.accepted_at = 0.0
        self._history = history
        self._turn: Turn | None = None
        # By choice 0, where the turn is to be remembered: of a stream the end of it.
        self._said: deque[str] = deque(maxlen=_STREAM_PIECES if request.stream else None)
        self._ended = False
        self._tokens = 0  # told so far
        self._finish_reasons: dict[int, FinishReason] = {}
        self._sink = sink
        self._texts = [
            ChoiceText(
                tokenizer.detokenizer(
                    skip_special_tokens=params.skip_special_tokens,
                    prompt_token_ids=request.prompt_token_ids,
                ),
                params.stop,
                include=params.include_stop_str_in_output,
                min_tokens=params.min_tokens,
            )
            for _ in range(params.n)
        ]

    def accepted(self, now: float) -> None:
        """The request is in the queue; from here on it ends in exactly one of three ways."""
        self.accepted_at = now
        request = self.request
        self._turn = self._history.begin(
            request.namespace,
            request.directive,
            request.messages,
            request.prompt_token_ids,
            request.stream,
            request.resumes,
            request.kept,
        )

    def reason(self, told: Told) -> str | None:
        """How the request ends with this, in the words of the metrics; None: it goes on."""
        if isinstance(told, RequestFinished):
            return "length" if "length" in self._finish_reasons.values() else "stop"
        if isinstance(told, RequestFailed):
            return "error"
        return "abort" if isinstance(told, RequestAborted) else None

    def tell(self, told: Told) -> int | None:
        """Send what it brings. The choice that a stop string ended, where the engine does not know
        that it is over."""
        if self._ended:
            return None
        if isinstance(told, TokenAccepted):
            return self._token(told)
        if isinstance(told, ChoiceEnded):
            self._finish(told.choice, told.finish, None)
        elif isinstance(told, PromptReady):
            asked = self.request.explain  # somebody who watches may have wanted it explained
            self._sink(told if asked else replace(told, divergence=None))
        else:
            self._end(told)
        return None

    def _token(self, accepted: TokenAccepted) -> int | None:
        """A token that was computed before the engine heard of the choice's stop string is no part
        of it."""
        choice, token = accepted.choice, accepted.token
        if choice in self._finish_reasons:
            return None
        self._tokens += 1
        piece = self._piece(accepted)
        logprobs = () if token.logprobs is None else (token.logprobs,)
        if self._turn is not None and choice == 0:
            self._said.append(piece.text)
        self._sink(ChoiceDelta(choice, piece.text, (token.token_id,), logprobs))
        if piece.stop is not None:
            self._finish(choice, "stop", piece.stop)
        elif accepted.finish is not None:
            self._finish(choice, accepted.finish, accepted.stop_reason)
        return choice if piece.stop is not None and accepted.finish is None else None

    def _piece(self, accepted: TokenAccepted) -> Piece:
        """The text of one token; an ending token is text only where stops are to be included."""
        text, params = self._texts[accepted.choice], self.request.params
        head = Piece("")
        if accepted.finish != "stop" or params.include_stop_str_in_output:
            head = text.push(accepted.token.token_id)
        if accepted.finish is None or head.stop is not None:
            return head
        tail = text.finish()
        return Piece(head.text + tail.text, tail.stop)

    def _finish(self, choice: int, reason: FinishReason, stop: str | int | None) -> None:
        self._finish_reasons[choice] = reason
        self._sink(ChoiceFinished(choice, reason, stop))

    def _close_turn(self, *, finished: bool) -> None:
        """Before the ending is told, so that whoever hears of it may go on from this turn."""
        if self._turn is None:
            return
        if finished:
            self._history.finish(self._turn, "".join(self._said))
        else:
            self._history.drop(self._turn)
        self._turn = None

    def fail(self, error: KveikError) -> None:
        """Something went wrong while events were sent."""
        if not self._ended:
            self._end(RequestFailed(error))

    def _end(self, ending: Ending) -> None:
        self._ended = True
        self._close_turn(finished=self.has_text and isinstance(ending, RequestFinished))
        if not isinstance(ending, RequestFailed):
            usage = replace(ending.usage, completion_tokens=self._tokens)
            ending = replace(ending, usage=usage)
        self._sink(ending)
