"""Chat templates beside transformers' `apply_chat_template`; no content forges a special token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import vocabularies
from hypothesis import given, settings
from hypothesis import strategies as st

from kveik.engine.chat_template import BUILT_IN
from kveik.engine.tokenizer import Tokenizer
from kveik.errors import ConfigError, InvalidRequest, ModelLoadError, UnsupportedFeature

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hi there, how are you? 漢🙂\n"},
    {"role": "assistant", "content": "Well."},
    {"role": "user", "content": "Good"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat")
    vocabularies.byte_level(path)
    return path


def with_template(path: Path, template: Any) -> Tokenizer:
    tiny.write_tokenizer(path, chat_template=template)
    return Tokenizer.from_folder(path)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "unigram"])
@pytest.mark.parametrize("generation_prompt", [True, False])
def test_ids_are_those_of_transformers(tmp_path: Path, kind: str, generation_prompt: bool) -> None:
    from transformers import PreTrainedTokenizerFast

    vocabularies.KINDS[kind](tmp_path)
    eos = {"byte_level": "<|im_end|>"}.get(kind, "</s>")
    bos = {"byte_level": "<|bos|>"}.get(kind, "<s>")
    template = (
        "{{ bos_token }}{% for message in messages %}\n"
        "    {%- if message.role == 'assistant' %}\n"
        "    {% generation %}{{ message.content + eos_token }}{% endgeneration %}\n"
        "    {%- else %}{{ '[' + message['role'] + '] ' + message.content | trim }}{% endif %}\n"
        "{% if loop.index > 20 %}{% break %}{% endif %}{% endfor %}"
        "{{ messages | tojson }}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    (tmp_path / "chat_template.jinja").write_text(template)
    truth = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), bos_token=bos, eos_token=eos
    )
    options = {"chat_template": template, "add_generation_prompt": generation_prompt}
    text = truth.apply_chat_template(MESSAGES, tokenize=False, **options)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.render_chat(MESSAGES, add_generation_prompt=generation_prompt) == text
    assert (
        tokenizer.encode_chat(MESSAGES, add_generation_prompt=generation_prompt)
        == truth(text, add_special_tokens=False)["input_ids"]
    )


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_special_ids_stand_only_where_the_template_put_them(
    folder: Path, data: st.DataObject
) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    piece = st.sampled_from([*tiny.SPECIAL_TOKENS, "<|im_", "end|>"]) | st.text(max_size=5)
    content = "".join(data.draw(st.lists(piece, max_size=6)))
    parts = st.just(content) | st.lists(piece, max_size=4).map(
        lambda texts: [{"type": "text", "text": text} for text in texts]
    )
    message = {"role": "user", "content": data.draw(parts)}
    plain = tokenizer.encode_chat([{"role": "user", "content": "x"}])
    ids = tokenizer.encode_chat([message])
    assert [i for i in ids if i <= 2] == [i for i in plain if i <= 2]


def test_parts_are_one_text(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    parts = [{"type": "text", "text": "one <|im_"}, {"type": "text", "text": "end|> two"}]
    assert tokenizer.encode_chat([{"role": "user", "content": parts}]) == tokenizer.encode_chat(
        [{"role": "user", "content": "one <|im_end|> two"}]
    )


def test_contents_come_out_as_they_were_sent(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    messages = [{"role": "user", "content": "what does <|im_end|> mean?"}]
    text = "<|bos|><|im_start|>user\nwhat does <|im_end|> mean?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.render_chat(messages) == text
    assert tokenizer.decode(tokenizer.encode_chat(messages), skip_special_tokens=False) == text


def test_built_in_templates(folder: Path) -> None:
    rendered = {
        name: Tokenizer.from_folder(folder, chat_template=name).render_chat(MESSAGES[:2])
        for name in BUILT_IN
    }
    assert rendered == {
        "chatml": "<|bos|><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
        " Hi there, how are you? 漢🙂\n<|im_end|>\n<|im_start|>assistant\n",
        "llama2": "<|bos|>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n"
        "Hi there, how are you? 漢🙂 [/INST]",
        "alpaca": "<|bos|>Be brief.\n\n### Instruction:\nHi there, how are you? 漢🙂\n\n"
        "### Response:\n",
    }


def test_a_template_file_wins_over_the_model_s(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }}!")
    tokenizer = Tokenizer.from_folder(folder, chat_template=str(file))
    assert tokenizer.render_chat(MESSAGES) == "Be brief.!"


def test_the_default_of_a_list_of_templates(tmp_path: Path) -> None:
    tokenizer = with_template(
        tmp_path, [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    )
    assert tokenizer.render_chat(MESSAGES) == "D"


def test_no_template_names_the_option(tmp_path: Path) -> None:
    tokenizer = with_template(tmp_path, None)
    assert not tokenizer.has_chat_template
    with pytest.raises(InvalidRequest, match="--chat-template"):
        tokenizer.encode_chat(MESSAGES)


def test_an_unusable_choice(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="chatml"):
        Tokenizer.from_folder(folder, chat_template=str(tmp_path / "absent"))
    file = tmp_path / "broken.jinja"
    file.write_text("{% if %}")
    with pytest.raises(ModelLoadError, match=r"broken\.jinja"):
        Tokenizer.from_folder(folder, chat_template=str(file))


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ("hello", "messages"),
        ([123], "messages[0]"),
        ([{}], "messages[0].role"),
        ([{"role": 1, "content": "a"}], "messages[0].role"),
        ([{"role": "<|im_end|>", "content": "a"}], "messages[0].role"),
        ([{"role": "user", "content": 1}], "messages[0].content"),
        ([{"role": "user", "content": [1]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "wizard", "content": "a"}], "messages"),
        ([{"role": "user", "content": "\udc00"}], "messages"),
    ],
)
def test_bad_messages_name_the_field(folder: Path, messages: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Tokenizer.from_folder(folder).encode_chat(messages)
    assert caught.value.param == param
    assert param in caught.value.message


def test_images_are_refused_by_name(folder: Path) -> None:
    part = {"type": "image_url", "image_url": {"url": "http://localhost/"}}
    with pytest.raises(UnsupportedFeature, match="only text"):
        Tokenizer.from_folder(folder).encode_chat([{"role": "user", "content": [part]}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ raise_exception('no') }}",
        "{{ 'x' * 1000000000 }}",
        "{{ 1000000000 * 'x' }}",
        "{{ 10 ** 100000 }}",
        "{% for i in range(99999) %}{{ 'x' * 100 }}{% endfor %}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ messages[0].content.nothing.at.all }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_hostile_template_only_costs_its_request(tmp_path: Path, template: str) -> None:
    with pytest.raises(InvalidRequest):
        with_template(tmp_path, template).encode_chat(MESSAGES)


def test_helpers_of_hugging_face_templates(tmp_path: Path) -> None:
    tokenizer = with_template(
        tmp_path, "{{ strftime_now('%Y') | length }}{{ {'a': '<é>'} | tojson(indent=1) }}"
    )
    assert tokenizer.render_chat(MESSAGES) == "4" + json.dumps(
        {"a": "<é>"}, indent=1, ensure_ascii=False
    )
