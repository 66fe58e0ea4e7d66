"""What a caller asks for and what comes back: SamplingParams, Request, events. Standard library.

Every request ends in exactly one of `RequestFinished`, `RequestFailed`, `RequestAborted`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from kveik.cache.directive import PLAIN, Directive, Divergence
from kveik.cache.join import JoinedPrompt
from kveik.cache.window import StreamWindow
from kveik.config import check_limit
from kveik.engine.past import Kept
from kveik.engine.plan import TokenLogprobs
from kveik.errors import InvalidRequest, KveikError

FinishReason: TypeAlias = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to generate; the names and meanings of vLLM's class of the same name.

    temperature 0 is greedy. top_k 0 (or -1) is off. `seed` None: drawn by the engine; the same
    seed gives the same text whatever else is in the batch. max_tokens None: up to the context; 0:
    the prompt is computed (and cached) and nothing is generated.
    logprobs / prompt_logprobs: number of alternatives to report beside the token itself.
    use_cache False: every step recomputes the whole sequence without the KV cache (comparison).
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    use_cache: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop or ()))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        object.__setattr__(self, "logit_bias", dict(self.logit_bias or {}))
        if self.top_k == -1:
            object.__setattr__(self, "top_k", 0)
        self._check()

    def _check(self) -> None:
        for name in _BOUNDED:
            value = getattr(self, name)
            if value is not None:
                check_limit(name, value)
        check_limit("stop_count", len(self.stop), param="stop")
        check_limit("stop_token_ids_count", len(self.stop_token_ids), param="stop_token_ids")
        check_limit("logit_bias_count", len(self.logit_bias), param="logit_bias")
        for bias in self.logit_bias.values():
            check_limit("logit_bias", bias)
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise InvalidRequest(
                    "stop: every stop string must be a non-empty string", param="stop"
                )
            check_limit("stop_length", len(text), param="stop")
        if self.max_tokens == 0 and self.n > 1:
            raise InvalidRequest(
                f"n: {self.n} choices of no token; with max_tokens 0 send n 1", param="n"
            )


_BOUNDED = (
    "n",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "max_tokens",
    "min_tokens",
    "logprobs",
    "prompt_logprobs",
)


@dataclass(frozen=True, slots=True)
class Request:
    """One unit of work for the engine, tokenised. `namespace` isolates tenants in the cache.

    first_choice shifts the choice index of the random numbers: n choices of one request equal n
    requests with first_choice 0 .. n-1. salt (a digest) narrows the namespace further. directive:
    what becomes of the blocks it computes. background: computed when nobody else needs the step.
    messages: the conversation that the prompt renders; it enters the history of the directive's
    session, with the answer, when the request finishes. explain: PromptReady brings the
    divergence. remembered: token ids of the prompt that did not have to be encoded. joined: the
    prompt is put together from modules that are computed apart; None: it is one sequence.

    kept: the session goes on without something that it has forgotten, now or before.

    embed: PromptReady brings the sum of the last hidden states of the prompt, every token of which
    is computed for it.

    stream: only this window of prompt and answer is kept, so that neither has a longest length;
    with a session the window stays open behind the answer. resumes: the prompt is what comes
    next in the open stream of that session."""

    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    namespace: str = ""
    prompt: str | None = None
    request_id: str = ""
    first_choice: int = 0
    directive: Directive = PLAIN
    salt: str = ""
    reuse: bool = True  # False: nothing is taken from the cache
    background: bool = False
    explain: bool = False
    remembered: int = 0
    joined: JoinedPrompt | None = None
    messages: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    stream: StreamWindow | None = None
    resumes: bool = False
    embed: bool = False
    kept: Kept | None = None


@dataclass(frozen=True, slots=True)
class Savings:
    """What the cache saved one request: an estimate from this engine's measured rates.

    Token pairs as the article on prompt caching counts them: old-old (both cached, skipped),
    new-old and new-new (computed)."""

    seconds: float
    flops: float
    old_old: int
    new_old: int
    new_new: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request cost. `cached_tokens` are prompt tokens whose K/V were reused exactly;
    `approximate_cached_tokens` those reused through a recipe, never counted as exact.
    computed_prompt_tokens is counted where the work is done, so that usage cannot lie."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0
    approximate_cached_tokens: int = 0
    computed_prompt_tokens: int = 0
    stored_tokens: int = 0  # prompt tokens that it left in the cache and that were not there
    savings: Savings | None = None
    pinned: bool | None = None  # None: no pin was asked for; False: others had taken the budget
    evicted_tokens: int | None = None  # that its stream has forgotten so far; None: it is none
    forgotten_tokens: int | None = None  # that its session has; None: it has forgotten nothing


@dataclass(frozen=True, slots=True)
class MissReason:
    """Why not more of the prompt came from the cache (speaking of the own namespace only)."""

    position: int  # first token that was not served from the cache
    reason: str  # new | diverged | evicted | invalidated | expired | too_short | no_store | ...


@dataclass(frozen=True, slots=True)
class PromptReady:
    """The prompt is computed (sent once, before the first ChoiceDelta). divergence: where it left
    what was cached when it was admitted, for a request that asked to have it explained.
    evicted_tokens: forgotten by its stream so far; None: it is none. pooled: of a request that
    embeds, the sum of its last hidden states (`Ops.sum_rows`)."""

    cached_tokens: int
    miss: MissReason | None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    divergence: Divergence | None = None
    evicted_tokens: int | None = None
    approximate_cached_tokens: int = 0
    pooled: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """New text of one choice. `text` is whole UTF-8; it may be empty while text is held back
    (possible start of a stop string, incomplete character). token_ids are all new ids; logprobs
    (aligned with token_ids) when asked for."""

    choice: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class ChoiceFinished:
    """stop_reason: the stop string or stop token id that ended the choice, None for end of text."""

    choice: int
    finish_reason: FinishReason
    stop_reason: str | int | None = None


@dataclass(frozen=True, slots=True)
class RequestFinished:
    usage: Usage


@dataclass(frozen=True, slots=True)
class RequestFailed:
    error: KveikError


@dataclass(frozen=True, slots=True)
class RequestAborted:
    usage: Usage


Event: TypeAlias = (
    PromptReady | ChoiceDelta | ChoiceFinished | RequestFinished | RequestFailed | RequestAborted
)
EventSink: TypeAlias = Callable[[Event], None]
"""Called on the thread that steps the engine, or the one that makes texts beside it; must return at
once and never raise."""
