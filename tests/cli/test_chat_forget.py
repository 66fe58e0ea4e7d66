"""`/forget` in `kveik chat`, with a model of its own and with a server."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from test_cli import FakeServer, ScriptedPartner, contents, converse, fake_server
from test_follow import Run

from kveik.commands import chat as chat_command

QUESTION = "how wide is television number {} of this shop, and how deep is it?"


def test_a_chat_forgets_turns(
    kveik: Run, tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [QUESTION.format(number) for number in range(6)]
    lines[4:4] = ["/forget 2"]
    lines += ["/forget 1-3", "and now?", "/forget 1", "and then?", "/reset", "anew"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    folder = tiny_folder(max_position_embeddings=2048)
    small = ["--model", str(folder), "--kv-memory", "8MiB", "--temperature", "0"]
    code, out, err = kveik("chat", *small, "--max-tokens", "8")
    assert code == 0
    assert "the next turn forgets turn 2; what follows was said with it in mind" in out
    told = [line for line in out.splitlines() if line.startswith("[first token")]
    assert [("approximately" in line, "tokens forgotten" in line) for line in told] == [
        *[(False, False)] * 4,
        *[(True, True)] * 3,  # forgets turn 2, goes on, forgets turn 1
        (False, False),  # anew, behind /reset
    ]
    assert "forget.turns: turn 2 was forgotten before" in err


def test_it_must_say_which_turns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    partner = ScriptedPartner()
    converse(monkeypatch, partner, ["one", "/forget", "/forget x", "/forget 0", "two", "/forget 1"])
    assert partner.forgets == [None, None]
    assert capsys.readouterr().out.count("/forget 2 or /forget 2-4") == 3
    converse(
        monkeypatch, partner, ["one", "/forget 1", "two", "three", "/forget 1-2", "/reset", "x"]
    )
    assert partner.forgets[2:] == [None, {"turns": [1]}, None, None]


def test_a_server_is_asked_to_forget_and_keeps_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = {
        "prompt_tokens": 90,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 20, "approximate_cached_tokens": 40},
        "kveik": {"forgotten_tokens": 30},
    }
    delta = json.dumps({"choices": [{"delta": {"content": "ok"}}]})
    with fake_server([delta, json.dumps({"choices": [], "usage": usage}), "[DONE]"]) as url:
        partner = chat_command.RemotePartner(url, None, {})
        lines = ["one", "two", "/forget 1", "refuse", "/forget 1", "three", "four", "/forget 2-3"]
        converse(monkeypatch, partner, [*lines, "five"])
    bodies = [body for _, body in FakeServer.seen]
    assert [body.get("kveik") for body in bodies[:2]] == [None, None]
    failed, first, second, third = (body["kveik"] for body in bodies[2:])
    assert failed == first == {"session": first["session"], "forget": {"turns": [1]}}
    assert contents(bodies[3]["messages"]) == ["one", "ok", "two", "ok", "three"]
    assert second == {"session": first["session"], "continue": True}
    assert third == {**second, "forget": {"turns": "2-3"}}
    assert contents(bodies[5]["messages"]) == ["five"]
    out = capsys.readouterr().out
    assert "20 of 90 prompt tokens cached, 40 more approximately, 30 tokens forgotten" in out


def test_a_session_that_the_server_has_ended_begins_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    delta = json.dumps({"choices": [{"delta": {"content": "ok"}}]})
    with fake_server([delta, "[DONE]"]) as url:
        partner = chat_command.RemotePartner(url, None, {})
        converse(monkeypatch, partner, ["one", "two", "/forget 1", "three", "lost", "five"])
    bodies = [body for _, body in FakeServer.seen]
    assert contents(bodies[3]["messages"]) == ["lost"]
    assert bodies[3]["kveik"]["continue"]
    whole = ["one", "ok", "two", "ok", "three", "ok", "lost"]
    assert contents(bodies[4]["messages"]) == whole
    assert contents(bodies[5]["messages"]) == [*whole, "ok", "five"]
    assert [body.get("kveik") for body in bodies[4:]] == [None, None]
    out, err = capsys.readouterr()
    assert "the server has ended the session" in out
    assert not err


def test_a_stream_that_the_server_has_ended_is_not_begun_again_unasked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    delta = json.dumps({"choices": [{"delta": {"content": "ok"}}]})
    with fake_server([delta, "[DONE]"]) as url:
        partner = chat_command.RemotePartner(url, None, {}, endless=True)
        converse(monkeypatch, partner, ["one", "lost", "three"])
    assert [body["kveik"].get("continue") for _, body in FakeServer.seen] == [None, True, None]
    assert "nothing is kept of the session" in capsys.readouterr().err
