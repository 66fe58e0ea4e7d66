"""The memory of tokenised texts: never other ids, never another namespace's text, never too much.

A counting tokenizer shows what was encoded and what was remembered; no test measures time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import vocabularies
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from toy_model import toy_engine

from kveik.cache.directive import Selector, Ttl
from kveik.engine.cuts import MIN_PIECE, Cuts
from kveik.engine.engine import Engine
from kveik.engine.module_parts import ChatLayout, chat_layout
from kveik.engine.named_records import NamedSpec
from kveik.engine.schemas import Schemas
from kveik.engine.token_memory import TokenMemory
from kveik.engine.tokenizer import Tokenizer
from kveik.errors import InvalidRequest

TEMPLATE = (
    "{% for m in messages %}{{ eos_token }}{{ m.role }}\n{{ m.content }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}{{ eos_token }}assistant\n{% endif %}"
)


def folder_of(path: Path, kind: str) -> Path:
    vocabularies.KINDS[kind](path)
    config = json.loads((path / "tokenizer_config.json").read_text())
    config["chat_template"] = TEMPLATE
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def byte_level_with(path: Path, change: Any) -> Tokenizer:
    vocabularies.byte_level(path)
    backend = Backend.from_file(str(path / "tokenizer.json"))
    change(backend)
    return Tokenizer(backend, named_tokens={"eos_token": "<|im_end|>"})


class Counting(Tokenizer):
    """Counts the characters that are really encoded."""

    encoded = 0

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.encoded += len(text)
        return super().encode(text, add_special_tokens=add_special_tokens)

    def encode_piece(self, text: str) -> list[int]:
        self.encoded += len(text)
        return super().encode_piece(text)

    def encode_cut_piece(self, text: str, cuts: Sequence[int]) -> Any:
        self.encoded += len(text)
        return super().encode_cut_piece(text, cuts)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Counting:
    return Counting.from_folder(folder_of(tmp_path, "byte_level"))  # type: ignore[return-value]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def history(turns: int, words: int = 100) -> list[dict[str, str]]:
    return [user(f"turn {turn}: " + "the cat sat " * words) for turn in range(turns)]


# ---- the same ids


LONG = "the cats sat on the mat, and then some more of it. " * 8
WORDS = st.sampled_from(
    ["the cat ", "<|im_end|>", "</s>", "<s>", "<|im_", "end|>", "漢🙂", "3.14", "don't", "é"]
) | st.sampled_from([" ", "\n", "\n\n", "  ", LONG])
TEXTS = st.lists(WORDS, max_size=8).map("".join)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    return {
        kind: Tokenizer.from_folder(folder_of(tmp_path_factory.mktemp(kind), kind))
        for kind in vocabularies.KINDS
    }


@settings(max_examples=150, deadline=None)
@given(chats=st.lists(st.lists(TEXTS, min_size=1, max_size=4), min_size=1, max_size=4))
@pytest.mark.parametrize("kind", [*vocabularies.KINDS])
def test_ids_are_those_of_the_tokenizer(
    tokenizers: dict[str, Tokenizer], kind: str, chats: list[list[str]]
) -> None:
    tokenizer = tokenizers[kind]
    memory = TokenMemory(tokenizer)
    for contents in [*chats, *chats]:
        for length in range(1, len(contents) + 1):
            messages = [user(content) for content in contents[:length]]
            assert list(memory.encode_chat(messages).token_ids) == tokenizer.encode_chat(messages)
        for special in (True, False):
            text = "".join(contents)
            encoded = memory.encode(text, add_special_tokens=special)
            assert list(encoded.token_ids) == tokenizer.encode(text, add_special_tokens=special)


@settings(max_examples=150, deadline=None)
@given(
    chat=st.lists(st.lists(TEXTS, min_size=1, max_size=3), min_size=1, max_size=4),
    data=st.data(),
)
@pytest.mark.parametrize("kind", [*vocabularies.KINDS])
def test_spans_of_parts_are_those_of_the_tokenizer(
    tokenizers: dict[str, Tokenizer], kind: str, chat: list[list[str]], data: st.DataObject
) -> None:
    tokenizer = tokenizers[kind]
    memory = TokenMemory(tokenizer)
    places = [(i, j) for i, texts in enumerate(chat) for j, one in enumerate(texts) if one.strip()]
    if not places:
        return
    messages = [
        {"role": "user", "content": [{"type": "text", "text": one} for one in texts]}
        for texts in chat
    ]
    for _ in range(3):  # other parts of a text that is known
        parts = data.draw(st.lists(st.sampled_from(places), max_size=4))
        encoded = memory.encode_chat(messages, parts)
        ids, spans = tokenizer.encode_chat_with_spans(messages, parts)
        assert (list(encoded.token_ids), list(encoded.spans)) == (ids, spans)
        assert ids == tokenizer.encode_chat(messages)


def test_a_part_that_begins_where_a_piece_does_is_found(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "byte_level")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    tokenizer = Tokenizer.from_folder(folder)
    messages = [user(LONG), user(LONG + "and more"), user("the end")]
    assert len(tokenizer.chat_pieces(messages)[0]) == 3
    parts = [(0, 0), (1, 0), (2, 0)]
    ids, spans = tokenizer.encode_chat_with_spans(messages, parts)
    for _ in range(2):
        encoded = TokenMemory(tokenizer).encode_chat(messages, parts)
        assert (list(encoded.token_ids), list(encoded.spans)) == (ids, spans)


AROUND = st.sampled_from(["x", " ", "\n", "<", "|", ">", "a", "ab", "<<", "<|", "|>"])
SPECIAL = ["<|a|>", "<|a|>b", "a|>", "<<", "<|", "ab", "<|im_end|>", " <x>"]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_overlapping_added_tokens_are_cut_only_where_it_is_safe(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    flags = st.fixed_dictionaries({"lstrip": st.booleans(), "rstrip": st.booleans()})
    tokens = data.draw(st.lists(st.sampled_from(SPECIAL), min_size=1, max_size=3, unique=True))
    backend = vocabularies.byte_level(tmp_path_factory.mktemp("overlap"))
    backend.add_special_tokens(
        [AddedToken(token, normalized=False, **data.draw(flags)) for token in tokens]
    )
    words = st.sampled_from([*tokens, *tiny.SPECIAL_TOKENS]) | AROUND
    text = "".join(data.draw(st.lists(words, max_size=12)))
    whole = backend.encode(text, add_special_tokens=False).ids
    cuts = Cuts(backend)
    pattern = cuts._pattern
    ends = [match.end() for match in pattern.finditer(text)] if pattern is not None else []
    for end in ends:
        pieces = [text[:end], text[end:]]
        ids = [backend.encode(piece, add_special_tokens=False).ids for piece in pieces]
        assert ids[0] + ids[1] == whole


def test_a_token_whose_beginning_another_one_may_take_is_no_cut(tmp_path: Path) -> None:
    backend = vocabularies.byte_level(tmp_path)
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in ("<<", "<|a|>")])
    text = ("the cat " * MIN_PIECE) + "<<|a|>b"
    assert backend.token_to_id("<|a|>") not in backend.encode(text).ids  # "<<" was there first
    assert list(Cuts(backend).pieces(text)) == [text]


def test_the_property_can_fail() -> None:
    """Where a cut is not safe the ids do differ: the conditions are not idle."""
    backend = Backend.from_str('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}')
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in ("xa", "ax", "x")])
    whole = backend.encode("axa").ids
    assert whole != backend.encode("axa"[:1]).ids + backend.encode("axa"[1:]).ids


@pytest.mark.parametrize(
    "change",
    [
        lambda b: setattr(b, "normalizer", normalizers.NFC()),
        lambda b: setattr(b, "pre_tokenizer", pre_tokenizers.Metaspace(prepend_scheme="first")),
        lambda b: setattr(b.model, "dropout", 0.1),
        lambda b: b.add_tokens([AddedToken("word", single_word=True)]),
    ],
)
def test_what_guarantees_nothing_is_not_cut(tmp_path: Path, change: Any) -> None:
    text = ("the cat " * MIN_PIECE + "<|im_end|>") * 3
    vocabularies.byte_level(tmp_path)
    whole = Backend.from_file(str(tmp_path / "tokenizer.json"))
    assert len(list(Cuts(whole).pieces(text))) == 3
    change(whole)
    assert list(Cuts(whole).pieces(text)) == [text]


# ---- what is encoded again


def test_a_repeated_text_is_not_encoded(tokenizer: Counting) -> None:
    memory = TokenMemory(tokenizer)
    text = "the cat " * 100
    first = memory.encode(text)
    assert (first.remembered, tokenizer.encoded) == (0, len(text))
    again = memory.encode(text)
    assert again.remembered == len(again.token_ids) == len(first.token_ids)
    assert tokenizer.encoded == len(text)


def test_a_grown_chat_encodes_only_what_is_new(tokenizer: Counting) -> None:
    memory = TokenMemory(tokenizer)
    memory.encode_chat(history(5))
    before = tokenizer.encoded
    grown = memory.encode_chat(history(6))
    new = len(history(6)[-1]["content"])
    assert new <= tokenizer.encoded - before < new + MIN_PIECE
    assert grown.remembered >= len(grown.token_ids) * 5 // 6 - MIN_PIECE


def test_a_chat_with_labelled_parts_is_not_encoded_again(tokenizer: Counting) -> None:
    memory = TokenMemory(tokenizer)
    part = {"type": "text", "text": "the cat sat on the mat. " * 200}
    question = {"type": "text", "text": "why? " * 100}
    labelled = [{"role": "user", "content": [part, question]}, *history(2)]
    first = memory.encode_chat(labelled, [(0, 0)])
    before = tokenizer.encoded
    again = memory.encode_chat([*labelled, user("and then?")], [(0, 0)])
    assert tokenizer.encoded - before < MIN_PIECE
    assert again.spans == first.spans
    assert again.remembered >= len(first.token_ids) - MIN_PIECE


def modular(*texts: str) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": text, "cache": "module"} for text in texts]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "why?"}]}]


def laid_out(memory: TokenMemory, tokenizer: Tokenizer, messages: Any) -> ChatLayout:
    schemas = Schemas(tokenizer, 4096, lambda: 0.0)
    return chat_layout(tokenizer, schemas, "", messages, [], memory.encode_piece)


def test_modules_are_encoded_once_in_any_order(tokenizer: Counting) -> None:
    memory = TokenMemory(tokenizer)
    one, two = "the cat sat on the mat. " * 40, "the dog lay in the sun. " * 40
    first = laid_out(memory, tokenizer, modular(one, two))
    before = tokenizer.encoded
    again = laid_out(memory, tokenizer, modular(two, one))
    assert tokenizer.encoded - before < 3 * MIN_PIECE  # what the template puts around them
    assert first.remembered == 0
    assert again.remembered == sum(len(unit.token_ids) for unit in again.layout.units)
    assert {unit.token_ids for unit in again.layout.units} == {
        unit.token_ids for unit in first.layout.units
    }
    fresh = laid_out(TokenMemory(tokenizer), tokenizer, modular(two, one))
    assert again.layout == fresh.layout


def test_a_changed_character_is_seen(tokenizer: Counting) -> None:
    memory = TokenMemory(tokenizer)
    text = "the cat " * 100
    for at in (0, 400, len(text) - 1):
        other = text[:at] + "X" + text[at + 1 :]
        memory.encode(text)
        assert list(memory.encode(other).token_ids) == tokenizer.encode(other)


def test_special_tokens_and_chats_are_kept_apart(tokenizer: Counting) -> None:
    memory = TokenMemory(tokenizer)
    text = "the cat " * 100
    assert memory.encode(text).token_ids != memory.encode(text, add_special_tokens=False).token_ids
    typed = memory.encode(tokenizer.render_chat(history(1)), add_special_tokens=False)
    assert typed.token_ids != memory.encode_chat(history(1)).token_ids


# ---- for whom, and how long


def remembered(memory: TokenMemory, text: str, **scope: Any) -> bool:
    return memory.encode(text, keep=0, **scope).remembered > 0


TEXT = "the cat " * 100


def test_namespaces_and_salts_see_their_own_texts_only(tokenizer: Counting) -> None:
    memory = TokenMemory(tokenizer)
    memory.encode(TEXT, namespace="a")
    memory.encode(TEXT, namespace="b", salt="s")
    assert remembered(memory, TEXT, namespace="a")
    assert remembered(memory, TEXT, namespace="b", salt="s")
    assert not remembered(memory, TEXT, namespace="b")
    assert not remembered(memory, TEXT, namespace="c")
    memory.forget("a")
    assert not remembered(memory, TEXT, namespace="a")
    assert remembered(memory, TEXT, namespace="b", salt="s")
    memory.forget()
    assert memory.size == 0
    assert not remembered(memory, TEXT, namespace="b", salt="s")


def test_what_must_not_be_remembered_is_not(tokenizer: Counting) -> None:
    memory = TokenMemory(tokenizer)
    memory.encode(TEXT, keep=0)
    assert memory.size == 0
    memory.encode("short")
    assert memory.size == 0
    with pytest.raises(InvalidRequest):
        memory.encode("\ud800" * MIN_PIECE)
    assert memory.size == 0


def test_a_text_that_is_encoded_while_its_namespace_is_forgotten_is_not_remembered(
    tokenizer: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = TokenMemory(tokenizer)
    encode = tokenizer.encode

    def forgetting(text: str, **options: Any) -> Sequence[int]:
        memory.forget("a")
        return encode(text, **options)

    monkeypatch.setattr(tokenizer, "encode", forgetting)
    memory.encode(TEXT, namespace="a")
    assert memory.size == 0


def test_idle_texts_go(tokenizer: Counting) -> None:
    clock = Clock()
    memory = TokenMemory(tokenizer, idle_seconds=10, clock=clock)
    memory.encode(TEXT)
    clock.now = 9.0
    assert remembered(memory, TEXT)
    clock.now = 18.0
    assert remembered(memory, TEXT)
    clock.now = 30.0
    memory.prune()
    assert memory.size == 0


def test_a_text_is_kept_no_longer_than_the_shortest_time(tokenizer: Counting) -> None:
    clock = Clock()
    memory = TokenMemory(tokenizer, clock=clock)
    texts = [f"{number} {TEXT}" for number in range(4)]
    memory.encode(texts[0], keep=300)
    memory.encode(texts[1])
    memory.encode(texts[1], keep=60)
    memory.encode(texts[2], keep=60)
    memory.encode(texts[2])
    memory.encode(texts[3])
    assert memory.next_deadline() == 60.0
    clock.now = 59.0
    assert all(remembered(memory, text) for text in texts)
    memory.encode(TEXT, keep=1.1)
    clock.now = 60.0
    memory.prune()
    assert [remembered(memory, text) for text in texts] == [True, False, False, True]
    assert 60.0 < (memory.next_deadline() or 0.0) <= 300.0
    clock.now = 60.1  # texts were looked through a moment ago
    assert not remembered(memory, TEXT)
    clock.now = 299.0
    memory.encode(texts[0], keep=300)  # a use puts nothing off
    clock.now = 300.0
    assert [remembered(memory, text) for text in texts] == [False, False, False, True]
    memory.prune()
    assert memory.next_deadline() is None


def test_bytes_are_bounded_and_the_least_recently_used_text_goes(tokenizer: Counting) -> None:
    texts = [f"{number} " + "the cat " * 100 for number in range(10)]
    one = TokenMemory(tokenizer)
    one.encode(texts[0])
    memory = TokenMemory(tokenizer, max_bytes=3 * one.size + 50)
    for text in texts[:3]:
        memory.encode(text)
    memory.encode(texts[0])
    memory.encode(texts[3])
    assert [remembered(memory, text) for text in texts[:4]] == [True, False, True, True]
    assert memory.size <= 3 * one.size + 50
    tiny_memory = TokenMemory(tokenizer, max_bytes=100)
    tiny_memory.encode(TEXT)
    assert tiny_memory.size == 0


def test_a_flood_costs_another_namespace_nothing_below_its_share(tokenizer: Counting) -> None:
    texts = [f"{number} " + "the cat " * 100 for number in range(40)]
    one = TokenMemory(tokenizer)
    one.encode(texts[0])
    memory = TokenMemory(tokenizer, max_bytes=8 * one.size + 400)
    for text in texts[:4]:
        memory.encode(text, namespace="quiet")
    for text in texts:
        memory.encode(text, namespace="flood")
    assert all(remembered(memory, text, namespace="quiet") for text in texts[:4])


# ---- in the engine


def named_with_deadline(engine: Engine, clock: Clock) -> None:
    soon = Ttl(5.0, "first_use", "delete")
    spec = NamedSpec(name="tv", namespace="", prompt=TEXT[:200], ttl=soon)
    engine.named.create(spec)
    while engine.step():
        pass
    clock.now += 6.0
    engine.step()


def idle(engine: Engine, clock: Clock) -> None:
    clock.now += engine.config.session_idle + 1
    engine.step()


@pytest.mark.parametrize(
    "forgetting",
    [
        lambda engine, clock: engine.reset_cache(""),
        lambda engine, clock: engine.invalidate(Selector("", tag="news")),
        lambda engine, clock: engine.end_session("", "s1"),
        lambda engine, clock: engine.announce_document("", "faq", "2"),
        named_with_deadline,
        idle,
    ],
)
def test_the_engine_forgets_texts_with_what_was_computed_from_them(forgetting: Any) -> None:
    clock = Clock()
    engine = toy_engine(clock=clock)
    memory = engine.token_memory
    memory.encode(TEXT)
    memory.encode(TEXT, namespace="other")
    assert remembered(memory, TEXT)
    forgetting(engine, clock)
    assert not remembered(memory, TEXT)
    assert remembered(memory, TEXT, namespace="other") or forgetting is idle
