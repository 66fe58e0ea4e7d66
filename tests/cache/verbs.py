"""The verbs of retention on a keeper: each applied to the dictionary of what is reachable, too."""

from __future__ import annotations

from collections.abc import Callable

from keeper import CONTEXTS, DAY, DOCUMENTS, NAMES, SESSIONS, SPACES, TAGS, Keeper, Turn
from reach import Facts, Path, Tokens, caller, reachable

from kveik.cache.directive import Receipt, Selector, Ttl
from kveik.cache.prefix import pack_tokens
from kveik.errors import PinBudgetExceeded

Dies = Callable[[Path, Facts], bool]


def nothing(path: Path, facts: Facts) -> bool:
    return False


class Life(Keeper):
    """A keeper with every verb; `act` is a day of it, `drain` the end."""

    def expect_receipt(
        self, before: dict[Path, Facts], dies: Dies, space: str, receipt: Receipt, quiet: bool
    ) -> None:
        """Like `expect`; a receipt that defers nothing tells of every block of the namespace."""
        gone = [path for path in self.expect(before, dies) if path[0].namespace == space]
        if quiet and not receipt.deferred:
            blocks = [block for path in gone for block in before[path].blocks]
            self.receipts += bool(blocks)
            assert receipt.blocks == len(blocks)
            assert receipt.tokens == sum((len(path[1]) - 1) % self.size + 1 for path in gone)
            assert receipt.bytes_by_tier == (("memory", len(blocks)),)

    # --- invalidation

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
        return Selector(self.space(), **fields)  # type: ignore[arg-type]

    def invalidate(self) -> None:
        selector = self.selector()
        self.carry_out(selector, lambda: self.manager.invalidate(selector, self.reading))

    def announce_document(self) -> None:
        space, document = self.space(), self.dice.choice(DOCUMENTS)
        version = self.dice.choice(("1", "2", "3"))
        self.carry_out(
            Selector(space, document=document, not_version=version),
            lambda: self.manager.announce_document(space, document, version, self.reading),
        )

    def carry_out(self, selector: Selector, verb: Callable[[], Receipt]) -> None:
        before, quiet = reachable(self.manager), self.quiet()
        cutoff = self.now - (selector.older_than or 0.0)
        receipt = verb()
        for turn in self.turns:
            self.bar(turn, selector, cutoff)

        def dies(path: Path, facts: Facts) -> bool:
            return self.selects(selector, cutoff, path, facts)

        self.expect_receipt(before, dies, selector.namespace, receipt, quiet)

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

    # --- sessions, names

    def end_session(self) -> None:
        space, session = self.space(), self.dice.choice(SESSIONS)
        before, quiet = reachable(self.manager), self.quiet()
        known = self.manager.table.get(space, session) is not None
        receipt = self.manager.end_session(space, session, self.reading)
        assert (receipt is not None) == known
        ended = (("session", session), ("turn", session), ("pin", f"session:{session}"))
        if known:
            self.bar_turns(space, lambda turn: turn.directive.session == session)

        def dies(path: Path, facts: Facts) -> bool:
            return known and path[0].namespace == space and not facts.held_without(*ended)

        self.expect_receipt(before, dies, space, receipt or Receipt(), quiet)

    def bar_turns(self, space: str, concerned: Callable[[Turn], bool]) -> None:
        for turn in self.turns:
            if turn.identity.namespace == space and concerned(turn):
                turn.barred.append(lambda path: True)

    def switch_context(self) -> None:
        space, session = self.space(), self.dice.choice(SESSIONS)
        context, mode = self.dice.choice(CONTEXTS), self.dice.choice(("off", "demote", "delete"))
        live = self.dice.choice([turn.tokens for turn in self.turns] or [()])
        before, quiet = reachable(self.manager), self.quiet()
        spared = {path for path in before if self.is_live(path, live)}
        known = self.manager.table.get(space, session) is not None
        receipt = self.manager.switch_context(space, session, context, mode, live, now=self.reading)
        deletes = known and mode == "delete"
        if deletes:
            self.bar_other_contexts(space, session, context)

        def dies(path: Path, facts: Facts) -> bool:
            concerned = deletes and path[0].namespace == space and path not in spared
            return concerned and self.leaves(session, context, facts)

        self.expect_receipt(before, dies, space, receipt, quiet)

    def is_live(self, path: Path, live: Tokens) -> bool:
        """Is it a whole block that a look-up of the live prompt passes? One that runs through
        public blocks does not pass those that its caller has of the same tokens."""
        identity, tokens = path
        if len(tokens) % self.size or live[: len(tokens)] != tokens:
            return False
        found = self.manager.search.find(caller(identity), pack_tokens(live), len(live))
        return bool(identity.base) or not found.public

    def name(self) -> None:
        before, identity = reachable(self.manager), self.identity()
        ttl = self.dice.choice((None, Ttl(20.0), Ttl(50.0, "first_use"), Ttl(30.0, mode="demote")))
        try:
            self.manager.name(
                identity.namespace,
                self.dice.choice(NAMES),
                self.tokens(),
                ttl=ttl,
                pin=self.dice.random() < 0.3,
                adapter=identity.adapter,
                salt=identity.salt,
                now=self.reading,
            )
        except PinBudgetExceeded:
            self.refusals += 1
        self.expect(before, nothing)

    def change_name(self) -> None:
        before, now = reachable(self.manager), self.reading
        space, name = self.space(), self.dice.choice(NAMES)
        try:
            match self.dice.randrange(3):
                case 0:
                    self.manager.set_ttl(space, name, Ttl(self.dice.choice((5.0, 90.0))), now)
                case 1:
                    self.manager.set_pin(space, name, self.dice.random() < 0.5, now)
                case _:
                    self.manager.set_tags(space, name, (self.dice.choice(TAGS),), now)
        except PinBudgetExceeded:
            self.refusals += 1
        self.expect(before, nothing)

    def unname(self) -> None:
        space, name = self.space(), self.dice.choice(NAMES)
        before, quiet = reachable(self.manager), self.quiet()
        receipt = self.manager.unname(space, name, self.reading)
        self.bar_turns(space, lambda turn: turn.directive.name == name)

        def dies(path: Path, facts: Facts) -> bool:
            return path[0].namespace == space and not facts.held_without(("name", name))

        self.expect_receipt(before, dies, space, receipt, quiet)

    # --- time and shares

    def tick(self) -> None:
        """Time passes, sometimes much, and for a moment backwards."""
        passed = self.dice.choice((0.0, 0.25, 1.0, 6.0, 40.0))
        self.now += passed
        self.reading += passed
        if self.dice.random() < 0.1:
            self.manager.explain([1, 2], now=self.reading - 30.0)
        self.let_tick()

    def jump(self) -> None:
        """The clock is set a day ahead, as if that time had passed, or back, and goes on there."""
        if self.reading > 5 * DAY and self.dice.random() < 0.5:
            self.reading -= DAY
        else:
            self.reading += DAY
            self.now += DAY
        self.let_tick()

    def let_tick(self) -> None:
        before, evicted = reachable(self.manager), self.evicted
        idle = {
            (space, session)
            for (space, session), entry in self.manager.table._sessions.items()
            if not entry.over and not entry.open and entry.last_use + 300.0 <= self.now
        }
        budget = self.dice.choice((1, 1, 3, 128))
        more = self.manager.tick(self.reading, budget)
        if idle:
            while more or any(self.manager.table.get(*key) for key in idle):
                more = self.manager.tick(self.reading)

        def dies(path: Path, facts: Facts) -> bool:
            ended = [
                (kind, key if kind != "pin" else f"session:{key}")
                for space, key in idle
                if space == path[0].namespace
                for kind in ("session", "turn", "pin")
            ]
            return not facts.held_without(*ended)

        self.expect(before, dies, may_lose=self.evicted > evicted)
        if not more and self.quiet():
            for space, (_, maximum) in self.shares.items():
                assert maximum is None or budget < 128 or self.manager.usage(space)[0] <= maximum

    def share(self) -> None:
        """Other shares for everybody; who had one may lose it."""
        before = reachable(self.manager)
        unit = len(self.manager.groups)  # bytes of a block of every group
        self.shares = {}
        for space in SPACES:
            if self.dice.random() < 0.5:
                reserved = self.dice.randint(0, self.blocks // 4)
                maximum = self.dice.choice((None, reserved + self.dice.randint(1, 6)))
                self.shares[space] = reserved * unit, maximum and maximum * unit
        self.manager.set_shares(self.shares)
        self.expect(before, nothing)

    # --- lives

    def act(self) -> None:
        """One operation, mostly ordinary work."""
        (work,) = self.dice.choices(tuple(WEIGHTS), tuple(WEIGHTS.values()))
        work(self)

    def drain(self) -> None:
        """Everything ends: no block stays held, and all that was deleted is overwritten."""
        while self.turns:
            self.release()
        self.sweep()
        self.step()
        stats = self.manager.stats()
        assert stats.leaked_blocks == 0
        assert not self.manager.retention.rules
        for free, idle, total in zip(
            stats.free_blocks, stats.idle_blocks, stats.total_blocks, strict=True
        ):
            assert free + idle == total
        for space in {identity.namespace for identity in self.manager.tree.roots}:
            self.manager.invalidate(Selector(space), self.reading)
        self.sweep()
        assert self.manager.stats().free_blocks == stats.total_blocks
        assert len(self.manager.tree) == len(self.manager.retention.claims._interned) == 0

    def sweep(self) -> None:
        while self.manager.tick(self.reading):
            self.proof(reachable(self.manager))


WEIGHTS: dict[Callable[[Life], None], int] = {
    Life.open: 24,
    Life.commit: 30,
    Life.release: 14,
    Life.fork: 2,
    Life.invalidate: 8,
    Life.announce_document: 2,
    Life.end_session: 3,
    Life.switch_context: 3,
    Life.name: 4,
    Life.change_name: 3,
    Life.unname: 2,
    Life.tick: 7,
    Life.jump: 1,
    Life.share: 2,
    Life.step: 2,
}
