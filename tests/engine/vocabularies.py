"""Small vocabularies of every kind of decoder, built without files from a network."""

from __future__ import annotations

from pathlib import Path

import tiny
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors as post

SPECIAL = ("<unk>", "<s>", "</s>")


def byte_level(folder: Path) -> Tokenizer:
    tiny.write_tokenizer(folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def byte_fallback(folder: Path) -> Tokenizer:
    """As Llama 2: a space in front of every text, raw bytes for rare characters, and merges that
    put `</s>` together again from plain characters."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdehiknorstl<>/.,"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "c"), ("a", "t"), ("<", "/"), ("s", ">")]
    pieces += [left + right for left, right in merges]
    merges.append(("</", "s>"))
    model = models.BPE(
        {piece: index for index, piece in enumerate(pieces)},
        merges,
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _save(backend, folder)


def unigram(folder: Path) -> Tokenizer:
    """As T5 or XLNet: scored pieces; a compatibility normaliser in front."""
    scores = [(piece, 0.0) for piece in SPECIAL]
    scores += [("▁", -3.0), ("▁the", -1.0), ("▁cat", -2.0), ("at", -2.5)]
    scores += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz<>/|_"]
    backend = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=False))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    return _save(backend, folder)


def word_piece(folder: Path) -> Tokenizer:
    words = ["the", "cat", "##s", "##at", "s", "a", "b", "##b", "<", ">", "/", "unk"]
    vocab = {word: index for index, word in enumerate([*SPECIAL, *words])}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return _save(backend, folder)


def _save(backend: Tokenizer, folder: Path) -> Tokenizer:
    backend.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in SPECIAL]
    )
    backend.post_processor = post.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>"}'
    )
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


KINDS = {
    "byte_level": byte_level,
    "byte_fallback": byte_fallback,
    "unigram": unigram,
    "word_piece": word_piece,
}
