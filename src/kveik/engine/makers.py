"""Units of joined prompts that must be computed before the prompts that use them.

A unit is computed as a request of its own, which generates nothing. Whoever needs it first has it
made, others that need it meanwhile wait for the same one. The scheduler asks here whether somebody
makes a unit already, and says when a request has ended. Standard library only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TypeAlias

from kveik.cache.join import GAP, JoinedPrompt, Unit
from kveik.cache.joining import Missing
from kveik.cache.manager import CacheManager
from kveik.engine.request import Request, SamplingParams
from kveik.engine.sequence import Work
from kveik.errors import ContextLengthExceeded, InvalidRequest, UnsupportedFeature

_Key: TypeAlias = tuple[str, str, bytes, tuple[int, ...]]  # namespace, salt, lineage, tokens

_PATIENCE = 64
"""How often a request has each of its units made, on average, before it is given up. While others
hold most of the pool they may be evicted before the last one is there; that passes."""

_FAULTS = 256  # that are remembered until somebody asks

_WITHOUT_GAP = "begin another session with the messages that are left"

UNIT = SamplingParams(temperature=0.0, max_tokens=0)


class Makers:
    """handles: of requests that make a unit; negative, so that they are nobody's else."""

    def __init__(self) -> None:
        self._handles = itertools.count(-1, -1)
        self._handle_of: dict[_Key, int] = {}
        self._keys: dict[int, _Key] = {}
        self._faults: dict[_Key, str] = {}

    def requests(self, work: Work, missing: Missing) -> Iterator[tuple[int, Request]]:
        """(handle, request) for every unit that nobody makes yet."""
        request = work.request
        assert request.joined is not None
        for number, there in zip(missing.units, missing.there, strict=True):
            unit = request.joined.units[number]
            key = _key(request, unit)
            if key in self._handle_of:
                continue
            self._faults.pop(key, None)
            handle = next(self._handles)
            self._handle_of[key], self._keys[handle] = handle, key
            work.note_made(number, there, missing)
            yield (
                handle,
                Request(
                    unit.tokens,
                    UNIT,
                    namespace=request.namespace,
                    directive=unit.directive,
                    salt=request.salt,
                    background=work.background,
                    joined=unit.joined,
                ),
            )

    def making(self, work: Work, missing: Missing) -> Iterator[int]:
        """The handles of requests that make one of these units already."""
        request = work.request
        assert request.joined is not None
        for number in missing.units:
            handle = self._handle_of.get(_key(request, request.joined.units[number]))
            if handle is not None:
                yield handle

    def ended(self, handle: int) -> None:
        """The request with this handle is over, in whatever way."""
        key = self._keys.pop(handle, None)
        if key is not None:
            del self._handle_of[key]

    def failed(self, handle: int, message: str) -> None:
        """The request with this handle ends with an error."""
        key = self._keys.get(handle)
        if key is not None:
            if len(self._faults) >= _FAULTS:
                self._faults.clear()
            self._faults[key] = message

    def hopeless(self, work: Work, missing: Missing) -> str | None:
        """Why this request cannot have its units; None: it can."""
        request = work.request
        assert request.joined is not None
        for number in missing.units:
            fault = self._faults.pop(_key(request, request.joined.units[number]), None)
            if fault is not None:
                return f"a module of the prompt could not be computed: {fault}"
        if work.makings > _PATIENCE * len(request.joined.units):
            return (
                "the modules of the prompt are evicted as fast as they are computed: give the "
                "engine more --kv-memory, or join them with exact"
            )
        return None


def _key(request: Request, unit: Unit) -> _Key:
    return request.namespace, request.salt, unit.lineage, unit.tokens


def check_joined(request: Request, prompt: JoinedPrompt, cache: CacheManager, context: int) -> None:
    """InvalidRequest for what a joined prompt cannot be asked for."""
    params, forgets = request.params, prompt.recipe == GAP
    what = "what a session has forgotten something of" if forgets else "modules"
    field = "forget" if forgets else "join"
    instead = _WITHOUT_GAP if forgets else "join them with exact"
    if any(group.kind != "full" for group in cache.groups):
        raise UnsupportedFeature(
            f"{field}: this model has sliding-window layers, which keep nothing whole that {what} "
            f"could be put together from; {instead}",
            param=field,
        )
    if not cache.caches:
        _refuse(field, f"prefix caching is off, so that nothing is kept for {what}; {instead}")
    if request.embed:
        _refuse("prompt", "every token of what is embedded is computed; send it without modules")
    if params.prompt_logprobs is not None:
        _refuse("prompt_logprobs", f"needs every position of the prompt; {instead}")
    if not params.use_cache or not request.reuse:
        _refuse(field, f"a request that takes nothing from the cache has no use for it; {instead}")
    if request.directive.write == "none":
        _refuse("write", f"{what}: kept when it is computed; {instead}, or write")
    for unit in prompt.units:
        if len(unit.tokens) > context:
            raise ContextLengthExceeded(
                f"{field}: a part of the prompt has {len(unit.tokens)} tokens with what stands "
                f"before it, but the context of this model is {context} tokens: shorten it",
                param=field,
            )


def check_shift(prompt: JoinedPrompt, can_shift: bool) -> None:
    """UnsupportedFeature where a model cannot see keys elsewhere than where they were computed."""
    if not can_shift:
        forgets = prompt.recipe == GAP
        field, what = ("forget", "a session") if forgets else ("join", "modules")
        raise UnsupportedFeature(
            f"{field}: this model cannot see keys of {what} elsewhere than where they were "
            "computed (positions are part of its hidden state, or its rotary base depends on the "
            "length); " + (_WITHOUT_GAP if forgets else "join them with exact"),
            param=field,
        )


def _refuse(field: str, why: str) -> None:
    raise InvalidRequest(f"{field}: {why}", param=field)
