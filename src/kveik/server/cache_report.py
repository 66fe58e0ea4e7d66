"""`usage.kveik`: what the cache saved one HTTP request, in the shape that every API answers with.

Seconds and FLOPs are estimates from the rates that this engine has measured (engine/savings.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kveik.engine.explain import explain
from kveik.engine.request import PromptReady, Request, Usage
from kveik.engine.tokenizer import Tokenizer
from kveik.server.jobs import Prepared

Json = dict[str, Any]


class Account:
    """`usage.kveik` of a request with one prompt, while its events come."""

    def __init__(self, prepared: Prepared, tokenizer: Tokenizer) -> None:
        self._prepared = prepared
        self._tokenizer = tokenizer
        self._explanation: Json | None = None

    def ready(self, event: PromptReady) -> None:
        prepared = self._prepared
        self._explanation = explanation(
            event, prepared.request, self._tokenizer, prepared.remembered
        )

    def json(self, usage: Usage) -> Json:
        return cache_report([usage], self._explanation)


def cache_report(usages: Sequence[Usage], explanation: Json | None = None) -> Json:
    """Of all prompts of the request together. explanation: of its only prompt, where asked for."""
    saved = [usage.savings for usage in usages if usage.savings is not None]
    report: Json = {
        "seconds_saved": round(sum(one.seconds for one in saved), 6),
        "flops_saved": sum(one.flops for one in saved),
        "token_pairs": {
            "old_old": sum(one.old_old for one in saved),
            "new_old": sum(one.new_old for one in saved),
            "new_new": sum(one.new_new for one in saved),
        },
        "stored_tokens": sum(usage.stored_tokens for usage in usages),
    }
    approximate = sum(usage.approximate_cached_tokens for usage in usages)
    if approximate:
        report["approximate_cached_tokens"] = approximate
    evicted = [one.evicted_tokens for one in usages if one.evicted_tokens is not None]
    if evicted:
        report["evicted_tokens"] = sum(evicted)
    forgotten = [one.forgotten_tokens for one in usages if one.forgotten_tokens is not None]
    if forgotten:
        report["forgotten_tokens"] = sum(forgotten)
    if explanation is not None:
        report["explanation"] = explanation
    return report


def explanation(
    ready: PromptReady, request: Request, tokenizer: Tokenizer, remembered: int = 0
) -> Json | None:
    """Of a prompt whose request asked for it. remembered: tokens that were not encoded again."""
    if ready.divergence is None:
        return None
    return explain(
        ready.divergence,
        request.prompt_token_ids,
        tokenizer,
        cached_tokens=ready.cached_tokens,
        remembered=remembered,
        evicted=ready.evicted_tokens,
        forgotten=request.kept.forgotten if request.kept is not None else None,
        approximate=ready.approximate_cached_tokens,
    ).as_json()
