"""What a request may be given at all: what could never finish is refused before any allocation.

Standard library.
"""

from __future__ import annotations

from dataclasses import dataclass

from kveik.cache.manager import CacheManager
from kveik.cache.window import StreamWindow
from kveik.engine.makers import check_joined
from kveik.engine.request import Request
from kveik.engine.resting import key_of
from kveik.engine.scheduling.roster import Roster
from kveik.errors import ContextLengthExceeded, InvalidRequest, PromptTooLarge

ENDLESS = 1 << 62
"""Tokens that a stream may generate where the request names no limit."""


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """block_size and budgets in tokens; max_num_seqs in sequences that hold blocks."""

    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int

    @property
    def seats(self) -> int:
        """Sequences that may hold blocks: each decoding one needs a row of every step."""
        return min(self.max_num_seqs, self.max_num_batched_tokens)

    @property
    def background_tokens(self) -> int:
        """Budget of a step of background work: whoever arrives meanwhile waits for a short one."""
        return max(self.block_size, self.max_num_batched_tokens // 8)


class Capacity:
    """See the module. Only the question for a stream looks at what others hold."""

    def __init__(self, cache: CacheManager, limits: SchedulerLimits, roster: Roster) -> None:
        self._cache = cache
        self._limits = limits
        self._roster = roster

    def max_tokens_for(self, request: Request) -> int:
        """Tokens the request may generate. Raises InvalidRequest, ContextLengthExceeded or
        PromptTooLarge for what could never finish.

        The last sampled token needs no slot, so prompt + max_tokens - 1 slots suffice."""
        prompt, wanted = len(request.prompt_token_ids), request.params.max_tokens
        slots, joined = prompt, request.joined
        if joined is not None:
            if request.stream is not None:
                raise InvalidRequest(
                    "stream_window: a prompt that is joined from parts (modules, or what is left "
                    "of a session that forgets) is not streamed; leave one of them out",
                    param="stream_window",
                )
            check_joined(request, joined, self._cache, self._limits.max_model_len)
            prompt = joined.seen_end
            slots = joined.blocks(self._limits.block_size) * self._limits.block_size
        least = 1 if wanted is None else wanted
        if prompt == 0:
            raise InvalidRequest("prompt: is empty; at least one token is needed", param="prompt")
        if request.stream is not None:
            return self._stream_tokens(request, request.stream)
        context = self._limits.max_model_len
        asked = "not set" if wanted is None else wanted
        if prompt + least > context:
            raise ContextLengthExceeded(
                f"the prompt has {prompt} tokens and max_tokens is {asked}, but the "
                f"context of this model is {context} tokens: shorten one of the two",
                param="prompt",
            )
        capacity = self._cache.capacity_tokens(request.namespace)
        allowed = min(context - prompt, capacity + 1 - slots)
        if slots > capacity or allowed < least:
            raise PromptTooLarge(
                f"the prompt has {prompt} tokens and max_tokens is {asked}, but the "
                f"KV pool holds {capacity} tokens: shorten one of the two or give the "
                "engine more --kv-memory",
                param="prompt",
            )
        most = allowed if wanted is None else wanted
        if request.params.min_tokens > most:
            raise InvalidRequest(
                f"min_tokens: {request.params.min_tokens} is more than max_tokens {most}",
                param="min_tokens",
            )
        return most

    def _stream_tokens(self, request: Request, stream: StreamWindow) -> int:
        """The same of a stream, which has no longest length. Raises InvalidRequest for what one
        window cannot serve."""
        params = request.params
        refused = {
            "n": params.n > 1,
            "use_cache": not params.use_cache,
            "prompt_logprobs": request.resumes and params.prompt_logprobs is not None,
            "max_tokens": params.max_tokens == 0,
        }
        for name, wrong in refused.items():
            if wrong:
                raise InvalidRequest(
                    f"{name}: {getattr(params, name)} cannot be had of a stream, which is one "
                    "continuation in one window: leave it out, or send no stream_window",
                    param=name,
                )
        if stream.size > self._limits.max_model_len:
            raise InvalidRequest(
                f"stream_window: sinks + window are {stream.size} tokens, and the context of this "
                f"model is {self._limits.max_model_len}: ask for a smaller window",
                param="stream_window",
            )
        if not request.resumes:
            stays = request.directive.session is not None
            stays = stays and not self._roster.streams.has(key_of(request))
            waiting = self._promised() if stays else 0
            self._cache.check_stream(stream, request.namespace, stays=stays, waiting=waiting)
        return ENDLESS if params.max_tokens is None else params.max_tokens

    def _promised(self) -> int:
        """Blocks of streams that will stay open and have not begun."""
        return sum(
            self._cache.stream_blocks(work.stream)
            for work in self._roster.works.values()
            if work.stream and work.request.directive.session and not work.started
        )
