"""Service times out of files and of what `kveik bench --json` prints."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from kveik.errors import ConfigError
from kveik.lab.service import ServiceTimes, read_service

TRUTH = ServiceTimes(0.05, 0.002, 1e-6, 0.04, 0.004, 8)


def bench(path: Path, prompt: int, batch: int = 8, output: int = 33) -> Path:
    """What bench would print of a machine that takes exactly these times."""
    cold = TRUTH.prefill(0, prompt)
    # The fixed part is told from a warm prompt, whose one token is in it.
    warm = TRUTH.prefill_seconds
    cold -= TRUTH.prefill_token_seconds + TRUTH.prefill_pair_seconds * (prompt + 1) / 2
    facts = {
        "kveik": "0.1",
        "prompt": prompt,
        "output": output,
        "batch": batch,
        "repeat": 3,
        "ttft_cold_seconds": cold,
        "ttft_warm_seconds": warm,
        "decode_tokens_per_second": output / (warm + (output - 1) * TRUTH.step(1)),
        "batch_tokens_per_second": batch
        * output
        / (batch * cold + (output - 1) * TRUTH.step(batch)),
    }
    path.write_text(json.dumps(facts))
    return path


def test_two_lengths_of_bench_give_every_time_back(tmp_path: Path) -> None:
    files = [bench(tmp_path / f"{prompt}.json", prompt) for prompt in (2048, 256)]
    assert asdict(read_service(files)) == pytest.approx(asdict(TRUTH))


def test_one_length_cannot_tell_tokens_from_pairs(tmp_path: Path) -> None:
    read = read_service([bench(tmp_path / "one.json", 256)])
    assert read.prefill_pair_seconds == 0.0
    assert read.prefill_token_seconds == pytest.approx(0.002 + 1e-6 * 257 / 2)
    assert read.step(1) == pytest.approx(TRUTH.step(1))
    assert read.step(8) == pytest.approx(TRUTH.step(8))


def test_a_file_of_times_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_text(json.dumps(asdict(TRUTH)))
    assert read_service([path]) == TRUTH


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "is not an object with times"),
        (json.dumps({**asdict(TRUTH), "steps": 1}), "knows no steps; its fields are prefill_sec"),
        (json.dumps({**asdict(TRUTH), "step_seconds": -1}), "step_seconds -1 is not a number from"),
        (json.dumps({**asdict(TRUTH), "step_seconds": True}), "step_seconds True is not a number"),
        (json.dumps({**asdict(TRUTH), "batch": 0}), "batch 0 is not a whole number from 1 on"),
        (json.dumps({"ttft_cold_seconds": 1}), "prompt None is not a whole number from 2 on"),
    ],
)
def test_what_cannot_be_read_names_the_option_the_file_and_the_field(
    tmp_path: Path, text: str, says: str
) -> None:
    path = tmp_path / "times.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_service([path])
    assert caught.value.message.startswith(f"--service: {path} ")
    assert says in caught.value.message


def test_a_bench_whose_warm_prompt_is_slower_is_refused(tmp_path: Path) -> None:
    path = bench(tmp_path / "one.json", 256)
    facts = json.loads(path.read_text()) | {"ttft_cold_seconds": 0.01}
    path.write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match="measure longer prompts"):
        read_service([path])
