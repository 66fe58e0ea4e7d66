"""Block ids of one group: an O(1) free list, reference counts and block life; and the step fence.

    FREE -> FILLING -> SEALED -> FREE      (FILLING -> FREE when it is given up unsealed)

The free list is a stack: what was just given back unsealed is taken first, then blocks never used
(vLLM's order; sealed blocks are not here, they stay in the tree until they are evicted). A
reference is a lease's, or the fence's. The pool does not know tokens, the tree or who the holders
are. Standard library only; facts are flat arrays, no object per block.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable

FREE, FILLING, SEALED = 0, 1, 2


class BlockPool:
    """`num_blocks` block ids of one group.

    refs[b]: holders. state[b]: FREE, FILLING or SEALED. owner[b]: the tree node whose payload b is,
    -1 when it is not in the tree. A block is free, or held, or in the tree (or held and in it)."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.refs = array("i", bytes(4 * num_blocks))
        self.owner = array("i", [-1]) * num_blocks
        self.state = bytearray(num_blocks)
        self.free = deque(range(num_blocks - 1, -1, -1))  # an array would move when it grows

    def take(self, count: int) -> list[int]:
        """`count` free blocks, each with one reference, FILLING. The caller checked that they are
        there."""
        if count <= 0:
            return []
        free, refs, state = self.free, self.refs, self.state
        taken = [free.pop() for _ in range(count)]
        for block in taken:
            refs[block] = 1
            state[block] = FILLING
        return taken

    def give(self, block: int) -> None:
        """Back to the free list. Raises ValueError for a block that is held, owned or free."""
        if self.refs[block] or self.owner[block] >= 0 or self.state[block] == FREE:
            raise ValueError(f"block {block} is given back although it is held, cached or free")
        self.state[block] = FREE
        self.free.append(block)


class StepFence:
    """Holds references on behalf of launched steps.

    A step that was launched may still read or write the blocks it named. What is let go while
    steps run is handed to the fence, which keeps the reference until the last launched step is
    acknowledged. Sources of moves wait for the *next* step, the one that will carry the moves."""

    def __init__(self) -> None:
        self._running: deque[int] = deque()
        self._acknowledged: set[int] = set()
        self._held: deque[tuple[int, list[tuple[int, int]]]] = deque()  # (step, [(group, block)])
        self._next: list[tuple[int, int]] = []

    @property
    def running(self) -> bool:
        """Is a launched step not acknowledged yet?"""
        return bool(self._running)

    def hold(self, references: list[tuple[int, int]]) -> None:
        """Keep these (group, block) references until the last launched step is acknowledged."""
        self._held.append((self._running[-1], references))

    def hold_for_next(self, references: Iterable[tuple[int, int]]) -> None:
        """Keep these references until the step that will be launched next is acknowledged."""
        self._next.extend(references)

    def launched(self, step_id: int) -> None:
        if self._running and step_id <= self._running[-1]:
            raise ValueError(f"step {step_id} was launched after step {self._running[-1]}")
        self._running.append(step_id)
        if self._next:
            self._held.append((step_id, self._next))
            self._next = []

    def acknowledge(self, step_id: int) -> list[tuple[int, int]]:
        """The references that fall with this step, in the order in which they were handed over."""
        if step_id not in self._running or step_id in self._acknowledged:
            raise ValueError(f"step {step_id} is acknowledged but is not running")
        self._acknowledged.add(step_id)
        while self._running and self._running[0] in self._acknowledged:
            self._acknowledged.discard(self._running.popleft())
        oldest = self._running[0] if self._running else None
        fallen: list[tuple[int, int]] = []
        while self._held and (oldest is None or self._held[0][0] < oldest):
            fallen.extend(self._held.popleft()[1])
        return fallen

    def held(self) -> list[tuple[int, int]]:
        """Every reference that the fence keeps now (a block may occur several times)."""
        every = [pair for _, references in self._held for pair in references]
        return every + self._next
