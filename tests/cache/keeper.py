"""Random lives of a cache with every verb of retention, against a naive reading of what each means.

Before a verb the keeper writes down every block that a walk reaches, with its labels, deadline and
age, in a dictionary of token tuples. It applies the verb to that dictionary in the plainest way,
then compares with what walks reach afterwards: nothing more, nothing less. What was deleted must be
overwritten before its block is free, and a lease that an invalidation matched must publish nothing.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kveik.cache.claims import HOLDS
from kveik.cache.directive import (
    Clock,
    Directive,
    DocumentSpan,
    Priority,
    Relevance,
    Selector,
    Ttl,
    TtlMode,
    Write,
)
from kveik.cache.manager import CacheManager, Lease, Opened
from kveik.cache.prefix import Identity, unpack_tokens
from kveik.cache.segments import KvGroup
from kveik.errors import PinBudgetExceeded

Tokens = tuple[int, ...]
Path = tuple[Identity, Tokens]

SPACES = ("", "n")
SESSIONS = ("s", "r")
CONTEXTS = ("a", "b")
TAGS = ("t", "u")
NAMES = ("faq", "kit")
DOCUMENTS = ("d", "e")


@dataclass(frozen=True)
class Facts:
    """What is known of one reachable block."""

    labels: frozenset[tuple[str, str]]
    delete_at: float
    put_off: bool  # somebody reads it, and its time counts from the last use
    created: float
    blocks: tuple[tuple[int, int], ...]

    def keys(self, kind: str) -> set[str]:
        return {key for each, key in self.labels if each == kind}

    def held_without(self, *ended: tuple[str, str]) -> bool:
        return any(kind in HOLDS and (kind, key) not in ended for kind, key in self.labels)


@dataclass
class Turn:
    lease: Lease
    identity: Identity
    directive: Directive
    tokens: Tokens
    opened: float
    done: int = 0
    barred: list[Callable[[Tokens], bool]] = field(default_factory=list)


class Keeper:
    def __init__(self, dice: random.Random, groups: Sequence[KvGroup], blocks: int) -> None:
        self.dice, self.size = dice, 4
        self.manager = CacheManager(
            groups, [blocks] * len(groups), self.size, ghosts=32, session_idle=300.0
        )
        self.manager.invalidation.at_once = dice.choice((0, 1, 3, 128))  # most is left to the sweep
        self.now = 1000.0
        self.turns: list[Turn] = []
        self.owed: set[tuple[int, int]] = set()
        self.steps = itertools.count()
        self.deaths = self.refusals = 0

    # --- what walks reach

    def reachable(self) -> dict[Path, Facts]:
        manager, found = self.manager, {}
        for identity, root in manager.tree.roots.items():
            stack = [root]
            while stack:
                for node in manager.tree.each_child(stack.pop()):
                    data = manager.tree.path(node)
                    if manager.tree.length[node] == self.size:
                        walked = manager.search.find(identity, data, len(data) // 4).walked
                        alive = len(walked) == len(data) // 4 // self.size
                    else:
                        alive = not manager.retention.why_gone(node)
                    if alive:
                        found[identity, unpack_tokens(data)] = self.facts(node)
                        stack.append(node)
        return found

    def facts(self, node: int) -> Facts:
        retention, tree = self.manager.retention, self.manager.tree
        live = retention.set_of(node).live_labels()
        until = retention.deadlines.delete_at(node)
        for label in live:
            entry = self.manager.names._names.get(label)
            if entry is not None and entry.ttl is not None and entry.ttl.mode == "delete":
                until = min(until, entry.deadline())
        own = retention.deadlines.delete_at(node)
        return Facts(
            labels=frozenset((label.kind, label.key) for label in live)
            or frozenset([("plain", "")]),
            delete_at=until,
            put_off=until == own < 1e300
            and retention.deadlines.slides(node)
            and retention.is_read(node),
            created=tree.created[node],
            blocks=tuple(
                (g, payload[node]) for g, payload in enumerate(tree.payload) if payload[node] >= 0
            ),
        )

    def expect(
        self,
        before: dict[Path, Facts],
        dies: Callable[[Path, Facts], bool],
        *,
        may_lose: bool = False,
    ) -> None:
        """Exactly what dies, and what hangs below it, is out of reach now."""
        dead = [path for path, facts in before.items() if dies(path, facts) or self.late(facts)]
        gone = {path for path in before if any(self.hangs(path, top) for top in dead)}
        self.deaths += len(gone)
        after = self.reachable()
        assert not gone & after.keys(), "what was deleted is found"
        if not may_lose:
            assert before.keys() - gone <= after.keys(), "what was not concerned is gone"
        for path in gone:
            self.owed.update(before[path].blocks)
        self.proof()

    def hangs(self, path: Path, top: Path) -> bool:
        """Is it that block, or below it? Nothing hangs below a partial tail."""
        whole = len(top[1]) % self.size == 0
        return path == top or (whole and path[0] == top[0] and path[1][: len(top[1])] == top[1])

    def late(self, facts: Facts) -> bool:
        return facts.delete_at <= self.now and not facts.put_off

    def proof(self) -> None:
        """The books add up; nothing deleted lies in a free block without being overwritten."""
        manager = self.manager
        manager.check()
        pending = set(manager.sweeper._erasures)
        for g, pool in enumerate(manager.pools):
            free = {(g, block) for block in pool.free}
            assert free & self.owed <= pending, "a deleted block is free and was not overwritten"

    # --- ordinary work

    def directive(self) -> Directive:
        dice, pick = self.dice, self.dice.choice
        ttl = None
        if dice.random() < 0.4:
            clock: Clock = pick(("first_use", "last_use"))
            mode: TtlMode = pick(("delete", "delete", "demote"))
            ttl = Ttl(pick((5.0, 30.0, 200.0)), clock, mode)
        priority: Priority = pick(("high", "normal", "normal", "low"))
        write: Write = pick(("all", "all", "all", "low", "none"))
        relevance: Relevance = pick(("off", "demote", "delete"))
        spans = ()
        if dice.random() < 0.3:
            start = dice.randint(0, 12)
            spans = (DocumentSpan(pick(DOCUMENTS), pick(("1", "2")), start, start + 6),)
        return Directive(
            session=pick((None, *SESSIONS)),
            context=pick((None, None, *CONTEXTS)),
            relevance=relevance,
            tags=tuple(tag for tag in TAGS if dice.random() < 0.3),
            ttl=ttl,
            priority=priority,
            write=write,
            documents=spans,
            name=pick((None, None, None, *NAMES)),
            pin=dice.random() < 0.1,
        )

    def tokens(self) -> Tokens:
        tokens = tuple(self.dice.choices((1, 1, 2, 3), k=self.dice.randint(1, 22)))
        if self.turns and self.dice.random() < 0.5:
            tokens = self.dice.choice(self.turns).tokens[: self.dice.randint(4, 20)] + tokens
        return tokens[:26]

    def open(self) -> None:
        identity = Identity(self.dice.choice(SPACES), self.dice.choice((0, 0, 1)))
        tokens, directive = self.tokens(), self.directive()
        before, evicted = self.reachable(), self.manager.stats().evicted_blocks
        entry = self.manager.table.get(identity.namespace, directive.session or "")
        context = entry.context if entry is not None else None
        try:
            result = self.manager.open(
                tokens,
                len(tokens),
                namespace=identity.namespace,
                adapter=identity.adapter,
                now=self.now,
                directive=directive,
            )
        except PinBudgetExceeded:
            self.refusals += 1
            return
        if not isinstance(result, Opened):
            self.expect(before, lambda path, facts: False)
            return
        lease = result.lease
        turn = Turn(lease, identity, directive, tokens, self.now, lease.cached_tokens)
        live = tokens[: lease.cached_tokens // self.size * self.size]
        switches = (
            lease.limit
            and directive.session is not None
            and directive.context not in (None, context)
            and context is not None
            and directive.relevance == "delete"
        )

        def left(path: Path, facts: Facts) -> bool:
            return bool(switches) and self.leaves(turn, directive.context or "", live, path, facts)

        self.expect(before, left, may_lose=self.manager.stats().evicted_blocks > evicted)
        if switches:
            self.bar_other_contexts(turn)
        self.turns.append(turn)
        self.step()

    def leaves(self, turn: Turn, context: str, live: Tokens, path: Path, facts: Facts) -> bool:
        """Did the session alone hold it, under other contexts, outside the live prompt?"""
        if path[0].namespace != turn.identity.namespace:
            return False
        if path[0] == turn.identity and live[: len(path[1])] == path[1]:
            return False
        holders = {each for each in facts.labels if each[0] in HOLDS}
        contexts = facts.keys("context")
        alone = holders == {("session", turn.directive.session)}
        return alone and bool(contexts) and context not in contexts

    def bar_other_contexts(self, new: Turn) -> None:
        for turn in self.turns:
            same = turn.identity.namespace == new.identity.namespace
            same = same and turn.directive.session == new.directive.session
            if same and turn.directive.context not in (None, new.directive.context):
                turn.barred.append(lambda path: True)

    def step(self) -> None:
        """Erasures first, then whatever moves there are."""
        for erase in self.manager.take_erasures():
            self.owed.discard((erase.group, erase.block))
        number = next(self.steps)
        self.manager.launched(number)
        self.manager.acknowledge(number)

    def publishing(self, turn: Turn, work: Callable[[], None]) -> None:
        """Work of one lease: what it adds is its own path, and nothing that it must not."""
        before, evicted = self.reachable(), self.manager.stats().evicted_blocks
        work()
        after = self.reachable()
        for identity, path in after.keys() - before.keys():
            assert identity == turn.identity
            assert turn.tokens[: len(path)] == path, "a lease published what is not its own"
            assert not any(bars(path) for bars in turn.barred), "found again"
        tails = {path for path in before if len(path[1]) % self.size}
        may_lose = self.manager.stats().evicted_blocks > evicted
        lost = {path for path in before.keys() - after.keys() if not self.late(before[path])}
        late = [path for path, facts in before.items() if self.late(facts)]
        for path in lost - tails:
            below = any(self.hangs(path, top) for top in late)
            assert may_lose or below, "lost without need"
        self.proof()

    def commit(self) -> None:
        if not self.turns:
            return
        turn = self.dice.choice(self.turns)
        if turn.done == len(turn.tokens) and self.dice.random() < 0.5:
            turn.tokens += self.tokens()[:6]
        goal = min(len(turn.tokens), turn.done + self.dice.randint(1, 9))

        def work() -> None:
            if self.manager.extend(turn.lease, goal):
                self.step()
                self.manager.commit(turn.lease, turn.tokens[:goal], now=self.now)
                turn.done = goal

        self.publishing(turn, work)

    def release(self) -> None:
        if not self.turns:
            return
        turn = self.turns.pop(self.dice.randrange(len(self.turns)))
        finished = self.dice.choice((True, True, False, None))
        keep = self.dice.random() < 0.8

        def work() -> None:
            self.manager.release(turn.lease, keep=keep, finished=finished, now=self.now)

        self.publishing(turn, work)

    def fork(self) -> None:
        if not self.turns:
            return
        turn = self.dice.choice(self.turns)
        forked = self.manager.fork(turn.lease)
        if forked is not None:
            twin = Turn(
                forked[0], turn.identity, turn.directive, turn.tokens[: turn.done], turn.opened
            )
            twin.done, twin.barred = turn.done, list(turn.barred)
            twin.tokens += self.tokens()[:4]
            self.turns.append(twin)
            self.step()
        self.proof()

    # --- verbs

    def selector(self) -> Selector:
        dice, pick = self.dice, self.dice.choice
        fields: dict[str, object] = {}
        for name, choices in (
            ("name", NAMES),
            ("tag", TAGS),
            ("session", SESSIONS),
            ("context", CONTEXTS),
            ("document", DOCUMENTS),
            ("adapter", (0, 1)),
            ("older_than", (0.0, 10.0, 100.0)),
        ):
            if dice.random() < 0.2:
                fields[name] = pick(choices)
        if "document" in fields and dice.random() < 0.5:
            fields[pick(("version", "not_version"))] = pick(("1", "2"))
        if dice.random() < 0.3:
            like = dice.choice([turn.tokens for turn in self.turns] or [self.tokens()])
            fields["prefix"] = like[: dice.randint(1, 16)]
        if not fields and dice.random() < 0.8:
            fields["tag"] = pick(TAGS)
        return Selector(pick(SPACES), **fields)  # type: ignore[arg-type]

    def invalidate(self) -> None:
        selector, before = self.selector(), self.reachable()
        cutoff = self.now - (selector.older_than or 0.0)
        self.manager.invalidate(selector, self.now)
        for turn in self.turns:
            self.bar(turn, selector, cutoff)

        def dies(path: Path, facts: Facts) -> bool:
            return self.selects(selector, cutoff, path, facts)

        self.expect(before, dies)

    def selects(self, selector: Selector, cutoff: float, path: Path, facts: Facts) -> bool:
        identity, tokens = path
        versions = {
            key.split("@")[1]
            for key in facts.keys("document")
            if key.split("@")[0] == selector.document
        }
        wanted = {
            version
            for version in versions
            if selector.version in (None, version) and version != selector.not_version
        }
        return (
            identity.namespace == selector.namespace
            and selector.adapter in (None, identity.adapter)
            and tokens[: len(selector.prefix)] == selector.prefix
            and (selector.older_than is None or facts.created <= cutoff)
            and all(
                key is None or key in facts.keys(kind)
                for kind, key in (
                    ("name", selector.name),
                    ("tag", selector.tag),
                    ("session", selector.session),
                    ("context", selector.context),
                )
            )
            and (selector.document is None or bool(wanted))
        )

    def bar(self, turn: Turn, selector: Selector, cutoff: float) -> None:
        """What a lease that was open may not publish any more."""
        directive = turn.directive
        if (
            turn.identity.namespace != selector.namespace
            or selector.adapter not in (None, turn.identity.adapter)
            or (selector.older_than is not None and turn.opened > cutoff)
            or selector.name not in (None, directive.name)
            or selector.session not in (None, directive.session)
            or selector.context not in (None, directive.context)
            or (selector.tag is not None and selector.tag not in directive.tags)
        ):
            return
        starts = [
            span.start
            for span in directive.documents
            if span.document == selector.document
            and selector.version in (None, span.version)
            and span.version != selector.not_version
        ]
        if selector.document is not None and not starts:
            return
        first = min(starts, default=-1)
        prefix = selector.prefix
        turn.barred.append(
            lambda path: path[: len(prefix)] == prefix and len(path) > first and bool(path)
        )

    def end_session(self) -> None:
        space, session = self.dice.choice(SPACES), self.dice.choice(SESSIONS)
        before = self.reachable()
        known = self.manager.table.get(space, session) is not None
        assert (self.manager.end_session(space, session, self.now) is not None) == known
        ended = (("session", session), ("turn", session), ("pin", f"session:{session}"))
        if known:
            for turn in self.turns:
                if (turn.identity.namespace, turn.directive.session) == (space, session):
                    turn.barred.append(lambda path: True)

        def dies(path: Path, facts: Facts) -> bool:
            return known and path[0].namespace == space and not facts.held_without(*ended)

        self.expect(before, dies)

    def name(self) -> None:
        before = self.reachable()
        ttl = self.dice.choice((None, Ttl(20.0), Ttl(50.0, "first_use"), Ttl(30.0, mode="demote")))
        space, name = self.dice.choice(SPACES), self.dice.choice(NAMES)
        try:
            self.manager.name(
                space, name, self.tokens(), ttl=ttl, pin=self.dice.random() < 0.3, now=self.now
            )
        except PinBudgetExceeded:
            self.refusals += 1
        self.expect(before, lambda path, facts: False)

    def change_name(self) -> None:
        before = self.reachable()
        space, name = self.dice.choice(SPACES), self.dice.choice(NAMES)
        try:
            match self.dice.randrange(3):
                case 0:
                    self.manager.set_ttl(space, name, Ttl(self.dice.choice((5.0, 90.0))), self.now)
                case 1:
                    self.manager.set_pin(space, name, self.dice.random() < 0.5, self.now)
                case _:
                    self.manager.set_tags(space, name, (self.dice.choice(TAGS),), self.now)
        except PinBudgetExceeded:
            self.refusals += 1
        self.expect(before, lambda path, facts: False)

    def unname(self) -> None:
        space, name = self.dice.choice(SPACES), self.dice.choice(NAMES)
        before = self.reachable()
        self.manager.unname(space, name, self.now)
        for turn in self.turns:
            if (turn.identity.namespace, turn.directive.name) == (space, name):
                turn.barred.append(lambda path: True)

        def dies(path: Path, facts: Facts) -> bool:
            return path[0].namespace == space and not facts.held_without(("name", name))

        self.expect(before, dies)

    def tick(self) -> None:
        """Time passes, sometimes much, and for a moment backwards."""
        before = self.reachable()
        passed = self.dice.choice((0.0, 0.1, 1.0, 6.0, 40.0, 86_400.0))
        self.now += passed
        if self.dice.random() < 0.1:
            self.manager.explain([1, 2], now=self.now - 30.0)
        idle = {
            (space, session)
            for (space, session), entry in self.manager.table._sessions.items()
            if not entry.open and entry.last_use + 300.0 <= self.now
        }
        budget = self.dice.choice((1, 1, 3, 128))
        more = self.manager.tick(self.now, budget)
        if idle:
            while more or any(self.manager.table.get(*key) for key in idle):
                more = self.manager.tick(self.now)

        def dies(path: Path, facts: Facts) -> bool:
            ended = [
                (kind, key if kind != "pin" else f"session:{key}")
                for space, key in idle
                if space == path[0].namespace
                for kind in ("session", "turn", "pin")
            ]
            return not facts.held_without(*ended)

        self.expect(before, dies)

    def act(self) -> None:
        """One operation, mostly ordinary work."""
        (work,) = self.dice.choices(
            (
                self.open,
                self.commit,
                self.release,
                self.fork,
                self.invalidate,
                self.end_session,
                self.name,
                self.change_name,
                self.unname,
                self.tick,
                self.step,
            ),
            (24, 30, 14, 2, 8, 3, 4, 3, 2, 8, 2),
        )
        work()

    def drain(self) -> None:
        """Everything ends: no block stays held, and all that was deleted is overwritten."""
        while self.turns:
            self.release()
        while self.manager.tick(self.now):
            self.proof()
        self.step()
        stats = self.manager.stats()
        assert stats.leaked_blocks == 0
        assert not self.manager.retention.rules
        for free, idle, total in zip(
            stats.free_blocks, stats.idle_blocks, stats.total_blocks, strict=True
        ):
            assert free + idle == total
        for space in SPACES:
            self.manager.invalidate(Selector(space), self.now)
        while self.manager.tick(self.now):
            self.proof()
        assert self.manager.stats().free_blocks == stats.total_blocks
        assert len(self.manager.tree) == len(self.manager.retention.claims._interned) == 0
