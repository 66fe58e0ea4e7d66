"""A session whose words are token ids, through history, scheduler and cache; and the same, naively.

The template is `BOS`, then `role words END` for every message, then the role of the answer. The
toy's K/V show everything that a row sees and at which distance (joined_toy.py). The naive session
is a list of tokens with the K/V that each had when it was computed: what is forgotten is taken out
of the list, and what stays keeps its K/V.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from joined_toy import bench, value
from toy import Bench, draw

from kveik.cache.directive import Directive
from kveik.engine.documents import document_parts, document_spans
from kveik.engine.forgetting import Forget, forget_words, going_on
from kveik.engine.history import Sessions
from kveik.engine.past import Kept
from kveik.engine.token_memory import Encoded

BOS, END = 1, 4
ROLES = {"system": 2, "user": 5, "assistant": 3}
Entry = tuple[int, bytes | None]
"""A token and its K/V; None: not computed yet."""


def words(message: Mapping[str, Any]) -> list[list[int]]:
    """The ids of each part of a message."""
    content = message["content"]
    texts = [content] if isinstance(content, str) else [part["text"] for part in content]
    return [[int(word) for word in text.split()] for text in texts]


def encode(
    messages: Sequence[Mapping[str, Any]], places: Sequence[tuple[int, int]] = ()
) -> Encoded:
    ids, spans = [BOS], {}
    for index, message in enumerate(messages):
        ids.append(ROLES[message["role"]])
        for part, more in enumerate(words(message)):
            spans[index, part] = (len(ids), len(ids) + len(more))
            ids += more
        ids.append(END)
    ids.append(ROLES["assistant"])
    return Encoded(tuple(ids), 0, tuple(spans[place] for place in places))


def text(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


class Talk:
    """One session in a bench that may have company. made: the bench; history: its turns."""

    def __init__(
        self, system: str | None = None, made: Bench | None = None, namespace: str = ""
    ) -> None:
        self.namespace = namespace
        self.made = made or bench(blocks=200, budget=64)
        self.history = Sessions(1800.0, lambda: 0.0)
        self.opening = [{"role": "system", "content": system}] if system else []
        self.begun = False
        self.kept: Kept | None = None
        self.work: Any = None
        self.naive: list[Entry] = []

    def turn(
        self,
        new: Any,
        forget: Mapping[str, Any] | None = None,
        *,
        count: int = 5,
        handle: int = 1000,
        directive: Directive | None = None,
        **params: Any,
    ) -> list[int]:
        """The next turn, checked against the naive one; its answer."""
        self.submit(new, forget, count=count, handle=handle, directive=directive, **params)
        return self.finish()

    def submit(
        self,
        new: Any,
        forget: Mapping[str, Any] | None = None,
        *,
        count: int = 5,
        handle: int = 1000,
        directive: Directive | None = None,
        **params: Any,
    ) -> None:
        directive = directive or Directive(session="s")
        message = {"role": "user", "content": new}
        wanted: Forget | None = None if forget is None else forget_words(forget)
        if not self.begun:
            messages, kept = [*self.opening, message], None
            directive = self._labelled(directive, messages)
            self.naive = [(token, None) for token in encode(messages).token_ids]
        else:
            going = going_on(self.history.past("", "s"), [message], wanted, "forget")
            messages, kept = going.messages, None
            self._naively(going)
            directive = self._labelled(directive, messages)
            if going.changes:
                kept = going.kept(encode, encode(messages).token_ids, directive)
        ids = encode(messages).token_ids
        assert [token for token, _ in self.naive] == list(ids)
        self.handle, self.count, self.params = handle, count, params
        self.turn_ = self.history.begin("", directive, messages, ids, kept=kept)
        joined = kept.joined if kept is not None else None
        if joined is None:  # an ordinary prompt
            self.naive = [(token, None) for token in ids]
        self.kept = kept
        self.made.texts.pop((handle, 0), None)
        self.work = self.made.add(
            handle,
            ids,
            self.namespace,
            joined=joined,
            directive=directive,
            max_tokens=count,
            **params,
        )

    def finish(self) -> list[int]:
        self.made.drain()
        answer = self.made.texts[self.handle, 0]
        assert answer == self._answered(), "the K/V are not those of the definition"
        assert self.turn_ is not None
        self.history.finish(self.turn_, text(answer))
        usage = self.work.usage()
        known = usage.cached_tokens + usage.approximate_cached_tokens
        assert known + usage.computed_prompt_tokens >= usage.prompt_tokens
        if not self.made.scheduler.preemptions:
            assert known + usage.computed_prompt_tokens == usage.prompt_tokens
        self.begun = True
        return answer

    @staticmethod
    def _labelled(directive: Directive, messages: Sequence[Mapping[str, Any]]) -> Directive:
        """With the documents of the prompt, as the doors do."""
        parts = document_parts(messages)
        spans = encode(messages, [one.place for one in parts]).spans
        return replace(directive, documents=document_spans(parts, spans))

    def _naively(self, going: Any) -> None:
        """The list of the next prompt. What ends the last answer, and its last token, is computed
        in the prompt; so is what is new."""
        settled = len(self.naive) - 1
        tokens = encode([*going.past.messages, *going.new]).token_ids
        entries: list[Entry] = self.naive[:settled] + [(one, None) for one in tokens[settled:]]
        assert [token for token, _ in entries] == list(tokens)
        for gone in going.gaps:
            shorter = encode([*gone.of(going.past.messages), *going.new]).token_ids
            entries = shortened(entries, shorter)
        self.naive = entries

    def _answered(self) -> list[int]:
        """Computes what has no K/V yet, and the answer."""
        seen: list[tuple[int, bytes]] = []
        for at, (token, known) in enumerate(self.naive):
            seen.append((at, known or value(token, at, seen)))
        tokens, answer = [token for token, _ in self.naive], []
        for at in range(len(tokens), len(tokens) + self.count):
            answer.append(draw(seen[-1][1], self.params.get("seed", 0), 0, at))
            seen.append((at, value(answer[-1], at, seen)))
        self.naive = [
            (token, one) for token, (_, one) in zip([*tokens, *answer], seen, strict=True)
        ]
        return answer


def shortened(entries: list[tuple[int, Any]], tokens: Sequence[int]) -> list[tuple[int, Any]]:
    """The same tokens from the left keep their K/V, then those from the right."""
    left = right = 0
    while left < len(tokens) - 1 and entries[left][0] == tokens[left]:
        left += 1
    while right < len(tokens) - left and entries[-1 - right][0] == tokens[-1 - right]:
        right += 1
    middle: list[tuple[int, Any]] = [(token, None) for token in tokens[left : len(tokens) - right]]
    return entries[:left] + middle + entries[len(entries) - right :]
