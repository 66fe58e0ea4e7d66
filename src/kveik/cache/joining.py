"""The lease of a prompt that is joined from units (see join.py): opened, grown, committed, let go.

It is put together from ordinary leases: one for each run that is computed, which publishes into
the tree of its lineage, and a *reader* for each unit and each run that is there as a whole, which
holds the blocks and publishes nothing. So a batch shares the blocks of a unit without copying, and
everything that is true of a lease (claims, deadlines, invalidation, eviction, the proof of
conservation) is true of each of its parts.

    table   | run 0: home 0 | unit: home and skip as computed, shift | run 1: home near seen | ...

A unit that is not there is computed first, by whoever schedules: `Missing` names it. Standard
library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import NamedTuple, TypeAlias

from kveik.cache.directive import PLAIN, Directive, DocumentSpan, Ttl
from kveik.cache.join import Course, JoinedPrompt, Run, Stretch, Unit
from kveik.cache.lease import Lease, Miss, NoRoom, Opened, Wait
from kveik.cache.leasing import Leasing
from kveik.cache.lookup import Found
from kveik.cache.prefix import WORD, Identity, pack_tokens
from kveik.cache.segments import EXACT, BlockTable, Move, Segment


@dataclass(frozen=True, slots=True)
class Missing:
    """These units must be computed first; nothing was changed. there: how many tokens from the
    beginning of each are (counted like its tokens). cached: tokens of the prompt's exact beginning
    that are there now; recipes: of its other runs."""

    units: tuple[int, ...]
    there: tuple[int, ...]
    cached: int
    recipes: int


class Joined(Lease):
    """The lease of a joined prompt. Its `committed` and `capacity` count tokens of the prompt, with
    those of units, and of the answer; it holds no blocks itself.

    course: which tokens must be computed. cached_tokens: reused exactly; approximate_tokens: in
    units that are seen elsewhere than at home, and in recipes.

    parts: for every run the lease that computes it, or the reader that holds all of it; own: those
    that compute; writers: those of them that are not done. readers: for every unit. expires: when
    something that the prompt contains is deleted however it is used."""

    def __init__(self, identity: Identity, prompt: JoinedPrompt, readers: list[Lease]) -> None:
        super().__init__(identity, 0)
        self.prompt_parts, self.readers = prompt, readers
        self.parts: list[Lease] = []
        self.own: list[Lease] = []
        self.writers: list[tuple[Run, Lease]] = []
        self.course = Course(())
        self.head: tuple[BlockTable, ...] = ()
        self.approximate_tokens = 0
        self.expires = inf

    @property
    def last(self) -> Lease:
        """The lease of the run that the answer goes on with."""
        return self.parts[-1]


class _Source(NamedTuple):
    """Where a unit lies. there: its tokens from the first on that are; bases: names of the public
    nodes in it."""

    unit: Unit
    identity: Identity
    found: Found
    there: int
    bases: tuple[bytes, ...]

    @property
    def whole(self) -> bool:
        return self.there == len(self.unit.tokens)


_Known: TypeAlias = dict[tuple[int, int], _Source]
"""By the identity of a unit's records: they are shared, and too long to be compared."""


class _Plan(NamedTuple):
    """What was found of one run. whole: all of it is there, and it is not the last."""

    run: Run
    identity: Identity
    data: bytes
    found: Found
    whole: bool


