"""Pairs of prompts as applications send them, with the cause of their first difference.

It shares no code with the classifier, but the classifier was improved on some of its seeds: a
figure on these pairs is no figure on other people's prompts. A pair is two lists of messages (or
two texts), the earlier one first. The same seed gives the same pairs.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

Messages = list[dict[str, str]]
Prompt = Messages | str


@dataclass(frozen=True)
class PromptPair:
    cause: str
    form: str  # how the difference is written
    before: Prompt
    after: Prompt
    reason: str = "diverged"


OPENINGS = [
    "You are a helpful assistant.",
    "You are Nora, the friendly support agent of Brightline Electronics.",
    "You're an expert code reviewer. Answer in short bullet points.",
    "Act as a careful legal translator. Keep the layout of the source.",
    "You answer questions about our product catalogue. Never make up prices.",
]
RULES = [
    "Always answer in the language of the customer.",
    "If you do not know something, say so and offer to ask a colleague.",
    "The 55-inch TV comes with a 2-year warranty and a wall bracket.",
    "Returns are accepted within 30 days when the receipt is shown.",
    "Use Markdown for lists, but never for single sentences.",
    "Prices include tax. Delivery takes 3 to 5 working days.",
    "Do not discuss competitors, politics or the weather in other countries.",
    "Quote the section of the manual on which your answer rests.",
]
QUESTIONS = [
    "What's the weather today?",
    "Set a timer for 12 minutes please",
    "How long is the warranty on the 55-inch TV?",
    "Why does my unit test fail with a KeyError?",
    "Summarise the second chapter in three sentences.",
    "Can you compare both wall brackets?",
    "Translate the last paragraph into Dutch.",
    "Write a haiku about farmhouse yeast",
    "I want to return a lamp that I bought last week.",
    "Is there a cheaper plan for students?",
    "Which bus goes to the harbour?",
    "Explain the difference between a list and a tuple.",
]
ANSWERS = [
    "The warranty is two years from the day of purchase.",
    "Of course! I have set the timer for you.",
    "A KeyError means that the dictionary does not hold this key. Check the spelling first.",
    "Both brackets carry 40 kg; the larger one can be tilted as well.",
    "You can return it within 30 days. Please bring the receipt with you.",
    "I am sorry, I do not know that. Shall I ask a colleague?",
    "Lists can be changed, tuples cannot; that is why only tuples can be keys.",
    "Here is a short summary: the harbour, a letter, and an old promise.",
]
TOOLS = [
    ("get_weather", "Current weather of a place", {"city": "string", "unit": "string"}),
    ("search_web", "Search the web and return ten results", {"query": "string"}),
    ("set_timer", "Start a timer", {"minutes": "integer"}),
    ("send_email", "Send an email to one person", {"to": "string", "body": "string"}),
    ("read_file", "Read a text file of the project", {"path": "string"}),
    ("run_tests", "Run the unit tests and return their output", {"pattern": "string"}),
    ("lookup_order", "Find an order by its number", {"order": "string"}),
]


class Writer:
    """The parts of a prompt, drawn from one random source."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)

    def system(self, least: int = 2) -> str:
        rules = self.r.sample(RULES, self.r.randrange(least, 6))
        return self.r.choice([" ", "\n", "\n\n"]).join([self.r.choice(OPENINGS), *rules])

    def turns(self, count: int) -> Messages:
        found: Messages = []
        for index in range(count):
            number = self.r.randrange(10**6)
            found.append({"role": "user", "content": f"{self.r.choice(QUESTIONS)} ({number})"})
            found.append({"role": "assistant", "content": f"{self.r.choice(ANSWERS)} [{number}]"})
            if self.r.random() < 0.3:
                found[-1]["content"] += " " + self.r.choice(ANSWERS) + f" And {index}."
        return found

    def question(self) -> Messages:
        return [{"role": "user", "content": self.r.choice(QUESTIONS)}]

    def chat(self, system: str, turns: Messages | None = None) -> Messages:
        return [{"role": "system", "content": system}, *(turns or []), *self.question()]

    def around(self, old: str, new: str) -> tuple[Prompt, Prompt]:
        """Two prompts that differ in one piece, somewhere."""
        text, turns = self.system(), self.turns(self.r.randrange(0, 3))
        last = self.question()
        place = self.r.randrange(4)
        if place == 0:
            both = [f"{piece}\n{text}" for piece in (old, new)]
        elif place == 1:
            both = [f"{text}\n{piece}" for piece in (old, new)]
        elif place == 2:
            head, _, tail = text.partition(". ")
            both = [f"{head}. {piece} {tail}" for piece in (old, new)]
        else:
            return (
                self._as_text(text, old, new) if self.r.random() < 0.5 else self._in_user(old, new)
            )
        made = [[{"role": "system", "content": one}, *turns, *last] for one in both]
        return made[0], made[1]

    def _as_text(self, text: str, old: str, new: str) -> tuple[Prompt, Prompt]:
        question = self.r.choice(QUESTIONS)
        made = [f"{text}\n\n{piece}\n\nQuestion: {question}\nAnswer:" for piece in (old, new)]
        return made[0], made[1]

    def _in_user(self, old: str, new: str) -> tuple[Prompt, Prompt]:
        system, rest = self.system(), self.system(4)
        made = [
            [
                {"role": "system", "content": system},
                {"role": "user", "content": f"{piece}\n{rest}\n{self.r.choice(QUESTIONS)}"},
            ]
            for piece in (old, new)
        ]
        return made[0], made[1]


