"""`kveik cache replay` as a terminal sees it."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from cache_cli import Run, runner

from kveik.cache.policy import SHIPPED


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return runner("http://127.0.0.1:1", capsys, monkeypatch)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Four conversations of three blocks, asked again in the same order; one-shots between."""
    path = tmp_path / "made.jsonl"
    lines = []
    for second in range(60):
        blocks = [3 * (second % 4) + number for number in range(3)]
        if second % 3 == 2:
            blocks = [1000 + second, 2000 + second]
        entry = {"timestamp": 1000 * second, "input_length": 512 * len(blocks), "output_length": 9}
        lines.append(json.dumps(entry | {"hash_ids": blocks}))
    path.write_text("\n".join(lines))
    return path


def test_a_table_of_every_policy_and_size_with_the_optimum(run: Run, trace: Path) -> None:
    code, out, err = run("replay", str(trace), "--blocks", "8,16")
    assert (code, err) == (0, "")
    head, columns, *rows = [line for line in out.splitlines() if line.strip()]
    assert head == "made.jsonl: 60 requests, 81,920 prompt tokens in 160 blocks of 512"
    assert columns.split()[:2] == ["blocks", "policy"]
    assert [line.split()[:2] for line in rows] == [
        [size, name] for size in ("8", "16") for name in (*SHIPPED, "optimum")
    ]


def test_json_has_rates_reasons_and_queues(run: Run, trace: Path) -> None:
    asked = ("replay", str(trace), "--policy", "s3fifo, lru", "--blocks", "8", "--json")
    code, out, _ = run(*asked)
    answer = json.loads(out)
    assert code == 0
    facts = (answer["trace"], answer["block_size"], answer["requests"], answer["prompt_blocks"])
    assert facts == ("made.jsonl", 512, 60, 160)
    small, lru, best = answer["replays"]
    assert [one["policy"] for one in answer["replays"]] == ["s3fifo", "lru", "optimum"]
    assert (
        0
        <= lru["token_hit_rate"]
        <= best["token_hit_rate"]
        == pytest.approx(best["hit_blocks"] / 160, abs=0.01)
    )
    assert best["of_optimum"] == 1.0
    assert small["computed_first"] == 12 + 40
    assert small["computed_first"] + small["computed_again"] + small["hit_blocks"] == 160
    assert sum(queue["evicted"] for queue in small["queues"]) == small["evicted"]
    assert [queue["queue"] for queue in lru["queues"]] == [0]
    assert lru["eviction_us"] > 0
    assert best["eviction_us"] is None
    enough = json.loads(run("replay", str(trace), "--policy", "lru", "--blocks", "99", "--json")[1])
    assert enough["replays"][0]["evicted"] == 0
    assert enough["replays"][0]["eviction_us"] is None


def test_csv_has_a_line_for_each_replay(run: Run, trace: Path) -> None:
    code, out, _ = run("replay", str(trace), "--policy", "lru", "--blocks", "16,8", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert [(row["blocks"], row["policy"]) for row in rows] == [
        ("8", "lru"),
        ("8", "optimum"),
        ("16", "lru"),
        ("16", "optimum"),
    ]
    assert float(rows[2]["token_hit_rate"]) > float(rows[0]["token_hit_rate"])


def test_since_counts_what_comes_later(run: Run, trace: Path) -> None:
    asked = ("replay", str(trace), "--policy", "lru", "--blocks", "8", "--json")
    counted = [json.loads(run(*asked, "--since", since)[1]) for since in ("0", "30")]
    assert [[row["prompt_blocks"] for row in one["replays"]] for one in counted] == [
        [160, 160],
        [80, 80],
    ]


def test_block_size_is_that_of_a_trace_that_does_not_say_it(run: Run, trace: Path) -> None:
    code, _, err = run("replay", str(trace), "--block-size", "256")
    assert code == 2
    assert "line 1: has 3 hash_ids for input_length 1536; blocks of 256 tokens are 6" in err


def test_a_picture_has_a_line_for_each_policy(run: Run, trace: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pictures = []
    for name in ("one.svg", "two.svg"):
        target = tmp_path / name
        asked = ("--policy", "lru,arc", "--blocks", "8,16", "--plot", str(target), "--csv")
        assert run("replay", str(trace), *asked)[0] == 0
        pictures.append(target.read_text())
    assert ElementTree.fromstring(pictures[0]).tag.endswith("svg")
    assert re.findall(r'id="(axes_\d)"', pictures[0]) == ["axes_1", "axes_2"]  # hits, again
    assert pictures[0] == pictures[1]  # the same figures give the same file
    code, _, err = run("replay", str(trace), "--policy", "lru", "--plot", str(tmp_path / "x.nope"))
    assert code == 2
    assert "x.nope cannot be written" in err


def test_without_matplotlib_the_plot_says_what_to_install(
    run: Run, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run("replay", str(trace), "--policy", "lru", "--plot", "x.svg")
    assert code == 2
    assert "pip install 'kveik[lab]'" in err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--policy", "oracle"), "policy: 'oracle' is not known; use lru, "),
        (("--policy", ","), "--policy: name policies, or all"),
        (("--blocks", "1000,many"), "--blocks: '1000,many' is not a list of pool sizes"),
        (("--blocks", "0"), "--blocks: '0' is not a list"),
        (("--json", "--csv"), "--json and --csv both want the output"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    run: Run, trace: Path, arguments: tuple[str, ...], why: str
) -> None:
    code, out, err = run("replay", str(trace), *arguments)
    assert (code, out) == (2, "")
    assert why in err
    assert err.count("\n") == 1


def test_a_policy_of_ones_own_is_played(
    run: Run, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_policy.py").write_text(
        "from kveik.cache.policies.lru import LeastRecentlyUsed\n"
        "class Newest(LeastRecentlyUsed):\n"
        "    queues = 32\n"
        "    def queue(self, facts): return min(facts.last_used // 8, 31)\n"
        "    def rank(self, queue, key, now): return -key\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = ("--policy", "lru,own_policy:Newest", "--blocks", "8", "--json")
    lru, own, _ = json.loads(run("replay", str(trace), *asked)[1])["replays"]
    assert own["policy"] == "own_policy:Newest"
    assert own["hit_blocks"] != lru["hit_blocks"]
