"""What no request may ask of this model, whatever the cache holds."""

from __future__ import annotations

from collections.abc import Sequence

from kveik.engine.makers import check_shift
from kveik.engine.request import Request
from kveik.errors import InvalidRequest, UnsupportedFeature


def check_ids(request: Request, vocab_size: int) -> None:
    """InvalidRequest unless every token id of the request lies in the vocabulary."""
    params = request.params
    places: tuple[tuple[str, Sequence[int]], ...] = (
        ("prompt_token_ids", request.prompt_token_ids),
        ("stop_token_ids", params.stop_token_ids),
        ("logit_bias", tuple(params.logit_bias)),
    )
    for name, ids in places:
        if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
            wrong = next(token for token in ids if not 0 <= token < vocab_size)
            raise InvalidRequest(
                f"{name}: token id {wrong} is outside the vocabulary 0 .. {vocab_size - 1}",
                param=name,
            )


def check_positions(request: Request, can_shift: bool) -> None:
    """UnsupportedFeature where keys would have to be seen elsewhere than where they were computed,
    and the model cannot do that."""
    if request.stream is not None and not can_shift:
        raise UnsupportedFeature(
            "stream_window: positions of this model are part of its hidden state, or its "
            "rotary base depends on the length, so that it cannot forget a middle: send no "
            "stream_window, or serve a model with plain rotary embeddings",
            param="stream_window",
        )
    if request.joined is not None:
        check_shift(request.joined, can_shift)
