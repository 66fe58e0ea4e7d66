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

from kveik.cache.curve import Curve
from kveik.cache.lease import (
    AGE_BUCKETS,
    EVICTION_REASONS,
    MISS_REASONS,
    CacheStats,
    Histogram,
)
from kveik.engine.parts import EngineInfo

_SIZES = (("half", 0.5), ("this", 1.0), ("twice", 2.0), ("four_times", 4.0))
_CLASSES = ("pinned", "demoted", "low")


def cache_metrics(cache: CacheStats, info: EngineInfo) -> Iterator[Metric]:
    yield _reasons(
        "kveik:evictions", "Cached blocks that went, by reason", EVICTION_REASONS, cache.evictions
    )
    yield _reasons(
        "kveik:misses", "Prompts that were not cached to their end", MISS_REASONS, cache.misses
    )
    yield _bytes(cache, info)
    yield _one("kveik:kv_pool_bytes", "Bytes of all KV blocks", info.pool_bytes)
    yield _one(
        "kveik:pin_budget_blocks",
        "KV blocks that pins and open streams may hold between requests",
        cache.pin_budget,
    )
    yield _one("kveik:pin_room_blocks", "How many of them are left", cache.pin_room)
    yield _classes(cache)
    erased = CounterMetricFamily("kveik:erased_blocks", "Deleted blocks that were overwritten")
    erased.add_metric([], cache.erased_blocks)
    yield erased
    yield _one("kveik:sessions", "Sessions that hold blocks", cache.sessions)
    yield _histogram(
        "kveik:evicted_block_age_seconds", "From use to eviction of a block", cache.block_ages
    )
    yield _histogram(
        "kveik:reuse_gap_seconds", "Between two uses of a cached prompt", cache.reuse_gaps
    )


def curve_metrics(curve: Curve) -> Iterator[Metric]:
    """An estimate for pools that evict the least recently used; nothing before a prompt came."""
    family = GaugeMetricFamily(
        "kveik:lru_hit_ratio",
        "Share of prompt tokens that pools of this and other sizes would have served",
        labels=["pool"],
    )
    for name, times in _SIZES if curve.tokens else ():
        family.add_metric([name], curve.at(times))
    yield family


def _one(name: str, text: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, text)
    family.add_metric([], value)
    return family


def _reasons(name: str, text: str, reasons: Sequence[str], counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=["reason"])
    for reason in reasons:
        family.add_metric([reason], counts.get(reason, 0))
    return family


def _bytes(cache: CacheStats, info: EngineInfo) -> Metric:
    """used: of running requests; cached: of none, and free to be evicted where nothing pins them;
    pinned: of either; logical: as if every tenant had its own copy of what is public (used and
    cached have one)."""
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
