"""What /metrics says about the cache. Labels are fixed lists: reasons, groups, kinds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from kveik.cache.lease import (
    AGE_BUCKETS,
    EVICTION_REASONS,
    MISS_REASONS,
    CacheStats,
    Histogram,
)
from kveik.engine.parts import EngineInfo

_CLASSES = ("pinned", "demoted", "low")


def cache_metrics(cache: CacheStats, info: EngineInfo) -> Iterator[Metric]:
    yield _reasons(
        "kveik:evictions", "Cached blocks that went, by reason", EVICTION_REASONS, cache.evictions
    )
    yield _reasons(
        "kveik:misses", "Prompts that were not cached to their end", MISS_REASONS, cache.misses
    )
    yield _bytes(cache, info)
    yield _classes(cache)
    erased = CounterMetricFamily("kveik:erased_blocks", "Deleted blocks that were overwritten")
    erased.add_metric([], cache.erased_blocks)
    yield erased
    sessions = GaugeMetricFamily("kveik:sessions", "Sessions that hold blocks")
    sessions.add_metric([], cache.sessions)
    yield sessions
    yield _histogram(
        "kveik:evicted_block_age_seconds", "From use to eviction of a block", cache.block_ages
    )
    yield _histogram(
        "kveik:reuse_gap_seconds", "Between two uses of a cached prompt", cache.reuse_gaps
    )


def _reasons(name: str, text: str, reasons: Sequence[str], counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=["reason"])
    for reason in reasons:
        family.add_metric([reason], counts.get(reason, 0))
    return family


def _bytes(cache: CacheStats, info: EngineInfo) -> Metric:
    """used: of running requests; cached: free to be evicted, and not pinned; logical: as if every
    tenant had its own copy of what is public (used and cached have one)."""
    family = GaugeMetricFamily("kveik:kv_bytes", "Bytes of KV blocks by kind", labels=["kind"])
    for kind, blocks in (
        ("used", cache.leased_blocks),
        ("cached", cache.idle_blocks),
        ("pinned", cache.pinned_blocks),
        ("logical", cache.logical_blocks),
    ):
        sizes = zip(blocks, info.block_bytes, strict=False)
        family.add_metric([kind], sum(count * size for count, size in sizes))
    return family


def _classes(cache: CacheStats) -> Metric:
    family = GaugeMetricFamily(
        "kveik:kv_class_blocks", "Cached blocks by rank", labels=["group", "class"]
    )
    for name in _CLASSES:
        for group, count in enumerate(getattr(cache, f"{name}_blocks")):
            family.add_metric([str(group), name], count)
    return family


def _histogram(name: str, text: str, values: Histogram) -> Metric:
    bounds = [*(f"{bound:g}" for bound in AGE_BUCKETS), "+Inf"]
    family = HistogramMetricFamily(name, text)
    family.add_metric([], list(zip(bounds, accumulate(values.counts), strict=True)), values.total)
    return family
