"""Text and ids of `Tokenizer` beside the tokenizers library itself; special strings stay data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import vocabularies
from hypothesis import given, settings
from hypothesis import strategies as st

from kveik.engine.detokenizer import WindowDetokenizer
from kveik.engine.tokenizer import Tokenizer
from kveik.errors import InvalidRequest, ModelLoadError

Loaded = tuple[Tokenizer, tokenizers.Tokenizer]
KINDS = sorted(vocabularies.KINDS)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Loaded]:
    """Name of a kind -> (kveik's tokenizer, the library's own, as the truth)."""
    made: dict[str, Loaded] = {}

    def loaded(kind: str) -> Loaded:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            truth = vocabularies.KINDS[kind](folder)
            made[kind] = Tokenizer.from_folder(folder), truth
        return made[kind]

    return loaded


TEXTS = st.text(max_size=40) | st.text("thecats <>/|_.,\n é漢🙂", max_size=40)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, add_special=st.booleans())
def test_ordinary_text_gets_the_ordinary_ids(
    load: Callable[[str], Loaded], kind: str, text: str, add_special: bool
) -> None:
    tokenizer, truth = load(kind)
    expected = truth.encode(text, add_special_tokens=add_special).ids
    if special_in(text, truth):
        return
    assert tokenizer.encode(text, add_special_tokens=add_special) == expected


def special_in(text: str, truth: tokenizers.Tokenizer) -> bool:
    seen = text if truth.normalizer is None else text + truth.normalizer.normalize_str(text)
    return any(token.content in seen for token in truth.get_added_tokens_decoder().values())


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_user_text_never_becomes_a_special_id(
    load: Callable[[str], Loaded], kind: str, data: st.DataObject
) -> None:
    tokenizer, truth = load(kind)
    names = [token.content for token in truth.get_added_tokens_decoder().values()]
    harmful = {truth.token_to_id(name) for name in names} - {truth.token_to_id("<unk>")}
    pieces = data.draw(st.lists(st.sampled_from(names) | st.text("the cat</s|>", max_size=6)))
    ids = tokenizer.encode("".join(pieces))
    opening = truth.encode("").ids
    assert ids[: len(opening)] == opening
    assert harmful.isdisjoint(ids[len(opening) :])


def test_a_special_string_survives_as_text(load: Callable[[str], Loaded]) -> None:
    for kind in ("byte_level", "byte_fallback"):
        tokenizer, truth = load(kind)
        name = truth.get_added_tokens_decoder()[2].content
        ids = tokenizer.encode(f"the{name}cat", add_special_tokens=False)
        assert tokenizer.decode(ids).replace(" ", "") == f"the{name}cat"


def test_look_alikes_that_normalise_to_a_special_string(load: Callable[[str], Loaded]) -> None:
    tokenizer, truth = load("unigram")
    look_alike = "the </ｓ＞ cat".replace("<", "＜")
    assert truth.token_to_id("</s>") not in tokenizer.encode(look_alike)
    assert truth.token_to_id("</s>") in truth.encode("the </s> cat").ids, "the library does"


@pytest.mark.parametrize("kind", KINDS)
def test_decode_is_the_library_s(load: Callable[[str], Loaded], kind: str) -> None:
    tokenizer, truth = load(kind)
    ids = list(range(truth.get_vocab_size()))
    for skip in (True, False):
        assert tokenizer.decode(ids, skip_special_tokens=skip) == truth.decode(
            ids, skip_special_tokens=skip
        )


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_pushes_join_to_the_decoded_text(
    load: Callable[[str], Loaded], kind: str, data: st.DataObject, skip: bool
) -> None:
    tokenizer, truth = load(kind)
    size = truth.get_vocab_size()
    ids = data.draw(st.lists(st.integers(0, size + 4), max_size=30))
    if data.draw(st.booleans()):
        ids = truth.encode(data.draw(TEXTS)).ids
    detokenizer = tokenizer.detokenizer(skip_special_tokens=skip)
    pushed = [detokenizer.push(token_id) for token_id in ids]
    known = [token_id for token_id in ids if token_id < size]
    assert "".join([*pushed, detokenizer.finish()]) == truth.decode(known, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@settings(max_examples=60, deadline=None)
@given(text=st.text("aé漢🙂 👩‍👩‍👧", max_size=12))
def test_no_push_ends_inside_a_character(
    load: Callable[[str], Loaded], kind: str, text: str
) -> None:
    tokenizer, truth = load(kind)
    detokenizer = tokenizer.detokenizer()
    pushed = [detokenizer.push(i) for i in truth.encode(text, add_special_tokens=False).ids]
    assert "�" not in "".join(pushed)
    assert text.removeprefix(" ").startswith("".join(pushed).removeprefix(" "))


def test_a_continuation_keeps_its_leading_space(load: Callable[[str], Loaded]) -> None:
    tokenizer, truth = load("byte_fallback")
    prompt, word = truth.encode("the cat").ids, truth.token_to_id("▁the")
    assert tokenizer.detokenizer().push(word) == "the"
    assert tokenizer.detokenizer(prompt_token_ids=prompt).push(word) == " the"


def test_a_token_without_text_is_no_context() -> None:
    pieces = {1: "a", 2: "", 3: " b"}
    detokenizer = WindowDetokenizer(
        lambda ids: "".join(pieces[i] for i in ids).removeprefix(" "),
        has_text=lambda token_id: True,
        incomplete=(),
    )
    assert [detokenizer.push(token_id) for token_id in (1, 2, 3)] == ["a", "", " b"]


def test_work_per_token_does_not_grow(load: Callable[[str], Loaded]) -> None:
    tokenizer, truth = load("byte_fallback")
    detokenizer = tokenizer.detokenizer()
    for token_id in truth.encode("the cat sat " * 200).ids:
        detokenizer.push(token_id)
    assert len(detokenizer._context) + len(detokenizer._fresh) <= 2  # type: ignore[attr-defined]


def test_token_bytes(load: Callable[[str], Loaded]) -> None:
    level, truth = load("byte_level")
    ids = truth.encode("né 漢🙂", add_special_tokens=False).ids
    assert b"".join(level.token_bytes(i) for i in ids) == "né 漢🙂".encode()
    assert level.token_bytes(2) == b"<|im_end|>"
    assert level.token_bytes(10**6) == b""
    fallback, truth = load("byte_fallback")
    assert fallback.token_bytes(truth.token_to_id("<0xE2>")) == b"\xe2"
    assert fallback.token_bytes(truth.token_to_id("▁the")) == b" the"
    assert fallback.token_text(truth.token_to_id("<0xE2>")) == "�"


def test_end_ids_of_every_source(tmp_path: Path) -> None:
    vocabularies.byte_level(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 2]}')
    assert Tokenizer.from_folder(tmp_path, eos_token_ids=(9,)).eos_token_ids == (9, 7, 2)
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "config.json").write_text('{"eos_token_id": 5}')
    assert Tokenizer.from_folder(tmp_path).eos_token_ids == (5, 2)


def test_a_named_token_is_special_even_if_the_file_forgot(tmp_path: Path) -> None:
    vocabularies.byte_level(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "<|im_end|>"]
    file.write_text(json.dumps(content))
    assert 2 not in Tokenizer.from_folder(tmp_path).encode("a <|im_end|>")
    assert Tokenizer.from_folder(tmp_path).decode([2]) == ""


def test_saved_truncation_is_ignored(tmp_path: Path) -> None:
    backend = vocabularies.byte_level(tmp_path)
    backend.enable_truncation(4)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.from_folder(tmp_path).encode("x" * 50)) == 51


@pytest.mark.parametrize(
    ("file", "content", "word"),
    [
        ("tokenizer.json", None, "save_pretrained"),
        ("tokenizer.json", "{", "tokenizer.json"),
        ("tokenizer_config.json", "[1]", "JSON object"),
        ("generation_config.json", "{", "generation_config.json"),
    ],
)
def test_a_broken_folder_names_file_and_remedy(
    tmp_path: Path, file: str, content: str | None, word: str
) -> None:
    vocabularies.byte_level(tmp_path)
    (tmp_path / file).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(ModelLoadError, match=word):
        Tokenizer.from_folder(tmp_path)


def test_a_lone_surrogate_is_refused(load: Callable[[str], Loaded]) -> None:
    for kind in KINDS:
        with pytest.raises(InvalidRequest, match="Unicode"):
            load(kind)[0].encode("a\ud800b")
