"""The byte-level BPE tokenizer, its special tokens and the chat template.

Every sample opens with `BEGIN`; every turn of a chat is a role token, the text, and `END`.
The alphabet holds all 256 bytes, so no text needs an unknown token.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BEGIN = "<|begin|>"
END = "<|end|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
SYSTEM = "<|system|>"
PAD = "<|pad|>"
SPECIAL_TOKENS = (BEGIN, END, USER, ASSISTANT, SYSTEM, PAD)

_TURNS = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('the roles are system, user and assistant, not ' + message['role']) -}}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def chat_template(first_token: bool) -> str:
    """The Jinja template that renders exactly the chat format of the training samples."""
    return ("{{- bos_token -}}" if first_token else "") + _TURNS


def special_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a special token, which a foreign tokenizer may lack."""
    number: int | None = tokenizer.token_to_id(token)
    if number is None:
        raise ValueError(f"the tokenizer has no token {token}")
    return number


def train_tokenizer(texts: Iterable[str], vocab_size: int, first_token: bool = True) -> Tokenizer:
    """Learn the merges; digits stay single, so that numbers can be copied digit by digit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    set_first_token(tokenizer, first_token)
    return tokenizer


def set_first_token(tokenizer: Tokenizer, first_token: bool) -> None:
    """Make plain encoding open with `BEGIN`, or leave the text alone."""
    opening = [BEGIN] if first_token else []
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*opening, "$A"],
        pair=[*opening, "$A", "$B"],
        special_tokens=[(BEGIN, special_id(tokenizer, BEGIN))],
    )


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int, first_token: bool) -> None:
    """Write tokenizer.json and tokenizer_config.json as transformers expects them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN if first_token else None,
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": None,
        "additional_special_tokens": [USER, ASSISTANT, SYSTEM],
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template(first_token),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
