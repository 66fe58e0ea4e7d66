"""Labelled content parts become exact token spans of the prompt."""

from __future__ import annotations

import pytest
import tiny

from kveik.engine.documents import document_parts, encode_with_documents
from kveik.engine.tokenizer import Tokenizer
from kveik.errors import InvalidRequest


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("documents")
    tiny.write_tokenizer(folder)
    return Tokenizer.from_folder(folder)


def part(text: str, document: object = None) -> dict[str, object]:
    return {"type": "text", "text": text} | ({} if document is None else {"document": document})


MESSAGES = [
    {"role": "system", "content": [part("Be brief. "), part("Chapter one, the house.", "book@1")]},
    {"role": "user", "content": "What is it about?"},
    {"role": "user", "content": [part("Chapter one, the house.", "book@2"), part("And this?")]},
]


def test_spans_hold_the_text_of_their_parts(tokenizer: Tokenizer) -> None:
    ids, spans = encode_with_documents(tokenizer, MESSAGES)
    assert ids == tokenizer.encode_chat(MESSAGES)
    assert [(span.document, span.version) for span in spans] == [("book", "1"), ("book", "2")]
    assert spans[0].end < spans[1].start
    for span in spans:
        assert tokenizer.decode(ids[span.start : span.end]).strip() == "Chapter one, the house."


def test_plain_messages_have_none(tokenizer: Tokenizer) -> None:
    plain = [{"role": "user", "content": "a"}, {"role": "user", "content": [part("b")]}]
    assert encode_with_documents(tokenizer, plain) == (tokenizer.encode_chat(plain), ())


@pytest.mark.parametrize("label", ["book", "@1", "book@", "bo ok@1", 7, "b" * 200 + "@1"])
def test_a_wrong_label_is_named(label: object) -> None:
    messages = [{"role": "user", "content": [part("a"), part("b", label)]}]
    with pytest.raises(InvalidRequest) as caught:
        document_parts(messages)
    assert caught.value.param == "messages[0].content[1].document"


def test_a_version_may_hold_an_at_sign() -> None:
    [found] = document_parts([{"role": "user", "content": [part("a", "book@v@2")]}])
    assert (found.document, found.version) == ("book", "v@2")
