"""What of a layout is computed in the prompt, piece by piece."""

from __future__ import annotations

from kveik.engine.modules.joins import join_layout
from kveik.engine.modules.layout import Layout, Piece, Unit

LEAD, TEXT = (1, 2), tuple(range(10, 30))


def layout(*pieces: Piece) -> Layout:
    return Layout(LEAD, (Piece("frame", LEAD, 0), *pieces), (Unit(("m",), TEXT),))


def test_the_last_token_is_computed_even_where_a_module_ends_the_prompt() -> None:
    made = layout(Piece("text", (5,), 2), Piece("module", TEXT, 3, "m", 0))
    joined = join_layout(made, "independent", 4)
    assert joined is not None
    assert [(one.first, one.length, one.unit) for one in joined.stretches] == [
        (0, 2, -1),
        (2, 1, -1),
        (3, 19, 0),
        (22, 1, -1),
    ]


def test_only_what_the_unit_itself_begins_with_is_an_exact_prefix() -> None:
    """The rest of a module at its home position, behind an argument that is none of its tokens."""
    end = Piece("text", (7,), 22)
    whole = layout(Piece("module", TEXT, 2, "m", 0), end)
    assert join_layout(whole, "independent", 4) is None
    slot = Piece("argument", (99, 98), 2, "m")
    rest = Piece("module", TEXT[2:], 4, "m", 0, 2)
    joined = join_layout(layout(slot, rest, end), "independent", 4)
    assert joined is not None
    assert [(one.unit, one.offset) for one in joined.reused] == [(0, len(LEAD) + 2)]
