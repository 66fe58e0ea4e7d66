"""Fields of OpenAI's, vLLM's and other APIs that are known here and not served.

A field is never silently without effect: each of these is a 400 that names it, unless its value
asks for what happens anyway (null, or one of the neutral values listed).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kveik.errors import UnsupportedFeature

_SHARED: dict[str, tuple[object, ...]] = {
    "best_of": (1,),
    "cache_control": (),
    "extra_key": (),
    "id_slot": (),
    "kv_transfer_params": (),
    "n_cache_reuse": (),
    "n_discard": (),
    "n_keep": (),
    "metadata": ({},),
    "response_format": ({"type": "text"},),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "session_id": (),
    "store": (False,),
    "use_beam_search": (False,),
}

CHAT: dict[str, tuple[object, ...]] = {
    **_SHARED,
    "audio": (),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (),
    "prediction": (),
    "reasoning_effort": (),
    "tool_choice": ("none",),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}

COMPLETION: dict[str, tuple[object, ...]] = {**_SHARED, "suffix": ()}


_INSTEAD = {
    "cache_control": "put it on a content part",
    "extra_key": "send cache_salt",
    "previous_response_id": "send kveik.session, and kveik.continue in the next request",
    "session_id": "send kveik.session",
}
"""What to do instead of leaving a field out."""


def refuse_unserved(body: Mapping[str, Any], known: Mapping[str, tuple[object, ...]]) -> None:
    """Raise UnsupportedFeature for the first field that would have no effect."""
    for name, value in body.items():
        if name not in known or value is None:
            continue
        if not any(type(value) is type(neutral) and value == neutral for neutral in known[name]):
            raise UnsupportedFeature(
                f"{name}: is not served; {_INSTEAD.get(name, 'leave it out')}"
                f"{_alternative(known[name])}",
                param=name,
            )


def served(body: Mapping[str, Any], known: Mapping[str, tuple[object, ...]]) -> dict[str, Any]:
    """The body without the (neutral) fields that `refuse_unserved` let pass."""
    return {name: value for name, value in body.items() if name not in known}


def _alternative(neutral: tuple[object, ...]) -> str:
    return f" or send {neutral[0]!r}" if neutral else ""
