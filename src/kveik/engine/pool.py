"""How many KV blocks to allocate: a budget in bytes becomes blocks per group.

Every group gets the same number of blocks, so that each can serve the longest sequence; a sliding
window then leaves more of its blocks idle, which keeps more prefixes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from kveik.cache.segments import KvGroup
from kveik.config import EngineConfig
from kveik.errors import ConfigError
from kveik.store.arena import blocks_within

FREE_MEMORY_SHARE = 4
"""Without --kv-memory the pool takes one part in this many of the free memory."""


def free_memory() -> int:
    """Bytes that can be allocated now without swapping (Linux: MemAvailable)."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def pool_blocks(
    groups: Sequence[KvGroup], config: EngineConfig, max_model_len: int, free_bytes: int
) -> tuple[int, ...]:
    """Blocks per group. Never more than max_num_seqs sequences of max_model_len tokens need.

    By default at least one sequence of full length fits; an explicit kv_memory is obeyed as it
    is, and ConfigError names what would be needed when it holds less than two blocks."""
    block_bytes = sum(group.bytes_per_block for group in groups)
    longest = -(-max_model_len // config.block_size)
    enough = longest * config.max_num_seqs
    if config.kv_memory is None:
        blocks = max(longest, blocks_within(free_bytes // FREE_MEMORY_SHARE, groups))
    else:
        blocks = blocks_within(config.kv_memory, groups)
    if blocks < 2:
        raise ConfigError(
            f"kv_memory: {config.kv_memory} bytes hold {blocks} blocks of {block_bytes} bytes; "
            f"one sequence of {max_model_len} tokens needs {longest * block_bytes} bytes",
            param="kv_memory",
        )
    return (min(blocks, enough),) * len(groups)
