"""`kveik cache top`: the screen from given answers, and the loop against a real server."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import serving
from cache_cli import Run, runner
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from kveik.commands import cache_top
from kveik.commands.cache_screen import Look, bar, countdown, in_pieces, screen, sparkline
from kveik.commands.remote import Remote
from kveik.errors import ConfigError, KveikError

HISTORY: dict[str, Any] = {
    "scope": "all",
    "start": 0,
    "step": 10,
    "series": {
        "cached_tokens": [0, 30, 0, 90],
        "approximate_tokens": [0, 10, 0, 0],
        "prompt_tokens": [50, 50, 0, 100],
        "used_bytes": [0, 100_000, 200_000, 300_000],
        "cached_bytes": [0, 100_000, 300_000, 700_000],
    },
    "today": {
        "requests": 8,
        "hit_requests": 5,
        "prompt_tokens": 4000,
        "cached_tokens": 2000,
        "approximate_tokens": 500,
        "generated_tokens": 77,
        "seconds_saved": 754.2,
        "share": 0.625,
    },
    "now": {
        "used_bytes": 300_000,
        "cached_bytes": 700_000,
        "pinned_bytes": 250_000,
        "total_bytes": 2_000_000,
        "running": 3,
        "waiting": 4,
        "sessions": 5,
        "open_streams": 6,
        "named_caches": 7,
    },
}
CURVE = {
    "half": 0.41,
    "this": 0.58,
    "twice": 0.66,
    "hit_rates": [0.1, 0.41, 0.58, 0.66],
    "tokens": 9,
    "served": 0.57,
    "share": 0.125,
}
REQUEST = {
    "ended": 0.0,
    "seconds": 1.25,
    "outcome": "finished",
    "cached_tokens": 160,
    "approximate_tokens": 40,
    "computed_tokens": 80,
    "generated_tokens": 40,
    "explanation": {"position": 200, "reason": "diverged"},
}


def cache(name: str, left: float | None) -> dict[str, Any]:
    whole = {"name": name, "status": "ready", "tokens": 1234, "hits": 9, "pinned": name == "faq"}
    return {**whole, "time_left": left}


def drawn(rows: int = 6, **changes: Any) -> list[str]:
    whole: dict[str, Any] = {
        "url": "http://here",
        "history": HISTORY,
        "curve": CURVE,
        "caches": [cache("plain", None), cache("later", 5400.0), cache("faq", 65.0)],
        "sessions": [{"session": "anna", "tokens": 96, "blocks": 6, "idle": 200.0}],
        "requests": [REQUEST, {**REQUEST, "outcome": "aborted", "explanation": None}],
    }
    out = io.StringIO()
    Console(file=out, width=120, highlight=False).print(screen(Look(**whole | changes), rows))
    return [" ".join(line.split()) for line in out.getvalue().splitlines()]


def line(lines: list[str], label: str) -> str:
    return next(one for one in lines if one.startswith(label))


def test_the_screen_says_every_figure_of_the_answers() -> None:
    lines = drawn()
    assert line(lines, "saved today") == (
        "saved today 13 min of computation, 62% of 4,000 prompt tokens, in 5 of 8 requests"
    )
    assert line(lines, "hit rate") == "hit rate ▁▇ █ 65%, last 40 s"
    assert line(lines, "memory") == "memory ▁▁▃▅ 15% used + 35% cached of 2.00 MB, 12% pinned"
    assert line(lines, "other sizes") == (
        "other sizes half 41% this pool 58% twice 66% ▁▄▅▆ served 57%, 1 block in 8 followed"
    )
    assert line(lines, "now") == (
        "now 3 running, 4 waiting, 5 sessions, 6 open streams, 7 named caches"
    )
    names = [one.split()[0] for one in lines[lines.index("named caches (3)") + 2 :][:3]]
    assert names == ["faq", "later", "plain"]  # what ends first
    assert line(lines, "faq") == "faq ready, pinned 1,234 9 01:05"
    assert line(lines, "later").endswith("1:30:00")
    assert line(lines, "plain").endswith("-")
    assert line(lines, "anna") == "anna 96 6 3 min"
    one, other = lines[-2:]
    assert one.endswith("160 + 40 + 80 + 40 1.25 s diverged at 200")
    assert other.endswith("160 + 40 + 80 + 40 aborted")
    assert "█" * 12 + "▓" * 3 + "▒" * 6 + "░" * 3 in one


def test_a_tenant_sees_no_pool_and_a_young_server_has_nothing_yet() -> None:
    history = {**HISTORY, "scope": "own", "now": None}
    del history["series"]
    history["series"] = {
        name: [0] for name in ("cached_tokens", "approximate_tokens", "prompt_tokens")
    }
    lines = drawn(history=history, curve=None, caches=[], sessions=[], requests=[])
    assert "this key" in lines[0]
    assert "no prompt yet" in line(lines, "hit rate")
    assert not any(one.startswith(("memory", "other sizes", "now")) for one in lines)
    assert lines.count("none") == 2
    assert "none yet" in lines
    assert "no prompt was looked up" in line(drawn(curve={**CURVE, "tokens": 0}), "other sizes")


def test_rows_bound_every_list() -> None:
    many = drawn(
        2, caches=[cache(f"c{n}", None) for n in range(9)], requests=[REQUEST] * 9, sessions=[]
    )
    assert sum(one.startswith("c") and one.endswith("-") for one in many) == 2
    assert sum("diverged" in one for one in many) == 2


@given(st.lists(st.integers(0, 500), min_size=4, max_size=4), st.integers(1, 1000))
@settings(max_examples=100, deadline=None)
def test_a_bar_is_as_long_as_its_share_of_the_longest(parts: list[int], more: int) -> None:
    names = ("cached_tokens", "approximate_tokens", "computed_tokens", "generated_tokens")
    pieces = bar(dict(zip(names, parts, strict=True)), sum(parts) + more)
    assert sum(len(letters) for letters, _ in pieces) == round(
        24 * sum(parts) / (sum(parts) + more)
    )
    whole = "".join(letters for letters, _ in bar(dict(zip(names, parts, strict=True)), sum(parts)))
    assert len(whole) == (24 if sum(parts) else 0)


@given(st.lists(st.integers(), min_size=1, max_size=60), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_pieces_hold_every_value_once_and_the_last_is_whole(values: list[int], most: int) -> None:
    pieces = in_pieces(values, most)
    assert [value for piece in pieces for value in piece] == values
    assert len(pieces) <= most
    assert {len(piece) for piece in pieces[1:]} <= {max(map(len, pieces))}


def test_lines_and_countdowns() -> None:
    assert sparkline([0, 0.5, 1, None, 2], 1.0) == "▁▅█ █"
    assert sparkline([]) == ""
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([5, 10]) == "▅█"
    assert [countdown(left) for left in (None, 0.9, 65, 3723)] == ["-", "00:00", "01:05", "1:02:03"]


# --- against a real server


@pytest.fixture(scope="module")
def url(
    tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    keys = tmp_path_factory.mktemp("top") / "keys.json"
    entries = [{"name": "ada", "key": "ada-key"}, {"name": "ops", "key": "ops-key", "admin": True}]
    keys.write_text(json.dumps({"keys": entries}))
    options = ("--kv-memory", "4MiB", "--keys-file", str(keys))
    with serving.running_server(str(tiny_folder()), *options) as url:
        yield url


@pytest.fixture
def run(url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return runner(url, capsys, monkeypatch)


def ask(url: str, key: str) -> None:
    remote = Remote(url, key)
    model = remote.json("GET", "/v1/models")["data"][0]["id"]
    body = {"model": model, "prompt": "The warranty lasts two years. " * 4, "max_tokens": 1}
    remote.json("POST", "/v1/completions", body)


def test_once_prints_what_an_operator_and_what_a_tenant_may_see(url: str, run: Run) -> None:
    for _ in range(2):
        ask(url, "ada-key")
    code, out, err = run("top", "--once", "--url", url, "--api-key", "ops-key")
    assert (code, err) == (0, "")
    for words in ("all tenants", "1 of 2 requests", "memory", "this pool", "too_short"):
        assert words in out
    code, out, err = run("top", "--api-key", "ada-key")  # no terminal: once
    assert (code, err) == (0, "")
    assert "this key" in out
    assert "1 of 2 requests" in out
    assert "memory" not in out
    whole = json.loads(run("top", "--json", "--api-key", "ops-key")[1])
    assert whole["history"]["scope"] == "all"
    assert whole["curve"]["tokens"] == whole["history"]["today"]["prompt_tokens"]
    assert len(whole["requests"]) == 2


def test_what_cannot_be_is_said_in_one_line(run: Run) -> None:
    for arguments, words in (
        (("--interval", "0"), "--interval: 0 is not in 0.2 .. 3600"),
        (("--rows", "0"), "--rows: 0"),
        (("--api-key", "nobody"), "401"),
        (("--url", "http://127.0.0.1:9"), "is kveik serve running?"),
    ):
        code, out, err = run("top", *arguments)
        assert code != 0
        assert out == ""
        assert words in err
        assert err.count("\n") == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_it_looks_again_until_it_is_ended_and_survives_a_server_that_is_away(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal, pauses = Terminal(), 0
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    looked = cache_top.take

    def away(*arguments: Any) -> Look:
        if pauses == 2:
            raise KveikError("it is away")
        return looked(*arguments)

    def pause(seconds: float) -> None:
        nonlocal pauses
        assert seconds == 5.0
        ask(url, "ada-key")
        pauses += 1
        if pauses == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(cache_top, "take", away)
    remote = Remote(url, "ops-key")
    cache_top.top(remote, url, interval=5.0, once=False, rows=3, as_json=False, pause=pause)
    screens = terminal.getvalue().split("\x1b[H")
    told = [one for one in screens if "saved today" in one]
    assert ["it is away" in one for one in told] == [False, False, True, False]
    counts = [int(one.split(" requests")[0].split()[-1]) for one in told]
    assert counts[1] == counts[0] + 1 == counts[2]  # the screen before it went away
    assert counts[3] == counts[0] + 3


def test_the_first_look_must_succeed() -> None:
    with pytest.raises(KveikError, match="no answer"):
        cache_top.top(
            Remote("http://127.0.0.1:9"), "", interval=1.0, once=False, rows=1, as_json=False
        )
    with pytest.raises(ConfigError):
        cache_top.top(
            Remote("http://127.0.0.1:9"), "", interval=1e9, once=False, rows=1, as_json=False
        )
