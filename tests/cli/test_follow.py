"""`kveik chat --endless` and `kveik follow`."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kveik.commands import follow as follow_command
from kveik.commands.chat import Facts, Messages
from kveik.session import Forgets

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def small(tiny_folder: Callable[..., Path]) -> list[str]:
    return ["--model", str(tiny_folder()), "--max-model-len", "96", "--kv-memory", "2MiB"]


def log(path: Path, lines: int) -> Path:
    path.write_text("".join(f"12:00:{n:02d} the sensor reads {n % 7}\n" for n in range(lines)))
    return path


def test_an_endless_chat_goes_past_the_context(
    kveik: Run, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "".join(f"line {n} of a conversation that does not end\n" for n in range(8))
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    code, out, err = kveik("chat", *small, "--endless", "--max-tokens", "8")
    assert (code, err) == (0, "")
    assert out.count("first token after") == 8
    assert "tokens forgotten" in out
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    _, _, err = kveik("chat", *small, "--max-tokens", "8")
    assert "context" in err


def test_reset_begins_another_stream(
    kveik: Run, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "say the same\n" * 6
    monkeypatch.setattr("sys.stdin", io.StringIO(said + "/reset\nsay the same\n"))
    code, out, _ = kveik(
        "chat",
        *small,
        "--endless",
        "--max-tokens",
        "4",
        "--temperature",
        "0",
        "--stream-window",
        "4+40",
    )
    assert code == 0
    answers = out.split("\n[")
    assert "forgotten" in answers[6]
    assert "forgotten" not in answers[7]


def test_follow_answers_every_few_lines(kveik: Run, small: list[str], tmp_path: Path) -> None:
    file = log(tmp_path / "app.log", 23)
    code, out, err = kveik(
        "follow",
        str(file),
        *small,
        "--prompt",
        "What happened?",
        "--every",
        "5",
        "--once",
        "--max-tokens",
        "4",
    )
    assert (code, err) == (0, "")
    assert out.count("first token after") == 5
    assert "tokens forgotten" in out


def test_follow_needs_a_file_that_can_be_read(kveik: Run, small: list[str], tmp_path: Path) -> None:
    code, _, err = kveik("follow", str(tmp_path / "none"), *small, "--prompt", "?", "--once")
    assert code == 2
    assert "cannot be read" in err


class Parrot:
    """Remembers what it was asked."""

    name, endless = "parrot", True

    def __init__(self) -> None:
        self.facts = Facts()
        self.asked: list[str] = []

    def answer(self, messages: Messages, forget: Forgets | None = None) -> Iterator[str]:
        self.asked.append(str(messages[-1]["content"]))
        yield "ok"

    def reset(self) -> None:
        pass


def test_follow_waits_for_lines_and_reads_a_rotated_file_from_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = log(tmp_path / "app.log", 3)
    partner = Parrot()
    events = iter(("a\nb", "\nc\n", None, "d\ne\n"))

    def pause(seconds: float) -> None:
        """What happens to the file while nobody looks."""
        event = next(events, "end")
        if event == "end":
            raise KeyboardInterrupt
        if event is None:
            file.write_text("")
        else:
            with file.open("a") as end:
                end.write(event)

    monkeypatch.setattr(follow_command.time, "sleep", pause)
    with pytest.raises(KeyboardInterrupt):
        follow_command.follow(partner, file, "?", every=2, once=False)
    groups = [asked.split("\n")[:-2] for asked in partner.asked]
    assert [one[-8:] for one in groups[0]] == ["reads 0", "reads 1"] or len(groups[0]) == 2
    assert [one if len(one) == 1 else "reads" for group in groups for one in group] == [
        "reads",
        "reads",
        "reads",
        "a",
        "b",
        "c",
        "d",
        "e",
    ]
    assert all(asked.endswith("\n\n?") for asked in partner.asked)


def test_follow_asks_a_server(
    kveik: Run, default_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = log(tmp_path / "app.log", 12)
    code, out, err = kveik(
        "follow",
        str(file),
        "--url",
        default_server,
        "--prompt",
        "What happened?",
        "--every",
        "4",
        "--once",
        "--max-tokens",
        "4",
        "--stream-window",
        "4+60",
    )
    assert (code, err) == (0, "")
    assert out.count("first token after") == 3
    assert "tokens forgotten" in out
