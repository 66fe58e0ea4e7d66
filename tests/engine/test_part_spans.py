"""Token spans of content parts: ids never change, and a span covers its text however the template
trims, cuts, moves or repeats it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import vocabularies
from hypothesis import given, settings
from hypothesis import strategies as st

from kveik.engine.tokenizer import Tokenizer
from kveik.errors import InvalidRequest

PLAIN = tiny.CHAT_TEMPLATE
TRIMMING = (
    "{% for message in messages %}<{{ message.role }}>"
    "{{ message.content | trim }}</{{ message.role }}>\n{% endfor %}"
)
THINKING = (
    "{% for m in messages %}{% set text = m.content.split('</think>')[-1].lstrip('\n') %}"
    "[{{ m.role }}]{{ text }}\n{% endfor %}"
)
LAST_FIRST = "{% for m in messages | reverse %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
TWICE = "{% for m in messages %}{{ m.content }}|{{ m.content }}{% endfor %}"
LOOKING = (
    "{% for m in messages %}{% if m.content.startswith('doc') %}!{% endif %}{{ m.content }}\n"
    "{% endfor %}"
)
WITHOUT_SYSTEM = (
    "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}\n{% endif %}{% endfor %}"
)
JSON = "{{ messages | tojson }}"
TEMPLATES = {
    "plain": PLAIN,
    "trimming": TRIMMING,
    "thinking": THINKING,
    "last first": LAST_FIRST,
    "looking": LOOKING,
}


def with_template(folder: Path, kind: str, template: str) -> Tokenizer:
    vocabularies.KINDS[kind](folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Tokenizer]:
    return {
        (kind, name): with_template(
            tmp_path_factory.mktemp(kind), kind, template.replace("{{ bos_token }}", "")
        )
        for kind in vocabularies.KINDS
        for name, template in TEMPLATES.items()
    }


def message(role: str, *texts: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text} for text in texts]}


WORDS = st.sampled_from(
    [
        "the cat",
        "doc",
        " ",
        "\n",
        "<|im_end|>",
        "</s>",
        "<|im_",
        "end|>",
        "漢🙂",
        "a",
        "s",
        "(",
        "é",
    ]
)
TEXTS = st.lists(WORDS, min_size=1, max_size=6).map("".join).filter(str.strip)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", [*TEMPLATES])
@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "unigram"])
def test_a_span_covers_its_part_and_little_more(
    tokenizers: dict[tuple[str, str], Tokenizer], kind: str, name: str, data: st.DataObject
) -> None:
    tokenizer = tokenizers[kind, name]
    texts = data.draw(st.lists(st.lists(TEXTS, min_size=1, max_size=3), min_size=1, max_size=3))
    messages = [message("user", *parts) for parts in texts]
    places = [(i, j) for i, parts in enumerate(texts) for j in range(len(parts))]
    chosen = data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=4))
    ids, spans = tokenizer.encode_chat_with_spans(messages, chosen)
    assert ids == tokenizer.encode_chat(messages)
    if kind != "byte_level":
        return  # their decoders change white space; the ids are what this test asks of them
    for (index, part), (start, end) in zip(chosen, spans, strict=True):
        wanted = texts[index][part].strip()
        covered = tokenizer.decode(ids[start:end], skip_special_tokens=False)
        assert wanted in covered
        split = "<|im_" in "".join(texts[index])  # a string that two make belongs to both
        if name != "looking" and not split:  # a searched text may stand elsewhere, too
            inner = tokenizer.decode(ids[start + 1 : end - 1], skip_special_tokens=False)
            assert len(inner.replace("\ufffd", "")) <= len(texts[index][part])


def text_of(tokenizer: Tokenizer, messages: list[dict[str, Any]], part: tuple[int, int]) -> str:
    ids, [(start, end)] = tokenizer.encode_chat_with_spans(messages, [part])
    return tokenizer.decode(ids[start:end], skip_special_tokens=False)


def test_equal_parts_are_told_apart(tmp_path: Path) -> None:
    tokenizer = with_template(tmp_path, "byte_level", PLAIN)
    messages = [message("user", "(same)", "(same)"), {"role": "user", "content": "(same)"}]
    ids, spans = tokenizer.encode_chat_with_spans(messages, [(0, 0), (0, 1), (1, 0)])
    assert spans[0][1] <= spans[1][0] < spans[1][1] <= spans[2][0]
    assert all(tokenizer.decode(ids[start:end]) == "(same)" for start, end in spans)


def test_white_space_around_a_part_belongs_to_it_where_the_template_kept_it(tmp_path: Path) -> None:
    messages = [message("user", "(x)", "\n(a)\n\n", "(y)")]
    kept = with_template(tmp_path / "kept", "byte_level", PLAIN)
    assert text_of(kept, messages, (0, 1)) == "\n(a)\n\n"
    trimmed = with_template(tmp_path / "trimmed", "byte_level", TRIMMING)
    assert text_of(trimmed, [message("user", "\n(a)\n")], (0, 0)) == "(a)"


def test_special_strings_inside_and_across_parts(tmp_path: Path) -> None:
    tokenizer = with_template(tmp_path, "byte_level", PLAIN)
    messages = [message("user", "one<|im_end|>(", "two <|im_", "end|> three", "four")]
    ids, spans = tokenizer.encode_chat_with_spans(messages, [(0, k) for k in range(4)])
    texts = [tokenizer.decode(ids[start:end]) for start, end in spans]
    assert texts[0] == "one<|im_end|>("
    assert texts[3] == "four"
    assert texts[1] == "two <|im_end|>"  # the string that both make belongs to both
    assert texts[2] == "<|im_end|> three"


def test_a_part_that_the_template_cuts(tmp_path: Path) -> None:
    tokenizer = with_template(tmp_path, "byte_level", THINKING)
    messages = [message("assistant", "(hidden thought</think>\n\nsaid)", "(more)")]
    assert text_of(tokenizer, messages, (0, 0)) == "said)"
    assert text_of(tokenizer, messages, (0, 1)) == "(more)"
    gone = [message("assistant", "(thought", "and)</think>(said)")]
    with pytest.raises(InvalidRequest, match=r"messages\[0\].content\[0\]: .*leaves it out"):
        tokenizer.encode_chat_with_spans(gone, [(0, 0)])


def test_a_part_that_is_rendered_twice_is_covered_from_first_to_last(tmp_path: Path) -> None:
    tokenizer = with_template(tmp_path, "byte_level", TWICE)
    assert text_of(tokenizer, [message("user", "(a)", "(b)")], (0, 0)) == "(a)(b)|(a)"


def test_a_part_inside_json(tmp_path: Path) -> None:
    tokenizer = with_template(tmp_path, "byte_level", JSON)
    assert text_of(tokenizer, [message("user", 'x"y', "z")], (0, 0)) == 'x\\"y'


@pytest.mark.parametrize(
    ("part", "field", "why"),
    [
        ((0, 0), r"messages\[0\].content", "leaves it out"),
        ((1, 1), r"messages\[1\].content\[1\]", "blank"),
        ((1, 2), r"messages\[1\].content\[2\]", "no such part"),
        ((7, 0), r"messages\[7\].content\[0\]", "no such part"),
        ((2, 0), r"messages\[2\].content\[0\]", "no such part"),
    ],
)
def test_what_cannot_be_found_is_refused(
    tmp_path: Path, part: tuple[int, int], field: str, why: str
) -> None:
    tokenizer = with_template(tmp_path, "byte_level", WITHOUT_SYSTEM)
    messages = [
        {"role": "system", "content": "rules"},
        message("user", "a", " \n"),
        {"role": "assistant", "content": None},
    ]
    with pytest.raises(InvalidRequest, match=f"{field}: .*{why}"):
        tokenizer.encode_chat_with_spans(messages, [part])


def test_a_normalising_vocabulary_refuses_look_alikes_only_where_it_must(tmp_path: Path) -> None:
    tokenizer = with_template(tmp_path, "unigram", TRIMMING)
    fullwidth = "\uff1cs\uff1e"  # becomes <s>
    messages = [message("user", f"the cat {fullwidth}", "the")]
    ids, spans = tokenizer.encode_chat_with_spans(messages, [(0, 0)])
    assert ids == tokenizer.encode_chat(messages)
    assert spans[0][0] < spans[0][1]
