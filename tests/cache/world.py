"""A small world around the manager: sequences, steps in flight, an arena of slots, a naive model.

The arena says what is really in every slot: `(identity, tokens up to and including this one)`.
Moves and steps write it as a runner would, so a wrong hit, a block reused too early or a stale
table shows as a slot with the wrong content. The model of what is cached is a dictionary from
(identity, tuple of tokens) to block ids; it is searched by trying every length. Neither uses the
tree, the pools or the tables' arithmetic of the code under test, except to notice evictions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from kveik.cache.directive import Selector
from kveik.cache.manager import CacheManager, Lease, NoRoom, Opened, Wait
from kveik.cache.prefix import Identity
from kveik.cache.segments import EXACT, CopyPrefix, KvGroup, Move
from kveik.cache.window import span_view

Tokens = tuple[int, ...]
Path = tuple[Identity, Tokens]


@dataclass
class Run:
    """One sequence: its tokens, how many are committed, and what it may publish."""

    identity: Identity
    lease: Lease
    tokens: Tokens
    prompt: int
    committed: int
    store: bool
    selectors: list[Tokens] = field(default_factory=list)
    step: int | None = None  # in flight
    moving: bool = False  # its copy is not launched yet

    def may_publish(self, path: Tokens) -> bool:
        return self.store and not any(path[: len(s)] == s for s in self.selectors)


@dataclass
class Flight:
    """A launched step: who computes up to which token, and what its rows read."""

    step: int
    goals: list[tuple[Run, int]]
    reads: dict[tuple[int, int], Path]  # (group, slot) -> content that must be there


class World:
    def __init__(
        self, groups: Sequence[KvGroup], blocks: Sequence[int], size: int, caching: bool = True
    ) -> None:
        self.size, self.groups, self.caching = size, tuple(groups), caching
        self.manager = CacheManager(groups, blocks, size, enable_prefix_caching=caching, ghosts=16)
        self.blocks = tuple(blocks)
        self.arena: list[dict[int, Path]] = [{} for _ in groups]
        self.cached: dict[Path, list[int | None]] = {}
        self.runs: list[Run] = []
        self.flights: list[Flight] = []
        self.moves: list[Move] = []
        self.steps = 0
        self.waits = self.hits = self.refusals = self.preemptions = 0

    # --- the naive model

    def reads_from(self, group: int, length: int) -> int:
        """First token that a row at position `length` reads; the cache keeps at least one."""
        spec = self.groups[group]
        return 0 if spec.kind == "full" else max(length - max(spec.window or 0, 2) + 1, 0)

    def longest(self, identity: Identity, tokens: Tokens, cap: int) -> int:
        """Longest length that every group can serve, by trying all."""
        return next((n for n in range(cap, 0, -1) if self.serves(identity, tokens[:n])), 0)

    def serves(self, identity: Identity, prefix: Tokens) -> bool:
        if not self.caching:
            return False
        whole = len(prefix) // self.size * self.size
        ends = list(range(self.size, whole + 1, self.size))
        exact = [self.cached.get((identity, prefix[:end])) for end in ends]
        for g in range(len(self.groups)):
            first = self.reads_from(g, len(prefix)) // self.size
            if any(entry is None or entry[g] is None for entry in exact[first:]):
                return False
        if whole == len(prefix):
            return True
        return any(
            None not in entry
            for (owner, path), entry in self.cached.items()
            if owner == identity and whole < len(path) <= whole + self.size
            if path[: len(prefix)] == prefix
        )

    def notice_losses(self, evicted: bool) -> None:
        """Forget what the manager dropped. It may drop only when it evicted for room, or tails
        that a longer block extends."""
        pools = self.manager.pools
        for (identity, path), entry in list(self.cached.items()):
            for g, block in enumerate(entry):
                if block is None:
                    continue
                last = (block * self.size) + (len(path) - 1) % self.size
                there = pools[g].owner[block] >= 0 and self.arena[g].get(last) == (identity, path)
                if not there:
                    longer = any(
                        owner == identity and other[: len(path)] == path and other != path
                        for owner, other in self.cached
                    )
                    partial = len(path) % self.size > 0
                    assert evicted or (longer and partial), f"{path} was lost without need"
                    entry[g] = None
            if all(block is None for block in entry):
                del self.cached[identity, path]

    def settle(self, evicted_before: int) -> None:
        """After every operation: the manager's proof, and the model catches up."""
        self.manager.check()
        stats = self.manager.stats()
        assert stats.leaked_blocks == 0
        self.notice_losses(stats.evicted_blocks > evicted_before)

    @property
    def evicted(self) -> int:
        return self.manager.stats().evicted_blocks

    # --- operations

    def like(self, index: int, shared: int, tokens: Tokens) -> Tokens:
        """A prompt that begins like a sequence that is there (index 0: like none)."""
        if index == 0 or not self.runs:
            return tokens
        return (self.runs[index % len(self.runs)].tokens[:shared] + tokens)[:24]

    def admit(
        self, identity: Identity, tokens: Tokens, wanted: int, store: bool, reuse: bool
    ) -> None:
        before = self.evicted
        cap = len(tokens) - 1 if reuse else 0
        expected = self.longest(identity, tokens, cap)
        if identity.lineage == EXACT and reuse:
            lookup = self.manager.lookup(tokens, namespace=identity.namespace)
            assert lookup.cached_tokens == expected
            assert self.evicted == before
            # A lookup changes nothing but recency.
            again = self.manager.explain(tokens, namespace=identity.namespace)
            assert again == lookup
        wanted = max(wanted, len(tokens))
        stats = self.manager.stats()
        result = self.manager.open(
            tokens,
            wanted,
            namespace=identity.namespace,
            lineage=identity.lineage,
            store=store,
            reuse=reuse,
        )
        match result:
            case Wait():
                self.waits += 1
                assert self.manager.stats() == stats
                start = expected // self.size * self.size
                # Somebody who may publish computes the next block of these tokens.
                assert any(
                    run.identity == identity
                    and run.store
                    and run.tokens[: start + self.size] == tokens[: start + self.size]
                    and run.committed < start + self.size <= run.prompt
                    for run in self.runs
                )
            case NoRoom():
                self.refusals += 1
                assert self.manager.stats() == stats
                assert not self.fits(identity, tokens, wanted, cap)
            case Opened():
                self._opened(result, Run(identity, result.lease, tokens, len(tokens), 0, store))
                got = result.lease.cached_tokens
                assert got <= expected
                self.hits += got > 0
                if got < expected:  # only for want of a block for the source of the copy
                    assert got == self.whole_match(identity, tokens, cap)
        self.settle(before)

    def _opened(self, result: Opened, run: Run) -> None:
        lease = result.lease
        run.committed = lease.cached_tokens
        self.moves += result.moves
        run.moving = bool(result.moves)
        assert lease.capacity >= len(run.tokens) > lease.cached_tokens
        assert bool(result.moves) == bool(run.committed % self.size)
        assert all(move.count == run.committed % self.size for move in result.moves)
        self.runs.append(run)

    def whole_match(self, identity: Identity, tokens: Tokens, cap: int) -> int:
        ends = range(cap // self.size * self.size, 0, -self.size)
        return next((n for n in ends if self.serves(identity, tokens[:n])), 0)

    def fits(self, identity: Identity, tokens: Tokens, wanted: int, cap: int) -> bool:
        """Is there room when only the whole matched blocks are held?"""
        whole = self.whole_match(identity, tokens, cap)
        need = -(-wanted // self.size) - whole // self.size
        for g, total in enumerate(self.blocks):
            held = self.held(g)
            first = self.reads_from(g, whole) // self.size
            for index in range(first, whole // self.size):
                block = self.cached[identity, tokens[: (index + 1) * self.size]][g]
                assert block is not None
                held.add(block)
            if len(held) + need > total:
                return False
        return True

    def held(self, group: int) -> set[int]:
        held = {block for run in self.runs for block in run.lease.blocks[group]}
        return held | {block for g, block in self.manager.fence.held() if g == group}

    def launch(self, chunks: Sequence[int], preempt: bool) -> None:
        """One step for every sequence at rest: run i computes up to chunks[i] tokens."""
        before = self.evicted
        flight = Flight(self.steps, [], {})
        resting = [run for run in self.runs if run.step is None]
        for run, chunk in zip(resting, chunks, strict=False):
            goal = min(run.committed + chunk, len(run.tokens))
            if goal <= run.committed:
                continue
            if not self.manager.extend(run.lease, goal):
                self.settle(before)
                if preempt:
                    self.preemptions += 1
                    self.end(run, keep=True)
                continue
            run.step = flight.step
            flight.goals.append((run, goal))
        if not flight.goals:
            self.settle(before)
            return
        for move in self.moves:
            assert isinstance(move, CopyPrefix)
            arena, size = self.arena[move.group], self.size
            for slot in range(move.count):
                arena[move.dst * size + slot] = arena[move.src * size + slot]
        self.moves = []
        for run in self.runs:
            run.moving = False
        self.settle(before)
        for run, goal in flight.goals:
            self._write(run, goal)
        for run, goal in flight.goals:
            self._read(run, goal, flight)
        self.manager.launched(flight.step)
        self.steps += 1
        self.flights.append(flight)
        self.settle(before)

    def _write(self, run: Run, goal: int) -> None:
        rows = range(run.committed, goal)
        for g, spec in enumerate(self.groups):
            view = span_view(spec, run.lease.tables[g], rows.start, len(rows), self.size)
            assert view.key_positions == list(rows)
            for position, slot in zip(rows, view.slots, strict=True):
                self.arena[g][slot] = (run.identity, run.tokens[: position + 1])

    def _read(self, run: Run, goal: int, flight: Flight) -> None:
        for g, spec in enumerate(self.groups):
            (segment,) = run.lease.tables[g]
            for position in (run.committed, goal - 1):
                view = span_view(spec, run.lease.tables[g], position, 1, self.size)
                _, first, last = view.windows
                reach = position + 1 if spec.window is None else spec.window
                assert last - first + 1 == min(reach, position + 1)
                for offset in range(first, last + 1):
                    block = segment.blocks[offset // self.size]
                    slot = block * self.size + offset % self.size
                    content = (run.identity, run.tokens[: segment.home + offset + 1])
                    assert self.arena[g].get(slot) == content
                    flight.reads[g, slot] = content

    def acknowledge(self) -> None:
        """The oldest step comes back: until now nobody touched what it reads."""
        if not self.flights:
            return
        flight = self.flights.pop(0)
        before = self.evicted
        for (g, slot), content in flight.reads.items():
            assert self.arena[g][slot] == content
        self.manager.acknowledge(flight.step)
        self.settle(before)
        for run, goal in flight.goals:
            if run in self.runs:
                run.step = None
                self._commit(run, goal)

    def _commit(self, run: Run, goal: int) -> None:
        before, size = self.evicted, self.size
        old = [(table[0].home // size, table[0].blocks) for table in run.lease.tables]
        self.manager.commit(run.lease, run.tokens[:goal])
        for index in range(run.committed // size, goal // size):
            path = run.tokens[: (index + 1) * size]
            own = [blocks[index - start] for start, blocks in old]
            self._publish(run, path, own)
        run.committed = goal
        for g in range(len(self.groups)):
            (segment,) = run.lease.tables[g]
            assert segment.home + segment.length == goal
            assert segment.home == self.reads_from(g, goal) // size * size
        self.settle(before)

    def _publish(self, run: Run, path: Tokens, own: Sequence[int]) -> None:
        if not (self.caching and run.may_publish(path)):
            return
        entry = self.cached.setdefault((run.identity, path), [None] * len(self.groups))
        for g, block in enumerate(own):
            if entry[g] is None:
                entry[g] = block

    def end(self, run: Run, keep: bool) -> None:
        before, size = self.evicted, self.size
        rest = run.committed % size
        path = run.tokens[: run.committed]
        own: list[int] = []
        if rest:
            place = run.committed // size
            own = [t[0].blocks[place - t[0].home // size] for t in run.lease.tables]
        extended = any(
            owner == run.identity
            and other[: len(path)] == path
            and len(path) < len(other) <= len(path) - rest + size
            for owner, other in self.cached
        )
        self.manager.release(run.lease, keep=keep)
        self.runs.remove(run)
        if rest and keep and not extended and not run.moving:
            self._publish(run, path, own)
        self.settle(before)

    def fork(self, run: Run, tail: Tokens) -> None:
        if run.moving:
            with pytest.raises(ValueError, match="not launched"):
                self.manager.fork(run.lease)
            return
        before = self.evicted
        forked = self.manager.fork(run.lease)
        if forked is None:
            assert run.committed % self.size
            assert any(len(self.held(g)) == total for g, total in enumerate(self.blocks))
        else:
            lease, moves = forked
            self.moves += moves
            tokens = run.tokens[: run.committed] + tail
            twin = Run(run.identity, lease, tokens, 0, run.committed, run.store)
            twin.selectors = list(run.selectors)
            twin.moving = bool(moves)
            self.runs.append(twin)
        self.settle(before)

    def invalidate(self, namespace: str, selector: Tokens) -> None:
        before = self.evicted

        def hit(identity: Identity, path: Tokens) -> bool:
            if identity.namespace != namespace:
                return False
            return identity.lineage != EXACT or path[: len(selector)] == selector

        gone = [key for key in self.cached if hit(*key)]
        blocks = sum(block is not None for key in gone for block in self.cached[key])
        for key in gone:
            del self.cached[key]
        assert self.manager.invalidate(Selector(namespace, prefix=selector)).blocks == blocks
        for run in self.runs:
            if run.identity.namespace == namespace:
                run.selectors.append(selector if run.identity.lineage == EXACT else ())
        self.settle(before)

    def reset(self, namespace: str | None) -> None:
        before = self.evicted
        busy = any(namespace in (None, run.identity.namespace) for run in self.runs)
        stats = self.manager.stats()
        assert self.manager.reset(namespace) is not busy
        if busy:
            assert self.manager.stats() == stats
        else:
            for key in list(self.cached):
                if namespace in (None, key[0].namespace):
                    del self.cached[key]
        self.settle(before)

    def drain(self) -> None:
        """End everything: no block stays held, and what is cached is idle."""
        while self.flights:
            self.acknowledge()
        for run in list(self.runs):
            self.end(run, keep=True)
        if self.moves:  # their blocks wait for a step that carries them
            self.manager.launched(self.steps)
            self.manager.acknowledge(self.steps)
        stats = self.manager.stats()
        for g, total in enumerate(self.blocks):
            assert stats.free_blocks[g] + stats.idle_blocks[g] == total


def roll(dice: random.Random, world: World, rare: float) -> None:
    """One random operation; most of them ordinary work. rare: share of prompts of rare tokens."""
    choose = dice.random()
    common = (1, 1, 1, 2, 2**32 - 1)
    alphabet = range(3, 40) if dice.random() < rare else common
    tokens = tuple(dice.choices(alphabet, k=dice.randint(1, 22)))
    names = ("", "other")
    if choose < 0.30:
        tokens = world.like(dice.randint(0, 9), dice.randint(0, 20), tokens)
        identity = Identity(dice.choice(names), 0, dice.choice((EXACT, EXACT, EXACT, b"recipe")))
        wanted = len(tokens) + dice.randint(0, 9)
        world.admit(identity, tokens, wanted, dice.random() < 0.8, dice.random() < 0.8)
    elif choose < 0.55:
        if len(world.flights) < 2:
            chunks = [dice.randint(1, 22) for _ in range(6)]
            world.launch(chunks, dice.random() < 0.5)
    elif choose < 0.75:
        world.acknowledge()
    elif choose < 0.97 and world.runs:
        run = dice.choice(world.runs)
        if choose < 0.82:
            run.tokens += tokens[: max(30 - len(run.tokens), 0)]
        elif choose < 0.87 and run.step is None and len(world.runs) < 8:
            world.fork(run, tokens)
        elif choose >= 0.87:
            world.end(run, dice.random() < 0.7)
    elif choose < 0.99:
        world.invalidate(dice.choice(names), tokens[: dice.randint(0, 9)])
    else:
        world.reset(dice.choice((*names, None)))
