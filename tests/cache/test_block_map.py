"""The block map against the books themselves: what an onlooker has put together from changes is at
any moment what somebody who reads every block would say."""

from __future__ import annotations

from typing import Any

import pytest
from books import Books, small
from hypothesis import given, settings
from hypothesis import strategies as st

from kveik.cache.block_map import KINDS, BlockMap
from kveik.cache.directive import Directive, Selector, Ttl
from kveik.cache.policy import DEMOTED

Shown = tuple[str, str, int, int, int]  # kind, owner, created, used, hits
HOLDERS = ("name", "document", "session", "turn", "pin")


def truth(books: Books, block: int, namespace: str | None, whole: bool) -> Shown | None:
    """One block, looked up in the books without any shortcut; None: free, or not to be seen."""
    pool, tree, idle = books.pools[0], books.tree, books.idle[0]
    node, held = pool.owner[block], pool.refs[block] > 0
    if node < 0:
        mine = any(
            block in lease.every_block(0) and lease.identity.namespace == namespace
            for lease in books.leases
        )
        seen = held and (namespace is None or whole or mine)
        return ("computing", "", 0, 0, 0) if seen else None
    spaces = {tree.space_of(name): name for name in tree.namespaces()}
    space = spaces[tree.space[node]]
    if namespace not in (None, space) and not whole:
        return None
    owner = space
    if space == namespace:
        labels = {label.kind: label.text for label in books.retention.set_of(node).live_labels()}
        owner = next((labels[kind] for kind in HOLDERS if kind in labels), "plain")
    if held:
        kind = "read"
    elif idle.is_pinned(block):
        kind = "pinned"
    else:
        kind = "demoted" if idle.class_of(block) == DEMOTED else "idle"
    times = int(tree.created[node] * 10), int(tree.used[node] * 10)
    return (kind, owner, *times, idle.hits[block])


class Onlooker:
    """Puts together what it is told."""

    def __init__(self, books: Books, namespace: str | None, *, whole: bool = False) -> None:
        self.books, self.namespace = books, namespace
        self.whole = whole or namespace is None
        self.map: BlockMap = books.block_map(namespace, whole=whole)
        self.shown: dict[int, Shown] = {}
        self.names: dict[int, str] = {}
        self.owners: dict[int, int] = {}

    def look(self, now: float) -> int:
        """Hear what changed; returns how many blocks did."""
        self.map.read(now)
        changes = self.map.changes()
        self.names.update(changes.owners)
        for place, row in changes.rows.items():
            if KINDS[row.kind] == "free":
                del self.shown[place]
                continue
            assert place < changes.size
            self.shown[place] = (KINDS[row.kind], "", row.created, row.used, row.hits)
            self.owners[place] = row.owner
        return len(changes.rows)

    def check(self) -> None:
        """Places of the whole pool are blocks; of a namespace, in any order."""
        told = {
            place: (row[0], self.names.get(self.owners[place], ""), *row[2:])
            for place, row in self.shown.items()
        }
        blocks = range(self.books.pools[0].num_blocks)
        true = {block: truth(self.books, block, self.namespace, self.whole) for block in blocks}
        true = {block: row for block, row in true.items() if row is not None}
        if self.whole:
            assert told == true
        else:
            assert sorted(told.values()) == sorted(true.values())  # type: ignore[type-var]


PROMPTS = [
    tuple(range(start, start + length))
    for start, length in ((0, 30), (0, 45), (0, 12), (100, 33), (100, 50), (200, 9), (300, 64))
]
steps = st.lists(
    st.tuples(
        st.sampled_from(["open", "open", "open", "end", "end", "abort", "forget", "name", "wait"]),
        st.integers(0, len(PROMPTS) - 1),
        st.sampled_from(["a", "b"]),
        st.booleans(),
    ),
    max_size=30,
)


