"""Which beginnings of a conversation a template keeps, and the token at which it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny

from kveik.engine.chat_prefix import chat_prefix
from kveik.engine.chat_template import BUILT_IN
from kveik.engine.tokenizer import Tokenizer
from kveik.errors import InvalidRequest

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Here is the manual: press the red button."}
REPLY = {"role": "assistant", "content": "<think>hm</think>Understood."}
HEAD = "{% for m in messages %}"
BODY = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
TAIL = "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def with_template(path: Path, template: str) -> Tokenizer:
    tiny.write_tokenizer(path, chat_template=template)
    return Tokenizer.from_folder(path)


@pytest.mark.parametrize("template", [*BUILT_IN, "own"])
@pytest.mark.parametrize("messages", [[SYSTEM, USER], [USER], [SYSTEM, USER, REPLY]])
def test_the_beginning_is_that_of_every_conversation_that_goes_on(
    tmp_path: Path, template: str, messages: list[dict[str, str]]
) -> None:
    tiny.write_tokenizer(tmp_path)
    choice = None if template == "own" else template
    tokenizer = Tokenizer.from_folder(tmp_path, chat_template=choice)
    kept = chat_prefix(tokenizer, messages)
    assert kept
    for question in ("What does it do?", " ", "press the red button", "\n\n漢🙂"):
        whole = tokenizer.encode_chat([*messages, {"role": "user", "content": question}])
        assert tuple(whole[: len(kept)]) == kept
    alone = tokenizer.encode_chat(messages, add_generation_prompt=False)
    assert len(alone) - len(kept) <= 1


def test_roles_that_must_alternate(tmp_path: Path) -> None:
    alternate = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}" + BODY + TAIL
    )
    tokenizer = with_template(tmp_path, alternate)
    kept = chat_prefix(tokenizer, [USER])
    assert list(kept) == tokenizer.encode_chat([USER], add_generation_prompt=False)


DRIFTING = {
    "the date": (
        "Today is {{ strftime_now('%d %B %Y') }}.\n" + HEAD + BODY + TAIL,
        "at another time",
    ),
    "the hour": (HEAD + BODY + TAIL + "{{ strftime_now('%H:%M') }}", "follows"),
    "stripped thinking": (
        HEAD + "{% set text = m.content if loop.last else m.content.split('</think>')[-1] %}"
        "<|im_start|>{{ m.role }}\n{{ text }}<|im_end|>\n" + TAIL,
        "another message follows",
    ),
    "a count of messages": ("{{ messages | length }} messages\n" + HEAD + BODY + TAIL, "follows"),
    "the last message first": (HEAD.replace("messages", "messages[::-1]") + BODY + TAIL, "follows"),
}


@pytest.mark.parametrize("name", DRIFTING)
def test_what_does_not_last_is_refused_and_the_token_is_named(tmp_path: Path, name: str) -> None:
    template, why = DRIFTING[name]
    tokenizer = with_template(tmp_path, template)
    messages = [SYSTEM, USER, REPLY]
    with pytest.raises(InvalidRequest, match=why) as caught:
        chat_prefix(tokenizer, messages)
    assert (caught.value.code, caught.value.param) == ("unstable_template", "messages")
    alone = tokenizer.encode_chat(messages, add_generation_prompt=False)
    at = int(caught.value.message.split("token ")[1].split()[0])
    assert 0 <= at < len(alone)
    assert (
        repr(tokenizer.decode(alone[at : at + 1], skip_special_tokens=False))
        in caught.value.message
    )


class Merging:
    """Characters are ids, but "aW" is one: the end of a text may be half a token."""

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **_: Any) -> list[int]:
        text = "".join(message["content"] for message in messages).replace("aW", "\u1000")
        return [ord(character) for character in text]

    def decode(self, token_ids: Sequence[int], **_: Any) -> str:
        return "".join(map(chr, token_ids)).replace("\u1000", "aW")


def test_a_token_across_the_end_is_left_out() -> None:
    for text, kept in (("papa", "pap"), ("pap", "pap"), ("a", ""), ("aW", "\u1000")):
        found = chat_prefix(Merging(), [{"role": "user", "content": text}])
        assert found == tuple(map(ord, kept))
