"""Requests like those of a small company, for pictures of the dashboard: a shop's support with a
named cache, readers of a handbook, minutes with the time of day in front, one-off texts, a log."""

from __future__ import annotations

import json
import random
import time
import urllib.error
import urllib.request
from typing import Any

SHOP = (
    "You are the support of a shop that sells television sets. The 55-inch set is 123 cm wide. Its "
    "warranty covers the screen for two years, and the remote control for one. A set that arrives "
    "broken is fetched and replaced within three days. Speak plainly, and never promise a date. "
) * 3
HANDBOOK = (
    "The lighthouse keeper's handbook. Light the lamp at dusk, wind the clock every four hours, "
    "and write down the wind. When the fog comes in, ring the bell twice a minute until it lifts. "
) * 2
CHAPTERS = 60  # of the handbook; the first ones are read most
MINUTES = (
    "Minutes of the parish council. The bridge shall be mended before the winter, and the miller "
    "pays a third. The school opens in the second week of September. "
) * 4
QUESTIONS = (
    "How wide is the 55-inch set?",
    "Does the warranty cover the remote control?",
    "My set arrived broken. What now?",
    "Can you tell me the day on which it comes?",
    "Is there a larger one?",
)
WORDS = (
    *("captain", "harbour", "letter", "winter", "mother", "castle", "garden", "window", "silver"),
    *("morning", "journey", "doctor", "village", "candle", "evening", "carriage", "music", "river"),
)


class Traffic:
    """One client."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._random = random.Random(5)
        self._turns: dict[str, tuple[str, int]] = {}  # by person: session, turns so far
        self._sessions = 0
        self._model = self._ask("GET", "/v1/models")["data"][0]["id"]
        shop = [{"role": "system", "content": SHOP}]
        self._ask(
            "POST",
            "/v1/caches",
            {"name": "shop", "messages": shop, "ttl": "1h", "tags": ["support"], "pin": True},
        )
        self._ask("POST", "/v1/caches", {"name": "handbook", "prompt": HANDBOOK, "ttl": "10m"})
        self._chat(
            "12:01 the pump runs at 40 percent.",
            {"session": "pump.log", "stream_window": "4+124"},
            max_tokens=240,
        )

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._one()
            time.sleep(min(self._random.expovariate(4.0), 1.0))

    def _one(self) -> None:
        kind = self._random.random()
        if kind < 0.35:
            self._support(self._random.choice(("anna", "boris", "clara", "dora", "emil")))
        elif kind < 0.75:
            self._complete(self._chapter() + self._random.choice(("Now ", "At noon ")), 16)
        elif kind < 0.87:
            hour, minute = self._random.randrange(8, 20), self._random.randrange(60)
            self._complete(f"It is {hour}:{minute:02} now. {MINUTES}", 12)
        else:
            count = self._random.choice((30, 120))
            text = " ".join(self._random.choices(WORDS, k=count))
            self._complete(text, 12, {"ttl": "5m", "tags": ["news"]})

    def _chapter(self) -> str:
        """One of the chapters, all of which begin alike."""
        number = min(int(self._random.expovariate(5 / CHAPTERS)), CHAPTERS - 1)
        words = random.Random(number).choices(WORDS, k=90)
        return f"{HANDBOOK}Chapter {number + 1}. {' '.join(words)}. "

    def _support(self, name: str) -> None:
        """The next turn of a conversation; after six of them somebody begins another one."""
        session, turn = self._turns.get(name, ("", 6))
        if turn >= 6:
            self._sessions += 1
            session, turn = f"{name}-{self._sessions}", 0
        self._turns[name] = session, turn + 1
        question = self._random.choice(QUESTIONS)
        if turn:
            self._chat(question, {"session": session, "continue": True})
        else:
            self._chat(question, {"session": session}, cached_content="shop")

    def _chat(self, text: str, kveik: dict[str, Any], **fields: Any) -> None:
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": self._random.choice((12, 24, 40)),
            "kveik": kveik,
            **fields,
        }
        self._ask("POST", "/v1/chat/completions", body)

    def _complete(self, prompt: str, tokens: int, kveik: dict[str, Any] | None = None) -> None:
        body = {"model": self._model, "prompt": prompt, "max_tokens": tokens, "kveik": kveik or {}}
        self._ask("POST", "/v1/completions", body)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"} if data else {}
        request = urllib.request.Request(self._url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {error.read().decode()}") from None
