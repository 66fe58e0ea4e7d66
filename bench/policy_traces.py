"""Traffic on which eviction policies are compared: what services see, and what is meant to mislead.

Every generator is deterministic and gives requests as `(seconds, blocks)`: the ids of the whole
blocks of one prompt, first to last. An id stands for one prefix (what comes before it is part of
it), so the same id always has the same ids before it.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterator
from itertools import count

Request = tuple[float, list[int]]
Traffic = Iterator[Request]


class _Ids:
    """Hands out ids that were never used."""

    def __init__(self) -> None:
        self._next = count()

    def new(self, blocks: int) -> list[int]:
        return [next(self._next) for _ in range(blocks)]


def _length(rng: random.Random, mean: float) -> int:
    """Blocks of a text: log-normal, most are short and some are long."""
    return max(1, min(200, round(rng.lognormvariate(math.log(mean) - 0.5, 1.0))))


def _sessions(
    rng: random.Random,
    ids: _Ids,
    *,
    seconds: float,
    rate: float,  # sessions that begin in a second
    system: list[int],
    first: float,  # mean blocks of the first question
    turn: float,  # mean blocks that a turn adds
    stay: float,  # probability of one more turn
    think: Callable[[], float],  # seconds between two turns
) -> Traffic:
    """Conversations that begin at random, think between turns and end at random."""
    waiting: list[tuple[float, int, list[int]]] = []
    order = count()
    at = 0.0
    while at < seconds:
        at += rng.expovariate(rate)
        heapq.heappush(waiting, (at, next(order), system + ids.new(_length(rng, first))))
    while waiting:
        now, _, prompt = heapq.heappop(waiting)
        if now >= seconds:
            return
        yield now, prompt
        if rng.random() < stay and len(prompt) < 230:
            # The last block is not full: what is asked next changes it.
            longer = prompt[:-1] + ids.new(1 + _length(rng, turn))
            heapq.heappush(waiting, (now + think(), next(order), longer[:240]))


def chat(seed: int = 0, seconds: float = 1200.0) -> Traffic:
    """People who read and type for a minute or two between turns; half of them ask once."""
    rng, ids = random.Random(seed), _Ids()
    yield from _sessions(
        rng, ids, seconds=seconds, rate=2.0, system=ids.new(1), first=15, turn=4, stay=0.5,
        think=lambda: rng.lognormvariate(math.log(90), 0.8),
    )  # fmt: skip


def fast_chat(seed: int = 1, seconds: float = 600.0) -> Traffic:
    """Short questions, quick answers, many turns: what was used last is what is used next."""
    rng, ids = random.Random(seed), _Ids()
    yield from _sessions(
        rng, ids, seconds=seconds, rate=2.0, system=ids.new(2), first=4, turn=2, stay=0.85,
        think=lambda: rng.expovariate(1 / 8),
    )  # fmt: skip


def agents(seed: int = 2, parallel: int = 40, steps: int = 4000) -> Traffic:
    """Loops of tool calls: a growing prefix each, seconds between steps, at the end a new task."""
    rng, ids = random.Random(seed), _Ids()
    system = ids.new(12)
    running = [(rng.random() * 10, n, system + ids.new(4)) for n in range(parallel)]
    heapq.heapify(running)
    for _ in range(steps):
        now, n, prompt = heapq.heappop(running)
        yield now, prompt
        ended = len(prompt) > 150 or rng.random() < 0.03
        later = system + ids.new(4) if ended else prompt[:-1] + ids.new(1 + rng.randint(1, 4))
        heapq.heappush(running, (now + rng.expovariate(1 / 6), n, later))


def system_prompts(seed: int = 3, requests: int = 4000) -> Traffic:
    """Forty applications with long system prompts, some popular; every question is asked once."""
    rng, ids = random.Random(seed), _Ids()
    prompts = [ids.new(rng.randint(5, 60)) for _ in range(40)]
    weights = [1 / (n + 1) for n in range(len(prompts))]
    for n in range(requests):
        yield n * 0.3, rng.choices(prompts, weights)[0] + ids.new(_length(rng, 8))


def rag(seed: int = 4, requests: int = 4000, documents: int = 2000) -> Traffic:
    """A document, drawn by Zipf's law, then a question of its own."""
    rng, ids = random.Random(seed), _Ids()
    system = ids.new(2)
    texts = [system + ids.new(_length(rng, 16)) for _ in range(documents)]
    rng.shuffle(texts)
    weights = [1 / (n + 1) ** 0.9 for n in range(documents)]
    for n in range(requests):
        yield n * 0.25, rng.choices(texts, weights)[0] + ids.new(rng.randint(1, 3))


def scan(seed: int = 5, requests: int = 4000) -> Traffic:
    """A batch of prompts, none of which comes again."""
    rng, ids = random.Random(seed), _Ids()
    system = ids.new(1)
    for n in range(requests):
        yield n * 0.2, system + ids.new(_length(rng, 20))


def loop(seed: int = 6, blocks: int = 4400, rounds: int = 12) -> Traffic:
    """The same prompts in the same order again and again: the worst case of least recently used
    where they need slightly more than the cache."""
    rng, ids = random.Random(seed), _Ids()
    prompts: list[list[int]] = []
    while sum(map(len, prompts)) < blocks:
        prompts.append(ids.new(_length(rng, 16)))
    for n in range(rounds * len(prompts)):
        yield n * 0.2, prompts[n % len(prompts)]


