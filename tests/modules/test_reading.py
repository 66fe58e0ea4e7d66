"""Schemas from JSON, YAML, the paper's markup and Python functions; and what is refused."""

from __future__ import annotations

import json

import pytest
import yaml

from kveik.config import LIMITS
from kveik.engine.modules.data import (
    schema_from_data,
    schema_from_json,
    schema_from_yaml,
    schema_to_data,
)
from kveik.engine.modules.function import prompt_module
from kveik.engine.modules.pml import is_prompt, read_prompt, read_schema
from kveik.engine.modules.prompt import SchemaPrompt, Use
from kveik.engine.modules.schema import Item, Module, Parameter, Role, Schema, Union
from kveik.errors import InvalidRequest

TRAVEL = Schema(
    "travel",
    Role("system", "You plan trips."),
    Role(
        "user",
        Module("plan", "Plan ", Parameter("duration", 4, "a week"), Module("note", "Be brief.")),
        Union(Module("miami", "Surf."), Module("tokyo", "Eat.", cache=False)),
    ),
    placement="fixed",
    scaffolds=[["plan", "miami"]],
)
MARKUP = """
<schema name="travel" placement="fixed">
  <system>You plan trips.</system>
  <user>
    <module name="plan">Plan <param name="duration" len="4" scaffold="a week"/><module
      name="note">Be brief.</module></module>
    <union>
      <module name="miami">Surf.</module>
      <module name="tokyo" cache="false">Eat.</module>
    </union>
  </user>
  <scaffold modules="plan miami"/>
</schema>
"""


def same(left: Schema, right: Schema) -> bool:
    return schema_to_data(left) == schema_to_data(right) and left == right


def test_the_four_ways_to_write_a_schema_are_one() -> None:
    data = schema_to_data(TRAVEL)
    assert same(read_schema(MARKUP), TRAVEL)
    assert same(schema_from_json(json.dumps(data)), TRAVEL)
    assert same(schema_from_yaml(yaml.safe_dump(data)), TRAVEL)
    assert same(schema_from_data(data), TRAVEL)


def test_included_definitions_stand_where_they_are_named() -> None:
    text = """
    name: s
    body:
      - text before
      - {module: outer, body: [a, {include: inner}]}
    definitions:
      - {module: inner, body: [b]}
    """
    expected = Schema("s", "text before", Module("outer", "a", Module("inner", "b")))
    assert same(schema_from_yaml(text), expected)


def test_a_prompt_is_modules_arguments_and_text() -> None:
    text = """
    <prompt schema="travel"><plan duration="3 days"><note/></plan>
      <miami/>
      Surf?
    </prompt>"""
    plan = Use("plan", {"duration": "3 days"}, (Use("note"),))
    assert read_prompt(text) == SchemaPrompt("travel", (plan, Use("miami")), "Surf?")
    assert is_prompt(text)
    assert not is_prompt("tell me about <prompt schema=")


def test_layout_of_the_markup_is_no_text_but_blanks_inside_are() -> None:
    text = """<schema name="s">
      <module name="m">
        a  <parameter name="p" length="1"/> b\n\n  c
      </module>
    </schema>"""
    expected = Schema("s", Module("m", "a  ", Parameter("p", 1), " b\n\n  c"))
    assert same(read_schema(text), expected)


UNSAFE = {
    "doctype": "<!DOCTYPE schema><schema name='s'>x</schema>",
    "entity": "<!DOCTYPE schema [<!ENTITY a 'b'>]><schema name='s'>&a;</schema>",
    "external": "<!DOCTYPE schema SYSTEM 'file:///etc/passwd'><schema name='s'>x</schema>",
    "laughs": "<!DOCTYPE l [<!ENTITY a 'ha'><!ENTITY b '&a;&a;'>]><schema name='s'>&b;</schema>",
    "instruction": "<schema name='s'><?php x ?>x</schema>",
    "unknown entity": "<schema name='s'>&nbsp;</schema>",
    "broken": "<schema name='s'>x",
    "two roots": "<schema name='s'>x</schema><schema name='t'>x</schema>",
    "surrogate": "<schema name='s'>\ud800</schema>",
    "deep": "<schema name='s'>" + "<module name='m'>" * 40 + "x" + "</module>" * 40 + "</schema>",
    "wide": "<schema name='s'>" + "<user/>" * 4200 + "</schema>",
    "long": "<schema name='s'>" + "x" * int(LIMITS["schema_characters"].high) + "</schema>",
    "namespace": "<schema name='s'><x:module name='m'/></schema>",
}


@pytest.mark.parametrize("text", UNSAFE.values(), ids=UNSAFE)
def test_markup_that_is_not_read(text: str) -> None:
    with pytest.raises(InvalidRequest):
        read_schema(text)


def test_a_document_type_is_what_it_is_refused_for() -> None:
    with pytest.raises(InvalidRequest, match="DOCTYPE"):
        read_schema(UNSAFE["laughs"])


WRONG_MARKUP = [
    ("<prompt schema='s'/>", "schema", "expected <schema"),
    ("<schema>x</schema>", "<schema>", "needs the attribute name"),
    ("<schema name='s'><b>x</b></schema>", "<b>", "no element of a schema"),
    ("<schema name='s'><union>x</union></schema>", "<union>", "holds modules"),
    ("<schema name='s'><module name='m' x='1'/></schema>", "<module>", "no attribute 'x'"),
    ("<schema name='s'><module name='m' cache='no'/></schema>", "module m.cache", "true or false"),
    ("<schema name='s'>x<user>y</user></schema>", "schema s", "text stands outside of the roles"),
    (
        "<schema name='s'><module name='m'><parameter name='p' length='x'/></module></schema>",
        "parameter p.length",
        "a number of tokens",
    ),
    (
        "<schema name='s'><module name='m'><parameter name='p' length='0'/></module></schema>",
        "module m.p.length",
        "1 .. 65536",
    ),
]