# ---- time

ENGLISH = "January February March April May June July August September October November December"
GERMAN = "Januar Februar März April Mai Juni Juli August September Oktober November Dezember"
FRENCH = "janvier février mars avril mai juin juillet août septembre octobre novembre décembre"
SPANISH = "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre"


def _month(names: str, when: datetime) -> str:
    return names.split()[when.month - 1]


TIMES: dict[str, Callable[[datetime], str]] = {
    "iso": lambda t: t.strftime("%Y-%m-%dT%H:%M:%SZ"),
    "iso micro": lambda t: t.isoformat(),
    "iso zone": lambda t: t.astimezone(timezone(timedelta(hours=2))).isoformat(timespec="seconds"),
    "rfc 2822": lambda t: format_datetime(t),
    "http": lambda t: t.strftime("%a, %d %b %Y %H:%M:%S GMT"),
    "epoch": lambda t: str(int(t.timestamp())),
    "epoch ms": lambda t: str(int(t.timestamp() * 1000)),
    "epoch float": lambda t: f"{t.timestamp():.3f}",
    "spoken": lambda t: t.strftime("%A ") + f"{t.day} " + t.strftime("%B, %H:%M"),
    "american": lambda t: t.strftime("%m/%d/%Y, %I:%M:%S %p"),
    "american long": lambda t: (
        t.strftime("%B ") + f"{t.day}, {t.year} at " + t.strftime("%I:%M %p")
    ),
    "british": lambda t: t.strftime("%d/%m/%Y %H:%M"),
    "german": lambda t: t.strftime("%d.%m.%Y, %H:%M Uhr"),
    "german long": lambda t: f"{t.day}. {_month(GERMAN, t)} {t.year}, {t:%H:%M} Uhr",
    "french": lambda t: f"le {t.day} {_month(FRENCH, t)} {t.year} à {t:%H}h{t:%M}",
    "spanish": lambda t: f"{t.day} de {_month(SPANISH, t)} de {t.year}, {t:%H:%M}",
    "japanese": lambda t: f"{t.year}年{t.month}月{t.day}日 {t.hour}時{t.minute}分",
    "asctime": lambda t: t.strftime("%a %b %e %H:%M:%S %Y"),
    "syslog": lambda t: t.strftime("%b %e %H:%M:%S"),
    "compact": lambda t: t.strftime("%Y%m%dT%H%M%SZ"),
    "clock": lambda t: t.strftime("%H:%M:%S"),
    "clock 12": lambda t: t.strftime("%I:%M %p"),
    "date": lambda t: t.strftime("%Y-%m-%d"),
    "date slashes": lambda t: t.strftime("%Y/%m/%d %H:%M"),
    "weekday": lambda t: t.strftime("%A"),
    "ordinal": lambda t: f"the {t.day}{_suffix(t.day)} of {t:%B} {t.year}",
    "python": lambda t: t.replace(tzinfo=None).isoformat(sep=" "),
}


