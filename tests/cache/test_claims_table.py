"""The table of claims and verbs in ARCHITECTURE.md, cell by cell."""

from __future__ import annotations

from pathlib import Path

import pytest
from books import Books

from kveik.cache.directive import Directive, DocumentSpan, Selector, Ttl

SYSTEM = list(range(8))
BODY = [*SYSTEM, *range(100, 108)]
DOCUMENT = DocumentSpan("d", "1", 8, 16)
TTL = Ttl(60)


def rows() -> list[tuple[str, str, str]]:
    """(claims, verb, outcome) of every cell."""
    text = (Path(__file__).parents[2] / "ARCHITECTURE.md").read_text(encoding="utf-8")
    lines = text[text.index("| claims |") :].split("\n\n")[0].splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    head, body = table[0], table[2:]
    return [(row[0], verb, cell) for row in body for verb, cell in zip(head, row, strict=True)]


CELLS = [cell for cell in rows() if cell[1] != "claims"]


def claim(books: Books, kinds: list[str]) -> None:
    """The block behind the system prompt gets these claims, and a tag and a deadline."""
    books.pass_through([*SYSTEM, 1], now=1.0)  # others continue the system prompt as well
    first = {
        "session": Directive(session="s"),
        "name": Directive(name="faq"),
        "plain": Directive(),
    }[kinds[0]]
    directive = Directive(
        session=first.session,
        name=first.name,
        tags=("t",),
        ttl=TTL,
        documents=(DOCUMENT,) if "document" in kinds else (),
        pin="pin" in kinds and kinds[0] != "name",
    )
    books.pass_through(BODY, directive=directive, now=1.0)
    if "other session" in kinds:
        books.pass_through(BODY, directive=Directive(session="r"), now=1.0)
    if "plain" in kinds[1:]:
        books.pass_through(BODY, now=1.0)
    if "name" in kinds:
        books.name("", "faq", BODY, ttl=TTL, pin="pin" in kinds, now=1.0)


def carry_out(books: Books, verb: str) -> None:
    match verb:
        case "session ends":
            books.end_session("", "s", 2.0)
        case "name deleted":
            books.unname("", "faq", 2.0)
        case "tag invalidated":
            books.invalidate(Selector(tag="t"), 2.0)
        case "deadline passes":
            books.tick(62.0)
        case "new document version":
            books.announce_document("", "d", "2", 2.0)
        case _:
            raise AssertionError(f"no such verb: {verb}")


def test_the_table_is_there() -> None:
    assert len(CELLS) == 13 * 5
    assert {outcome for _, _, outcome in CELLS} == {"stays", "goes"}


@pytest.mark.parametrize(("claims", "verb", "outcome"), CELLS)
def test_every_cell(claims: str, verb: str, outcome: str) -> None:
    books = Books(64, 4)
    claim(books, claims.split(", "))
    assert books.cached([*BODY, 1]) == 16
    carry_out(books, verb)
    books.check()
    assert books.cached([*BODY, 1]) == (16 if outcome == "stays" else books.cached([*SYSTEM, 9]))
    books.sweep()
    assert (books.cached([*BODY, 1]) == 16) is (outcome == "stays")