class Joining:
    """Opens joined prompts over the same books as `Leasing`."""

    def __init__(self, leasing: Leasing) -> None:
        self.leasing, self.holdings = leasing, leasing.holdings
        self.search, self.tree = leasing.search, leasing.tree
        self.retention = leasing.retention
        self._size = self.search.block_size

    # --- open

    def open(
        self,
        identity: Identity,
        tokens: Sequence[int],
        wanted: int,
        prompt: JoinedPrompt,
        *,
        spare: int = 0,
        directive: Directive = PLAIN,
        last_resort: bool = False,
    ) -> Opened | Wait | NoRoom | Missing:
        """See CacheManager.open_joined."""
        self.holdings.sweeper.bury_fallen()
        sources = self._sources(identity, prompt, {})
        plans = self._plans(identity, tokens, prompt, sources)
        missing = tuple(number for number, one in enumerate(sources) if not one.whole)
        if missing:
            there = tuple(sources[number].there for number in missing)
            exact = [self._length(plan.found) for plan in plans if plan.run.exact]
            recipes = [self._length(plan.found) for plan in plans if not plan.run.exact]
            return Missing(missing, there, sum(exact), sum(recipes))
        for plan in plans:
            if not plan.whole:
                key = self.search.next_key(plan.found, plan.data)
                if leader := self.leasing.restrictor.leaders.get(key):
                    return Wait(leader)
        units = [one.found for one in sources]
        if not self._fits(plans, units, wanted, spare, identity.namespace, last_resort):
            return NoRoom()
        return self._take(plans, sources, wanted, prompt, directive, last_resort)

    def _sources(self, identity: Identity, prompt: JoinedPrompt, known: _Known) -> list[_Source]:
        """Where the units of a prompt lie. known: what was looked up for this request."""
        sources = []
        for unit in prompt.units:
            key = id(unit.tokens), id(unit.joined)
            if key not in known:
                known[key] = self._source(identity, unit, known)
            source = known[key]
            sources.append(source if source.unit is unit else source._replace(unit=unit))
        return sources

    def _source(self, identity: Identity, unit: Unit, known: _Known) -> _Source:
        run, bases = unit.run, tuple[bytes, ...]()
        if unit.joined is not None:
            inner = self._sources(identity, unit.joined, known)
            bases = self._bases(identity, unit.tokens, unit.joined, inner)
            identity = identity._replace(lineage=unit.lineage, base=b"".join(bases))
        data = pack_tokens(unit.tokens[run.first :])
        found = self.search.find(identity, data, run.length)
        if run.exact and found.public:
            bases = (self._base(found),)
        return _Source(unit, identity, found, run.first + self._length(found), bases)

    def _bases(
        self,
        identity: Identity,
        tokens: Sequence[int],
        prompt: JoinedPrompt,
        sources: Sequence[_Source],
    ) -> tuple[bytes, ...]:
        """Names of all public nodes that recipes of this prompt contain."""
        bases = [base for one in sources for base in one.bases]
        run = prompt.runs[0]
        if run.exact and self.search.may_be_public(identity):
            found = self.search.find(identity, pack_tokens(tokens[: run.length]), run.length)
            bases += [self._base(found)] if found.public else []
        return tuple(dict.fromkeys(bases))

    def _length(self, found: Found) -> int:
        return found.blocks * self._size + found.extra

    def _plans(
        self,
        identity: Identity,
        tokens: Sequence[int],
        prompt: JoinedPrompt,
        sources: Sequence[_Source],
    ) -> list[_Plan]:
        plans: list[_Plan] = []
        base = b"".join(self._bases(identity, tokens, prompt, sources))
        for run, lineage in zip(prompt.runs, prompt.lineages(tokens), strict=True):
            own = identity
            if lineage != EXACT:
                own = identity._replace(lineage=lineage, base=base)
            last = run is prompt.runs[-1]
            end = len(tokens) if last else run.first + run.length
            data = pack_tokens(tokens[run.first : end])
            found = self.search.find(own, data, len(data) // WORD - last)
            whole = not last and self._length(found) == run.length
            plans.append(_Plan(run, own, data, found, whole))
        return plans

    def _base(self, found: Found) -> bytes:
        return self.tree.base_of(found.walked[found.public - 1])

    def _fits(
        self,
        plans: Sequence[_Plan],
        units: Sequence[Found],
        wanted: int,
        spare: int,
        namespace: str,
        last_resort: bool,
    ) -> bool:
        """Are there blocks for all runs at once, beside everything that is held?"""
        need, nodes = spare, set[int]()
        for found in (*units, *(plan.found for plan in plans)):
            nodes.update(self._nodes(found))
        for plan in plans:
            if not plan.whole:
                length = self._wanted(plan, plans, wanted)
                need += self.holdings.blocks_for(length) - plan.found.blocks
        shares = self.holdings.shares
        for group, payload in enumerate(self.tree.payload):
            pool, idle = self.holdings.pools[group], self.holdings.idle[group]
            held = [payload[node] for node in nodes if not pool.refs[payload[node]]]
            room = shares.evictable(group, shares.account(namespace))
            room -= sum(not idle.is_pinned(block) for block in held)
            if last_resort:
                room = idle.count - len(held)
            if need > len(pool.free) + room - self.holdings.streams.promised(group):
                return False
        return True

    def _wanted(self, plan: _Plan, plans: Sequence[_Plan], wanted: int) -> int:
        """Tokens of a run for which there must be room."""
        return wanted - plan.run.first if plan is plans[-1] else plan.run.length

    def _nodes(self, found: Found) -> list[int]:
        """The path of a match, its partial block included."""
        nodes = found.walked[: found.blocks]
        return [*nodes, found.source] if found.source >= 0 else nodes

    def _take(
        self,
        plans: Sequence[_Plan],
        sources: Sequence[_Source],
        wanted: int,
        prompt: JoinedPrompt,
        directive: Directive,
        last_resort: bool,
    ) -> Opened | NoRoom:
        """Hold first what must not be evicted for the rest."""
        identity = plans[0].identity._replace(lineage=EXACT, base=b"")
        held = [
            self._read(plan.identity, plan.found) if self._length(plan.found) else None
            for plan in plans
        ]
        readers = [self._read(one.identity, one.found) for one in sources]
        for reader, one in zip(readers, sources, strict=True):
            of_unit = _moved(one.unit.directive, one.unit.first)
            self._label(reader, one.found, of_unit, one.unit.lead)
        limit = self._limit([one.found for one in sources] + [one.found for one in plans])
        joined = Joined(identity, prompt, readers)
        if limit is not None and limit.clock == "first_use":
            joined.expires = self.tree.now + limit.seconds
        moves: list[Move] = []
        for plan, holder in zip(plans, held, strict=True):
            own = _of_run(directive, plan.run, limit)
            if plan.whole:
                assert holder is not None
                self._label(holder, plan.found, own, plan.run.length if plan.run.exact else 0)
                joined.parts.append(holder)
                continue
            opened = self.leasing.open(
                plan.identity,
                plan.data,
                len(plan.data) // WORD,
                self._wanted(plan, plans, wanted),
                store=True,
                reuse=True,
                spare=0,
                directive=own,
                last_resort=last_resort,
            )
            if holder is not None:
                self._let_go(holder)
            if not isinstance(opened, Opened):  # what was counted is not there after all
                self._give_up(joined, held[len(joined.parts) + 1 :])
                return NoRoom()
            joined.parts.append(opened.lease)
            joined.own.append(opened.lease)
            joined.writers.append((plan.run, opened.lease))
            moves += opened.moves
        self._note(joined, plans)
        self._link(joined, [plan.found for plan in plans], [one.found for one in sources])
        self._name_blocks(joined)
        return Opened(joined, tuple(moves))

    def _link(self, joined: Joined, runs: Sequence[Found], units: Sequence[Found]) -> None:
        """Every recipe contains what was found of all that stands before it."""
        before: list[list[int]] = []
        starts = {run.first: number for number, run in enumerate(joined.prompt_parts.runs)}
        for stretch in joined.prompt_parts.stretches:
            number = starts.get(stretch.first)
            if number is not None:
                self._contain(joined.parts[number], before)
                before.append(self._nodes(runs[number]))
            elif stretch.unit >= 0:
                before.append(self._nodes(units[stretch.unit]))

    def _contain(self, part: Lease, paths: Sequence[Sequence[int]]) -> None:
        if part.identity.lineage != EXACT:
            self.retention.contains(part.identity, paths)

    def _read(self, identity: Identity, found: Found) -> Lease:
        """A lease that holds what was found and nothing else."""
        nodes = self._nodes(found)
        reader = Lease(identity, len(self.holdings.pools))
        reader.committed = reader.cached_tokens = self._length(found)
        reader.sealed, reader.capacity = found.blocks, len(nodes) * self._size
        for group, payload in enumerate(self.tree.payload):
            reader.blocks[group] = [payload[node] for node in nodes]
            self.holdings.reuse(group, reader.blocks[group])
        self.leasing.leases.add(reader)
        self.leasing.publisher.feed.read(reader, nodes)
        return reader

    def _label(self, reader: Lease, found: Found, directive: Directive, lead: int) -> None:
        """What is reused behind the lead is claimed as if it were computed now."""
        retention, claims = self.retention, self.retention.claims
        if not retention.active and directive == PLAIN:
            return
        retention.activate()
        self.leasing.turns.reclaim.careful = True
        reader.directive = directive
        reader.labels = retention.labels_of(directive, reader.identity.namespace)
        claims.hold(reader.labels)
        for number, node in enumerate(self._nodes(found)):
            start = number * self._size
            end = min(start + self.tree.length[node], self._length(found))
            if number < found.public:
                retention.used(node)
            elif end <= lead:
                retention.visited(reader, node)
            else:
                retention.shared(reader, node, start, end)
        claims.let_go(reader.labels)
        reader.labels, reader.claimed = frozenset(), set()

    def _limit(self, everything: Sequence[Found]) -> Ttl | None:
        """How long a recipe of all this may live: no longer than anything in it. Whoever uses the
        recipe uses what it contains, so that deadlines since the last use stay what they are."""
        if not self.retention.active:
            return None
        deadlines, now = self.retention.deadlines, self.tree.now
        ends = after = inf
        for node in {node for found in everything for node in self._nodes(found)}:
            if deadlines.ends_at(node) < inf:
                ends = min(ends, deadlines.ends_at(node))
            after = min(after, deadlines.delete_at(node) - self.tree.used[node])
        if ends < inf:
            return Ttl(max(min(ends - now, after), 0.0), "first_use", "delete")
        return Ttl(after, "last_use", "delete") if after < inf else None

    def _note(self, joined: Joined, plans: Sequence[_Plan]) -> None:
        """What was served, and the first reason why not more was."""
        counters = self.leasing.counters
        served = [part.cached_tokens for part in joined.parts]
        joined.course = Course.of(joined.prompt_parts.runs, served)
        reused = sum(stretch.length for stretch in joined.prompt_parts.reused)
        exact = served[0] if plans[0].run.exact else 0
        joined.cached_tokens, joined.approximate_tokens = exact, sum(served) - exact + reused
        whole = [
            part.cached_tokens for plan, part in zip(plans, joined.parts, strict=True) if plan.whole
        ]
        counters.queried += reused + sum(whole)
        counters.approximate += reused
        for plan, part in zip(plans, joined.parts, strict=True):
            if plan.whole and plan.run.exact:
                counters.hits += part.cached_tokens
            elif plan.whole:
                counters.approximate += part.cached_tokens
        first = next(part for plan, part in zip(plans, joined.parts, strict=True) if not plan.whole)
        reason = first.miss.reason if first.miss is not None else "too_short"
        joined.miss = Miss(joined.course.start, reason)
        joined.committed = joined.course.start
        joined.there = reused + sum(whole) + sum(lease.there for _, lease in joined.writers)

    def _give_up(self, joined: Joined, held: Sequence[Lease | None]) -> None:
        """Nothing was computed: let go of everything."""
        for lease in joined.own:
            self.leasing.release(lease, keep=False, finished=None)
        for reader in (*joined.readers, *held, *joined.parts):
            if reader is not None and reader not in joined.own:
                self._let_go(reader)

    # --- tables

    def _name_blocks(self, joined: Joined) -> None:
        """The tables of all parts anew."""
        groups = range(len(self.holdings.pools))
        joined.head = tuple(self._head(joined, group) for group in groups)
        self._name_last(joined)

    def _head(self, joined: Joined, group: int) -> BlockTable:
        """Everything before the last run, in the order in which it is seen."""
        runs = {
            run.first: (run, part)
            for run, part in zip(joined.prompt_parts.runs, joined.parts, strict=True)
        }
        table: list[Segment] = []
        for stretch in joined.prompt_parts.stretches:
            if stretch.unit >= 0:
                blocks = joined.readers[stretch.unit].blocks[group]
                run = joined.prompt_parts.units[stretch.unit].run
                table.append(self._unit_segment(stretch, run, blocks))
            elif stretch.first in runs and runs[stretch.first][1] is not joined.last:
                run, part = runs[stretch.first]
                used = self.holdings.blocks_for(run.length)
                table.append(self._run_segment(run, part.blocks[group][:used], run.length))
        return tuple(table)

    def _unit_segment(self, stretch: Stretch, run: Run, blocks: Sequence[int]) -> Segment:
        """run: of the unit, whose tokens from `run.first` on lie in `blocks`."""
        size, start = self._size, stretch.offset - run.first
        first, end = start // size, start + stretch.length
        home = self._home(run)
        return Segment(
            tuple(blocks[first : -(-end // size)]),
            home + first * size,
            start % size,
            stretch.length,
            stretch.seen - start - home,
        )

    def _home(self, run: Run) -> int:
        """Keys of a run are turned to the grid position before it: home is a matter of the lineage
        alone, so that whoever computes the same recipe writes the same bits."""
        return run.seen - run.seen % self._size

    def _run_segment(self, run: Run, blocks: Sequence[int], length: int) -> Segment:
        home = self._home(run)
        return Segment(tuple(blocks), home, 0, length, run.seen - home)

    def _name_last(self, joined: Joined) -> None:
        run, lease = joined.prompt_parts.runs[-1], joined.last
        joined.capacity = run.first + lease.capacity
        joined.tables = tuple(
            (*head, self._run_segment(run, blocks, lease.committed))
            for head, blocks in zip(joined.head, lease.blocks, strict=True)
        )

    # --- grow, fork, commit, release

    def extend(self, joined: Joined, wanted: int) -> bool:
        if not self.leasing.extend(joined.last, wanted - joined.prompt_parts.runs[-1].first):
            return False
        self._name_last(joined)
        return True

    def fork(self, joined: Joined) -> tuple[Joined, tuple[Move, ...]] | None:
        """The child shares everything before the last run."""
        forked = self.leasing.fork(joined.last)
        if forked is None:
            return None
        lease, moves = forked
        readers = [self._share(one) for one in joined.readers]
        child = Joined(joined.identity, joined.prompt_parts, readers)
        child.parts = [*(self._share(part) for part in joined.parts[:-1]), lease]
        child.own, child.writers = [lease], [(joined.prompt_parts.runs[-1], lease)]
        child.course, child.miss, child.there = joined.course, joined.miss, joined.there
        child.cached_tokens = joined.cached_tokens
        child.approximate_tokens = joined.approximate_tokens
        child.committed, child.expires = joined.committed, joined.expires
        self._name_blocks(child)
        return child, moves

    def _share(self, part: Lease) -> Lease:
        """Another reader of the same blocks."""
        reader = Lease(part.identity, len(self.holdings.pools), part.directive)
        reader.committed = reader.cached_tokens = part.committed
        reader.sealed, reader.capacity = part.sealed, part.capacity
        for group, blocks in enumerate(part.blocks):
            reader.blocks[group] = list(blocks)
            for block in blocks:
                self.holdings.pools[group].refs[block] += 1
        reader.marks = list(part.marks)
        self.leasing.leases.add(reader)
        return reader

    def commit(self, joined: Joined, tokens: Sequence[int]) -> None:
        """tokens: all of them up to what is computed now, those of units included."""
        count, last = len(tokens), joined.prompt_parts.runs[-1]
        joined.committed = count
        if joined.expires < inf:
            self._expire(joined)
        head = False
        for run, lease in list(joined.writers):
            stop = count if run is last else min(count, run.first + run.length)
            if stop - run.first > lease.committed:
                self.leasing.commit(lease, tokens[run.first : stop])
                head = head or run is not last
            if run is not last and lease.committed == run.length:
                joined.writers.remove((run, lease))
        if head:
            self._name_blocks(joined)
        else:
            self._name_last(joined)

    def _expire(self, joined: Joined) -> None:
        """What is published from now on goes when what it contains goes."""
        for run, lease in joined.writers:
            if not run.exact:
                assert lease.directive.ttl is not None
                left = max(joined.expires - self.tree.now, 0.0)
                ttl = Ttl(min(left, lease.directive.ttl.seconds), "first_use", "delete")
                lease.directive = replace(lease.directive, ttl=ttl)

    def release(self, joined: Joined, *, keep: bool, finished: bool | None) -> None:
        """Tails before heads."""
        joined.stored = sum(stretch.length for stretch in joined.prompt_parts.reused)
        for number, part in reversed([*enumerate(joined.parts)]):
            if part in joined.own:
                path = self.tree.nodes_above(part.node)
                for later in joined.parts[number + 1 :]:
                    self._contain(later, [path])
                self.leasing.release(part, keep=keep, finished=finished)
                joined.stored += part.stored
                joined.pinned |= part.pinned
            else:
                joined.stored += part.cached_tokens
                self._let_go(part)
        for reader in joined.readers:
            self._let_go(reader)
        joined.tables = joined.head = ()

    def _let_go(self, reader: Lease) -> None:
        self.holdings.tick += 1
        self.leasing.leases.discard(reader)
        self.leasing.publisher.feed.released(reader)
        self.holdings.let_go_all(reader)


def _of_run(directive: Directive, run: Run, limit: Ttl | None) -> Directive:
    """What the request asks for one run of it. A run is no conversation of its own whose topic
    could be followed; and no recipe outlives what it contains."""
    own = _moved(directive, run.first)
    if directive.session is not None and directive.context is None:
        own = replace(own, relevance="off")
    return own if run.exact or limit is None else replace(own, ttl=_earlier(own, limit), spans=())


def _moved(directive: Directive, start: int) -> Directive:
    """What is said of tokens, for those from `start` on."""
    if not start or not (
        directive.documents or directive.spans or directive.write_until is not None
    ):
        return directive
    documents = tuple(
        DocumentSpan(one.document, one.version, one.start - start, one.end - start)
        for one in directive.documents
        if one.end > start
    )
    spans = tuple(
        replace(one, start=one.start - start, end=one.end - start) for one in directive.spans
    )
    until = directive.write_until
    write_until = None if until is None else max(until - start, 0)
    return replace(directive, documents=documents, spans=spans, write_until=write_until)


def _earlier(directive: Directive, limit: Ttl) -> Ttl:
    """The earliest of all deadlines to be deleted."""
    every = (limit, directive.ttl, *(span.ttl for span in directive.spans))
    deleting = [ttl for ttl in every if ttl is not None and ttl.mode == "delete"]
    first = any(ttl.clock == "first_use" for ttl in deleting)
    seconds = min(ttl.seconds for ttl in deleting)
    return Ttl(seconds, "first_use" if first else "last_use", "delete")
