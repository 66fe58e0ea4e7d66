"""The shipped tokenizer: every byte survives, and chats render as they were trained."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

DEFAULT = Path(__file__).resolve().parents[2] / "src" / "kveik" / "assets" / "default"
SPECIAL = ("<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|pad|>")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    if not (DEFAULT / "tokenizer.json").exists():
        pytest.skip("the built-in model is not in this checkout")
    return Tokenizer.from_file(str(DEFAULT / "tokenizer.json"))


def test_every_byte_has_a_token(tokenizer: Tokenizer) -> None:
    text = "".join(chr(point) for point in range(0x800)) + "→漢字🙂\r\n\t  end "
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    from tokenizers.pre_tokenizers import ByteLevel

    assert all(tokenizer.token_to_id(byte) is not None for byte in ByteLevel.alphabet())


def test_plain_text_opens_with_the_first_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("Hello").ids[0] == tokenizer.token_to_id("<|begin|>")
    for token in SPECIAL:
        assert tokenizer.encode(token, add_special_tokens=False).ids == [
            tokenizer.token_to_id(token)
        ]


def test_the_template_renders_the_training_format() -> None:
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    if not (DEFAULT / "tokenizer_config.json").exists():
        pytest.skip("the built-in model is not in this checkout")
    loaded = transformers.PreTrainedTokenizerFast.from_pretrained(DEFAULT)
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Hello. "},
        {"role": "assistant", "content": "Good day."},
        {"role": "user", "content": "Well?"},
    ]
    text = loaded.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|begin|><|system|>Be brief.<|end|><|user|>Hello.<|end|>"
        "<|assistant|>Good day.<|end|><|user|>Well?<|end|><|assistant|>"
    )
    assert not loaded.apply_chat_template(turns, tokenize=False).endswith("<|assistant|>")
    assert loaded("Hello")["input_ids"][0] == loaded.bos_token_id
