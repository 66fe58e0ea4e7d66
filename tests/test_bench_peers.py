"""The side-by-side harness of bench/peers: ratios, tables, promises, and the talk with a runner."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
sys.path.insert(0, str(Path(__file__).parents[1] / "bench" / "peers"))

import bars
import checkpoints
import exactness
import peer_kveik
import processes
import summary
import workload
from environments import every_peer, runner_file
from protocol import Answer, Setting
from report import Report

from kveik.kernels.extension import native_extension
from kveik.models import loader, weight_cache

PEERS = Path(bars.__file__).parent
SETTING: dict[str, Any] = {
    "folder": "",
    "width": "bf16",
    "vocabulary": 1000,
    "max_tokens": 64,
    "kv_bytes": 0,
    "sequences": 4,
    "threads": 1,
}

ROUNDS = [
    {
        "bandwidth": 20.0,
        "peers": {
            "kveik-bf16": {"decode": {"value": ours}, "prefill_1024": {"value": 1.0}},
            "a-bf16": {"decode": {"value": a}, "prefill_1024": {"value": 3.0}},
            "b-bf16": {"decode": {"value": b}},
            "c-int8": {"decode": {"value": 99.0}},
        },
    }
    for ours, a, b in ((10.0, 5.0, 8.0), (12.0, 8.0, 4.0), (9.0, 9.0, 1.0), (10.0, 5.0, 4.0))
]


def test_quartiles_are_interpolated_and_one_value_is_its_own() -> None:
    found = summary.spread([4.0, 1.0, 2.0, 3.0])
    assert (found.lowest, found.lower, found.median, found.highest) == (1.0, 1.75, 2.5, 4.0)
    assert summary.spread([7.0]).lower == 7.0


def test_a_ratio_above_one_is_in_our_favour_for_times_and_for_rates() -> None:
    assert summary.ratios(ROUNDS, "kveik-bf16", "a-bf16", "decode") == [2.0, 1.5, 1.0, 2.0]
    assert summary.ratios(ROUNDS, "kveik-bf16", "a-bf16", "prefill_1024") == [3.0] * 4
    assert summary.ratios(ROUNDS, "kveik-bf16", "b-bf16", "prefill_1024") == []


def test_the_best_peer_is_chosen_in_each_round_among_its_width() -> None:
    rivals = summary.rivals(ROUNDS, "bf16")
    assert rivals == ["a-bf16", "b-bf16"]
    assert summary.ratios_to_best(ROUNDS, "kveik-bf16", rivals, "decode") == [1.25, 1.5, 1.0, 2.0]


def test_tables_show_medians_with_the_best_in_bold_and_ratios_with_their_range() -> None:
    medians = summary.medians_table(ROUNDS, {"a-bf16": "Engine A"}).splitlines()
    assert medians[0] == "| engine | decode, b=1, tok/s | prefill 1024, s |"
    assert medians[2] == "| kveik-bf16 | 10 | **1.00** |"
    assert "| Engine A | 6.50 | 3.00 |" in medians
    assert "| c-int8 | **99** | - |" in medians
    assert "| kveik-bf16 / a-bf16 | 1.38 (1.00-2.00) |" in summary.ratios_table(ROUNDS, {})


def test_a_promise_is_judged_by_the_lower_quartile() -> None:
    report = Report("none")
    bars.judge(report, ROUNDS, checkpoints.SHAPES["1.1b"], 1 << 30)
    figures = {figure["name"]: figure for figure in report.figures}
    decode = figures["decode, b=1: kveik-bf16 against the best bf16 peer"]
    assert (decode["value"], decode["lowest"], decode["holds"]) == (1.1875, 1.0, True)
    share = figures["decode: kveik-bf16, share of the read bandwidth of the same round"]
    assert share["highest"] == pytest.approx(12 * 2.069 / 20, rel=1e-3)


def test_an_answer_is_changed_in_its_tokens_or_in_its_bits() -> None:
    before = [Answer([1, 2], [], [0.5, 0.5]), Answer([3], [], [0.1]), Answer([4], [], [0.2])]
    after = [Answer([1, 9], [], [0.5, 0.5]), Answer([3], [], [0.1000001]), Answer([4], [], [0.2])]
    assert exactness.changed(before, after) == {"tokens": 1, "bits": 2}
    after[0].logprobs = []
    assert exactness.changed(before, after) == {"tokens": 1, "bits": None}
    asked = exactness.prompts(32000)
    assert len(asked) == 32
    assert all(64 <= len(prompt) <= 600 for prompt in asked)
    assert len({tuple(prompt[:16]) for prompt in asked}) == 4


def test_random_weights_are_rounded_to_nearest_even() -> None:
    bits = checkpoints.tensor("a.bias", (4096,), tied=False)
    exact = np.random.default_rng(__import__("zlib").crc32(b"a.bias")).standard_normal(
        4096, dtype=np.float32
    ) * np.float32(0.1)
    assert (bits == exact.astype(ml_dtypes.bfloat16).view(np.uint16)).all()


@pytest.mark.parametrize("peer", every_peer(), ids=str)
def test_a_runner_keeps_its_contract_without_its_engine(peer: Any) -> None:
    assert peer.runner.NAME
    assert peer.width in peer.runner.WIDTHS
    assert all(call[0] in ("install", "uninstall") for call in peer.runner.PACKAGES)
    assert callable(peer.runner.load)
    assert Path(runner_file(peer)).exists()


@pytest.mark.skipif(native_extension().module is None, reason=native_extension().missing)
def test_what_kveik_writes_for_its_next_start_is_there_before_its_process_is_ended(
    tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny_folder(), tmp_path / "model")
    monkeypatch.setattr(loader, "SMALLEST", 0)
    monkeypatch.setattr(weight_cache.os, "fsync", lambda file: time.sleep(0.5))
    setting = SETTING | {"folder": str(folder), "width": "int8", "kv_bytes": 1 << 20}
    peer_kveik.load(Setting(**setting)).llm.close()
    assert len(list(folder.glob("kveik-int8-*.packed"))) == 1


FAKE = """
    import sys, time
    sys.path.insert(0, {folder!r})
    import protocol
    from protocol import Answer

    class Fake:
        version, reuses, shares = "1", {reuses}, False

        def generate(self, prompts, new_tokens, *, logprobs=False):
            print("chatter on stdout")
            if max(map(len, prompts)) > 2000:
                raise ValueError("too long")
            def answer(ids):
                token = sum(ids) + (len(prompts) > 1)
                begin = time.monotonic()
                times = [begin + 0.001 * step for step in range(new_tokens)]
                return Answer([token] * new_tokens, times, [float(token)] * new_tokens)
            return [answer(ids) for ids in prompts]

        def forget(self):
            pass

    {before}
    protocol.main(lambda setting: Fake())
