"""A tokenizer that can be read by eye: one id per word, blanks belong to no token."""

from __future__ import annotations

from kveik.engine.modules.schema import refuse

FILLER = 0
BOS = 1


class Words:
    """Words get ids from 10 on, in the order in which they are first met."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        return [self.ids.setdefault(word, 10 + len(self.ids)) for word in text.split()]

    def decode(self, ids: tuple[int, ...]) -> str:
        words = {number: word for word, number in self.ids.items()}
        return " ".join(words.get(one, f"<{one}>") for one in ids)

    def template(self, roles: tuple[str, ...]) -> list[list[int]]:
        """`<1> SYSTEM:` content `;` `USER:` content `;` `ASSISTANT:`"""
        if not roles:
            return [[BOS]]
        if "assistant" in roles[:1]:
            refuse("messages", "the template begins with system or user")
        frames = [[BOS, *self.encode(f"{roles[0].upper()}:")]]
        frames += [self.encode(f"; {role.upper()}:") for role in roles[1:]]
        return [*frames, self.encode("; ASSISTANT:")]
