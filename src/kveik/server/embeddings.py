"""POST /v1/embeddings: texts to vectors, in OpenAI's wire format.

By the name of the served model every input is a request of its own, computed beside all others;
nothing of it is kept in the cache. By the name of the embedding model they are computed on a thread
of their own, in pieces, so that several callers take turns.
"""

from __future__ import annotations

import json
import struct
from array import array
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kveik.cache.directive import Directive
from kveik.engine.embedder import Embedder
from kveik.engine.engine import Engine
from kveik.engine.pooling import unit_vector
from kveik.engine.request import PromptReady, RequestFinished, SamplingParams
from kveik.engine.request import Request as EngineRequest
from kveik.errors import InvalidRequest
from kveik.server.bridge import Tagged
from kveik.server.handlers import open_feed, origin_of, read_body
from kveik.server.jobs import Origin, beside_loop, check_model
from kveik.server.protocol import Embeddings
from kveik.server.service import Service
from kveik.server.sse import collect

Json = dict[str, Any]

_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


async def embeddings(service: Service, request: Request) -> Response:
    serving = service.serving
    body = await read_body(service, request, Embeddings)
    answer = EmbeddingAnswer(body)
    beside = serving.embedding
    if beside is not None and body.model == beside.embedder.model_id:
        prompts = await embedder_prompts(beside.embedder, body)
        answer.vectors = await beside.vectors(prompts, request.is_disconnected)
        answer.tokens = sum(map(len, prompts))
    else:
        requests = await embedding_requests(serving.engine, body, origin_of(request))
        _ = service.serving  # draining may have begun meanwhile
        feed = open_feed(serving, requests, None, "input")
        try:
            await collect(feed, answer, request.receive)
        finally:
            serving.bridge.close(feed)
    text = await beside_loop(answer.size, answer.text)
    return Response(text, media_type="application/json")


async def embedding_requests(
    engine: Engine, body: Embeddings, origin: Origin
) -> tuple[EngineRequest, ...]:
    """One request for every input, to the model that is served."""
    check_model(engine, body.model)
    _check_dimensions(body, engine.info.hidden_size)
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


async def embedder_prompts(embedder: Embedder, body: Embeddings) -> list[Sequence[int]]:
    """The ids of every input for the embedding model; raises InvalidRequest naming the input."""
    _check_dimensions(body, embedder.dimensions)
    inputs = body.input

    def encoded() -> list[Sequence[int]]:
        found: list[Sequence[int]] = []
        for index, one in enumerate(inputs):
            ids = embedder.encode(one) if isinstance(one, str) else one
            embedder.check(ids, "input" if len(inputs) == 1 else f"input[{index}]")
            found.append(ids)
        return found

    return await beside_loop(sum(len(one) for one in inputs), encoded)


def _check_dimensions(body: Embeddings, size: int) -> None:
    if body.dimensions not in (None, size):
        raise InvalidRequest(
            f"dimensions: the vectors of this model have {size} numbers and mean nothing when they "
            "are cut; leave it out",
            param="dimensions",
        )


class EmbeddingAnswer:
    """Grows the answer from the events of its requests, or is given its vectors."""

    def __init__(self, body: Embeddings) -> None:
        self._model = body.model
        self._packs = body.encoding_format == "base64"
        self._sums: dict[int, tuple[int, ...]] = {}
        self.vectors: list[array[float]] = [array("f")] * len(body.input)
        self.tokens = 0

    def take(self, tagged: Tagged) -> None:
        index, event = tagged
        if isinstance(event, PromptReady):
            self._sums[index] = event.pooled
        elif isinstance(event, RequestFinished):
            self.tokens += event.usage.prompt_tokens

    @property
    def size(self) -> int:
        """Numbers in the answer."""
        return sum(map(len, self.vectors)) + sum(map(len, self._sums.values()))

    def whole(self) -> Json:
        data = [self._entry(index) for index in range(len(self.vectors))]
        return {"object": "list", "data": data, **self._rest()}

    def text(self) -> bytes:
        """`whole` as JSON. Vector by vector: in one piece the encoder would hold the interpreter's
        lock, and with it every other thread, until the last number is written."""
        entries = ",".join(_json(self._entry(index)) for index in range(len(self.vectors)))
        return f'{{"object":"list","data":[{entries}],{_json(self._rest())[1:]}'.encode()

    def _entry(self, index: int) -> Json:
        sums = self._sums.get(index)
        vector = self.vectors[index] if sums is None else unit_vector(sums)
        shown = _packed(vector) if self._packs else vector.tolist()
        return {"object": "embedding", "index": index, "embedding": shown}

    def _rest(self) -> Json:
        usage = {"prompt_tokens": self.tokens, "total_tokens": self.tokens}
        return {"model": self._model, "usage": usage}


def _packed(vector: array[float]) -> str:
    """float32, the lowest byte first, in base64."""
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
