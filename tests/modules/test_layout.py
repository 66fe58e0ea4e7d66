"""Exact ids and positions of every element of the paper's markup, in both placements."""

from __future__ import annotations

import pytest
from words import BOS, FILLER, Words

from kveik.engine.modules.layout import EncodedSchema, Layout
from kveik.engine.modules.pml import read_prompt, read_schema
from kveik.engine.modules.prompt import SchemaPrompt, Use
from kveik.engine.modules.schema import Module, Parameter, Role, Schema, Union
from kveik.errors import ContextLengthExceeded, InvalidRequest

# The paper's example (figure 2), with every element that its markup has.
CITIES = """
<schema name="cities" placement="{placement}">
  <system>you are a guide</system>
  <user>
    about cities
    <module name="trip-plan">
      plan a trip of <parameter name="duration" length="4"/> days <module name="budget">
        for at most <param name="money" len="2" scaffold="1000 dollars"/></module> please
    </module>
    <union>
      <module name="miami">miami has beaches and surf</module>
      <module name="tokyo">tokyo has temples</module>
    </union>
    <module name="rules" cache="false">answer briefly</module>
  </user>
  <scaffold modules="miami rules-of-surf"/>
</schema>
"""


def encoded(words: Words, placement: str = "packed", scaffold: bool = False) -> EncodedSchema:
    text = CITIES.replace("{placement}", placement)
    if scaffold:
        extra = '<module name="rules-of-surf">no boards over reefs</module>'
        text = text.replace("</union>", "</union>" + extra)
    else:
        text = text.replace('<scaffold modules="miami rules-of-surf"/>', "")
    return EncodedSchema(read_schema(text), words.encode, FILLER)


PROMPT = """
<prompt schema="cities">
  <trip-plan duration="3"><budget money="50 euros"/></trip-plan>
  <miami/>
  <rules/>
  highlight the surf spots
</prompt>
"""


def told(words: Words, layout: Layout) -> list[tuple[str, int, str]]:
    return [(one.kind, one.seen, words.decode(one.token_ids)) for one in layout.pieces]


# kind, seen position packed and fixed, text
PAPER = [
    ("frame", 0, 0, "<1> SYSTEM:"),
    ("module", 2, 2, "you are a guide"),
    ("frame", 6, 6, "; USER:"),
    ("module", 8, 8, "about cities"),
    ("module", 10, 10, "plan a trip of"),
    ("argument", 14, 14, "3"),
    ("module", 15, 18, "days"),
    ("module", 16, 19, "for at most"),
    ("argument", 19, 22, "50 euros"),
    ("module", 21, 24, "please"),
    ("module", 22, 25, "miami has beaches and surf"),
    ("text", 27, 30, "answer briefly"),
    ("text", 29, 32, "highlight the surf spots"),
    ("frame", 33, 36, "; ASSISTANT:"),
]


def test_packed_positions_of_the_papers_example() -> None:
    words = Words()
    layout = encoded(words).layout(read_prompt(PROMPT), words.template)
    assert told(words, layout) == [(kind, packed, text) for kind, packed, _, text in PAPER]
    assert layout.end == 35 == len(layout.token_ids)


def test_fixed_positions_of_the_papers_example() -> None:
    """A slot is as long as it was reserved, a union as its longest member, what is not used leaves
    a gap, and the prompt's own text follows the whole schema."""
    words = Words()
    layout = encoded(words, "fixed").layout(read_prompt(PROMPT), words.template)
    assert told(words, layout) == [(kind, fixed, text) for kind, _, fixed, text in PAPER]


def test_members_of_a_union_share_their_start_and_what_follows_does_not_move() -> None:
    words = Words()
    schema = encoded(words, "fixed")
    tokyo = schema.layout(
        SchemaPrompt("cities", (Use("tokyo"), Use("rules")), "hello"), words.template
    )
    assert told(words, tokyo)[4:] == [
        ("module", 25, "tokyo has temples"),
        ("text", 30, "answer briefly"),
        ("text", 32, "hello"),
        ("frame", 33, "; ASSISTANT:"),
    ]


def test_units_are_the_own_text_of_a_module_with_fillers_in_its_slots() -> None:
    words = Words()
    layout = encoded(words).layout(read_prompt(PROMPT), words.template)
    units = {unit.modules: words.decode(unit.token_ids) for unit in layout.units}
    assert layout.lead == (BOS, *words.encode("SYSTEM:"))
    assert units[("trip-plan",)] == "plan a trip of <0> <0> <0> <0> days please"
    assert units[("budget",)] == "for at most 1000 dollars"
    assert units[("miami",)] == "miami has beaches and surf"
    assert ("rules",) not in units  # cache="false"
    assert [words.decode(unit.token_ids) for unit in layout.units if not unit.modules] == [
        "you are a guide",
        "about cities",
    ]
    for piece in layout.pieces:
        if piece.kind == "module":
            tokens = layout.units[piece.unit].token_ids
            held = tokens[piece.offset : piece.offset + len(piece.token_ids)]
            assert held == piece.token_ids
        else:
            assert piece.unit == -1


def test_an_argument_that_is_left_out_is_the_scaffold_or_nothing() -> None:
    words = Words()
    uses = (Use("trip-plan", {}, (Use("budget"),)),)
    packed = encoded(words).layout(SchemaPrompt("cities", uses), words.template)
    assert told(words, packed)[4:] == [
        ("module", 10, "plan a trip of"),
        ("module", 14, "days"),
        ("module", 15, "for at most 1000 dollars"),
        ("module", 20, "please"),
        ("frame", 21, "; ASSISTANT:"),
    ]
    fixed = encoded(words, "fixed").layout(SchemaPrompt("cities", uses), words.template)
    assert [one.seen for one in fixed.pieces[4:8]] == [10, 18, 19, 24]


