"""Every verb of the managed cache in random order around a toy engine: texts stay those of the
definition, books add up after every verb, each request ends once, and what was forgotten is gone.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from toy_model import ToyModel, toy_engine, toy_text

from kveik.cache.directive import Directive, DocumentSpan, Selector, Ttl
from kveik.engine.named_records import NamedCache, NamedSpec
from kveik.engine.request import (
    ChoiceDelta,
    Event,
    Request,
    RequestAborted,
    RequestFailed,
    RequestFinished,
    SamplingParams,
)
from kveik.errors import KveikError

SEEDS = int(os.environ.get("KVEIK_MACHINE_SEEDS", "25"))
ENDINGS = (RequestFinished, RequestFailed, RequestAborted)
NAMESPACES = ("", "tenant")
NAMES = ("faq", "manual")


class Flight:
    """One request and what came of it."""

    def __init__(self, tokens: tuple[int, ...], count: int) -> None:
        self.tokens, self.count = tokens, count
        self.said: list[int] = []
        self.endings: list[Event] = []

    def __call__(self, event: Event) -> None:
        assert not self.endings, "an event after the ending"
        if isinstance(event, ChoiceDelta):
            self.said.extend(event.token_ids)
        if isinstance(event, ENDINGS):
            self.endings.append(event)


class Machine:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.engine = toy_engine(
            ToyModel(max_position=1024),
            blocks=self.rng.choice((12, 20, 64)),
            clock=lambda: self.now,
            max_num_batched_tokens=self.rng.choice((16, 64)),
            max_num_seqs=self.rng.choice((2, 8)),
            session_idle=50,
        )
        self.flights: list[tuple[int, Flight]] = []
        self.waiting_names = 0

    # ---- verbs

    def ask(self) -> None:
        tokens = self.prompt()
        self.submit(tokens, self.rng.choice((0, 1, 4, 9)))

    def submit(self, tokens: tuple[int, ...], count: int) -> None:
        flight = Flight(tokens, count)
        request = Request(
            tokens,
            SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True),
            self.rng.choice(NAMESPACES),
            directive=self.directive(len(tokens)),
            salt=self.rng.choice(("", "", "salt")),
            background=self.rng.random() < 0.3,
            explain=self.rng.random() < 0.3,
        )
        self.flights.append((self.engine.submit(request, flight), flight))

    def abort(self) -> None:
        if self.flights:
            self.engine.abort(self.rng.choice(self.flights)[0])

    def step(self) -> None:
        for _ in range(self.rng.randrange(6)):
            self.engine.step()

    def wait(self) -> None:
        self.now += self.rng.choice((0.1, 1.0, 7.0, 60.0, 86400.0))

    def create(self) -> None:
        spec = NamedSpec(
            self.rng.choice(NAMESPACES),
            self.rng.choice(NAMES),
            tokens=self.prompt(),
            ttl=self.ttl(),
            tags=self.tags(),
            pin=self.rng.random() < 0.2,
            public=self.rng.random() < 0.2,
            background=self.rng.random() < 0.5,
        )
        self.engine.named.create(spec, self.heard)
        self.waiting_names += 1

    def heard(self, cache: NamedCache) -> None:
        assert cache.status in ("ready", "failed", "evicted")
        self.waiting_names -= 1

    def use(self) -> None:
        expanded = self.engine.named.expand(*self.name(), prompt=self.prompt()[:5])
        tokens = tuple(token for token in expanded.prompt if isinstance(token, int))
        self.submit(tokens, 3)

    def update(self) -> None:
        pin = self.rng.random() < 0.5
        self.engine.named.update(*self.name(), ttl=self.ttl(), pin=pin, tags=self.tags())

    def delete(self) -> None:
        self.engine.named.delete(*self.name())

    def look(self) -> None:
        for cache in self.engine.named.list():
            assert cache.time_left is None or cache.time_left >= 0
        self.engine.cache_listing(top=5)
        self.engine.sessions()
        self.engine.stats()

    def end_session(self) -> None:
        self.engine.end_session(self.rng.choice(NAMESPACES), self.rng.choice("st"))

    def announce(self) -> None:
        self.engine.announce_document(self.rng.choice(NAMESPACES), "d", self.rng.choice("12"))

    def invalidate(self) -> None:
        selector = self.rng.choice(
            (
                {},
                {"tag": "a"},
                {"session": "s"},
                {"context": "x"},
                {"document": "d"},
                {"name": "faq"},
                {"older_than": 5.0},
                {"prefix": self.prompt()[:9]},
                {"tag": "a", "older_than": 1.0},
            )
        )
        namespace = self.rng.choice(NAMESPACES)
        self.engine.invalidate(Selector(namespace, **selector))
        if not selector:
            for salt in ("", "salt"):
                for start in (0, 40):
                    found = self.engine.explain(range(start, start + 60), namespace, salt)
                    assert found.cached_tokens == 0 or self.engine.named.list(namespace)

    # ---- values

    def prompt(self) -> tuple[int, ...]:
        start, length = self.rng.choice((0, 0, 40)), self.rng.randrange(1, 70)
        tokens = list(range(start, start + length))
        if self.rng.random() < 0.3:
            tokens[-1] = self.rng.randrange(200, 250)
        return tuple(tokens)

    def name(self) -> tuple[str, str]:
        return self.rng.choice(NAMESPACES), self.rng.choice(NAMES)

    def tags(self) -> tuple[str, ...]:
        return tuple(tag for tag in "ab" if self.rng.random() < 0.4)

    def ttl(self) -> Ttl | None:
        if self.rng.random() < 0.5:
            return None
        clock, mode = (
            self.rng.choice(("first_use", "last_use")),
            self.rng.choice(("delete", "demote")),
        )
        return Ttl(self.rng.choice((0.5, 5.0, 90.0)), clock, mode)  # type: ignore[arg-type]

    def directive(self, length: int) -> Directive:
        rng, start = self.rng, self.rng.randrange(length)
        fields: dict[str, Any] = {
            "session": rng.choice((None, "s", "t")),
            "context": rng.choice((None, None, "x", "y")),
            "relevance": rng.choice((None, "off", "demote", "delete")),
            "tags": self.tags(),
            "ttl": self.ttl(),
            "priority": rng.choice(("high", "normal", "low")),
            "write": rng.choice(("all", "all", "low", "none")),
            "write_until": rng.choice((None, None, None, 20)),
        }
        if rng.random() < 0.3:
            span = DocumentSpan("d", rng.choice("12"), start, rng.randrange(start, length) + 1)
            fields["documents"] = (span,)
        return Directive(**fields)

    VERBS = (
        ("ask", 8), ("abort", 2), ("step", 10), ("wait", 2), ("create", 3), ("use", 3),
        ("update", 1), ("delete", 1), ("look", 1), ("end_session", 1), ("announce", 1),
        ("invalidate", 2),
    )  # fmt: skip

    def run(self, verbs: int) -> None:
        names, weights = zip(*self.VERBS, strict=True)
        for verb in self.rng.choices(names, weights, k=verbs):
            try:
                getattr(self, verb)()
            except KveikError as error:
                assert error.status in (400, 404, 409), (verb, error)
            self.engine.check()
        while self.engine.step():
            self.engine.check()

    def judge(self) -> None:
        for _, flight in self.flights:
            [ending] = flight.endings
            assert not isinstance(ending, RequestFailed), ending.error
            wanted = toy_text(flight.tokens, len(flight.said))
            assert flight.said == wanted
            if isinstance(ending, RequestFinished):
                assert len(flight.said) == flight.count
                usage = ending.usage
                assert 0 <= usage.stored_tokens <= usage.computed_prompt_tokens
                if not self.engine.stats().preemptions:  # else others may have computed a part
                    assert usage.cached_tokens + usage.computed_prompt_tokens == len(flight.tokens)
        assert self.waiting_names == 0
        stats = self.engine.stats()
        assert stats.running == stats.waiting == 0
        assert stats.cache.leased_blocks == (0,)
        assert stats.cache.leaked_blocks == 0


@pytest.mark.parametrize("seed", range(SEEDS))
def test_any_order_of_verbs(seed: int) -> None:
    machine = Machine(seed)
    machine.run(120)
    machine.judge()