@given(steps=steps)
@settings(max_examples=60, deadline=None)
def test_what_was_told_is_what_is_there(steps: list[tuple[str, int, str, bool]]) -> None:
    books, now = small(24), 1.0
    looks = [Onlooker(books, None), Onlooker(books, "a"), Onlooker(books, "a", whole=True)]
    leases: list[Any] = []
    for deed, prompt, space, look in steps:
        now += 0.7
        tokens = PROMPTS[prompt]
        if deed == "open":
            directive = (
                Directive(),
                Directive(session=f"s{prompt}"),
                Directive(tags=("t",), ttl=Ttl(3.0)),
                Directive(ttl=Ttl(2.0, mode="demote")),
            )[prompt % 4]
            result = books.open(tokens, len(tokens), namespace=space, now=now, directive=directive)
            if hasattr(result, "lease"):
                books.step()
                if look:
                    books.commit(result.lease, tokens, now)
                leases.append((result.lease, tokens))
        elif deed in ("end", "abort") and leases:
            lease, wanted = leases.pop(prompt % len(leases))
            books.commit(lease, wanted, now)
            books.release(lease, finished=deed == "end", now=now)
        elif deed == "forget":
            books.invalidate(Selector(space, session=f"s{prompt}"), now)
        elif deed == "name":
            books.name(space, f"n{prompt}", tokens, now=now)
        elif deed == "wait":
            books.tick(now)
        if look:
            for one in looks:
                one.look(now)
                one.check()
    books.check()
    for one in looks:
        one.look(now)
        one.check()
        assert one.look(now) == 0


def test_a_namespace_sees_only_its_own_and_numbers_it_by_itself() -> None:
    books = small(64)
    books.pass_through(range(40), namespace="other", now=1.0)
    books.pass_through(range(500, 520), namespace="mine", now=2.0)
    mine = Onlooker(books, "mine")
    mine.look(3.0)
    mine.check()
    assert sorted(mine.shown) == [0, 1, 2, 3, 4]
    assert set(mine.names.values()) == {"plain"}
    stranger = Onlooker(books, "nobody")
    assert stranger.look(3.0) == 0
    assert stranger.map.changes().size == 0


def test_a_block_that_changes_hands_between_two_looks() -> None:
    """It was being filled for one namespace and is for another: nothing else of it changed."""
    books = small(4)
    looks = [Onlooker(books, name) for name in ("a", "b")]
    first = books.start(range(16), namespace="a", now=1.0)
    for one in looks:
        one.look(1.5)
        one.check()
    books.release(first, keep=False, now=2.0)
    books.start(range(100, 116), namespace="b", now=2.0)
    for one in looks:
        one.look(2.5)
        one.check()


def test_places_that_are_vacant_are_taken_again() -> None:
    books = small(16)
    look = Onlooker(books, "a")
    for k in range(9):
        books.pass_through(range(100 * k, 100 * k + 32), namespace="a", now=1.0 + k)
        look.look(1.5 + k)
        look.check()
    look.map.read(20.0)
    assert look.map.changes().size <= 16
    books.invalidate(Selector("a", prefix=tuple(range(800, 832))), 21.0)
    books.sweep(21.0)
    look.look(22.0)
    books.pass_through(range(5000, 5016), namespace="a", now=23.0)
    look.look(24.0)
    look.check()


def test_two_namespaces_with_one_number_are_shown_to_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The number of a namespace is 32 bits of a digest; should two ever share it, neither sees."""
    books = small(64)
    monkeypatch.setattr(books.tree, "space_of", lambda namespace: 7)
    books.pass_through(range(40), namespace="other", now=1.0)
    books.pass_through(range(500, 520), namespace="mine", now=2.0)
    mine = Onlooker(books, "mine")
    mine.look(3.0)
    assert not mine.shown


def test_a_claim_that_ends_changes_the_name_of_an_owner() -> None:
    books = small(64)
    books.pass_through(range(20), now=1.0, directive=Directive(session="s"))
    books.name("", "faq", range(20), now=2.0)
    look = Onlooker(books, "")
    look.look(3.0)
    look.check()
    assert set(look.names.values()) == {"name:faq"}
    books.unname("", "faq", now=4.0)
    look.look(5.0)
    look.check()
    assert "session:s" in look.names.values()