def _suffix(day: int) -> str:
    return "th" if 10 < day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")


TIME_FRAMES = [
    "Current time: {}",
    "Today is {}.",
    "[{}]",
    "The current date and time is {}. Use it for relative dates.",
    "<now>{}</now>",
    '{{"generated_at": "{}", "locale": "en"}}',
    "Timestamp: {}",
    "It is now {} where the user lives.",
    "Session started {}",
]


def time_pair(w: Writer) -> PromptPair:
    form = w.r.choice([*TIMES])
    then = datetime(2023, 1, 1, tzinfo=UTC) + timedelta(
        seconds=w.r.randrange(3 * 365 * 86400), microseconds=w.r.randrange(1, 10**6)
    )
    days = form in ("date", "weekday", "ordinal")
    gap = (
        timedelta(days=w.r.randrange(1, 6))
        if days
        else timedelta(seconds=w.r.choice([61, 90, 400, 3700, 90_000, 86_400 * 40]))
    )
    frame = w.r.choice(TIME_FRAMES)
    old, new = (frame.format(TIMES[form](moment)) for moment in (then, then + gap))
    return PromptPair("time", form, *w.around(old, new))


# ---- ids and counters


def _hexadecimal(w: Writer, size: int) -> str:
    return "".join(w.r.choice("0123456789abcdef") for _ in range(size))


def _letters(w: Writer, size: int) -> str:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    return "".join(w.r.choice(letters) for _ in range(size))


IDS: dict[str, Callable[[Writer], str]] = {
    "uuid4": lambda w: f"Request ID: {uuid.UUID(int=w.r.getrandbits(128), version=4)}",
    "uuid upper": lambda w: f"session={str(uuid.UUID(int=w.r.getrandbits(128))).upper()}",
    "hex 32": lambda w: f"trace_id: {_hexadecimal(w, 32)}",
    "hex 16": lambda w: f"[span {_hexadecimal(w, 16)}]",
    "hex 8": lambda w: f"(ref {_hexadecimal(w, 8)})",
    "git": lambda w: f"You are working on commit {_hexadecimal(w, 12)} of the repository.",
    "req": lambda w: f"request req_{_letters(w, 16)}",
    "chat": lambda w: f"conversation chatcmpl-{_letters(w, 24)}",
    "ulid": lambda w: f"id: 01H{_letters(w, 23).upper()}",
    "session": lambda w: f"Session-Id: sess-{_letters(w, 12)}",
    "base64": lambda w: f'"nonce": "{_letters(w, 22)}=="',
    "digits": lambda w: f"ticket id {w.r.randrange(10**9, 10**11)}",
    "user": lambda w: f"<user_id>{w.r.randrange(10**7, 10**8)}</user_id>",
    "json": lambda w: json.dumps({"trace": _hexadecimal(w, 32), "user": "anonymous"}),
    "xml": lambda w: f'<context id="{_hexadecimal(w, 10)}">',
}


def id_pair(w: Writer) -> PromptPair:
    form = w.r.choice([*IDS])
    return PromptPair("random_id", form, *w.around(IDS[form](w), IDS[form](w)))


COUNTERS: dict[str, Callable[[int], str]] = {
    "request #": lambda n: f"Request #{n}",
    "turn": lambda n: f"This is turn {n} of the conversation.",
    "message": lambda n: f"Message number: {n}",
    "step": lambda n: f"[step {n}/500]",
    "attempt": lambda n: f"Attempt {n}:",
    "json": lambda n: f'{{"seq": {n}, "kind": "chat"}}',
    "call count": lambda n: f"call_count={n}",
    "visits": lambda n: f"The user has asked {n} questions so far.",
    "no.": lambda n: f"Query No. {n}",
    "iteration": lambda n: f"Iteration: {n:04d}",
}


def counter_pair(w: Writer) -> PromptPair:
    form, number = w.r.choice([*COUNTERS]), w.r.choice([1, 7, 9, 41, 99, 128, 999, 1203])
    step = w.r.choice([1, 1, 1, 2, 5])
    frame = COUNTERS[form]
    return PromptPair("counter", form, *w.around(frame(number), frame(number + step)))


# ---- white space

