"""From tokens to the events of one request: text, stop strings, and exactly one ending.

A fault of the detokeniser or of the sink shows here as an exception; the engine ends this request
and no other (invariant 12). Nothing is sent after the ending.
"""

from __future__ import annotations

from kveik.engine.history import Sessions, Turn
from kveik.engine.request import (
    ChoiceDelta,
    ChoiceFinished,
    Event,
    EventSink,
    FinishReason,
    MissReason,
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


class Delivery:
    """Sends the events of one request to its sink. Used by the engine's thread only."""

    def __init__(
        self, request: Request, sink: EventSink, tokenizer: Tokenizer, history: Sessions
    ) -> None:
        params = request.params
        self.request = request
        self._history = history
        self._turn: Turn | None = None
        self._said: list[str] = []  # by choice 0, where the turn is to be remembered
        self.work: Work | None = None  # set when the scheduler has taken the request
        self.ended = False
        self.finish_reasons: dict[int, FinishReason] = {}
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

    def accepted(self) -> None:
        """The request is in the queue; from here on it ends in exactly one of three ways."""
        request = self.request
        self._turn = self._history.begin(
            request.namespace, request.directive, request.messages, request.prompt_token_ids
        )

    def prompt_ready(self) -> None:
        assert self.work is not None
        work, rows = self.work, None
        if self.request.params.prompt_logprobs is not None:
            rows = (None, *work.prompt_logprobs)
        miss = MissReason(work.miss.position, work.miss.reason) if work.miss else None
        self._sink(PromptReady(work.cached_tokens, miss, rows, work.divergence))

    def token(self, accepted: TokenAccepted) -> bool:
        """Send what the token adds. True: a stop string ended the choice."""
        choice, token = accepted.choice, accepted.token
        if choice in self.finish_reasons:
            return False
        piece = self._piece(accepted)
        logprobs = () if token.logprobs is None else (token.logprobs,)
        if self._turn is not None and choice == 0:
            self._said.append(piece.text)
        self._sink(ChoiceDelta(choice, piece.text, (token.token_id,), logprobs))
        if piece.stop is not None:
            self._finish(choice, "stop", piece.stop)
        elif accepted.finish is not None:
            self._finish(choice, accepted.finish, accepted.stop_reason)
        return piece.stop is not None and accepted.finish is None

    def choice_ended(self, ended: ChoiceEnded) -> None:
        """A choice that was to have no token."""
        self._finish(ended.choice, ended.finish, None)

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
        self._sink(ChoiceFinished(choice, reason, stop))
        self.finish_reasons[choice] = reason
        if len(self.finish_reasons) == self.request.params.n:
            assert self.work is not None
            self._close_turn(finished=self.work.max_tokens > 0)
            self._end(RequestFinished(self.work.usage()))

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
        self._end(RequestFailed(error))

    def abort(self) -> None:
        assert self.work is not None
        self._end(RequestAborted(self.work.usage()))

    def _end(self, event: Event) -> None:
        self._close_turn(finished=False)
        if not self.ended:
            self.ended = True
            self._sink(event)
