"""POST /v1/embeddings: texts to vectors of length 1, in OpenAI's wire format.

Every input is a request of its own, computed beside all others; nothing of it is kept in the cache.
"""

from __future__ import annotations

import struct
from base64 import b64encode
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kveik.cache.directive import Directive
from kveik.engine.engine import Engine
from kveik.engine.pooling import unit_vector
from kveik.engine.request import PromptReady, RequestFinished, SamplingParams
from kveik.engine.request import Request as EngineRequest
from kveik.errors import InvalidRequest
from kveik.server.bridge import Tagged
from kveik.server.handlers import in_one_piece, open_feed, origin_of, read_body
from kveik.server.jobs import Origin, beside_loop, check_model
from kveik.server.protocol import Embeddings
from kveik.server.service import Service

Json = dict[str, Any]


async def embeddings(service: Service, request: Request) -> Response:
    serving = service.serving
    body = await read_body(service, request, Embeddings)
    requests = await embedding_requests(serving.engine, body, origin_of(request))
    _ = service.serving  # draining may have begun meanwhile
    feed = open_feed(serving, requests, None, "input")
    return await in_one_piece(serving, feed, EmbeddingAnswer(body), request)


async def embedding_requests(
    engine: Engine, body: Embeddings, origin: Origin
) -> tuple[EngineRequest, ...]:
    check_model(engine, body.model)
    size = engine.info.hidden_size
    if body.dimensions not in (None, size):
        raise InvalidRequest(
            f"dimensions: the vectors of this model have {size} numbers and mean nothing when they "
            "are cut; leave it out",
            param="dimensions",
        )
    encode, inputs = engine.tokenizer.encode, body.input
    encoded = await beside_loop(
        sum(len(one) for one in inputs),
        lambda: [encode(one) if isinstance(one, str) else one for one in inputs],
    )
    return tuple(
        EngineRequest(
            tuple(ids),
            SamplingParams(max_tokens=0),
            namespace=origin.namespace,
            request_id=origin.request_id,
            directive=Directive(write="none"),
            embed=True,
        )
        for ids in encoded
    )


class EmbeddingAnswer:
    """Grows the answer from the events of its requests."""

    def __init__(self, body: Embeddings) -> None:
        self._model = body.model
        self._packs = body.encoding_format == "base64"
        self._vectors: list[list[float] | str] = [""] * len(body.input)
        self._tokens = 0

    def take(self, tagged: Tagged) -> None:
        index, event = tagged
        if isinstance(event, PromptReady):
            vector = unit_vector(event.pooled).tolist()
            self._vectors[index] = _packed(vector) if self._packs else vector
        elif isinstance(event, RequestFinished):
            self._tokens += event.usage.prompt_tokens

    def whole(self) -> Json:
        data = [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(self._vectors)
        ]
        usage = {"prompt_tokens": self._tokens, "total_tokens": self._tokens}
        return {"object": "list", "data": data, "model": self._model, "usage": usage}


def _packed(vector: list[float]) -> str:
    """float32, the lowest byte first, in base64."""
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
