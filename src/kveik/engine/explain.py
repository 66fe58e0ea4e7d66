"""Why not more of a prompt came from the cache: hit tokens by level, the first difference, advice.

Built from what the cache says (`Divergence`, of the caller's own namespace only) and the prompt's
own tokens; pure functions, no lock and no engine. The three levels are those of the article on
prompt caching; docs/EXPLAIN.md says what each means here, and lists every reason and cause.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kveik.cache.directive import Divergence
from kveik.engine.causes import Finding, find_cause

BEFORE_TOKENS = 1024
AFTER_TOKENS = 4096
"""Tokens of the prompt around the first difference that are read for the cause."""

_SHOWN = 120  # characters of a text in an explanation

CAUSES: Mapping[str, str] = {
    "complete": "Nothing to do: all of the prompt that can be reused was.",
    "new_content": "Nothing to do: this content was not sent before; the next request finds it.",
    "different_text": (
        "Other words from here on. Put what stays the same first and what differs last."
    ),
    "time": "The time {where} changes every call: move it to the end, or leave out what changes.",
    "random_id": "The id {where} is new in every call: move it to the end, or leave it out.",
    "counter": "The number {where} counts up with every call: move it to the end, or leave it out.",
    "whitespace": "Only white space differs {where}: send the text byte for byte as before.",
    "order": "The same items come in another order {where}: sort them before sending.",
    "front_truncation": (
        "Old messages were dropped at the front, so that everything behind them has moved: drop "
        "many at once and seldom, or keep the beginning."
    ),
    "template_drift": (
        "The frame around the messages differs {where} (system prompt, template, its date, or "
        "thoughts that it takes out): keep it fixed, or append to it only."
    ),
    "retokenised": (
        "The same text in other tokens: send the token ids that were returned, or let the session "
        "continue on the server."
    ),
    "other_adapter": (
        "Computed for another model, adapter or engine configuration: its states cannot be used."
    ),
    "expired": "Its time to live had run out: send it sooner, or ask for a longer ttl.",
    "evicted": (
        "It had to make room: pin it, raise its priority, or give the engine more KV memory."
    ),
    "invalidated": "It was invalidated, or a document in it was announced in a new version.",
    "no_store": "A request that does not write left nothing: allow it to write.",
}

REASONS: Mapping[str, str | None] = {
    "new": None,
    "diverged": None,
    "too_short": "complete",
    "expired": "expired",
    "evicted": "evicted",
    "invalidated": "invalidated",
    "no_store": "no_store",
    "engine_changed": "other_adapter",
}
"""Reason codes of the cache, and the cause that follows from the code alone (None: the texts)."""


class Texts(Protocol):
    """What is asked of a tokenizer."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...


@dataclass(frozen=True, slots=True)
class Explanation:
    """Of one prompt.

    levels: prompt tokens that each level served: "tokens" (not encoded again), "encodings" (the
    embedding table, always all), "states" (K/V blocks). tiers: the states by where they lay.
    position: first token that was not served; cached_text, wanted_text: the differing pieces;
    cached_token, wanted_token: the first differing token of each. role: whose message it is in.
    evicted_tokens: what its stream has forgotten when the prompt is computed; None: it is none."""

    prompt_tokens: int
    levels: tuple[tuple[str, int], ...]
    tiers: tuple[tuple[str, int], ...]
    blocks_shared: int
    position: int
    reason: str
    cause: str
    advice: str
    cached_text: str = ""
    wanted_text: str = ""
    cached_token: str = ""
    wanted_token: str = ""
    role: str | None = None
    evicted_tokens: int | None = None

    def as_json(self) -> dict[str, Any]:
        stream = {} if self.evicted_tokens is None else {"evicted_tokens": self.evicted_tokens}
        return {
            **stream,
            "prompt_tokens": self.prompt_tokens,
            "hit_tokens": {"by_level": dict(self.levels), "by_tier": dict(self.tiers)},
            "blocks_shared": self.blocks_shared,
            "position": self.position,
            "reason": self.reason,
            "cause": self.cause,
            "advice": self.advice,
            "cached": {"text": self.cached_text, "token": self.cached_token},
            "wanted": {"text": self.wanted_text, "token": self.wanted_token},
            "role": self.role,
        }


def explain(
    divergence: Divergence,
    prompt: Sequence[int],
    tokenizer: Texts,
    *,
    cached_tokens: int | None = None,
    remembered: int = 0,
    block_size: int = 16,
    evicted: int | None = None,
) -> Explanation:
    """The explanation of one prompt.

    cached_tokens: K/V positions that were reused (None: those before the divergence). remembered:
    token ids that the token memory knew; evicted: tokens that its stream has forgotten."""
    states = divergence.position if cached_tokens is None else cached_tokens
    reason, position, cached, wanted = _first_difference(divergence, prompt)
    cause, finding = _cause(reason, prompt[:position], cached, wanted, tokenizer)
    where = _where(finding.role if finding else None)
    return Explanation(
        prompt_tokens=len(prompt),
        levels=(("tokens", remembered), ("encodings", len(prompt)), ("states", states)),
        tiers=(("memory", states),),
        blocks_shared=states // block_size,
        position=position,
        reason=reason,
        cause=cause,
        advice=CAUSES[cause].format(where=where),
        cached_text=_shortened(finding.cached) if finding else "",
        wanted_text=_shortened(finding.wanted) if finding else "",
        cached_token=_text(tokenizer, cached[:1]),
        wanted_token=_text(tokenizer, wanted[:1]),
        role=finding.role if finding else None,
        evicted_tokens=evicted,
    )


def brief(reason: str) -> dict[str, str]:
    """Cause and advice where nothing but the reason is known: no text of anybody was kept."""
    cause = REASONS.get(reason) or {"new": "new_content"}.get(reason, "different_text")
    return {"cause": cause, "advice": CAUSES[cause]}


def _first_difference(
    divergence: Divergence, prompt: Sequence[int]
) -> tuple[str, int, Sequence[int], Sequence[int]]:
    """Reason, position, and both continuations from the first token on that really differs."""
    cached, position = divergence.cached, divergence.position
    wanted = prompt[position : position + AFTER_TOKENS]
    same = 0
    while same < min(len(cached), len(wanted)) and cached[same] == wanted[same]:
        same += 1
    return divergence.reason, position + same, cached[same:], wanted[same:]


def _cause(
    reason: str,
    before: Sequence[int],
    cached: Sequence[int],
    wanted: Sequence[int],
    tokenizer: Texts,
) -> tuple[str, Finding | None]:
    known = REASONS.get(reason)
    if known is not None:
        return known, None
    if not wanted:
        return "complete", None
    if not cached:
        return "new_content", None
    context = before[max(0, len(before) - BEFORE_TOKENS) :]
    head = _text(tokenizer, context)
    both = [_text(tokenizer, (*context, *ids)) for ids in (cached, wanted)]
    head = head[: min(_common(head, text) for text in both)]  # half a character may have ended it
    old, new = (text[len(head) :] for text in both)
    if len(cached) > 4 and (new.startswith(old) or old.startswith(new)):
        return "retokenised", None
    finding = find_cause(head, old, new)
    return finding.cause, finding


def _where(role: str | None) -> str:
    places = {"system": "in the system prompt", None: "in the prompt"}
    return places.get(role, f"in a message of the {role}")


def _text(tokenizer: Texts, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False)


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _common(left: str, right: str) -> int:
    """Length of the common prefix."""
    length = min(len(left), len(right))
    return next((i for i in range(length) if left[i] != right[i]), length)
