"""What a session may be told to forget, how its turns are counted, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from talk import encode

from kveik.cache.directive import Directive, Selector, Ttl
from kveik.config import LIMITS
from kveik.engine.forgetting import Forget, forget_words, going_on
from kveik.engine.history import Sessions
from kveik.engine.past import Kept, Mark, Message, Past, marked
from kveik.errors import Conflict, InvalidRequest

NEW: Message = {"role": "user", "content": "99"}


def said(role: str, content: Any = "11 12") -> Message:
    return {"role": role, "content": content}


def labelled(text: str, document: str) -> dict[str, str]:
    return {"type": "text", "text": text, "document": document}


def talked(turns: int, system: bool = True) -> Past:
    messages = [said("system", "7")] if system else []
    for number in range(turns):
        messages += [said("user", str(20 + number)), said("assistant", str(50 + number))]
    return Past(tuple(messages), *marked(messages, (), 0, ()))


def left(past: Past, forget: object) -> list[str]:
    going = going_on(past, [NEW], forget_words(forget), "kveik.forget")
    return [str(message["content"]) for message in going.messages]


# --- words


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ({"turns": [3, 2, 3]}, Forget((2, 3))),
        ({"turns": (2,)}, Forget((2,))),
        ({"turns": "2-5"}, Forget((2,), 5)),
        ({"tag": "draft"}, Forget(tag="draft")),
        ({"document": "book"}, Forget(document="book")),
        ({"document": "book@2"}, Forget(document="book", version="2")),
        (Forget((2,)), Forget((2,))),
    ],
)
def test_what_may_be_said(value: object, wanted: Forget) -> None:
    assert forget_words(value) == wanted


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({}, "expected one of turns, tag and document"),
        ({"turns": [1], "tag": "a"}, "expected one of"),
        ({"turn": [1]}, "expected one of"),
        ("1-2", "expected one of"),
        ({"turns": []}, "turns: "),
        ({"turns": [0]}, "turns: "),
        ({"turns": [True]}, "turns: "),
        ({"turns": ["1"]}, "turns: "),
        ({"turns": "5-2"}, "turns: "),
        ({"turns": "0-2"}, "turns: "),
        ({"turns": "2"}, "turns: "),
        ({"turns": 2}, "turns: "),
        ({"turns": [1] * (int(LIMITS["forget_count"].high) + 1)}, "turns: "),
        ({"tag": "a b"}, "tag: "),
        ({"tag": None}, "tag: "),
        ({"document": "@2"}, "document: "),
        ({"document": "book@"}, "document: "),
        ({"document": 3}, "document: "),
    ],
)
def test_what_may_not(value: object, place: str) -> None:
    with pytest.raises(ValueError, match=f"^{place}"):
        forget_words(value)


# --- what goes


def test_turns_go_with_their_answers_and_the_system_prompt_stays() -> None:
    past = talked(4)
    assert left(past, {"turns": [1]}) == ["7", "21", "51", "22", "52", "23", "53", "99"]
    assert left(past, {"turns": [2, 4]}) == ["7", "20", "50", "22", "52", "99"]
    assert left(past, {"turns": "1-4"}) == ["7", "99"]
    assert left(talked(2, system=False), {"turns": "1-2"}) == ["99"]


def test_messages_of_the_user_that_follow_one_another_are_one_turn() -> None:
    messages = [said("user"), said("user"), said("assistant"), said("user"), said("assistant")]
    marks, turns = marked(messages, (), 0, ("a",))
    assert [mark.turn for mark in marks] == [1, 1, 1, 2, 2]
    assert (turns, marks[0].tags) == (2, ("a",))


def test_messages_that_follow_one_another_are_one_gap() -> None:
    going = going_on(talked(6), [NEW], forget_words({"turns": [2, 3, 5]}), "forget")
    assert [sorted(gap.messages) for gap in going.gaps] == [[3, 4, 5, 6], [3, 4, 5, 6, 9, 10]]


def test_a_tag_takes_every_turn_that_has_it() -> None:
    past = talked(3)
    marks = [Mark(one.turn, ("x", "y") if one.turn == 2 else ("x",)) for one in past.marks]
    tagged = past._replace(marks=tuple(marks))
    assert left(tagged, {"tag": "y"}) == ["7", "20", "50", "22", "52", "99"]
    assert left(tagged, {"tag": "x"}) == ["7", "99"]


def test_a_document_takes_its_parts_and_turns_that_are_nothing_else() -> None:
    plain = {"type": "text", "text": "30"}
    messages = [
        said("system", [labelled("7", "rules@1"), {"type": "text", "text": "8"}]),
        said("user", [labelled("20", "book@1"), plain]),
        said("assistant", "50"),
        said("user", [labelled("21", "book@2")]),
        said("assistant", "51"),
    ]
    past = Past(tuple(messages), *marked(messages, (), 0, ()))

    def texts(forget: dict[str, str]) -> list[Any]:
        going = going_on(past, [NEW], forget_words(forget), "forget")
        return [encode([one]).token_ids[2:-2] for one in going.messages]

    assert texts({"document": "book@1"}) == [(7, 8), (30,), (50,), (21,), (51,), (99,)]
    assert texts({"document": "book@2"}) == [(7, 8), (20, 30), (50,), (99,)]
    assert texts({"document": "book"}) == [(7, 8), (30,), (50,), (99,)]
    assert texts({"document": "rules"}) == [(8,), (20, 30), (50,), (21,), (51,), (99,)]


@pytest.mark.parametrize(
    ("past", "forget", "field", "why"),
    [
        (talked(3), {"turns": [5]}, "kveik.forget.turns", "there is no turn 5: .* finished 3"),
        (talked(3), {"turns": "2-999999999"}, "kveik.forget.turns", "no turn 999999999"),
        (talked(3), {"tag": "t"}, "kveik.forget.tag", "no turn of the session has the tag t"),
        (talked(3), {"document": "b@1"}, "kveik.forget.document", "is labelled b@1"),
        (Past((), (), 0), {"turns": [1]}, "kveik.forget", "no finished turn"),
        (talked(40), {"turns": [*range(1, 40, 2)]}, "kveik.forget", "would leave 20 gaps"),
    ],
)
def test_what_there_is_not_is_named(past: Past, forget: Any, field: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as caught:
        going_on(past, [NEW], forget_words(forget), "kveik.forget")
    assert caught.value.param == field
    assert str(caught.value).startswith(f"{field}: ")


def test_a_turn_is_forgotten_once() -> None:
    past = talked(3)
    past = past._replace(messages=past.messages[:1] + past.messages[3:], marks=past.marks[:1])
    with pytest.raises(InvalidRequest, match="turn 1 was forgotten before"):
        going_on(past, [NEW], forget_words({"turns": "1-2"}), "forget")


def test_a_system_prompt_that_is_a_document_stays() -> None:
    messages = [said("system", [labelled("7", "rules@1")]), said("user"), said("assistant")]
    past = Past(tuple(messages), *marked(messages, (), 0, ()))
    with pytest.raises(InvalidRequest, match="the system prompt consists of it, and stays"):
        going_on(past, [NEW], forget_words({"document": "rules"}), "forget")


def test_modules_are_refused_where_something_is_forgotten_and_nowhere_else() -> None:
    module = said("user", [{"type": "text", "text": "5", "cache": "module"}])
    past = talked(2)
    with pytest.raises(InvalidRequest, match="no prompt modules") as caught:
        going_on(past, [module], forget_words({"turns": [1]}), "kveik.forget")
    assert caught.value.param == "kveik.forget"
    with pytest.raises(InvalidRequest) as caught:
        going_on(past._replace(forgotten=9), [module], None, "kveik.forget")
    assert caught.value.param == "cache"
    assert not going_on(past, [module], None, "kveik.forget").changes


def test_of_several_times_to_live_a_conversation_as_it_was_has_the_shortest() -> None:
    directive = Directive(session="s", ttl=Ttl(30.0), tags=("t",), name="n", pin=True)
    going = going_on(talked(4), [NEW], forget_words({"turns": [2]}), "forget")
    kept = going.kept(encode, encode(going.messages).token_ids, directive)
    assert kept.joined is not None
    of_unit = kept.joined.units[0].directive
    assert (of_unit.ttl, of_unit.tags, of_unit.session) == (Ttl(30.0), ("t",), "s")
    assert (of_unit.name, of_unit.pin) == (None, False)


# --- what a session knows of its turns


def sessions() -> Sessions:
    return Sessions(1800.0, lambda: 0.0)


def a_turn(history: Sessions, messages: list[Message], tags: tuple[str, ...] = ()) -> None:
    opened = history.begin("", Directive(session="s", tags=tags), messages, (1, 2))
    assert opened is not None
    history.finish(opened, "ok")


def test_tags_are_those_of_the_request_that_brought_a_message() -> None:
    history = sessions()
    a_turn(history, [said("system"), said("user")], ("a",))
    a_turn(history, [*history.past("", "s").messages, said("user")], ("b",))
    past = history.past("", "s")
    assert [mark.turn for mark in past.marks] == [0, 1, 1, 2, 2]
    assert [mark.tags[0] for mark in past.marks] == ["a", "a", "a", "b", "b"]
    assert history.retold("", "s", [*past.messages, NEW]) == past._replace(prompt=())
    other = history.retold("", "s", [said("user"), said("assistant"), NEW])
    assert (other.turns, other.marks[0]) == (1, Mark(1, ()))


def test_a_cut_turn_forgets_nothing_and_a_finished_one_keeps_the_numbers() -> None:
    history = sessions()
    a_turn(history, [said("user", "1")])
    a_turn(history, [*history.past("", "s").messages, said("user", "2")])
    before = history.past("", "s")
    for finishes in (False, True):
        going = going_on(history.past("", "s"), [NEW], forget_words({"turns": [1]}), "forget")
        kept = Kept(before.marks[2:], 2, None, 5)
        opened = history.begin("", Directive(session="s"), going.messages, (1,), kept=kept)
        assert opened is not None
        if finishes:
            history.finish(opened, "ok")
        else:
            history.drop(opened)
            assert history.past("", "s") == before
    past = history.past("", "s")
    assert [mark.turn for mark in past.marks] == [2, 2, 3, 3]
    assert (past.turns, past.forgotten) == (3, 5)


def test_what_is_left_of_a_session_goes_with_what_it_forgot() -> None:
    history = sessions()
    a_turn(history, [said("user", "1")], ("secret",))
    a_turn(history, [*history.past("", "s").messages, said("user", "2")])
    past = history.past("", "s")
    kept = Kept(past.marks[2:], 2, None, 5)
    opened = history.begin("", Directive(session="s"), [*past.messages[2:], NEW], (1,), kept=kept)
    assert opened is not None
    history.finish(opened, "ok")
    history.invalidate(Selector(tag="secret"))
    with pytest.raises(Conflict):
        history.past("", "s")
    assert not history.knows("", "s")


@given(st.lists(st.sampled_from(["user", "assistant", "system"]), max_size=12))
def test_turns_are_counted_alike_at_once_and_one_by_one(roles: list[str]) -> None:
    messages = [said(role) for role in roles]
    at_once = marked(messages, (), 0, ())
    marks: tuple[Mark, ...] = ()
    turns = 0
    for end in range(1, len(messages) + 1):
        marks, turns = marked(messages[:end], marks, turns, ())
    assert (marks, turns) == at_once
