"""/metrics for Prometheus: vLLM's names where they mean the same, `kveik:` for the rest.

The registry is private. Labels come from fixed lists (model id, finish reason, route pattern,
status, block state): never from what a client sends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from kveik.engine.engine import Engine, EngineStats
from kveik.server.cache_metrics import cache_metrics, curve_metrics

CONTENT_TYPE = CONTENT_TYPE_LATEST
Observe: TypeAlias = Callable[[float], None]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.5, 1, 2.5)

# name, what it counts, attribute of EngineStats or CacheStats
_COUNTERS = (
    ("vllm:num_preemptions", "Sequences preempted", "preemptions"),
    ("vllm:prompt_tokens", "Prompt tokens of computed prompts", "prompt_tokens"),
    ("vllm:generation_tokens", "Tokens generated", "generation_tokens"),
    ("kveik:steps", "Steps of the engine", "steps"),
    ("kveik:step_seconds", "Time spent in steps", "step_seconds"),
    ("kveik:stored_tokens", "Prompt tokens added to the cache", "stored_tokens"),
    ("kveik:saved_seconds", "Computation that hits saved, estimated", "seconds_saved"),
)
_GAUGES = (
    ("vllm:num_requests_running", "Requests being computed", "running"),
    ("vllm:num_requests_waiting", "Requests in the queue", "waiting"),
    ("kveik:waiting_tokens", "Prompt tokens in the queue", "waiting_tokens"),
    ("kveik:named_caches", "Named caches", "named_caches"),
    ("kveik:open_streams", "Streams that wait for their session's next turn", "open_streams"),
    ("kveik:kept_conversations", "Sessions whose finished turns are kept", "conversations"),
    ("kveik:kept_conversation_bytes", "Bytes of kept turns", "conversation_bytes"),
)
_CACHE_COUNTERS = (
    ("vllm:prefix_cache_queries", "Prompt tokens looked up", "queried_tokens"),
    ("vllm:prefix_cache_hits", "Prompt tokens served from the cache", "hit_tokens"),
    (
        "kveik:approximate_hit_tokens",
        "Prompt tokens reused approximately",
        "approximate_hit_tokens",
    ),
    ("kveik:evicted_blocks", "Cached blocks evicted for room", "evicted_blocks"),
    ("kveik:committed_blocks", "Blocks published for reuse", "committed_blocks"),
    ("kveik:copied_blocks", "Partial blocks copied for reuse", "copied_blocks"),
)
_BLOCK_STATES = ("free", "leased", "idle", "fenced")


class Metrics:
    """Counts what the HTTP side sees; everything else is read from the engine when scraped.

    first_token, next_token, finished: given the seconds since the request came, since the token
    before, of the whole request; they count once an engine is watched, bound to its model (looking
    the label up for every token would cost more than counting)."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self.first_token: Observe = _ignore
        self.next_token: Observe = _ignore
        self.finished: Observe = _ignore
        model = ["model_name"]
        self._first_token = self._histogram(
            "vllm:time_to_first_token_seconds", "From request to first token", model, _SECONDS
        )
        self._between_tokens = self._histogram(
            "vllm:inter_token_latency_seconds", "Between tokens", model, _TOKEN_SECONDS
        )
        self._whole = self._histogram(
            "vllm:e2e_request_latency_seconds", "From request to its end", model, _SECONDS
        )
        self._answers = Counter(
            "kveik:http_requests", "HTTP answers", ["route", "status"], registry=self._registry
        )

    def _histogram(
        self, name: str, help_text: str, labels: list[str], buckets: tuple[float, ...]
    ) -> Histogram:
        return Histogram(name, help_text, labels, registry=self._registry, buckets=buckets)

    def watch(self, engine: Engine) -> None:
        """Report this engine's counters from now on."""
        model = engine.info.model_id
        self.first_token = self._first_token.labels(model).observe
        self.next_token = self._between_tokens.labels(model).observe
        self.finished = self._whole.labels(model).observe
        self._registry.register(EngineCollector(engine))

    def answered(self, route: str, status: int) -> None:
        """route: the pattern of the table, not the path that was sent."""
        self._answers.labels(route, str(status)).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)


def _ignore(seconds: float) -> None:
    """No engine is watched yet."""


class EngineCollector(Collector):
    """Turns one `Engine.stats()` into metrics at each scrape."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        stats, model = self._engine.stats(), [self._engine.info.model_id]
        for name, text, attribute in _COUNTERS:
            yield _one(
                CounterMetricFamily(name, text, labels=["model_name"]), model, stats, attribute
            )
        for name, text, attribute in _GAUGES:
            yield _one(
                GaugeMetricFamily(name, text, labels=["model_name"]), model, stats, attribute
            )
        for name, text, attribute in _CACHE_COUNTERS:
            family = CounterMetricFamily(name, text, labels=["model_name"])
            yield _one(family, model, stats.cache, attribute)
        yield self._levels(stats)
        yield self._finished(stats)
        yield from self._blocks(stats)
        yield from cache_metrics(stats.cache, self._engine.info)
        yield from curve_metrics(self._engine.curve())

    def _levels(self, stats: EngineStats) -> Metric:
        """Of the three levels that a prompt can be saved at, encodings are shared by the model."""
        family = CounterMetricFamily(
            "kveik:level_hit_tokens",
            "Prompt tokens that were not encoded (tokens) or not computed (states) again",
            labels=["model_name", "level", "tier"],
        )
        model = self._engine.info.model_id
        family.add_metric([model, "tokens", "memory"], stats.remembered_tokens)
        family.add_metric([model, "states", "memory"], stats.cache.hit_tokens)
        return family

    def _finished(self, stats: EngineStats) -> Metric:
        family = CounterMetricFamily(
            "vllm:request_success", "Ended requests", labels=["model_name", "finished_reason"]
        )
        for reason in ("stop", "length", "abort", "error"):
            count = stats.requests_finished.get(reason, 0)
            family.add_metric([self._engine.info.model_id, reason], count)
        return family

    def _blocks(self, stats: EngineStats) -> Iterator[Metric]:
        cache, model = stats.cache, self._engine.info.model_id
        usage = GaugeMetricFamily(
            "vllm:kv_cache_usage_perc",
            "Share of KV blocks that running requests hold (cached ones are free to be evicted)",
            labels=["model_name"],
        )
        used = max(
            leased / total
            for leased, total in zip(cache.leased_blocks, cache.total_blocks, strict=True)
        )
        usage.add_metric([model], used)
        yield usage
        blocks = GaugeMetricFamily(
            "kveik:kv_blocks", "KV blocks by layer group and state", labels=["group", "state"]
        )
        for state in _BLOCK_STATES:
            for group, count in enumerate(getattr(cache, f"{state}_blocks")):
                blocks.add_metric([str(group), state], count)
        yield blocks
        leaked = GaugeMetricFamily("kveik:kv_leaked_blocks", "Blocks that are in no place")
        leaked.add_metric([], cache.leaked_blocks)
        yield leaked
        pool = GaugeMetricFamily("kveik:kv_pool_tokens", "Tokens that the KV pool can hold")
        pool.add_metric([], self._engine.info.pool_tokens)
        yield pool


def _one(
    family: CounterMetricFamily | GaugeMetricFamily,
    labels: list[str],
    record: object,
    attribute: str,
) -> Metric:
    family.add_metric(labels, getattr(record, attribute))
    return family
