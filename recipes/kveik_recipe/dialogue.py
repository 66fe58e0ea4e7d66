"""Dialogue of the novels as chat: the speeches of neighbouring paragraphs are the turns."""

import re
from collections.abc import Iterator, Sequence
from random import Random

from .recall import Piece
from .tokenizer import ASSISTANT, END, SYSTEM, USER

LONGEST_SPEECH = 400
SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer shortly.",
    "You are a character in a novel.",
    "Talk with the user.",
    "Be brief and polite.",
)
_SPEECH = re.compile(r"“([^”]+)”|\"([^\"]+)\"")


def speech_of(paragraph: str) -> str | None:
    """The words spoken in a paragraph that opens with a quotation mark, on one line."""
    text = " ".join(paragraph.split())
    if not text.startswith(("“", '"')):
        return None
    parts = [first or second for first, second in _SPEECH.findall(text)]
    speech = " ".join(part.strip() for part in parts)
    speech = speech[:-1] + "." if speech.endswith(",") else speech
    return speech if 2 <= len(speech) <= LONGEST_SPEECH else None


def find_dialogues(text: str) -> Iterator[list[str]]:
    """Runs of at least two neighbouring paragraphs that are speech."""
    run: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        speech = speech_of(paragraph)
        if speech is not None:
            run.append(speech)
            continue
        if len(run) >= 2:
            yield run
        run = []
    if len(run) >= 2:
        yield run


def dialogue_sample(
    rng: Random, dialogues: Sequence[Sequence[str]], characters: int
) -> list[Piece]:
    """Dialogues one after another as one chat of about `characters` characters."""
    text = ""
    if rng.random() < 0.4:
        text = f"{SYSTEM}{rng.choice(SYSTEM_MESSAGES)}{END}"
    while len(text) < characters:
        speeches = rng.choice(dialogues)
        for number, speech in enumerate(speeches[: len(speeches) // 2 * 2]):
            text += f"{ASSISTANT if number % 2 else USER}{speech}{END}"
    return [Piece(text, 1.0)]
