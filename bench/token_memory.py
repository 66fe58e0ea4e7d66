"""Remembered token ids: what a repeated prompt costs of its first tokenisation.

Three prompts of 32k tokens of the embedded model's vocabulary: a plain text, a chat, and that chat
with one more turn (in proportion to encoding all of it). Both sides are measured in one process;
the repeated side includes rendering the chat and comparing every byte.

Usage: python bench/token_memory.py [--repeat 5] [--quick]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from report import ROOT, Report, arguments

from kveik.config import DEFAULT_MODEL_PATH
from kveik.engine.token_memory import TokenMemory
from kveik.engine.tokenizer import Tokenizer

BAR = 0.05
TURN = 2000  # characters


def corpus(tokenizer: Tokenizer, tokens: int) -> str:
    """About so many tokens of this project's own text."""
    files = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "src").rglob("*.py"))]
    text = "".join(path.read_text(encoding="utf-8") for path in map(Path, files))
    per_character = len(tokenizer.encode(text[:20_000])) / 20_000
    return text[: int(tokens / per_character)]


def fastest(call: Callable[[], object], repeat: int, before: Callable[[], None]) -> float:
    """Least seconds of one call; `before` runs outside of the clock."""
    times = []
    for _ in range(repeat):
        before()
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    tokenizer = Tokenizer.from_folder(DEFAULT_MODEL_PATH)
    memory = TokenMemory(tokenizer)
    text = corpus(tokenizer, 4_000 if options.quick else 32_000)
    turns = [text[at : at + TURN] for at in range(0, len(text), TURN)]
    chat = [
        {"role": "assistant" if index % 2 else "user", "content": turn}
        for index, turn in enumerate(turns)
    ]
    grown = [*chat, {"role": "user", "content": text[-TURN // 2 :]}]

    def chat_only() -> None:
        memory.forget()
        memory.encode_chat(chat)

    report = Report("token_memory")
    repeat = 2 if options.quick else options.repeat
    cases: list[tuple[str, Callable[[], object], Callable[[], None]]] = [
        ("a repeated text", lambda: memory.encode(text), lambda: None),
        ("a repeated chat", lambda: memory.encode_chat(chat), lambda: None),
        ("a chat with one more turn", lambda: memory.encode_chat(grown), chat_only),
    ]
    for name, call, before in cases:
        first = fastest(call, repeat, memory.forget)
        memory.forget()
        call()
        again = fastest(call, repeat, before)
        bar = BAR if "repeated" in name else None
        report.ratio(f"{name}, of its first tokenisation", again, first, bar=bar, sense="<=")
    report.finish()


if __name__ == "__main__":
    main()
