"""What the Python door returns, under the names that vLLM users know, and how events become it.

Plain records: no engine, no threads, no files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kveik.engine.explain import Explanation
from kveik.engine.plan import TokenLogprobs
from kveik.engine.request import (
    ChoiceDelta,
    ChoiceFinished,
    Event,
    MissReason,
    PromptReady,
    Request,
    RequestAborted,
    RequestFailed,
    Usage,
)
from kveik.errors import KveikError, Unavailable


@dataclass(frozen=True, slots=True)
class Logprob:
    """Log-probability (natural logarithm) of one token at one place. rank 1: the most probable."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


LogprobsAt = dict[int, Logprob]
"""By token id: the token itself first, then the alternatives asked for."""


@dataclass(slots=True)
class CompletionOutput:
    """One choice. logprobs: aligned with token_ids, where asked for; cumulative_logprob: their sum
    over the tokens of the text. stop_reason: stop string or stop token id; None: end of text."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[LogprobsAt] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """Seconds from submission to the first token and to the end."""

    time_to_first_token: float | None
    seconds: float


@dataclass(slots=True)
class RequestOutput:
    """One prompt and its choices. num_cached_tokens: prompt tokens that the KV cache served
    exactly; num_approximate_cached_tokens: those of modules that were computed apart;
    cache_miss: why not more of them; explanation: the same with texts, cause and advice, where
    asked for. usage.computed_prompt_tokens were computed; usage.savings is what the cache saved.
    prompt_logprobs: one per prompt token, the first None."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[LogprobsAt | None] | None = None
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = False
    num_cached_tokens: int = 0
    num_approximate_cached_tokens: int = 0
    cache_miss: MissReason | None = None
    usage: Usage | None = None
    explanation: Explanation | None = None
    metrics: RequestMetrics | None = None


@dataclass(frozen=True, slots=True)
class ScoreOutput:
    """logprobs: of each token given those before it, aligned with prompt_token_ids; first None."""

    prompt: str | None
    prompt_token_ids: list[int]
    logprobs: list[float | None]


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    """embedding: numbers of float32, together of length 1 unless an embedding model says not."""

    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        return len(self.embedding)


@dataclass(frozen=True, slots=True)
class EmbeddingRequestOutput:
    request_id: str
    outputs: EmbeddingOutput
    prompt_token_ids: list[int]
    usage: Usage | None = None
    finished: bool = True


@dataclass(slots=True)
class StreamDelta:
    """New text of one choice. The last delta of a choice has its finish_reason; the last one of the
    request has `usage` (cached tokens among it) and, where asked for, the explanation."""

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    usage: Usage | None = None
    explanation: Explanation | None = None


class OutputCollector:
    """An event sink that grows a RequestOutput; `output` is complete when `ended`."""

    def __init__(
        self, request: Request, token_text: Callable[[int], str], clock: Callable[[], float]
    ) -> None:
        params = request.params
        self.request = request
        self.ready: PromptReady | None = None
        self.output = RequestOutput(
            request.request_id, request.prompt, list(request.prompt_token_ids)
        )
        for index in range(params.n):
            choice = CompletionOutput(index)
            if params.logprobs is not None:
                choice.logprobs, choice.cumulative_logprob = [], 0.0
            self.output.outputs.append(choice)
        self.ended = False
        self.error: KveikError | None = None
        self._token_text = token_text
        self._clock = clock
        self._started = clock()
        self._first_token: float | None = None

    def __call__(self, event: Event) -> None:
        match event:
            case ChoiceDelta():
                self._grow(event)
            case ChoiceFinished(choice, finish_reason, stop_reason):
                self.output.outputs[choice].finish_reason = finish_reason
                self.output.outputs[choice].stop_reason = stop_reason
            case PromptReady():
                self.ready = event
                self._prompt_ready(event)
            case RequestFailed(error):
                self._end(None, error)
            case RequestAborted(usage):
                self._end(usage, Unavailable("the request was aborted"))
            case _:
                self._end(event.usage, None)

    def _prompt_ready(self, event: PromptReady) -> None:
        self.output.num_cached_tokens = event.cached_tokens
        self.output.num_approximate_cached_tokens = event.approximate_cached_tokens
        self.output.cache_miss = event.miss
        if event.prompt_logprobs is not None:
            self.output.prompt_logprobs = [
                None if place is None else self._logprobs(place) for place in event.prompt_logprobs
            ]

    def _grow(self, event: ChoiceDelta) -> None:
        if self._first_token is None:
            self._first_token = self._clock()
        choice = self.output.outputs[event.choice]
        choice.text += event.text
        choice.token_ids.extend(event.token_ids)
        if choice.logprobs is not None and choice.cumulative_logprob is not None:
            choice.logprobs.extend(map(self._logprobs, event.logprobs))
            choice.cumulative_logprob += sum(place.logprob for place in event.logprobs)

    def _logprobs(self, place: TokenLogprobs) -> LogprobsAt:
        text = self._token_text
        found = {place.token_id: Logprob(place.logprob, place.rank, text(place.token_id))}
        for rank, (token_id, logprob) in enumerate(place.top, start=1):
            found.setdefault(token_id, Logprob(logprob, rank, text(token_id)))
        return found

    def _end(self, usage: Usage | None, error: KveikError | None) -> None:
        first = self._first_token
        self.output.metrics = RequestMetrics(
            time_to_first_token=None if first is None else first - self._started,
            seconds=self._clock() - self._started,
        )
        self.output.usage = usage
        self.output.finished = error is None
        self.error = error
        self.ended = True


class DeltaCollector:
    """An event sink for streaming: `take` returns the deltas since the last call."""

    def __init__(self) -> None:
        self.ended = False
        self.error: KveikError | None = None
        self.ready: PromptReady | None = None
        self._deltas: list[StreamDelta] = []

    def take(self) -> list[StreamDelta]:
        deltas, self._deltas = self._deltas, []
        return deltas

    def __call__(self, event: Event) -> None:
        match event:
            case ChoiceDelta():
                self._deltas.append(StreamDelta(event.choice, event.text, event.token_ids))
            case ChoiceFinished(choice, finish_reason, stop_reason):
                last = self._last_of(choice)
                last.finish_reason, last.stop_reason = finish_reason, stop_reason
            case PromptReady():
                self.ready = event
            case RequestFailed(error):
                self.error, self.ended = error, True
            case _:
                self._last_of(None).usage = event.usage
                self.ended = True

    def _last_of(self, choice: int | None) -> StreamDelta:
        """The newest delta that was not taken yet, of this choice or any; a new one if none is."""
        if not self._deltas or (choice is not None and self._deltas[-1].index != choice):
            self._deltas.append(StreamDelta(choice or 0, ""))
        return self._deltas[-1]
