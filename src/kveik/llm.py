"""The offline door: `LLM(...)` loads a model and computes on the caller's thread.

Names and results follow vLLM's class of the same name, so that its programs run after changing the
import. Requests of one call are computed together; identical prefixes are computed once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol, TypeVar

from kveik.cache.directive import Receipt
from kveik.cache.window import StreamWindow
from kveik.caches import Cache, Caches
from kveik.config import EngineConfig, engine_config
from kveik.embedding import embed_beside
from kveik.engine.engine import Engine
from kveik.engine.explain import Explanation, explain
from kveik.engine.inspection import Inspection
from kveik.engine.manifest import read_manifest
from kveik.engine.modules.prompt import SchemaPrompt
from kveik.engine.pooling import unit_vector
from kveik.engine.request import Event, PromptReady, Request, SamplingParams
from kveik.engine.tokenizer import Tokenizer
from kveik.engine.warm import WarmProgress, WarmStart
from kveik.engine.words import document_id, identifier
from kveik.errors import InvalidRequest, KveikError, Overloaded
from kveik.managed import PLAIN_USE, CacheOptions, checked, refuse, selector
from kveik.module_schemas import ModuleSchemas
from kveik.outputs import (
    DeltaCollector,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    OutputCollector,
    RequestOutput,
    ScoreOutput,
    StreamDelta,
)
from kveik.prompting import (
    Conversation,
    Prompt,
    any_request,
    chat_request,
    checked_ids,
    conversations,
    prompt_request,
)
from kveik.session import Session, new_session_id


class RequestSink(Protocol):
    """Takes the events of one request; `ended` after the last, `error` where it failed."""

    ended: bool
    error: KveikError | None

    def __call__(self, event: Event) -> None: ...


Sink = TypeVar("Sink", bound=RequestSink)


class LLM:
    """A model, its KV cache and the engine around them.

    model: folder in Hugging Face format, hub id, or None for the embedded model. options: the
    fields of `kveik.config.EngineConfig`; kv_memory also as "2GiB". clock: seconds that never go
    back, by which deadlines are counted. Raises TypeError for an unknown option, ConfigError or
    ModelLoadError naming what is wrong and what to do."""

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        if model is not None:
            options["model"] = os.fspath(model)
        self._attach(Engine.load(engine_config(options, os.environ), clock=clock))

    @classmethod
    def from_config(
        cls, config: EngineConfig, *, progress: Callable[[str, float], None] | None = None
    ) -> LLM:
        """progress(stage, share done 0..1) while loading."""
        return cls.from_engine(Engine.load(config, progress=progress))

    @classmethod
    def from_engine(cls, engine: Engine) -> LLM:
        """Around an engine that exists; its background thread must not be running."""
        llm = cls.__new__(cls)
        llm._attach(engine)
        return llm

    def _attach(self, engine: Engine) -> None:
        self.engine = engine
        self.caches = Caches(engine, self._step)
        self.cache = Cache(engine, self._settle)
        self.schemas = ModuleSchemas(engine)
        self._stepping = threading.Lock()
        self._closed = False

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | None = None,
        *,
        cache: CacheOptions | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts; outputs in their order.

        sampling_params: one for all, or one per prompt; None: `get_default_sampling_params()`.
        use_tqdm: a progress bar; None: where there are several prompts and a terminal. cache: what
        becomes of what is computed; None: plain use. Raises InvalidRequest and its kin for the
        first prompt that cannot be served."""
        listed = _listed(prompts)
        requests = [
            self.request(prompt, one, cache)
            for prompt, one in zip(listed, self._params_for(listed, sampling_params), strict=True)
        ]
        return self._complete_all(requests, use_tqdm)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | None = None,
        *,
        cache: CacheOptions | None = None,
    ) -> list[RequestOutput]:
        """The next turn of one conversation, or of each of several."""
        listed = conversations(messages)
        requests = [
            self.chat_request(conversation, one, cache)
            for conversation, one in zip(
                listed, self._params_for(listed, sampling_params), strict=True
            )
        ]
        return self._complete_all(requests, use_tqdm)

    def stream(
        self,
        prompt: Prompt | Conversation,
        sampling_params: SamplingParams | None = None,
        *,
        cache: CacheOptions | None = None,
    ) -> Iterator[StreamDelta]:
        """Text as it is computed. Closing the iterator aborts the request; its computed prefix
        stays cached. The request is checked at once, before the first delta is asked for."""
        params = sampling_params or self.get_default_sampling_params()
        request = any_request(self.engine, prompt, params, cache or PLAIN_USE)
        collector = DeltaCollector()
        return self._deltas(self.engine.submit(request, collector), collector, request)

    def stream_forever(
        self,
        prompt: Prompt | Conversation,
        sampling_params: SamplingParams | None = None,
        *,
        stream_window: StreamWindow | str | Mapping[str, int] | None = None,
        cache: CacheOptions | None = None,
    ) -> Iterator[StreamDelta]:
        """Text until the model ends it or the caller stops reading, in constant memory and constant
        time per token: neither prompt nor answer has a longest length, and `max_tokens` is not
        read. What left the window is forgotten, not summarised.

        stream_window: as "4+1020" (sinks + window); None: as `cache` says, or as the engine was
        configured, or the whole context of the model."""
        options = cache or PLAIN_USE
        window = stream_window or options.stream_window or self.engine.longest_window
        params = replace(sampling_params or self.get_default_sampling_params(), max_tokens=None)
        return self.stream(prompt, params, cache=replace(options, stream_window=window))

    def score(
        self, texts: Prompt | Sequence[Prompt], use_tqdm: bool | None = None
    ) -> list[ScoreOutput]:
        """Log-probability of every token of each text given the tokens before it."""
        listed = _listed(texts)
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
        outputs = self._complete_all([self.request(text, params) for text in listed], use_tqdm)
        return [_score(output) for output in outputs]

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        use_tqdm: bool | None = None,
        *,
        cache: CacheOptions | None = None,
    ) -> list[EmbeddingRequestOutput]:
        """A vector for each text. With `embedding_model` that model's, pooled and scaled as its
        folder says. Else the mean of the model's last hidden states (behind the last norm) over all
        of its tokens, scaled to length 1, so that a dot product is the cosine.

        Nothing is taken from the cache, because every hidden state is needed, and nothing is left
        in it unless `cache` says so: nobody goes on from a passage. An embedding model has none,
        and takes no `cache`."""
        embedder = self.engine.embedder
        if embedder is not None:
            if cache is not None:
                refuse("cache", "an embedding model keeps no keys and values; leave it out")
            return embed_beside(embedder, _listed(prompts))
        params = SamplingParams(max_tokens=0)
        options = cache or CacheOptions(write=False)
        if options.explain:
            refuse("explain", "nothing of an embedding comes from the cache; leave it out")
        requests = [self.request(prompt, params, options) for prompt in _listed(prompts)]
        embedding = [replace(request, embed=True) for request in requests]
        return [_embedding(one) for one in self._collect_all(embedding, use_tqdm)]

    def inspect(self, prompt: Prompt) -> Inspection:
        """Keys and values of a prompt as the cache keeps them, and who attends to whom, as numpy
        arrays, one per layer; T tokens:

            keys, values   float32 [KV heads, T, head size]
            attention      float32 [heads, T, T], rows add up to 1

        Computed cold and alone: neither the cache nor other requests notice. Raises InvalidRequest
        for a prompt so long that its attention would take more than 512 MiB, or with modules."""
        request = self.request(prompt, SamplingParams(max_tokens=0))
        if request.joined is not None:
            refuse("prompt", "modules are computed apart; inspect a prompt without them")
        with self._stepping:
            return self.engine.inspect(request.prompt_token_ids)

    def session(
        self,
        id: str | None = None,
        *,
        system: str | None = None,
        messages: Conversation = (),
        cache: CacheOptions | None = None,
    ) -> Session:
        """A conversation that sends only what is new; `with` ends it.

        id: None for the one that `cache` names, or a new one. system, messages: what stands before
        the first turn. cache: options of every turn (context, tags, ttl, ...)."""
        options = cache or PLAIN_USE
        if id is not None and options.session not in (None, id):
            refuse("id", "cache names another session; send one of them")
        options = replace(options, session=id or options.session or new_session_id())
        opening = [{"role": "system", "content": system}] if system is not None else []
        return Session(self, options, [*opening, *messages])

    def end_session(self, id: str, *, namespace: str = "") -> Receipt | None:
        """What only this conversation computed goes; None: there is no such session."""
        receipt = self.engine.end_session(namespace, checked("id", identifier, id))
        self._settle()
        return receipt

    def document(self, id: str, *, version: str, namespace: str = "") -> Receipt:
        """From now on this version of a document is the valid one: what came from any other is
        forgotten, and only that. Content parts name theirs: {"type": "text", "text": ...,
        "document": "handbook@3"}."""
        document, valid = checked("id", document_id, id), checked("version", identifier, version)
        receipt = self.engine.announce_document(namespace, document, valid)
        self._settle()
        return receipt

    def invalidate(
        self,
        *,
        tag: str | None = None,
        document: str | None = None,
        version: str | None = None,
        not_version: str | None = None,
        session: str | None = None,
        context: str | None = None,
        name: str | None = None,
        prefix: str | Sequence[int] | None = None,
        older_than: float | str | None = None,
        namespace: str = "",
    ) -> Receipt:
        """Nothing that fulfils all conditions is found any more. document: every version, or
        "handbook@2"; prefix: text or token ids; older_than: since it was computed, as "1h"."""
        ids: Sequence[int] = ()
        if prefix is not None:
            encode = self.engine.tokenizer.encode
            ids = encode(prefix) if isinstance(prefix, str) else checked_ids(prefix)
        wanted = selector(
            tag=tag,
            document=document,
            version=version,
            not_version=not_version,
            session=session,
            context=context,
            name=name,
            prefix=tuple(ids),
            older_than=older_than,
            namespace=namespace,
        )
        receipt = self.engine.invalidate(wanted)
        self._settle()
        return receipt

    def explain(
        self, prompt: Prompt | Conversation, *, cache: CacheOptions | None = None
    ) -> Explanation:
        """How much of a prompt or conversation the cache would serve now, where that ends, the
        cause and what to do about it. cache: whose (namespace, cache_salt, cached_content)."""
        options = replace(cache or PLAIN_USE, write=False)  # leaves no trace of the text either
        request = any_request(self.engine, prompt, SamplingParams(max_tokens=0), options)
        return self.engine.explain_prompt(
            request.prompt_token_ids,
            request.namespace,
            request.salt,
            request.remembered,
            request.stream,
        )

    def warm(self, manifest: str | os.PathLike[str]) -> WarmProgress:
        """Compute the prompts of a manifest (YAML or JSON, docs/MANAGED_CACHE.md) now. An entry
        that fails does not stop the others: see `errors`. Raises ConfigError for a manifest that
        says something wrong; a tenant's name is its namespace here."""
        read = read_manifest(os.fspath(manifest))
        warm = WarmStart(self.engine, read, lambda tenant: tenant or "", self._step)
        warm.run()
        return warm.progress()

    def get_default_sampling_params(self) -> SamplingParams:
        """The sampling defaults of the model's generation_config.json."""
        whole = {"top_k", "max_tokens"}
        defaults = self.engine.info.defaults.items()
        return SamplingParams(
            **{name: int(value) if name in whole else value for name, value in defaults}  # type: ignore[arg-type]
        )

    def get_tokenizer(self) -> Tokenizer:
        return self.engine.tokenizer

    def close(self) -> None:
        """Abort what is running; later calls raise Unavailable."""
        if not self._closed:
            self._closed = True
            self.engine.stop()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def request(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        cache: CacheOptions | None = None,
    ) -> Request:
        """The tokenised request of one prompt; raises InvalidRequest."""
        params = params or self.get_default_sampling_params()
        return prompt_request(self.engine, prompt, params, cache or PLAIN_USE)

    def chat_request(
        self,
        messages: Conversation,
        params: SamplingParams | None = None,
        cache: CacheOptions | None = None,
    ) -> Request:
        """The tokenised request of one conversation; raises InvalidRequest."""
        params = params or self.get_default_sampling_params()
        return chat_request(self.engine, messages, params, cache or PLAIN_USE)

    def run(self, work: Iterable[tuple[Request, Sink]]) -> Generator[Sink, None, None]:
        """Compute a stream of requests together; their sinks come in the order in which they end.
        A request that fails or is refused ends with `error`, and no other is touched. Only as many
        as the engine can overlap are taken from `work` ahead of time."""
        source = iter(work)
        active: dict[int, Sink] = {}
        room = min(2 * self.engine.config.max_num_seqs, self.engine.config.max_queued_requests)
        waiting = next(source, None)
        try:
            while waiting is not None or active:
                while waiting is not None and len(active) < room:
                    request, sink = waiting
                    try:
                        active[self.engine.submit(request, sink)] = sink
                    except KveikError as error:
                        if isinstance(error, Overloaded) and active:
                            break
                        sink.error, sink.ended = error, True
                        yield sink
                    waiting = next(source, None)
                self._step()
                for handle in [handle for handle, one in active.items() if one.ended]:
                    yield active.pop(handle)
        finally:
            self._abort(active)

    def collector(self, request: Request) -> OutputCollector:
        """A sink that grows the RequestOutput of `request`."""
        return OutputCollector(request, self.engine.tokenizer.token_text, time.perf_counter)

    def _complete_all(self, requests: list[Request], bar: bool | None) -> list[RequestOutput]:
        """All outputs in the order of `requests`; raises the first error."""
        collectors = self._collect_all(requests, bar)
        for collector in collectors:
            collector.output.explanation = self._explanation(collector.request, collector.ready)
        return [collector.output for collector in collectors]

    def _collect_all(self, requests: list[Request], bar: bool | None) -> list[OutputCollector]:
        collectors = [
            self.collector(replace(request, request_id=str(number)))
            for number, request in enumerate(requests)
        ]
        show = len(requests) > 1 and sys.stderr.isatty() if bar is None else bar
        ended = self.run(zip(requests, collectors, strict=True))
        for collector in _with_bar(ended, len(requests)) if show else ended:
            if collector.error is not None:
                ended.close()
                raise collector.error
        return collectors

    def _explanation(self, request: Request, ready: PromptReady | None) -> Explanation | None:
        """Why not more of its prompt was cached when it was admitted, where it asked."""
        if ready is None or ready.divergence is None:
            return None
        return explain(
            ready.divergence,
            request.prompt_token_ids,
            self.engine.tokenizer,
            cached_tokens=ready.cached_tokens,
            remembered=request.remembered,
            block_size=self.engine.info.block_size,
            evicted=ready.evicted_tokens,
            forgotten=request.kept.forgotten if request.kept is not None else None,
            approximate=ready.approximate_cached_tokens,
        )

    def _deltas(
        self, handle: int, collector: DeltaCollector, request: Request
    ) -> Iterator[StreamDelta]:
        try:
            while not collector.ended:
                self._step()
                for delta in collector.take():
                    if delta.usage is not None:
                        delta.explanation = self._explanation(request, collector.ready)
                    yield delta
            if collector.error is not None:
                raise collector.error
        finally:
            if not collector.ended:
                self._abort([handle])

    def _abort(self, handles: Iterable[int]) -> None:
        listed = list(handles)
        for handle in listed:
            self.engine.abort(handle)
        if listed:
            self._step()

    def _step(self) -> None:
        """One step for every caller of this LLM, whichever thread it is on."""
        with self._stepping, _interrupts_held():
            self.engine.step()

    def _settle(self) -> None:
        """Do what is due and belongs to no request: deadlines, overwriting. Requests that are being
        streamed go on when they are asked to."""
        while True:
            stats = self.engine.stats()
            with self._stepping:
                if stats.running or stats.waiting or not self.engine.step():
                    return

    def _params_for(
        self, items: Sequence[object], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[SamplingParams]:
        if params is None:
            params = self.get_default_sampling_params()
        if isinstance(params, SamplingParams):
            return [params] * len(items)
        if len(params) != len(items):
            raise InvalidRequest(
                f"sampling_params: {len(params)} sampling parameters for {len(items)} prompts",
                param="sampling_params",
            )
        return list(params)


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    return [prompts] if isinstance(prompts, str | Mapping | SchemaPrompt) else list(prompts)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C ends what the caller does between two steps, never in the middle of one, so that the
    engine stays whole. Handlers that are not Python's own are left alone."""
    on_main_thread = threading.current_thread() is threading.main_thread()
    if not on_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    caught: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if caught:
        raise KeyboardInterrupt


def _score(output: RequestOutput) -> ScoreOutput:
    assert output.prompt_logprobs is not None
    places = zip(output.prompt_token_ids, output.prompt_logprobs, strict=True)
    logprobs = [None if place is None else place[token_id].logprob for token_id, place in places]
    return ScoreOutput(output.prompt, output.prompt_token_ids, logprobs)


def _embedding(collector: OutputCollector) -> EmbeddingRequestOutput:
    assert collector.ready is not None
    output = collector.output
    vector = unit_vector(collector.ready.pooled).tolist()
    return EmbeddingRequestOutput(
        output.request_id, EmbeddingOutput(vector), output.prompt_token_ids, output.usage
    )


def _with_bar(ended: Iterable[OutputCollector], total: int) -> Iterator[OutputCollector]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        MofNCompleteColumn(),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[speed]}"),
    )
    started, tokens = time.perf_counter(), 0
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("generate", total=total, speed="")
        for collector in ended:
            tokens += sum(len(choice.token_ids) for choice in collector.output.outputs)
            speed = tokens / (time.perf_counter() - started)
            progress.update(task, advance=1, speed=f"{speed:.0f} tokens/s")
            yield collector
