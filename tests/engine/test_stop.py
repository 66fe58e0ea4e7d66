"""Stop strings: the same text however it is cut into tokens, and never a piece of a stop."""

from __future__ import annotations

import random

import pytest
from toy import ByteDetokenizer

from kveik.engine.stop import ChoiceText, StopMatcher


def by_hand(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Character by character: the first end of any stop string, the longest one ending there."""
    for end in range(1, len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            stop = max(hits, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@pytest.mark.parametrize("include", [False, True])
def test_equals_the_definition_however_the_text_is_cut(include: bool) -> None:
    rng = random.Random(1)
    for _ in range(3000):
        text = "".join(rng.choice("ab\n") for _ in range(rng.randrange(0, 14)))
        stops = ["".join(rng.choice("ab\n") for _ in range(rng.randrange(1, 5))) for _ in "123"]
        stops = stops[: rng.randrange(0, 4)]
        matcher, sent, stopped, rest = StopMatcher(stops, include=include), "", None, text
        while rest and stopped is None:
            cut = rng.randrange(1, len(rest) + 1)
            piece = matcher.push(rest[:cut])
            sent, stopped, rest = sent + piece.text, piece.stop, rest[cut:]
        assert (sent + matcher.flush(), stopped) == by_hand(text, stops, include)


def test_what_may_become_a_stop_string_is_held_back_and_no_more() -> None:
    matcher = StopMatcher(["\nUser:"])
    assert matcher.push("Hello") == ("Hello", None)
    assert matcher.push(" there\nUs") == (" there", None)
    assert matcher.push("able") == ("\nUsable", None)
    assert matcher.push("\nUser") == ("", None)
    assert matcher.push(": next") == ("", "\nUser:")


def test_characters_stay_whole_and_an_incomplete_one_is_replaced_at_the_end() -> None:
    text = ChoiceText(ByteDetokenizer())
    pieces = [text.push(byte).text for byte in "é€".encode()]
    assert pieces == ["", "é", "", "", "€"]
    text.push(0xE2)
    assert text.finish() == ("\ufffd", None)


def test_stop_strings_count_from_min_tokens_on() -> None:
    text = ChoiceText(ByteDetokenizer(), ["aa"], min_tokens=3)
    assert [text.push(97) for _ in range(4)] == [("a", None), ("a", None), ("", None), ("", "aa")]


def test_held_text_comes_out_at_the_end() -> None:
    text = ChoiceText(ByteDetokenizer(), ["<end>"])
    sent = "".join(text.push(byte).text for byte in b"x<en")
    assert sent == "x"
    assert text.finish() == ("<en", None)
