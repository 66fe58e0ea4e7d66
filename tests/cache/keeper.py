"""Random lives of a cache with every verb of retention, against a naive reading of what each means.

Before a verb the keeper writes down every block that a walk reaches, with its labels, deadline and
age (`reach.py`). It applies the verb to that dictionary in the plainest way, then compares with
what walks reach afterwards: nothing more, nothing less. What was deleted must be overwritten before
its block is free, a lease that an invalidation matched must publish nothing, what a lease reads was
computed for its own tokens, and pins, shares, receipts and the time of waking add up.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from reach import Arena, Facts, Path, Tokens, hangs, longest, reachable

from kveik.cache.claims import HOLDS
from kveik.cache.deadlines import NEVER
from kveik.cache.directive import (
    PUBLIC,
    Clock,
    Directive,
    DocumentSpan,
    Priority,
    Relevance,
    Ttl,
    TtlMode,
    TtlSpan,
    Write,
)
from kveik.cache.manager import CacheManager, Lease, Opened
from kveik.cache.prefix import Identity
from kveik.cache.segments import KvGroup, Move
from kveik.errors import PinBudgetExceeded

SPACES = ("", "n")
SALTS = ("",) * 7 + ("salt",)
DAY = 86_400.0
SESSIONS = ("s", "r")
CONTEXTS = ("a", "b")
TAGS = ("t", "u")
NAMES = ("faq", "kit")
DOCUMENTS = ("d", "e")


@dataclass(eq=False)
class Turn:
    lease: Lease
    identity: Identity
    directive: Directive
    tokens: Tokens
    opened: float
    done: int = 0
    barred: list[Callable[[Tokens], bool]] = field(default_factory=list)


class Keeper:
    """Ordinary work, and what must hold after everything. `now` is the time that has really
    passed, `reading` what the caller's clock shows, which jumps."""

    def __init__(self, dice: random.Random, groups: Sequence[KvGroup], blocks: int) -> None:
        self.dice, self.size = dice, 4
        self.manager = CacheManager(
            groups, [blocks] * len(groups), self.size, ghosts=32, session_idle=300.0
        )
        self.manager.invalidation.at_once = dice.choice((0, 1, 3, 128))  # most is left to the sweep
        self.arena = Arena(self.manager)
        self.blocks = blocks
        self.now = self.reading = 10 * DAY
        self.manager.tick(self.reading)
        self.turns: list[Turn] = []
        self.prompts: list[Tokens] = []
        self.owed: set[tuple[int, int]] = set()
        self.steps = itertools.count()
        self.shares: dict[str, tuple[int, int | None]] = {}
        self.deaths = self.refusals = self.hits = self.receipts = self.evictions = 0

    # --- what must hold

    def expect(
        self,
        before: dict[Path, Facts],
        dies: Callable[[Path, Facts], bool],
        *,
        may_lose: bool = False,
    ) -> set[Path]:
        """Exactly what dies, and what hangs below it, is out of reach now."""
        gone = self.doomed(before, dies)
        self.deaths += len(gone)
        after = reachable(self.manager)
        assert not gone & after.keys(), "what was deleted is found"
        lost = before.keys() - gone - after.keys()
        assert may_lose or not lost, "what was not concerned is gone"
        self.keeps_pins(before, lost)
        if not may_lose:  # otherwise it may have been evicted before it would have been deleted
            for path in gone:
                self.owed.update(before[path].blocks)
        for identity, tokens in sorted(gone, key=lambda path: path[1])[:4]:
            served = self.served(identity, (*tokens, 9))
            assert served <= longest(after, identity, tokens), "what was deleted serves a prompt"
        self.proof(after)
        return gone

    def doomed(self, before: dict[Path, Facts], dies: Callable[[Path, Facts], bool]) -> set[Path]:
        tops = [path for path, facts in before.items() if dies(path, facts) or self.late(facts)]
        return {
            path
            for path, facts in before.items()
            if any(hangs(path, facts, top, self.size) for top in tops)
        }

    def late(self, facts: Facts) -> bool:
        return facts.ends_at <= self.now

    def served(self, identity: Identity, tokens: Tokens) -> int:
        found = self.manager.explain(
            tokens,
            namespace=identity.namespace,
            adapter=identity.adapter,
            salt=identity.salt,
            now=self.reading,
        )
        return found.cached_tokens

    def proof(self, after: dict[Path, Facts]) -> None:
        """The books add up; nothing deleted lies in a free block without being overwritten."""
        manager = self.manager
        manager.check()
        assert manager.stats().leaked_blocks == 0
        pending = set(manager.sweeper._erasures)
        for g, pool in enumerate(manager.pools):
            free = {(g, block) for block in pool.free}
            assert free & self.owed <= pending, "a deleted block is free and was not overwritten"
        assert manager.names.pinned() <= manager.names.budget, "more is pinned than may be"
        assert manager.retention.clock.now == self.now
        self.wakes_in_time(after)
        if self.quiet():
            assert len(manager.tree) == len(after), "something is left that nobody can reach"
            for space in self.shares:
                kept = self.kept(after, space) * len(manager.groups)
                assert manager.usage(space)[0] == kept, "bytes of a share"

    def quiet(self) -> bool:
        """Is nothing dead left in the tree?"""
        manager = self.manager
        return not (manager.sweeper.jobs or manager.tree.orphans or manager.retention.troubled())

    def wakes_in_time(self, after: dict[Path, Facts]) -> None:
        """An engine that sleeps until it is told is not late by more than a bucket."""
        due = min((facts.ends_at for facts in after.values()), default=NEVER)
        if due < NEVER:
            waking = self.manager.next_deadline()
            assert waking is not None
            assert waking <= self.reading + (due - self.now) + 0.25, "it would sleep too long"

    def kept(self, paths: dict[Path, Facts], space: str) -> int:
        """Idle blocks of a namespace (of each group) that count in its share."""
        return sum(
            path[0].namespace == space and facts.idle and not facts.pinned
            for path, facts in paths.items()
        )

    def keeps_pins(self, before: dict[Path, Facts], lost: set[Path]) -> None:
        """Room is made of what is not pinned (what lies behind a public block goes with it)."""
        for path in lost:
            assert not before[path].pinned or before[path].before, "a pinned block was evicted"

    def keeps_reserves(self, before: dict[Path, Facts], after: dict[Path, Facts], own: str) -> None:
        """The need of one namespace leaves the others what is reserved for them. (What lies behind
        a public block goes with it, and counts as kept until it is swept.)"""
        orphaned = {
            path[0].namespace
            for path, facts in before.items()
            if facts.before and path not in after
        }
        for space, (reserved, _) in self.shares.items():
            blocks = reserved // len(self.manager.groups)
            if space != own and space not in orphaned:
                assert self.kept(after, space) >= min(self.kept(before, space), blocks), space

    # --- ordinary work

    def directive(self) -> Directive:
        dice, pick = self.dice, self.dice.choice
        priority: Priority = pick(("high", "normal", "normal", "low"))
        write: Write = pick(("all", "all", "all", "low", "none"))
        relevance: Relevance = pick(("off", "demote", "delete"))
        documents, spans = (), ()
        if dice.random() < 0.3:
            start = dice.randint(0, 12)
            documents = (DocumentSpan(pick(DOCUMENTS), pick(("1", "2")), start, start + 6),)
        if dice.random() < 0.1:
            spans = (TtlSpan(0, dice.randint(1, 12), self.ttl()),)
        return Directive(
            session=pick((None, *SESSIONS)),
            context=pick((None, None, *CONTEXTS)),
            relevance=relevance,
            tags=tuple(tag for tag in TAGS if dice.random() < 0.3),
            ttl=self.ttl() if dice.random() < 0.4 else None,
            priority=priority,
            write=write,
            documents=documents,
            name=pick((None, None, None, *NAMES)),
            pin=dice.random() < 0.1,
            write_until=dice.randint(0, 20) if dice.random() < 0.1 else None,
            spans=spans,
        )

    def ttl(self) -> Ttl:
        pick = self.dice.choice
        clock: Clock = pick(("first_use", "last_use"))
        mode: TtlMode = pick(("delete", "delete", "demote"))
        return Ttl(pick((5.0, 30.0, 200.0)), clock, mode)

    def tokens(self) -> Tokens:
        tokens = tuple(self.dice.choices((1, 1, 2, 3), k=self.dice.randint(1, 22)))
        if self.prompts and self.dice.random() < 0.6:
            tokens = self.dice.choice(self.prompts)[: self.dice.randint(4, 20)] + tokens
        self.prompts = [*self.prompts[-5:], tokens[:26]]
        return self.prompts[-1]

    def identity(self) -> Identity:
        """Of a tenant, now and then of the operator who makes public blocks."""
        adapter = self.dice.choice((0, 0, 0, 1))
        if self.dice.random() < 0.15:
            return Identity(PUBLIC, adapter)
        return Identity(self.dice.choice(SPACES), adapter, salt=self.dice.choice(SALTS))

    def space(self) -> str:
        return PUBLIC if self.dice.random() < 0.1 else self.dice.choice(SPACES)

    def open(self) -> None:
        identity, tokens, directive = self.identity(), self.tokens(), self.directive()
        before, evicted = reachable(self.manager), self.evicted
        quiet = self.quiet()
        entry = self.manager.table.get(identity.namespace, directive.session or "")
        context = entry.context if entry is not None else None
        try:
            result = self.manager.open(
                tokens,
                len(tokens),
                namespace=identity.namespace,
                adapter=identity.adapter,
                salt=identity.salt,
                now=self.reading,
                directive=directive,
            )
        except PinBudgetExceeded:
            self.refusals += 1
            return
        if not isinstance(result, Opened):
            self.expect(before, lambda path, facts: False)
            return
        lease = result.lease
        turn = Turn(lease, lease.identity, directive, tokens, self.now, lease.cached_tokens)
        switches = (
            directive.write != "none"
            and directive.session is not None
            and directive.context not in (None, context)
            and context is not None
            and directive.relevance == "delete"
        )
        live = tokens[: lease.cached_tokens // self.size * self.size]

        def left(path: Path, facts: Facts) -> bool:
            if not switches or path[0].namespace != identity.namespace:
                return False
            if path[0] == turn.identity and live[: len(path[1])] == path[1]:
                return False
            return self.leaves(directive.session or "", directive.context or "", facts)

        assert lease.cached_tokens <= longest(before, identity, tokens), "served what is not there"
        self.hits += lease.cached_tokens > 0
        self.expect(before, left, may_lose=self.evicted > evicted)
        if quiet and not switches:
            self.keeps_reserves(before, reachable(self.manager), identity.namespace)
        if switches:
            self.bar_other_contexts(turn.identity.namespace, directive.session, directive.context)
        self.turns.append(turn)
        self.step(result.moves)
        self.arena.read(lease, tokens[: turn.done])

    @property
    def evicted(self) -> int:
        return self.manager.stats().evicted_blocks

    def leaves(self, session: str, context: str, facts: Facts) -> bool:
        """Does the session alone hold it, under other contexts?"""
        holders = {each for each in facts.labels if each[0] in HOLDS}
        contexts = facts.keys("context")
        return holders == {("session", session)} and bool(contexts) and context not in contexts

    def bar_other_contexts(self, space: str, session: str | None, context: str | None) -> None:
        for turn in self.turns:
            same = (turn.identity.namespace, turn.directive.session) == (space, session)
            if same and turn.directive.context not in (None, context):
                turn.barred.append(lambda path: True)

    def step(self, moves: Sequence[Move] = ()) -> None:
        """Erasures first, then the moves."""
        for erase in self.manager.take_erasures():
            self.owed.discard((erase.group, erase.block))
            self.arena.erase(erase.group, erase.block)
        self.arena.move(moves)
        number = next(self.steps)
        self.manager.launched(number)
        self.manager.acknowledge(number)

    def publishing(self, turn: Turn, work: Callable[[], None]) -> dict[Path, Facts]:
        """Work of one lease: what it adds is its own path, and nothing that it must not."""
        before, evicted, quiet = reachable(self.manager), self.evicted, self.quiet()
        work()
        after = reachable(self.manager)
        fresh = {path: after[path] for path in after.keys() - before.keys()}
        for identity, path in fresh:
            assert identity == turn.identity
            assert turn.tokens[: len(path)] == path, "a lease published what is not its own"
            assert not any(bars(path) for bars in turn.barred), "found again"
            assert turn.directive.write != "none"
            until = turn.directive.write_until
            assert until is None or len(path) <= until, "stored what it must not"
        may_lose = self.evicted > evicted
        self.evictions += may_lose
        late = self.doomed(before, lambda path, facts: False)
        lost = before.keys() - after.keys() - late
        self.keeps_pins(before, lost)
        for path in lost:
            assert may_lose or len(path[1]) % self.size, "lost without need"
        if quiet:
            self.keeps_reserves(before, after, turn.identity.namespace)
        self.proof(after)
        return fresh

    def commit(self) -> None:
        if not self.turns:
            return
        turn = self.dice.choice(self.turns)
        if turn.done == len(turn.tokens) and self.dice.random() < 0.5:
            turn.tokens += self.tokens()[:6]
        self.compute(turn)

    def compute(self, turn: Turn) -> bool:
        """Some more tokens of it; False: there was no room."""
        goal = min(len(turn.tokens), turn.done + self.dice.randint(1, 9))
        room = True

        def work() -> None:
            nonlocal room
            room = self.manager.extend(turn.lease, goal)
            if room:
                self.step()
                self.arena.read(turn.lease, turn.tokens[: turn.done])
                self.arena.write(turn.lease, turn.tokens[:goal], turn.done)
                self.manager.commit(turn.lease, turn.tokens[:goal], now=self.reading)
                turn.done = goal

        for (_, path), facts in self.publishing(turn, work).items():
            self.carries(turn.directive, path, facts)
        return room

    def carries(self, directive: Directive, path: Tokens, facts: Facts) -> None:
        """What a request writes is labelled, and ends, as its directive says."""
        end = len(path)
        start = (end - 1) // self.size * self.size
        labels = {("tag", tag) for tag in directive.tags}
        for kind, key in (
            ("session", directive.session),
            ("context", directive.context),
            ("name", directive.name),
        ):
            if key is not None:
                labels.add((kind, key))
        for span in directive.documents:
            if span.start < end and start < span.end:
                labels.add(("document", f"{span.document}@{span.version}"))
        assert labels <= facts.labels
        ttl = directive.ttl_at(start)
        if ttl is not None and ttl.mode == "delete" and directive.name is None:
            ends = facts.delete_at if ttl.clock == "first_use" else facts.unused_at
            assert ends <= self.now + ttl.seconds

    def release(self) -> None:
        if self.turns:
            turn = self.dice.choice(self.turns)
            self.end(turn, self.dice.choice((True, True, False, None)), self.dice.random() < 0.8)

    def end(self, turn: Turn, finished: bool | None, keep: bool = True) -> None:
        self.turns.remove(turn)

        def work() -> None:
            self.manager.release(turn.lease, keep=keep, finished=finished, now=self.reading)

        self.publishing(turn, work)

    def fork(self) -> None:
        if not self.turns:
            return
        turn = self.dice.choice(self.turns)
        forked = self.manager.fork(turn.lease)
        if forked is not None:
            lease, moves = forked
            own = turn.tokens[: turn.done]
            twin = Turn(lease, turn.identity, turn.directive, own, turn.opened)
            twin.done, twin.barred = turn.done, list(turn.barred)
            twin.tokens += self.tokens()[:4]
            self.turns.append(twin)
            self.step(moves)
            self.arena.read(lease, own)
        self.proof(reachable(self.manager))
