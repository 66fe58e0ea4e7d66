"""The cause of a first difference, on single cases that were met or thought of one by one."""

from __future__ import annotations

import pytest

from kveik.engine.causes import find_cause

RULES = (
    "Always answer in the language of the customer. If you do not know something, say so. "
    "The 55-inch TV comes with a 2-year warranty and a wall bracket. Prices include tax."
)


def cause_of(old: str, new: str, window: int = 1500) -> str:
    same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
    same = min(len(old), len(new)) if same is None else same
    return find_cause(old[:same], old[same : same + window], new[same:]).cause


def system(piece: str) -> str:
    """A value in a system prompt, with a question behind it."""
    return (
        f"<|im_start|>system\nYou are a helpful assistant. {piece}\n{RULES}<|im_end|>\n"
        "<|im_start|>user\nWhat's the weather today?<|im_end|>\n<|im_start|>assistant\n"
    )


def text(piece: str) -> str:
    return f"{piece}\n\n{RULES}\n\nQuestion: how long is the warranty?\nAnswer:"


TIMES = [
    ("Datum: 5. März 2024", "Datum: 6. März 2024"),
    ("오늘은 2024년 3월 5일", "오늘은 2024년 3월 6일"),
    ("It is 3pm", "It is 4pm"),
    ("07-Mar-2024", "19-Mar-2024"),
    ("now=2024-03-05 14:05:11.123 +0000 UTC", "now=2024-03-05 14:05:12.456 +0000 UTC"),
    ("As of 14:05 CET", "As of 16:44 CET"),
    ("Date: 20240305", "Date: 20240411"),
    ("Today is Tuesday", "Today is Wednesday"),
    ("Mar 5, 2024", "Apr 12, 2024"),
    ("Tue, 05 Mar 2024 14:05:00 +0100", "Wed, 13 Mar 2024 09:15:00 +0100"),
    ("(UTC) 05/03/24 14:05", "(UTC) 05/03/24 18:10"),
    ("Aujourd'hui : mardi 5 mars 2024", "Aujourd'hui : mercredi 6 mars 2024"),
    ("Hoy es 5 de marzo de 2024", "Hoy es 11 de abril de 2024"),
    ("ts=1712345678.123456", "ts=1712345699.654321"),
    ("Oggi è lunedì 4 marzo 2024, ore 9:30", "Oggi è lunedì 4 marzo 2024, ore 17:45"),
    ("Vandaag is het 5 maart 2024", "Vandaag is het 8 maart 2024"),
    ("2024-W10", "2024-W11"),
    ("March 2024", "April 2024"),
    ("The year is 2024", "The year is 2025"),
    ("Good morning! It's 09:00.", "Good morning! It's 10:30."),
    ("5th of March, 2024 at noon", "6th of March, 2024 at noon"),
    ("Сегодня 5 марта 2024", "Сегодня 7 марта 2024"),
    ("14:05:11 up 3 days", "14:05:12 up 3 days"),
    ("Current date: 2024-03-05 (Tuesday)", "Current date: 2024-03-06 (Wednesday)"),
    ("T+00:12:33", "T+00:14:02"),
]
IDS = [
    ("id=550e8400e29b41d4a716446655440000", "id=6ba7b8109dad11d180b400c04fd430c8"),
    (
        "urn:uuid:550e8400-e29b-41d4-a716-446655440000",
        "urn:uuid:6ba7b810-9dad-11d1-80b4-00c04fd430c8",
    ),
    ("X-Request-Id: 7f3e9c", "X-Request-Id: b01d44"),
    ("[a1b2c3d4]", "[09fe77ab]"),
    ("thread_V1StGXR8Z5jdHi6BmyT", "thread_9aXk2LmPq0RsTuVwXyZa1"),
    ("nanoid V1StGXR8_Z5jdHi6B-myT", "nanoid k3Jx9QwEr_TyUiOp-As1D"),
    ("conversation id 8273645", "conversation id 1190382"),
    ("nonce: qwhzkfpl", "nonce: mvbtxoae"),
    ("req-20240305-ab12cd9", "req-20240305-ff90e17"),
    ("Session 9f8e-77aa-0b1c", "Session 1c2d-93be-aa10"),
    ("seed=482193", "seed=77120934"),
    ("eyJhbGciOiJIUzI1NiJ9", "eyJ0eXAiOiJKV1QiLCJh"),
    (
        "trace 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "trace 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ),
    ("arn:aws:lambda:run/8c4f1e2a", "arn:aws:lambda:run/0d9b7c6e"),
    ("build 3f9c2d1", "build a77e0b4"),
]
COUNTERS = [
    ("Request #41", "Request #42"),
    ("3/10 requests left", "4/10 requests left"),
    ("Round 2:", "Round 3:"),
    ("page=3", "page=4"),
    ("Conversation turn 9", "Conversation turn 10"),
    ("This is the 2nd attempt", "This is the 3rd attempt"),
    ("You have 7 unread messages", "You have 8 unread messages"),
    ("Tokens used so far: 12,345", "Tokens used so far: 12,871"),
    ("(12)", "(13)"),
    ("iteration 0099", "iteration 0100"),
]
WHITE = [
    ("Be brief. ", "Be brief."),
    ("Be brief.\r", "Be brief."),
    ("Be  brief.", "Be brief."),
    ("Be\tbrief.", "Be brief."),
    ("Be\u00a0brief.", "Be brief."),
    ("\ufeffBe brief.", "Be brief."),
    ("Be brief.\n\n\nKind.", "Be brief.\n\nKind."),
    ("Be brief.\u200b Kind.", "Be brief. Kind."),
]


