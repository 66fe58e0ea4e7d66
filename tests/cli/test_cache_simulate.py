"""`kveik cache simulate` as a terminal sees it."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from cache_cli import Run, runner

from kveik.lab.report_scale import FIELDS


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return runner("http://127.0.0.1:1", capsys, monkeypatch)


def written(path: Path, **more: str) -> Path:
    """Conversations of three blocks, asked again and again in an uneven order; of every third
    prompt the end is new."""
    lines = []
    for second in range(60):
        talk = second * second % 5 + second % 2
        entry = {"timestamp": 1000 * second, "input_length": 1536, "output_length": 9}
        ids = [3 * talk + number for number in range(3)]
        if second % 3 == 2:
            ids[-1] = 1000 + second
        told = {name: f"{value}{talk}" for name, value in more.items()}
        lines.append(json.dumps(entry | {"hash_ids": ids} | told))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return written(tmp_path / "made.jsonl")


ALL = ["round-robin", "random", "least-loaded", "session", "prefix-affinity"]


def test_a_table_of_every_route_and_number(run: Run, trace: Path) -> None:
    code, out, err = run("simulate", str(trace), "--replicas", "4,1")
    assert (code, err) == (0, "")
    head, columns, *rows = [line for line in out.splitlines() if line.strip()]
    assert head == (
        "made.jsonl: 60 requests, 92,160 prompt tokens, 1,000 blocks of 512 in each replica, "
        "hit-density, 1 x speed"
    )
    assert columns.split()[:3] == ["replicas", "route", "tokens"]
    assert [line.split()[:2] for line in rows] == [
        [count, name] for count in ("1", "4") for name in ALL if name != "session"
    ]


def test_json_says_how_a_replica_was_made(run: Run, trace: Path, tmp_path: Path) -> None:
    service = tmp_path / "times.json"
    times = {
        "prefill_seconds": 0.5,
        "prefill_token_seconds": 0.0,
        "prefill_pair_seconds": 0.0,
        "step_seconds": 0.0,
        "step_sequence_seconds": 0.0,
        "batch": 4,
    }
    service.write_text(json.dumps(times))
    asked = ("--replicas", "2", "--route", "prefix-affinity", "--service", str(service))
    code, out, _ = run("simulate", str(trace), *asked, "--blocks", "9", "--speed", "4", "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer["service"] == times
    facts = [answer[name] for name in ("trace", "requests", "blocks", "policy", "speed")]
    assert facts == ["made.jsonl", 60, 9, "hit-density", 4.0]
    (row,) = answer["simulations"]
    assert tuple(row) == FIELDS
    assert row["ttft_p50"] >= 0.5
    assert 0 < row["token_hit_rate"] < 1


def test_csv_has_a_line_for_each(run: Run, trace: Path) -> None:
    asked = ("--replicas", "2,8", "--route", "random, round-robin", "--csv")
    code, out, _ = run("simulate", str(trace), *asked)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert [(row["replicas"], row["route"]) for row in rows] == [
        ("2", "random"),
        ("2", "round-robin"),
        ("8", "random"),
        ("8", "round-robin"),
    ]


def test_options_of_the_routes_change_what_comes_out(run: Run, trace: Path) -> None:
    def figures(route: str, *options: str) -> str:
        asked = ("--replicas", "4", "--route", route, "--speed", "60", *options, "--csv")
        code, out, _ = run("simulate", str(trace), *asked)
        assert code == 0
        return out

    affine = figures("prefix-affinity")
    assert affine != figures("prefix-affinity", "--load-bound", "inf")
    assert affine != figures("prefix-affinity", "--least-match", "1")
    assert affine != figures("prefix-affinity", "--blocks", "3")
    assert figures("random") != figures("random", "--seed", "1")
    assert figures("round-robin", "--blocks", "9") != figures(
        "round-robin", "--blocks", "9", "--policy", "s3fifo"
    )


def test_sessions_of_the_trace_are_a_route(run: Run, tmp_path: Path) -> None:
    path = written(tmp_path / "talks.jsonl", session="s")
    code, out, _ = run("simulate", str(path), "--replicas", "4", "--csv")
    assert code == 0
    assert [row["route"] for row in csv.DictReader(io.StringIO(out))] == ALL


def test_a_picture_has_the_same_bytes_for_the_same_figures(
    run: Run, trace: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    pictures = []
    for name in ("one.svg", "two.svg"):
        target = tmp_path / name
        asked = ("--replicas", "1,2", "--plot", str(target), "--csv")
        assert run("simulate", str(trace), *asked)[0] == 0
        pictures.append(target.read_text())
    assert ElementTree.fromstring(pictures[0]).tag.endswith("svg")
    assert pictures[0] == pictures[1]
    code, _, err = run("simulate", str(trace), "--plot", str(tmp_path / "x.nope"))
    assert code == 2
    assert "x.nope cannot be written" in err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--replicas", "0"), "--replicas: '0' is not a list of numbers from 1 to 1,000"),
        (("--replicas", "1001"), "--replicas: '1001' is not"),
        (("--replicas", ","), "--replicas: ',' is not"),
        (("--route", "nearest"), "--route: 'nearest' is not one of round-robin, random"),
        (("--route", ","), "--route: name some of round-robin"),
        (("--route", "session"), "--route: session needs a trace that names sessions"),
        (("--speed", "0"), "--speed: 0.0 is not a number above 0"),
        (("--speed", "nan"), "--speed: nan is not a number above 0"),
        (("--load-bound", "0.9"), "--load-bound: 0.9 is not a number from 1 on, or inf"),
        (("--least-match", "2"), "--least-match: 2.0 is not a share from 0 to 1"),
        (("--service", "nowhere.json"), "--service: nowhere.json cannot be read as JSON"),
        (("--policy", "nope"), "nope"),
        (("--json", "--csv"), "--json and --csv both want the output"),
    ],
)
def test_what_cannot_be_names_the_option(
    run: Run, trace: Path, options: tuple[str, ...], says: str
) -> None:
    code, out, err = run("simulate", str(trace), *options)
    assert (code, out) == (2, "")
    assert says in err


def test_a_picture_without_matplotlib_is_refused_before_anything_is_played(
    run: Run, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run("simulate", str(trace), "--plot", "x.svg")
    assert code == 2
    assert "--plot: needs matplotlib" in err