def test_a_scaffold_is_one_unit_where_all_of_it_is_used() -> None:
    words = Words()
    schema = encoded(words, scaffold=True)
    uses = (Use("miami"), Use("rules-of-surf"))
    both = schema.layout(SchemaPrompt("cities", uses), words.template)
    joined = [unit for unit in both.units if len(unit.modules) == 2]
    assert [words.decode(unit.token_ids) for unit in joined] == [
        "miami has beaches and surf no boards over reefs"
    ]
    pieces = {piece.owner: piece for piece in both.pieces if piece.owner}
    assert pieces["miami"].unit == pieces["rules-of-surf"].unit
    assert (pieces["miami"].offset, pieces["rules-of-surf"].offset) == (0, 5)
    alone = schema.layout(SchemaPrompt("cities", uses[1:]), words.template)
    assert [unit.modules for unit in alone.units if unit.modules] == [("rules-of-surf",)]


def test_a_text_of_the_prompt_opens_a_turn_of_the_user_where_the_schema_ends_another() -> None:
    words = Words()
    schema = Schema("s", Role("system", Module("a", "one two")))
    made = EncodedSchema(schema, words.encode, FILLER)
    layout = made.layout(SchemaPrompt("s", (Use("a"),), "hi"), words.template)
    assert told(words, layout) == [
        ("frame", 0, "<1> SYSTEM:"),
        ("module", 2, "one two"),
        ("frame", 4, "; USER:"),
        ("text", 6, "hi"),
        ("frame", 7, "; ASSISTANT:"),
    ]
    silent = made.layout(SchemaPrompt("s", (Use("a"),)), words.template)
    assert told(words, silent)[2:] == [("frame", 4, "; ASSISTANT:")]


def test_a_schema_without_roles_is_plain_text() -> None:
    words = Words()
    made = EncodedSchema(Schema("s", "begin", Module("a", "x", "x")), words.encode, FILLER)
    layout = made.layout(SchemaPrompt("s", (Use("a"),), "end"), words.template)
    assert told(words, layout) == [
        ("frame", 0, "<1>"),
        ("module", 1, "begin"),
        ("module", 2, "x x"),
        ("text", 4, "end"),
    ]


REFUSED = [
    (SchemaPrompt("cities", (Use("paris"),)), "module paris", "no such module"),
    (SchemaPrompt("cities", (Use("miami"), Use("tokyo"))), "module tokyo", "union with miami"),
    (SchemaPrompt("cities", (Use("miami"), Use("miami"))), "module miami", "twice"),
    (SchemaPrompt("cities", (Use("budget"),)), "module budget", "inside the module trip-plan"),
    (SchemaPrompt("cities", (Use("miami", {"x": ""}),)), "module miami.x", "no such parameter"),
    (
        SchemaPrompt("cities", (Use("trip-plan", {"duration": "a b c d e"}),)),
        "module trip-plan.duration",
        "5 tokens, its slot has 4",
    ),
]


@pytest.mark.parametrize(("prompt", "element", "why"), REFUSED, ids=lambda value: str(value)[:24])
def test_errors_name_the_element(prompt: SchemaPrompt, element: str, why: str) -> None:
    words = Words()
    with pytest.raises(InvalidRequest, match=why) as caught:
        encoded(words).layout(prompt, words.template)
    assert caught.value.param == element
    assert caught.value.status == 400


def test_an_argument_may_fill_its_slot_to_the_last_token() -> None:
    words = Words()
    use = Use("trip-plan", {"duration": "a b c d"})
    layout = encoded(words, "fixed").layout(SchemaPrompt("cities", (use,)), words.template)
    assert [piece.seen for piece in layout.pieces if piece.owner == "trip-plan"] == [10, 14, 18, 24]


def test_a_schema_over_the_context_names_the_module_that_crosses_it() -> None:
    words = Words()
    fixed = encoded(words, "fixed")
    fixed.check_context(words.template, 34)
    with pytest.raises(ContextLengthExceeded, match=r"token 34 .* context .* 33") as caught:
        fixed.check_context(words.template, 33)
    assert caught.value.param == "schema cities"
    with pytest.raises(ContextLengthExceeded) as caught:
        fixed.check_context(words.template, 29)
    assert caught.value.param == "module miami"
    encoded(words).check_context(words.template, 12)  # packed: a prompt need not use all
    with pytest.raises(ContextLengthExceeded) as caught:
        encoded(words).check_context(words.template, 11)
    assert caught.value.param == "module trip-plan"


def test_a_scaffold_longer_than_its_slot_is_refused() -> None:
    schema = Schema("s", Module("m", Parameter("p", 1, "two words")))
    with pytest.raises(InvalidRequest, match="has 2 tokens, the slot has 1") as caught:
        EncodedSchema(schema, Words().encode, FILLER)
    assert caught.value.param == "module m.p.scaffold"


def test_equal_texts_in_one_module_keep_their_places() -> None:
    words = Words()
    schema = Schema("s", Module("m", "x", Parameter("p", 1), "x"), Union(Module("n", "y")))
    made = EncodedSchema(schema, words.encode, FILLER)
    prompt = SchemaPrompt("s", (Use("m", {"p": "z"}), Use("n")))
    pieces = made.layout(prompt, words.template).pieces
    assert [(one.seen, one.offset) for one in pieces[1:]] == [(1, 0), (2, 0), (3, 2), (4, 0)]