@pytest.mark.parametrize(("text", "element", "why"), WRONG_MARKUP, ids=lambda one: one[:30])
def test_what_is_wrong_in_markup_is_named(text: str, element: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as caught:
        read_schema(text)
    assert caught.value.param == element


def test_a_module_of_a_prompt_holds_no_text() -> None:
    with pytest.raises(InvalidRequest, match="arguments are attributes") as caught:
        read_prompt("<prompt schema='s'><m>text</m></prompt>")
    assert caught.value.param == "module m"


def cyclic(*names: str) -> dict[str, object]:
    definitions = [
        {"module": name, "body": [{"include": following}]}
        for name, following in zip(names, [*names[1:], names[0]], strict=True)
    ]
    return {"name": "s", "body": [{"include": names[0]}], "definitions": definitions}


def test_cyclic_nesting_is_shown() -> None:
    with pytest.raises(InvalidRequest, match=r"a -> b -> c -> a") as caught:
        schema_from_data(cyclic("a", "b", "c"))
    assert caught.value.param == "module a"
    with pytest.raises(InvalidRequest, match=r"a -> a"):
        schema_from_data(cyclic("a"))


def test_inclusions_that_grow_are_stopped() -> None:
    """Each definition holds the next one many times: few lines, 50 ** 5 elements."""
    definitions = [
        {"module": f"m{level}", "body": [{"include": f"m{level + 1}"}] * 50} for level in range(5)
    ]
    definitions.append({"module": "m5", "body": ["x"]})
    data = {"name": "s", "body": [{"include": "m0"}], "definitions": definitions}
    with pytest.raises(InvalidRequest, match="over 4096 elements"):
        schema_from_data(data)


WRONG_DATA = [
    ([], "schema", "expected an object"),
    ({"name": "s"}, "schema", "needs the field body"),
    ({"name": "s", "body": [], "x": 1}, "schema", "unknown field 'x'"),
    ({"name": "s", "body": []}, "schema s", "is empty"),
    ({"name": "1s", "body": ["x"]}, "schema", "begins with a letter"),
    ({"name": "s", "body": [5]}, r"schema.body[0]", "a text or an object"),
    ({"name": "s", "body": [{"x": 1}]}, r"schema.body[0]", "one of module, include"),
    ({"name": "s", "body": [{"include": "y"}]}, r"schema.body[0]", "no definition"),
    ({"name": "s", "body": ["x"], "placement": "loose"}, "schema s.placement", "packed or fixed"),
    ({"name": "s", "body": [{"module": "user"}]}, "module user", "has a meaning"),
    ({"name": "s", "body": [{"module": "m"}, {"module": "m"}]}, "module m", "this name"),
    (
        {"name": "s", "body": [{"module": "m", "body": [{"role": "user"}]}]},
        "module m",
        "roles are outermost",
    ),
    (
        {"name": "s", "body": [{"parameter": "p", "length": 1}]},
        "schema s.p",
        "stands inside a module",
    ),
    (
        {
            "name": "s",
            "body": [{"union": [{"module": "a"}, {"module": "b"}]}],
            "scaffolds": [["a", "b"]],
        },
        "schema s.scaffolds",
        "a and b are members of one union",
    ),
    (
        {"name": "s", "body": [{"module": "a"}], "scaffolds": [["a", "z"]]},
        "schema s.scaffolds",
        "'z'",
    ),
    (
        {"name": "s", "body": [{"module": "a"}], "scaffolds": [["a"]]},
        "schema s.scaffolds",
        "two or",
    ),
]


@pytest.mark.parametrize(("data", "element", "why"), WRONG_DATA, ids=lambda one: str(one)[:40])
def test_what_is_wrong_in_data_is_named(data: object, element: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as caught:
        schema_from_data(data)
    assert caught.value.param == element


WRONG_YAML = ["&a [*a]", "a: 1\na: 2", "!!python/object/apply:os.system ['true']", "a: [", "\t- x"]


@pytest.mark.parametrize("text", WRONG_YAML)
def test_yaml_is_plain_data(text: str) -> None:
    with pytest.raises(InvalidRequest):
        schema_from_yaml(text)


def test_a_function_is_a_module() -> None:
    @prompt_module(duration=4, place=8)
    def plan(place: str, duration: str = "a week") -> str:
        return f"Plan {duration} in {place}."

    expected: tuple[Item, ...] = (
        "Plan ",
        Parameter("duration", 4, "a week"),
        " in ",
        Parameter("place", 8),
        ".",
    )
    assert plan == Module("plan", *expected)


def test_a_function_that_is_no_module_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="give one for every argument"):
        prompt_module()(lambda x: x)
    with pytest.raises(InvalidRequest, match="exactly once") as caught:
        prompt_module(name="m", x=1)(lambda x: f"{x} {x}")
    assert caught.value.param == "module m.x"
    with pytest.raises(InvalidRequest, match="exactly once"):
        prompt_module(name="m", x=1)(lambda x: x.upper())
