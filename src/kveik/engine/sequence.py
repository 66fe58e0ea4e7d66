"""What the scheduler keeps per request and per choice, and what it reports. Standard library.

    Work      one request: its limits, its live choices, what it has cost so far
    Sequence  one choice of it: token ids wanted, token ids computed, the lease on blocks
    Queues    how many requests wait that hold nothing yet

A sequence knows no phases. It wants K/V for `tokens`; it has them for `computed`; when everything
but the last sampled token is computed, its last row yields the next token.

    tokens    |---- prompt ----|---- outputs ----|
    computed  |--------------------|                  K/V exist for these (a prefix of tokens)
                                   |-- missing --|

A stream forgets: both lists then begin at position `start`. Between two requests of a session it
is a `RestingStream`; the prompt of the next one begins at position `prompt_start`, behind the last
token of the answer, which is not computed yet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import add
from typing import NamedTuple, TypeAlias

from kveik.cache.directive import Divergence
from kveik.cache.joining import Joined, Missing
from kveik.cache.manager import Lease, Miss
from kveik.cache.window import StreamWindow
from kveik.engine.plan import SampledToken, SamplingPlan, SequenceResult, TokenLogprobs
from kveik.engine.request import FinishReason, MissReason, PromptReady, Request, Savings, Usage
from kveik.errors import KveikError


@dataclass(slots=True, eq=False)
class Work:
    """One accepted request. `seed` and `max_tokens` are resolved; `arrival` orders requests."""

    handle: int
    request: Request
    arrival: int
    seed: int
    max_tokens: int
    end_ids: frozenset[int]  # ids that end a choice as end of text
    sequences: dict[int, Sequence] = field(default_factory=dict)  # live choices
    background: bool = False  # behind all others; until one of them waits for it
    started: bool = False  # blocks were held at least once
    prompt_done: bool = False
    cached_tokens: int = 0
    approximate_tokens: int = 0
    there: int = 0  # prompt tokens that were in the cache, computed again or not
    miss: Miss | None = None
    divergence: Divergence | None = None  # where the request asked for it
    computed_prompt_tokens: int = 0
    completion_tokens: int = 0
    stored_tokens: int = 0
    savings: Savings | None = None
    pinned: bool = False
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    pooled: tuple[int, ...] = ()  # sum of the hidden states of the rows computed so far
    made: dict[int, int] = field(default_factory=dict)  # units computed for it: what was there
    makings: int = 0  # how often one was
    exact_before: int = 0  # tokens of its beginning that were cached before that
    recipes_before: int = 0  # the same of its recipes
    resting: RestingStream | None = None  # that this request goes on from, until it does
    prompt_start: int = 0
    evicted: int | None = None  # tokens that its stream has forgotten

    @property
    def stream(self) -> StreamWindow | None:
        return self.request.stream

    @property
    def prompt_end(self) -> int:
        """Position behind the prompt."""
        return self.prompt_start + self.prompt_length

    def prompt_rows(self, first: int, count: int) -> int:
        """How many of so many rows belong to the prompt."""
        return max(0, min(first + count, self.prompt_end) - max(first, self.prompt_start))

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def wants_prompt_rows(self) -> bool:
        """True while log-probabilities or hidden states of the prompt are still owed: nothing may
        be skipped."""
        request = self.request
        wanted = request.embed or request.params.prompt_logprobs is not None
        return wanted and not self.prompt_done

    def note_rows(self, outcome: SequenceResult) -> None:
        """What a step says of rows of the prompt."""
        self.prompt_logprobs.extend(outcome.prompt_logprobs)
        if outcome.pooled:
            before = self.pooled or (0,) * len(outcome.pooled)
            self.pooled = tuple(map(add, before, outcome.pooled))

    def forget_rows(self) -> None:
        """The prompt is computed from its beginning again."""
        self.prompt_logprobs.clear()
        self.pooled = ()

    def note_made(self, unit: int, there: int, missing: Missing) -> None:
        """A unit of its joined prompt is computed for it. there: tokens of it that were there
        before; missing: what was found then."""
        if not self.made:
            self.exact_before, self.recipes_before = missing.cached, missing.recipes
        self.made.setdefault(unit, there)
        self.makings += 1

    def note_opened(self, lease: Lease) -> None:
        """Blocks are held for the first time. What was computed for this request a moment ago does
        not count as cached."""
        self.cached_tokens, self.miss, self.there = lease.cached_tokens, lease.miss, lease.there
        if isinstance(lease, Joined):
            reused = lease.prompt_parts.reused
            ends = [(one, one.offset + one.length) for one in reused if one.unit in self.made]
            made = sum(max(end - max(self.made[one.unit], one.offset), 0) for one, end in ends)
            if self.made:
                self.cached_tokens = min(lease.cached_tokens, self.exact_before)
                recipes = lease.approximate_tokens - sum(one.length for one in reused)
                made += max(recipes - self.recipes_before, 0)
            self.approximate_tokens = lease.approximate_tokens - made
            made += lease.cached_tokens - self.cached_tokens
            self.computed_prompt_tokens += made
            self.there -= made

    def note_stored(self, stored: int) -> None:
        """A lease on this prompt was released and left `stored` tokens from the start. What was
        there before is not stored again."""
        ours = min(stored, self.prompt_length) - self.there
        self.stored_tokens = max(self.stored_tokens, min(ours, self.computed_prompt_tokens))

    @property
    def missed(self) -> MissReason | None:
        """Why not more of the prompt was cached; None before blocks were held for it."""
        return MissReason(self.miss.position, self.miss.reason) if self.miss else None

    def ready(self) -> PromptReady:
        """The event of the prompt being computed."""
        rows = None
        if self.request.params.prompt_logprobs is not None:
            rows = (None, *self.prompt_logprobs)
        return PromptReady(
            cached_tokens=self.cached_tokens,
            miss=self.missed,
            prompt_logprobs=rows,
            divergence=self.divergence,
            evicted_tokens=self.evicted,
            approximate_cached_tokens=self.approximate_tokens,
            pooled=self.pooled,
        )

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_length,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens,
            approximate_cached_tokens=self.approximate_tokens,
            computed_prompt_tokens=self.computed_prompt_tokens,
            stored_tokens=self.stored_tokens,
            savings=self.savings,
            pinned=self.pinned if self.request.directive.pin else None,
            evicted_tokens=self.evicted,
            forgotten_tokens=self.request.kept.forgotten if self.request.kept else None,
        )


@dataclass(slots=True, eq=False)
class RestingStream:
    """The open stream of a session between two requests: its window, and the ids in it."""

    lease: Lease
    stream: StreamWindow
    tokens: list[int]
    computed: list[int]
    start: int
    salt: str


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice of a request. `sequence_id` changes whenever its blocks are given up, so that a
    result that comes back later finds nobody."""

    work: Work
    choice: int
    sequence_id: int
    tokens: list[int]
    computed: list[int] = field(default_factory=list)
    lease: Lease | None = None
    asked_at: int = -1  # scheduler progress when the cache last said Wait
    start: int = 0  # position of tokens[0]

    @property
    def done(self) -> int:
        """Position of the next row."""
        return self.start + len(self.computed)

    @property
    def length(self) -> int:
        """Position behind the last wanted token."""
        return self.start + len(self.tokens)

    @property
    def generated(self) -> int:
        return self.length - self.work.prompt_end

    def forget(self) -> None:
        """What no row of the stream will see again goes, many ids at a time."""
        stream = self.work.stream
        if stream is None or len(self.tokens) < stream.size + stream.window - stream.evict:
            return  # less than one window lies before the next row's
        gone = stream.first_recent(self.done) - self.start
        if gone >= max(stream.size, len(self.tokens) // 2):
            del self.tokens[:gone]
            del self.computed[:gone]
            self.start += gone

    @property
    def order(self) -> tuple[bool, int, int]:
        """First come, first served; background work behind everything else."""
        return (self.work.background, self.work.arrival, self.choice)

    @property
    def missing(self) -> int:
        return len(self.tokens) - len(self.computed)

    def rows(self, first: int, count: int) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
        """Spans of seen positions, and token ids, of what must be computed among the tokens
        `first .. first + count`: all of them, unless the prompt is joined from modules."""
        if not isinstance(self.lease, Joined):
            offset = first - self.start
            return ((first, count),), tuple(self.tokens[offset : offset + count])
        pieces = self.lease.course.pieces(first, count)
        ids: list[int] = []
        for start, _, length in pieces:
            ids += self.tokens[start : start + length]
        return tuple((seen, length) for _, seen, length in pieces), tuple(ids)

    def sampling_plans(self) -> tuple[SamplingPlan, ...]:
        """One plan; for the sequence that computes the prompt, one per choice; none where nothing
        is to be generated."""
        if self.work.max_tokens == 0:
            return ()
        if not self.work.prompt_done:
            return tuple(self._sampling_plan(k) for k in range(self.work.request.params.n))
        return (self._sampling_plan(self.choice),)

    def _sampling_plan(self, choice: int) -> SamplingPlan:
        work, params = self.work, self.work.request.params
        repetition = params.repetition_penalty != 1.0
        penalised = repetition or params.presence_penalty != 0 or params.frequency_penalty != 0
        banned: tuple[int, ...] = ()
        if self.generated < params.min_tokens:
            banned = tuple(sorted({*work.end_ids, *params.stop_token_ids}))
        return SamplingPlan(
            seed=work.seed,
            choice=work.request.first_choice + choice,
            position=self.length,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            logit_bias=tuple(params.logit_bias.items()),
            banned=banned,
            logprobs=params.logprobs,
            prompt_ids=self._history(prompt=True) if repetition else (),
            output_ids=self._history(prompt=False) if penalised else (),
        )

    def _history(self, *, prompt: bool) -> tuple[int, ...]:
        """The ids of the prompt, or those generated, that the next token may be compared with: of
        a stream those in the recent part of its window."""
        work = self.work
        if work.stream is None:
            if prompt:
                return work.request.prompt_token_ids
            return tuple(self.tokens[work.prompt_length :])
        first = work.stream.first_recent(self.length - 1)
        border = work.prompt_end
        low, high = (first, border) if prompt else (max(first, border), self.length)
        return tuple(self.tokens[low - self.start : max(high, low) - self.start])

    def targets(self, first: int, count: int) -> tuple[int, ...]:
        """For rows first .. first + count: the prompt token that follows, -1 after the last."""
        prompt = self.work.request.prompt_token_ids
        following = prompt[first + 1 : first + count + 1]
        return (*following, *(-1,) * (count - len(following)))


@dataclass(slots=True)
class Queue:
    """Requests that wait, and the tokens of their prompts."""

    requests: int = 0
    tokens: int = 0

    def add(self, tokens: int) -> None:
        self.requests += 1
        self.tokens += tokens

    def drop(self, tokens: int) -> None:
        self.requests -= 1
        self.tokens -= tokens


@dataclass(slots=True)
class Queues:
    """Background work waits in a queue of its own, so that it takes no place of a live request."""

    live: Queue = field(default_factory=Queue)
    background: Queue = field(default_factory=Queue)

    def of(self, request: Request) -> Queue:
        return self.background if request.background else self.live

    @property
    def requests(self) -> int:
        return self.live.requests + self.background.requests

    @property
    def tokens(self) -> int:
        return self.live.tokens + self.background.tokens


class PromptComputed(NamedTuple):
    """The whole prompt has K/V (or was found); comes once, before the first token."""

    handle: int


class TokenAccepted(NamedTuple):
    """One more token of one choice. finish: the choice ended with it (see ChoiceFinished)."""

    handle: int
    choice: int
    token: SampledToken
    finish: FinishReason | None
    stop_reason: int | None


class ChoiceEnded(NamedTuple):
    """A choice that was to have no token ended."""

    handle: int
    choice: int
    finish: FinishReason


class WorkFailed(NamedTuple):
    """The request is over; every block it held has been given back. kind: what it is told."""

    handle: int
    message: str
    kind: type[KveikError] = KveikError


Output: TypeAlias = PromptComputed | TokenAccepted | ChoiceEnded | WorkFailed