def widening_loop(seed: int = 7, rounds: int = 14) -> Traffic:
    """A loop that grows by a third every round, so that the time until a block is used again is
    never what it was."""
    ids = _Ids()
    prompts: list[list[int]] = [ids.new(20) for _ in range(20)]
    now = 0.0
    for _ in range(rounds):
        for prompt in prompts:
            now += 0.2
            yield now, prompt
        prompts += [ids.new(20) for _ in range(len(prompts) // 3)]


def stack_distance(seed: int = 8, requests: int = 6000) -> Traffic:
    """Recency is all there is to know: the chance to be asked for falls with every text that was
    asked for since. Nothing is better than least recently used."""
    rng, ids = random.Random(seed), _Ids()
    stack: list[list[int]] = []
    for n in range(requests):
        place = int(rng.paretovariate(0.35)) - 1
        prompt = stack.pop(place) if place < len(stack) else ids.new(_length(rng, 12))
        stack.insert(0, prompt)
        yield n * 0.2, prompt


def floods(seed: int = 9, seconds: float = 1200.0) -> Traffic:
    """Conversations, into which a batch of prompts that never come again breaks now and then."""
    rng = random.Random(seed)
    ids = _Ids()
    background = _sessions(
        rng, ids, seconds=seconds, rate=1.0, system=ids.new(1), first=10, turn=3, stay=0.7,
        think=lambda: rng.lognormvariate(math.log(40), 0.7),
    )  # fmt: skip
    next_flood = 150.0
    for now, prompt in background:
        if now >= next_flood:
            next_flood += 150.0
            for _ in range(150):
                yield now, ids.new(_length(rng, 20))
        yield now, prompt


def deep_is_hot(seed: int = 10, requests: int = 4000) -> Traffic:
    """Short prompts are never asked again, long ones are."""
    rng, ids = random.Random(seed), _Ids()
    books = [ids.new(rng.randint(80, 200)) for _ in range(60)]
    for n in range(requests):
        hot = rng.random() < 0.25
        yield n * 0.2, rng.choice(books) + ids.new(1) if hot else ids.new(rng.randint(1, 12))


def second_turn_is_last(seed: int = 11, requests: int = 3000) -> Traffic:
    """Every prompt is continued once, soon, and never again: to have been used says the
    opposite of what it says elsewhere."""
    rng, ids = random.Random(seed), _Ids()
    waiting: list[tuple[float, int, list[int]]] = []
    for n in range(requests):
        now = n * 0.3
        while waiting and waiting[0][0] <= now:
            _, _, prompt = heapq.heappop(waiting)
            yield now, prompt + ids.new(_length(rng, 10))
        prompt = ids.new(_length(rng, 12))
        yield now, prompt
        heapq.heappush(waiting, (now + rng.lognormvariate(math.log(40), 0.5), n, prompt))


def branches(seed: int = 12, problems: int = 300) -> Traffic:
    """A tree of thoughts: a problem, four ideas behind it, four continuations of the best two."""
    rng, ids = random.Random(seed), _Ids()
    system = ids.new(4)
    now = 0.0
    waves: list[list[list[int]]] = []
    for _ in range(problems):
        problem = system + ids.new(_length(rng, 10))
        ideas = [problem + ids.new(3) for _ in range(4)]
        waves.append(ideas)
        waves.append([idea + ids.new(3) for idea in rng.sample(ideas, 2) for _ in range(4)])
    for wave in waves:
        for prompt in wave:
            now += 0.5
            yield now, prompt


def shifts(seed: int = 13) -> Traffic:
    """One kind of traffic after the other; what was learned of one is wrong for the next."""
    start, offset, last = 0.0, 0, -1
    parts = (
        chat(seed, 400.0), loop(seed, 3000, 6), stack_distance(seed, 2000), agents(seed, 30, 1000),
        scan(seed, 1000), rag(seed, 1500), second_turn_is_last(seed, 800), chat(seed + 1, 400.0),
    )  # fmt: skip
    for part in parts:
        now = start
        for at, prompt in part:
            now = start + at
            shifted = [block + offset for block in prompt]
            last = max(last, *shifted)
            yield now, shifted
        start, offset = now + 1.0, last + 1


def slower(seed: int = 14) -> Traffic:
    """Conversations whose people take four times as long from the middle on."""
    rng, ids = random.Random(seed), _Ids()
    at = [30.0]
    system = ids.new(1)
    for part in range(2):
        at[0] = 30.0 * 4**part
        for now, prompt in _sessions(
            rng, ids, seconds=700.0, rate=2.0, system=system, first=12, turn=3, stay=0.6,
            think=lambda: rng.lognormvariate(math.log(at[0]), 0.6),
        ):  # fmt: skip
            yield 700.0 * part + now, prompt


def independent(seed: int = 15, requests: int = 6000) -> Traffic:
    """Texts of fixed popularity, each drawn without regard to when it was last: frequency is all
    there is to know."""
    rng, ids = random.Random(seed), _Ids()
    texts = [ids.new(_length(rng, 8)) for _ in range(3000)]
    weights = [1 / (n + 1) ** 0.8 for n in range(len(texts))]
    for n in range(requests):
        yield n * 0.2, rng.choices(texts, weights)[0]


TRAFFIC: dict[str, Callable[[], Traffic]] = {
    make.__name__: make
    for make in (
        chat, fast_chat, agents, system_prompts, rag, scan, loop, widening_loop, stack_distance,
        floods, deep_is_hot, second_turn_is_last, branches, shifts, slower, independent,
    )
}  # fmt: skip