@pytest.mark.parametrize("frame", [system, text])
@pytest.mark.parametrize(
    ("cause", "old", "new"),
    [
        (cause, *pair)
        for cause, table in (
            ("time", TIMES),
            ("random_id", IDS),
            ("counter", COUNTERS),
            ("whitespace", WHITE),
        )
        for pair in table
    ],
)
def test_a_value_is_named_by_its_shape(frame: object, cause: str, old: str, new: str) -> None:
    assert callable(frame)
    assert cause_of(frame(old), frame(new)) == cause


def chat(*messages: str, head: str = "Be kind. " + RULES) -> str:
    """Messages in turn, user first."""
    roles = ["user", "assistant"] * len(messages)
    told = "".join(
        f"<|start_header_id|>{role}<|end_header_id|>\n\n{message}<|eot_id|>"
        for role, message in zip(roles, messages, strict=False)
    )
    return f"<|start_header_id|>system<|end_header_id|>\n\n{head}<|eot_id|>{told}"


LONG = [
    f"{name} asks about {thing}, and why it is so. " * 6
    for name, thing in [
        ("Ada", "locks"),
        ("Bo", "rain"),
        ("Cy", "yeast"),
        ("Di", "tides"),
        ("Eve", "keys"),
        ("Flo", "maps"),
        ("Gus", "bread"),
        ("Hal", "trams"),
        ("Ida", "paint"),
    ]
]


@pytest.mark.parametrize(
    ("cause", "old", "new"),
    [
        ("front_truncation", chat(*LONG[:5]), chat(*LONG[2:7])),
        ("front_truncation", chat(*LONG[:7]), chat(*LONG[4:9])),
        (
            "front_truncation",
            "".join(f"User: {a}\nAssistant: ok {a}\n" for a in LONG[:5]),
            "".join(f"User: {a}\nAssistant: ok {a}\n" for a in LONG[1:6]),
        ),
        (
            "front_truncation",
            chat(*LONG[:5]),
            chat("Summary of the conversation so far: locks and rain.", *LONG[1:5], "And now?"),
        ),
        ("different_text", chat("How old is the harbour?"), chat("Set a timer please")),
        ("different_text", chat(*LONG[:3]), chat(*LONG[:2], "Something else")),
        ("different_text", chat("What is 12 * 4?"), chat("What is 99 * 4?")),
        ("different_text", chat("Meet me at 14:05"), chat("Meet me at 15:30")),
        ("template_drift", chat("Hi", head="You are Qwen. " + RULES), chat("Hi", head=RULES)),
        (
            "template_drift",
            chat("Hi there", "<think>\nhm, so\n</think>\n\nHello!", "Next"),
            chat("Hi there", "Hello!", "Next"),
        ),
        (
            "template_drift",
            chat("Hi", head="Cutting Knowledge Date: December 2023\nToday Date: 25 Jul 2024\n\nA"),
            chat("Hi", head="Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nA"),
        ),
        ("template_drift", "<s>[INST] " + RULES, "<|im_start|>user\n" + RULES),
        ("different_text", "<s><|system|>" + RULES, "<s>It is 12:03 now. How wide is the TV?"),
        (
            "template_drift",
            "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST]",
            "<s>[INST] Hi [/INST]",
        ),
        (  # thoughts that are longer than the window
            "template_drift",
            chat("Hi there", "<think>" + "hm, so what now " * 150 + "</think>Hello!", "Next"),
            chat("Hi there", "Hello! I am here.", "Next"),
        ),
        (  # more was dropped than the window shows
            "front_truncation",
            chat(*[one * 3 for one in LONG[:7]]),
            chat(*[one * 3 for one in LONG[4:9]]),
        ),
        (  # whole lines of one message, no role in sight
            "front_truncation",
            "Log:\n" + "\n".join(LONG[:6]),
            "Log:\n" + "\n".join(LONG[2:8]),
        ),
        ("new_content", chat(*LONG[:2]), chat(*LONG[:5])),
        (
            "order",
            text("Tools:\n- search: looks things up on the web\n- timer: rings after a while"),
            text("Tools:\n- timer: rings after a while\n- search: looks things up on the web"),
        ),
        (
            "order",
            text('{"required": ["city", "unit"], "strict": true}'),
            text('{"required": ["unit", "city"], "strict": true}'),
        ),
        (
            "order",
            system("<doc>" + "</doc>\n<doc>".join(LONG[:6]) + "</doc>"),
            system(
                "<doc>" + "</doc>\n<doc>".join([LONG[3], *LONG[:3], LONG[5], LONG[4]]) + "</doc>"
            ),
        ),
        (
            "order",
            text("\n".join(f"Document {n}: {one}" for n, one in enumerate(LONG[:4]))),
            text("\n".join(f"Document {n}: {one}" for n, one in enumerate(LONG[3::-1]))),
        ),
    ],
)
def test_what_happened_to_the_prompt(cause: str, old: str, new: str) -> None:
    assert cause_of(old, new) == cause


@pytest.mark.parametrize(
    "hostile", ["1:" * 5000, "a-" * 5000, "<" * 9000, "1 " * 5000, "\n" * 9000]
)
def test_hostile_texts_are_read_in_bounded_time(hostile: str) -> None:
    """Patterns do not backtrack: this test would not end otherwise."""
    assert cause_of("x" + hostile + "a", "y" + hostile + "b", window=10_000)
    assert cause_of(hostile + "a", hostile + "b", window=10_000)
