"""The records of the cache core: groups, segments, tables, lineage, moves.

Keys never move (idea B). A block is computed once at its *home position*, the position of its
slot 0, and is never rewritten. A request owns a table of segments:

    segment:  blocks b0 b1 b2 ...      slots 0 .. len(blocks) * block_size - 1
                 |..skip..|--- length ---|..scratch..|
    slot s of a segment has home position `home + s` and is seen at `home + s + shift`.

`Segment` carries `home` beside the four fields of the first design: the table of a sliding-window
group starts after blocks that were freed, so home cannot be derived from the lengths before it.

This module knows nothing of tensors, files or time; standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from kveik.errors import ConfigError

EXACT: bytes = b""
"""Lineage of blocks computed from position 0 through exact ancestors. A recipe is a digest."""


@dataclass(frozen=True, slots=True)
class KvGroup:
    """Layers that share one block table because they see the same tokens.

    kind "full": every earlier token; "window": the last `window` tokens, own key included;
    "state": a recurrent state with checkpoints at chosen block boundaries.
    planes: arrays per layer (2: K and V); bytes_per_block: all layers and planes, scales included.
    """

    layers: tuple[int, ...]
    kind: Literal["full", "window", "state"] = "full"
    window: int | None = None
    planes: int = 2
    bytes_per_block: int = 0
    layout_version: int = 1


def check_groups(groups: Sequence[KvGroup], num_blocks: Sequence[int], block_size: int) -> None:
    """ConfigError unless these groups can be served from pools of these sizes."""
    if not groups or len(groups) != len(num_blocks):
        raise ConfigError(f"{len(groups)} KV groups need as many pool sizes, got {num_blocks}")
    if not 1 <= block_size <= 4096 or min(num_blocks) < 1:
        raise ConfigError(
            f"block_size {block_size} must be 1 .. 4096 and every pool needs a block: {num_blocks}"
        )
    for group in groups:
        if group.kind == "state":
            raise ConfigError("KV groups of kind 'state' (recurrent models) are not served yet")
        if group.kind == "window" and (group.window is None or group.window < 1):
            raise ConfigError(f"a window group needs window >= 1, got {group.window}")


class Segment(NamedTuple):
    """Tokens `skip .. skip + length` of `blocks`, seen `shift` positions after home."""

    blocks: tuple[int, ...]
    home: int  # home position of slot 0 of blocks[0]; a multiple of block_size for exact blocks
    skip: int
    length: int
    shift: int

    @property
    def seen_start(self) -> int:
        """Seen position of the first token of the segment."""
        return self.home + self.skip + self.shift

    @property
    def seen_end(self) -> int:
        """Seen position after the last token of the segment."""
        return self.home + self.skip + self.shift + self.length


BlockTable: TypeAlias = tuple[Segment, ...]
"""Segments of one request in one group, ordered by seen position, without overlap.

The table names every block that the step may read or write: the last segment's blocks may reach
beyond `skip + length` (room reserved for the tokens of this step)."""


class CopyPrefix(NamedTuple):
    """Move: copy slots 0 .. count of block `src` to block `dst` in one group, before the step.

    The source stays referenced until the StepResult acknowledges the move."""

    group: int
    src: int
    dst: int
    count: int  # type: ignore[assignment]  # tokens; hides tuple.count


class Erase(NamedTuple):
    """Move: overwrite the bytes of a block that was deleted. It comes before every other move of
    its step, so that a block may be used again in that step."""

    group: int
    block: int


Move: TypeAlias = CopyPrefix | Erase