WHITE: dict[str, Callable[[str, random.Random], str]] = {
    "trailing space": lambda text, r: text + " ",
    "trailing line": lambda text, r: text + "\n",
    "crlf": lambda text, r: text.replace("\n", "\r\n"),
    "double blank line": lambda text, r: text.replace("\n", "\n\n", 1),
    "tab": lambda text, r: text.replace("\n", "\n\t", 1),
    "two spaces": lambda text, r: _at_a_space(text, r, "  "),
    "no-break space": lambda text, r: _at_a_space(text, r, "\u00a0"),
    "leading": lambda text, r: " " + text,
    "space before line": lambda text, r: text.replace("\n", " \n", 1),
    "line for space": lambda text, r: _at_a_space(text, r, "\n"),
}


def _at_a_space(text: str, r: random.Random, white: str) -> str:
    at = r.choice([index for index, letter in enumerate(text) if letter == " "])
    return text[:at] + white + text[at + 1 :]


def whitespace_pair(w: Writer) -> PromptPair:
    form = w.r.choice([*WHITE])
    text = w.r.choice(OPENINGS) + "\n" + "\n".join(w.r.sample(RULES, 3))
    both = [text, WHITE[form](text, w.r)]
    w.r.shuffle(both)
    turns, last = w.turns(w.r.randrange(0, 3)), w.question()
    if w.r.random() < 0.3:
        return PromptPair("whitespace", form, *(f"{one}\nQ: {last[0]['content']}" for one in both))
    made = [[{"role": "system", "content": one}, *turns, *last] for one in both]
    return PromptPair("whitespace", form, made[0], made[1])


# ---- tool order


def _tools(tools: list[tuple[str, str, dict[str, str]]], style: str) -> str:
    if style == "openai":
        described = [
            {
                "type": "function",
                "function": {
                    "name": name,
                    "description": about,
                    "parameters": {
                        "type": "object",
                        "properties": {key: {"type": kind} for key, kind in fields.items()},
                    },
                },
            }
            for name, about, fields in tools
        ]
        return json.dumps(described)
    if style == "pretty":
        return json.dumps([{"name": n, "description": a, "args": f} for n, a, f in tools], indent=2)
    if style == "lines":
        return "\n".join(json.dumps({"name": n, "description": a}) for n, a, _ in tools)
    return "\n".join(f"- {name}({', '.join(fields)}): {about}" for name, about, fields in tools)


def order_pair(w: Writer) -> PromptPair:
    style = w.r.choice(["openai", "pretty", "lines", "list", "keys"])
    tools = w.r.sample(TOOLS, w.r.randrange(3, 7))
    if style == "keys":
        facts = {"customer": "Ada", "plan": "gold plan", "city": "Bergen", "since": "spring"}
        keys = [*facts]
        other = keys[:]
        while other == keys:
            w.r.shuffle(other)
        both = [json.dumps({key: facts[key] for key in order}) for order in (keys, other)]
    else:
        other_tools = tools[:]
        while other_tools == tools:
            w.r.shuffle(other_tools)
        both = [_tools(order, style) for order in (tools, other_tools)]
    head, tail = w.system(), w.r.choice(["", "\nCall a tool only when it is needed."])
    turns, last = w.turns(w.r.randrange(0, 2)), w.question()
    made = [
        [{"role": "system", "content": f"{head}\n\n# Tools\n{one}{tail}"}, *turns, *last]
        for one in both
    ]
    return PromptPair("order", style, made[0], made[1])


# ---- truncated histories


