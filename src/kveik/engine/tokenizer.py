"""Text to token ids and back: chat templates (sandboxed), incremental detokenisation.

Special-token strings inside user text are data. They never become special ids, neither in `encode`
nor inside the contents of chat messages; only the post-processor (bos) and the chat template itself
put special ids into a prompt. Text without such strings gets the ids that Hugging Face gives it.
An instance is immutable after construction and may be shared by threads.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from kveik.config import check_limit
from kveik.engine.chat_template import ChatTemplate, load_chat_template
from kveik.engine.cuts import Cuts
from kveik.engine.detokenizer import ByteDetokenizer, Detokenizer, WindowDetokenizer
from kveik.engine.part_spans import Marks, Range, cuts_of, place, spans_of, tokens_around
from kveik.engine.special_tokens import SpecialTokens
from kveik.errors import InvalidRequest, ModelLoadError, UnsupportedFeature

__all__ = ["Detokenizer", "Tokenizer"]

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ROLE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Tokenizer:
    """A Hugging Face `tokenizer.json` with its chat template.

    vocab_size: entries, added tokens included. eos_token_ids: every id that ends a turn.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        named_tokens: Mapping[str, str],
        eos_token_ids: Sequence[int] = (),
        chat_template: ChatTemplate | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        _declare_special(backend, named_tokens)
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        self.bos_token_id = _id_of(backend, named_tokens.get("bos_token"))
        end = _id_of(backend, named_tokens.get("eos_token"))
        ends = [*eos_token_ids, *([] if end is None else [end])]
        self.eos_token_ids = tuple(dict.fromkeys(ends))
        self._backend = backend
        self._decoder_types = _decoder_types(backend)
        self._special = SpecialTokens(backend, unknown=named_tokens.get("unk_token"))
        self._cuts = Cuts(backend)
        self._chat_template = chat_template
        opening = backend.encode("").ids
        variables = dict.fromkeys(("bos_token", "eos_token"), "") | dict(named_tokens)
        opens = self.bos_token_id is not None and self.bos_token_id in opening
        self._variables = variables | {"opening": variables["bos_token"] if opens else ""}

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        *,
        chat_template: str | None = None,
        eos_token_ids: Sequence[int] = (),
    ) -> Tokenizer:
        """Read tokenizer.json, tokenizer_config.json, generation_config.json and the template.

        chat_template: `chatml`, `llama2`, `alpaca` or a file; None: the model's own, if any.
        eos_token_ids: ends known to the caller; those of the folder are added.
        Raises ModelLoadError (naming file and remedy) or ConfigError (chat_template)."""
        folder = Path(path)
        backend = _read_backend(folder)
        config = _read_json(folder / "tokenizer_config.json")
        if chat_template is not None:
            template: ChatTemplate | None = load_chat_template(chat_template)
        else:
            template = _own_template(folder, config)
        ends = [*eos_token_ids, *_end_ids(folder)]
        if chat_template == "chatml" and (end := backend.token_to_id("<|im_end|>")) is not None:
            ends.append(end)
        return cls(
            backend, named_tokens=_named_tokens(config), eos_token_ids=ends, chat_template=template
        )

    @property
    def special_token_ids(self) -> frozenset[int]:
        return self._special.ids

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Special-token strings inside `text` are data: they never become special ids.

        add_special_tokens: let the post-processor add bos and the like, where the model has it.
        Raises InvalidRequest for a text that is not valid Unicode (a lone surrogate)."""
        shielded = self._shield(text, "prompt")
        encoding = self._backend.encode(shielded, add_special_tokens=add_special_tokens)
        return self._special.expand(encoding.ids)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of all ids; ids outside the vocabulary are skipped."""
        skipped = self._skipped(skip_special_tokens)
        return self._decode_known([i for i in token_ids if i not in skipped])

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for (special tokens: their text; unknown ids: nothing)."""
        token = self._token(token_id)
        if token is None:
            return b""
        if "ByteLevel" in self._decoder_types:
            return _byte_level_bytes(token)
        if token_id in self._byte_token_ids:
            return bytes([int(token[3:5], 16)])
        if not self._decoder_types:
            return token.encode()
        return token.replace("▁", " ").encode()

    def token_text(self, token_id: int) -> str:
        """Display form of one token (invalid UTF-8 replaced)."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        moment: datetime | None = None,
    ) -> list[int]:
        """Render the chat template and encode it: the ids of transformers' `apply_chat_template`
        where no message holds a special-token string. moment: what a template that writes the
        date takes for now.

        Raises InvalidRequest where the model has no template or the template refuses."""
        return self.encode_piece(self._render(messages, add_generation_prompt, moment))

    def chat_pieces(
        self,
        messages: Sequence[Mapping[str, Any]],
        parts: Sequence[tuple[int, int]] = (),
        *,
        add_generation_prompt: bool = True,
    ) -> tuple[list[str], list[Range]]:
        """What `encode_chat` encodes, in pieces whose ids (`encode_piece`) joined are its ids; one
        piece where the vocabulary guarantees nothing. Special strings of users are shielded.

        Beside them, for each of `parts` (see `encode_chat_with_spans`) the characters
        `start .. end` of it in the joined pieces."""
        text, ranges = self._render_with_ranges(messages, parts, add_generation_prompt)
        return list(self._cuts.pieces(text)), ranges

    def encode_piece(self, text: str) -> list[int]:
        """The ids of a piece of a rendered chat."""
        return self._special.expand(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_cut_piece(self, text: str, cuts: Sequence[int]) -> tuple[list[int], list[Range]]:
        """The ids of a piece; for each of `cuts` (characters of it) how many of them end there or
        before, and how many begin before."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        positions, offsets = self._special.expanded_positions(encoding.ids), encoding.offsets
        around = [tokens_around(offsets, cut) for cut in cuts]
        places = [(positions[ended], positions[begun]) for ended, begun in around]
        return self._special.expand(encoding.ids), places

    def encode_chat_with_spans(
        self,
        messages: Sequence[Mapping[str, Any]],
        parts: Sequence[tuple[int, int]],
        *,
        add_generation_prompt: bool = True,
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of `encode_chat`, and for each of `parts` the tokens `start .. end` that cover
        its text as the template rendered it.

        parts: (index of the message, index of the content part; 0 where content is a string).
        Raises InvalidRequest naming a part that is blank or that the template leaves out."""
        text, ranges = self._render_with_ranges(messages, parts, add_generation_prompt)
        cuts = cuts_of(ranges)
        ids, places = self.encode_cut_piece(text, cuts)
        return ids, spans_of(ranges, cuts, places)

    def encode_next_turn(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The ids with which a conversation goes on behind an answer: the end of that answer as
        the template writes it, these messages, the beginning of the next answer. What was said
        before does not matter, so stand-ins are rendered for it."""
        stand_ins = [{"role": "user", "content": "."}, {"role": "assistant", "content": "."}]
        pieces, ranges = self.chat_pieces([*stand_ins, *messages], [(1, 0)])
        _, end = ranges[0]
        return self.encode_piece("".join(pieces)[end:])

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """The text that `encode_chat` encodes, for display."""
        return self._special.restore(self._render(messages, add_generation_prompt))

    @property
    def has_chat_template(self) -> bool:
        return self._chat_template is not None

    def detokenizer(
        self, *, skip_special_tokens: bool = True, prompt_token_ids: Sequence[int] = ()
    ) -> Detokenizer:
        """Incremental `decode`. With `prompt_token_ids` the text continues that prompt: the first
        word keeps the leading space that a decoder strips from the start of a text."""
        skipped = self._skipped(skip_special_tokens)
        if self._decoder_types == {"ByteLevel"}:
            return ByteDetokenizer(self.token_bytes, skipped)
        return WindowDetokenizer(
            self._decode_known,
            has_text=lambda token_id: token_id not in skipped and self._token(token_id) is not None,
            incomplete=self._byte_token_ids,
            prompt_token_ids=prompt_token_ids,
        )

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        moment: datetime | None = None,
    ) -> str:
        return self._render_shielded(
            self._shielded_messages(messages), add_generation_prompt, moment
        )

    def _render_shielded(
        self,
        copies: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        moment: datetime | None,
    ) -> str:
        if self._chat_template is None:
            raise InvalidRequest(
                "messages: this model has no chat template; start with "
                "--chat-template chatml | llama2 | alpaca | FILE, or send a prompt instead",
                param="messages",
            )
        return self._chat_template.render(
            copies,
            self._variables,
            add_generation_prompt=add_generation_prompt,
            moment=moment,
        )

    def _render_with_ranges(
        self,
        messages: Sequence[Mapping[str, Any]],
        parts: Sequence[tuple[int, int]],
        add_generation_prompt: bool,
    ) -> tuple[str, list[Range]]:
        """The rendered chat, and for each of `parts` where it stands in it, in characters."""
        moment = datetime.now()
        text = self._render(messages, add_generation_prompt, moment)
        if not parts:
            return text, []
        distinct = tuple(dict.fromkeys(parts))

        def render(copies: Sequence[Mapping[str, Any]]) -> str:
            return self._render_shielded(copies, add_generation_prompt, moment)

        ranges = self._part_ranges(messages, distinct, text, render)
        of_part = dict(zip(distinct, ranges, strict=True))
        return text, [of_part[part] for part in parts]

    def _part_ranges(
        self,
        messages: Sequence[Mapping[str, Any]],
        parts: Sequence[tuple[int, int]],
        text: str,
        render: Callable[[Sequence[Mapping[str, Any]]], str],
    ) -> list[tuple[int, int]]:
        """Where each part lies in the rendered `text`, in characters."""
        copies, marks = self._shielded_messages(messages), Marks(len(parts))
        inner: list[str] = []
        marked: dict[int, dict[int, tuple[int, int]]] = {}
        for number, (index, part) in enumerate(parts):
            start, end = self._part_in_content(messages, copies, index, part)
            marked.setdefault(index, {})[number] = (start, end)
            inner.append(copies[index]["content"][start:end])
        for index, ranges in marked.items():
            copies[index]["content"] = marks.around(copies[index]["content"], ranges)
        again, places = marks.remove(render(copies))
        found = []
        for number, (index, part) in enumerate(parts):
            marked_at = places.get(number, ((), ())) if again == text else None
            where = place(text, inner[number], marked_at)
            if where is None:
                _refuse(_part_field(messages, index, part), "the chat template leaves it out")
            found.append(where)
        return found

    def _part_in_content(
        self,
        messages: Sequence[Mapping[str, Any]],
        copies: Sequence[Mapping[str, Any]],
        index: int,
        part: int,
    ) -> tuple[int, int]:
        """Where a part lies in the shielded content of its message."""
        field = _part_field(messages, index, part)
        content = messages[index].get("content") if 0 <= index < len(messages) else None
        texts = [content] if isinstance(content, str) else [p["text"] for p in content or ()]
        if not 0 <= part < len(texts):
            _refuse(field, "there is no such part")
        if not texts[part].strip():
            _refuse(field, "is blank: give it a text")
        shielded: str = copies[index]["content"]
        ranges = self._special.shielded_ranges(texts, shielded)
        if ranges is not None:
            return ranges[part]
        where = place(shielded, self._special.shield(texts[part]), None)
        if where is None:
            _refuse(field, "holds a look-alike of a special token: write it in plain characters")
        return where

    def _shielded_messages(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Checked copies of the messages in which no string holds a special-token string."""
        if isinstance(messages, str) or not isinstance(messages, Sequence):
            _refuse("messages", "expected a list of messages")
        check_limit("message_count", len(messages), param="messages")
        copies = []
        for index, message in enumerate(messages):
            field = f"messages[{index}]"
            if not isinstance(message, Mapping):
                _refuse(field, "expected an object with role and content")
            role = message.get("role")
            if not isinstance(role, str) or not _ROLE.fullmatch(role):
                _refuse(f"{field}.role", "expected a role such as system, user or assistant")
            content = _text_content(message.get("content"), f"{field}.content")
            copies.append(self._shield_all({**message, "content": content}))
        return copies

    def _shield_all(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._shield(value, "messages")
        if isinstance(value, Mapping):
            return {key: self._shield_all(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._shield_all(item) for item in value]
        return value

    def _shield(self, text: str, param: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError:
            _refuse(param, "expected valid Unicode, got a lone surrogate")
        return self._special.shield(text)

    def _token(self, token_id: int) -> str | None:
        if not 0 <= token_id < 2**32 or self._special.is_stand_in(token_id):
            return None
        token: str | None = self._backend.id_to_token(token_id)
        return token

    def _decode_known(self, token_ids: Sequence[int]) -> str:
        known = [i for i in token_ids if 0 <= i < 2**32 and not self._special.is_stand_in(i)]
        text: str = self._backend.decode(known, skip_special_tokens=False)
        return text

    def _skipped(self, skip_special_tokens: bool) -> frozenset[int]:
        return self._special.ids if skip_special_tokens else frozenset()

    @functools.cached_property
    def _byte_token_ids(self) -> frozenset[int]:
        """Ids of the raw bytes `<0x00>` .. `<0xFF>` of vocabularies that fall back to them."""
        if "ByteFallback" not in self._decoder_types:
            return frozenset()
        ids = (self._backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        return frozenset(token_id for token_id in ids if token_id is not None)


def _read_backend(folder: Path) -> Backend:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelLoadError(
            f"{file}: not found. kveik reads the fast tokenizer format; write it once with "
            "transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    try:
        return Backend.from_file(str(file))
    except Exception as error:  # the binding raises plain Exception
        raise ModelLoadError(f"{file}: cannot be read as a tokenizer ({error})") from None


def _read_json(file: Path) -> dict[str, Any]:
    """An object from a JSON file; {} where the file is absent."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{file}: cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise ModelLoadError(f"{file}: expected a JSON object, got {type(value).__name__}")
    return value


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and the like, each given as a string or as an object with `content`."""
    named = {}
    for name in _NAMED_TOKENS:
        value = config.get(name)
        if isinstance(value, Mapping):
            value = value.get("content")
        if isinstance(value, str):
            named[name] = value
    return named


def _declare_special(backend: Backend, named_tokens: Mapping[str, str]) -> None:
    """A named token is special even where tokenizer.json does not say so, as in transformers."""
    added = backend.get_added_tokens_decoder()
    special = {token.content for token in added.values() if token.special}
    missing = [
        AddedToken(text, special=True, normalized=False)
        for text in dict.fromkeys(named_tokens.values())
        if text and text not in special and backend.token_to_id(text) is not None
    ]
    if missing:
        backend.add_special_tokens(missing)


def _end_ids(folder: Path) -> list[int]:
    """The end ids of generation_config.json, or else of config.json."""
    for name in ("generation_config.json", "config.json"):
        value = _read_json(folder / name).get("eos_token_id")
        ids = value if isinstance(value, list) else [value]
        known = [i for i in ids if isinstance(i, int) and not isinstance(i, bool)]
        if known:
            return known
    return []


def _own_template(folder: Path, config: Mapping[str, Any]) -> ChatTemplate | None:
    """chat_template.jinja, or the entry of tokenizer_config.json (one template, or a list of named
    ones of which `default` is taken)."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return ChatTemplate(file.read_text(encoding="utf-8"), where=str(file))
    entry = config.get("chat_template")
    if isinstance(entry, list):
        named = {item.get("name"): item.get("template") for item in entry if isinstance(item, dict)}
        entry = named.get("default")
    if not isinstance(entry, str):
        return None
    return ChatTemplate(entry, where=str(folder / "tokenizer_config.json"))


def _text_content(content: Any, field: str) -> str | None:
    """Message content as one string: text parts are joined, so that no special string can be put
    together from two parts."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        _refuse(field, f"expected a string or a list of parts, got {type(content).__name__}")
    texts = []
    for index, part in enumerate(content):
        if not isinstance(part, Mapping):
            _refuse(f"{field}[{index}]", "expected an object with type and text")
        if part.get("type") != "text":
            raise UnsupportedFeature(
                f"{field}[{index}].type: only text parts can be read by this model",
                param=f"{field}[{index}].type",
            )
        if not isinstance(part.get("text"), str):
            _refuse(f"{field}[{index}].text", "expected a string")
        if part.get("cache") is not None:
            _refuse(f"{field}[{index}].cache", "modules are joined in chat requests only")
        texts.append(part["text"])
    return "".join(texts)


def _part_field(messages: Sequence[Mapping[str, Any]], index: int, part: int) -> str:
    if 0 <= index < len(messages) and isinstance(messages[index].get("content"), str):
        return f"messages[{index}].content"
    return f"messages[{index}].content[{part}]"


def _refuse(field: str, why: str) -> NoReturn:
    raise InvalidRequest(f"{field}: {why}", param=field)


def _id_of(backend: Backend, token: str | None) -> int | None:
    if token is None:
        return None
    token_id: int | None = backend.token_to_id(token)
    return token_id


def _decoder_types(backend: Backend) -> frozenset[str]:
    """The kinds of decoder that tokenizer.json chains; empty: none."""
    if backend.decoder is None:
        return frozenset()
    state = json.loads(backend.decoder.__getstate__())
    chain = state["decoders"] if state["type"] == "Sequence" else [state]
    return frozenset(decoder["type"] for decoder in chain)


def _byte_level_bytes(token: str) -> bytes:
    """A token of a byte-level vocabulary (GPT-2): each character stands for one byte. A token with
    any other character (an added token) is its own text."""
    table = _byte_of_character()
    try:
        return bytes([table[character] for character in token])
    except KeyError:
        return token.encode()


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if chr(byte) not in table)
    table.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return table