"""


def talk(
    tmp_path: Path,
    job: dict[str, Any],
    before: str = "",
    reuses: bool = False,
    seconds: float = 30,
) -> Any:
    script = tmp_path / "runner.py"
    text = textwrap.dedent(FAKE)
    script.write_text(text.format(folder=str(PEERS), reuses=reuses, before=before))
    return processes.run_job(
        [sys.executable, str(script)],
        job | SETTING,
        environment=os.environ,
        log=tmp_path / "log",
        seconds=seconds,
    )


def test_columns_come_from_a_runner_that_prints_and_fails_and_lacks(tmp_path: Path) -> None:
    columns = ["start", "decode", "repeat_1024", "prefill_4096", "batch_16"]
    found = talk(tmp_path, {"task": "measure", "columns": columns, "round": 1})
    assert found["decode"]["value"] == pytest.approx(1000, rel=0.01)
    assert len(found["decode"]["all"]) == workload.COLUMNS["decode"].repeat
    assert "unsupported" in found["repeat_1024"]
    assert found["prefill_4096"]["failed"] == "ValueError: too long"
    assert found["batch_16"]["value"] > 0
    assert found["start"]["first_token"] > found["process"]["started"]
    assert found["process"]["peak_bytes"] >= 0
    assert "chatter" in (tmp_path / "log").read_text()


def test_answers_that_depend_on_company_are_counted(tmp_path: Path) -> None:
    found = talk(tmp_path, {"task": "exact"}, reuses=True)["exact"]["changed"]
    assert found["cold"] == found["cached"] == {"tokens": 0, "bits": 0}
    assert found["batch"] == {"tokens": 32, "bits": 32}


def test_a_runner_that_dies_is_an_error_with_its_exit(tmp_path: Path) -> None:
    with pytest.raises(processes.Failed, match=r"exit 3; see .*log"):
        talk(tmp_path, {"task": "exact"}, before="__import__('os')._exit(3)")


def test_a_runner_that_hangs_is_ended(tmp_path: Path) -> None:
    with pytest.raises(processes.Failed, match=r"took too long \(exit -9"):
        talk(tmp_path, {"task": "exact"}, before="time.sleep(25)", seconds=0.5)


@dataclass
class Clockwork:
    """Answer i has its first token i + 1 seconds after the call and one more every second, but
    for the last `missing`. What it says is whether it knows the prompt."""

    missing: int = 0
    known: set[tuple[int, ...]] = field(default_factory=set)
    version: str = "1"
    reuses: bool = True
    shares: bool = True

    def generate(
        self, prompts: list[list[int]], new_tokens: int, *, logprobs: bool = False
    ) -> list[Answer]:
        begin, count = time.monotonic(), new_tokens - self.missing
        answers = []
        for number, ids in enumerate(prompts):
            known = int(tuple(ids) in self.known)
            times = [begin + number + 1 + step for step in range(count)]
            answers.append(Answer([known] * count, times, [1.0] * count))
        self.known |= set(map(tuple, prompts))
        return answers

    def forget(self) -> None:
        self.known.clear()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("ttft_16", 1.0),
        ("prefill_4096", 1.0),
        ("repeat_1024", 1.0),
        ("decode", 1.0),
        ("decode_8k", 1.0),
        ("batch_16", 16 * 64 / (16 + 63)),  # the last of 16 begins in second 16
        ("shared_16", 16 * 32 / (16 + 31)),
        ("decode_8k_8", sum(range(25, 33)) / 32),  # from second 8, when the last one has begun
    ],
)
def test_values_follow_from_the_times_of_the_answers(column: str, value: float) -> None:
    run = workload.Round(Clockwork(), 1000, 0, column)
    assert workload.MEASURES[column](run)[0] == pytest.approx(value, rel=0.01)
    short = workload.Round(Clockwork(missing=1), 1000, 0, column)
    with pytest.raises(RuntimeError, match="tokens came"):
        workload.MEASURES[column](short)


def test_each_experiment_begins_with_what_its_name_says() -> None:
    found = exactness.answers(Clockwork(), Setting(**SETTING))["changed"]
    same, other = {"tokens": 0, "bits": 0}, {"tokens": 32, "bits": 32}
    assert found == {"cold": same, "cached": other, "batch": same}


def test_nothing_outlives_its_runner(tmp_path: Path) -> None:
    started = "import subprocess; child = subprocess.Popen(['sleep', '60'])\n    "
    mark = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))"
    talk(tmp_path, {"task": "exact"}, before=(started + mark).replace("\n    ", "; "))
    child = Path("/proc") / (tmp_path / "pid").read_text()
    for _ in range(100):
        if not child.exists() or "Z" in (child / "stat").read_text().split()[2]:
            return
        time.sleep(0.05)
    pytest.fail("the child still runs")


def test_private_memory_is_summed_over_children() -> None:
    code = "x = bytearray(50_000_000); print('ready', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in processes.descendants(os.getpid())
        assert processes.private_bytes(child.pid) > 50_000_000
        child.kill()