def truncation_pair(w: Writer) -> PromptPair:
    system, turns = w.system(), w.turns(w.r.randrange(3, 9))
    drop = 2 * w.r.randrange(1, len(turns) // 2)
    if w.r.random() < 0.2:
        drop -= 1  # the assistant's answer comes first now
    form = w.r.choice(["dropped", "dropped and grown", "notice", "no system"])
    head = [] if form == "no system" else [{"role": "system", "content": system}]
    rest = turns[drop:]
    if form == "notice":
        rest = [{"role": "user", "content": "[Earlier messages were removed]"}, *rest]
    grown = w.turns(1) if form == "dropped and grown" else []
    before = [*head, *turns, *w.question()]
    return PromptPair("front_truncation", form, before, [*head, *rest, *grown, *w.question()])


# ---- template drift


def drift_pair(w: Writer) -> PromptPair:
    form = w.r.choice(
        ["default system", "other preamble", "date line", "thoughts", "reworded", "reasoning level"]
    )
    turns, last = w.turns(w.r.randrange(1, 4)), w.question()
    text = w.system()

    def chat(system: str | None, history: Messages = turns) -> Messages:
        head = [] if system is None else [{"role": "system", "content": system}]
        return [*head, *history, *last]

    if form == "default system":
        both = [chat(None), chat("You are a helpful assistant.")]
        w.r.shuffle(both)
    elif form == "other preamble":
        made_by = ["You are Qwen, created by Alibaba Cloud.", "You are an assistant by Acme Corp."]
        both = [chat(f"{one} {text}") for one in made_by]
    elif form == "date line":
        days = [
            f"Cutting Knowledge Date: December 2023\nToday Date: {d} Jul 2024" for d in (25, 26)
        ]
        both = [chat(f"{day}\n\n{text}") for day in days]
    elif form == "thoughts":
        thought = f"<think>\nThe user asks something. {w.r.choice(ANSWERS)}\n</think>\n\n"
        with_thought = [dict(one) for one in turns]
        with_thought[1]["content"] = thought + with_thought[1]["content"]
        both = [chat(text, with_thought), chat(text)]
    elif form == "reworded":
        rules = w.r.sample(RULES, 3)
        others = [rule for rule in RULES if rule not in rules]
        changed = [rules[0], w.r.choice(others), rules[2]]
        both = [chat(" ".join([OPENINGS[0], *one])) for one in (rules, changed)]
    else:
        both = [chat(f"{text}\nReasoning: {level}\n# Channels") for level in ("low", "high")]
    return PromptPair("template_drift", form, both[0], both[1])


# ---- nothing wrong


def growth_pair(w: Writer) -> PromptPair:
    system, turns = w.system(), w.turns(w.r.randrange(1, 4))
    before: Messages = [{"role": "system", "content": system}, *turns[:-1]]
    return PromptPair("new_content", "growth", before, [*before, turns[-1], *w.question()], "new")


def question_pair(w: Writer) -> PromptPair:
    form = w.r.choice(["question", "later question", "document", "edited answer", "numbers"])
    system, turns = w.system(), w.turns(2)
    head: Messages = [{"role": "system", "content": system}]
    first, second = w.r.sample(QUESTIONS, 2)
    if form == "numbers":
        first, second = "What is 12 * 4?", f"What is {w.r.randrange(13, 90)} * 4?"
    if form == "document":
        first, second = (f"Summarise this: {' '.join(w.r.sample(RULES, 4))}" for _ in range(2))
    if form == "edited answer":
        edited = [dict(one) for one in turns]
        edited[1]["content"] = "No: " + w.r.choice(ANSWERS)
        return PromptPair("different_text", form, [*head, *turns], [*head, *edited, *w.question()])
    middle = turns if form == "later question" else []
    made = [[*head, *middle, {"role": "user", "content": one}] for one in (first, second)]
    return PromptPair("different_text", form, made[0], made[1])


def code_pair(w: Writer) -> PromptPair:
    """What the cache says by a code alone."""
    reason, cause = w.r.choice(
        [
            ("engine_changed", "other_adapter"),
            ("expired", "expired"),
            ("evicted", "evicted"),
            ("invalidated", "invalidated"),
        ]
    )
    prompt = w.chat(w.system(), w.turns(1))
    return PromptPair(cause, reason, prompt, prompt, reason)


KINDS: dict[str, Callable[[Writer], PromptPair]] = {
    "time": time_pair,
    "id": id_pair,
    "counter": counter_pair,
    "whitespace": whitespace_pair,
    "order": order_pair,
    "truncation": truncation_pair,
    "drift": drift_pair,
    "growth": growth_pair,
    "question": question_pair,
    "code": code_pair,
}


def pairs(count: int, seed: int) -> list[PromptPair]:
    kinds = [*KINDS.values()]
    return [kinds[n % len(kinds)](Writer(seed * 1_000_003 + n)) for n in range(count)]
