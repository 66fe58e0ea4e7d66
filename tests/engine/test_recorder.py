"""A trace of live traffic: what it says, what it never says, and that serving does not wait."""

from __future__ import annotations

import errno
import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from toy_model import Faults, ToyModel, toy_engine

from kveik.cache.directive import Directive
from kveik.cache.window import StreamWindow
from kveik.engine import recorder
from kveik.engine.engine import Engine
from kveik.engine.request import Request, RequestFinished, SamplingParams
from kveik.errors import ConfigError
from kveik.lab.replay import replay
from kveik.lab.trace import read_trace

SIZE = 8


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


def recording(path: Path, clock: Clock, **more: Any) -> Engine:
    return toy_engine(block_size=SIZE, record=str(path), clock=clock, **more)


def ask(engine: Engine, prompt: list[int], tokens: int = 1, **more: Any) -> RequestFinished:
    events: list[object] = []
    params = SamplingParams(max_tokens=tokens, temperature=0, **more.pop("params", {}))
    engine.submit(Request(tuple(prompt), params, **more), events.append)
    while engine.step():
        pass
    assert isinstance(events[-1], RequestFinished), events[-1]
    return events[-1]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_has_lengths_and_a_number_for_each_block(path: Path, clock: Clock) -> None:
    engine = recording(path, clock)
    ask(engine, list(range(20)), 6)
    clock.now += 2.5
    ask(engine, [*range(16), 99, 98], 1)
    engine.stop()
    first, second = lines(path)
    assert (first["timestamp"], second["timestamp"]) == (0, 2500)
    assert (first["input_length"], first["output_length"], first["block_size"]) == (20, 6, SIZE)
    assert len(first["hash_ids"]) == 3
    assert len(first["answer_ids"]) == 2  # 25 tokens were computed
    assert first["hash_ids"][:2] == second["hash_ids"][:2]
    assert first["hash_ids"][2] != second["hash_ids"][2]
    assert (first["namespace"], first["session"]) == ("", "")
    assert all(0 <= number < 2**53 for number in first["hash_ids"])


def test_equal_beginnings_of_others_and_of_other_files_have_other_numbers(
    tmp_path: Path, clock: Clock
) -> None:
    found = []
    for name in ("a", "b"):
        engine = recording(tmp_path / name, clock)
        ask(engine, list(range(20)))
        ask(engine, list(range(20)), namespace="acme", directive=Directive(session="anna"))
        ask(engine, list(range(20)), namespace="acme", salt="narrow")
        engine.stop()
        found += lines(tmp_path / name)
    numbers = [number for one in found for number in one["hash_ids"]]
    assert len(set(numbers)) == len(numbers)
    assert len({one["namespace"] for one in found}) == 5
    assert [bool(one["session"]) for one in found] == [False, True, False] * 2


def test_no_text_no_token_and_no_name_is_in_the_file(path: Path, clock: Clock) -> None:
    engine = recording(path, clock)
    prompt = [ord(letter) for letter in "a secret that nobody may read"]
    ask(engine, prompt, namespace="acme", directive=Directive(session="anna"))
    engine.stop()
    text = path.read_text()
    for word in ("secret", "acme", "anna", str(prompt)[1:10]):
        assert word not in text
    known = {*prompt, SIZE, len(prompt), 0, 1}
    assert not known & set(lines(path)[0]["hash_ids"])


def talk(engine: Engine, clock: Clock, whole: bool) -> list[int]:
    """Conversations that go on from their answers, in a pool that is too small for them. Cached
    tokens of every prompt. whole: every turn ends with a whole block."""
    found = []
    talks: dict[int, list[int]] = {one: [one] * 12 for one in range(5)}
    for turn in range(60):
        clock.now += 1.0
        one = (turn * 7 + turn // 5) % 5
        if len(talks[one]) > 130:
            talks[one] = [10 + turn] * 12
        tokens = 1 + -len(talks[one]) % SIZE if whole else 5 + turn % 9
        events: list[Any] = []
        params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
        engine.submit(Request(tuple(talks[one]), params), events.append)
        while engine.step():
            pass
        found.append(events[-1].usage.cached_tokens)
        answer = [token for event in events for token in getattr(event, "token_ids", ())]
        talks[one] += [*answer, *([200 + turn % 50] * (5 + turn % 7))]
    assert engine.stats().cache.evicted_blocks > 20
    engine.stop()
    return found


@pytest.mark.parametrize("policy", ["lru", "arc"])
def test_the_replay_of_a_recording_hits_what_the_engine_hit(
    policy: str, path: Path, clock: Clock
) -> None:
    found = talk(recording(path, clock, blocks=40, policy=policy), clock, whole=True)
    assert replay(read_trace(path), policy, 40).played.found == found
    assert sum(found) > 500


def test_what_ends_in_the_middle_of_a_block_is_within_a_tenth(path: Path, clock: Clock) -> None:
    """A trace does not say that one block goes on where a partial one ended."""
    found = talk(recording(path, clock, blocks=40), clock, whole=False)
    whole = sum(tokens // SIZE for tokens in found)
    played = replay(read_trace(path), "lru", 40)
    assert whole > 100
    assert abs(sum(tokens // SIZE for tokens in played.played.found) - whole) < whole / 10


def test_what_is_no_plain_prompt_is_left_out(path: Path, clock: Clock) -> None:
    engine = recording(path, clock)
    ask(engine, list(range(20)), embed=True)
    ask(engine, list(range(20)), reuse=False)
    ask(engine, list(range(20)), stream=StreamWindow(4, 12))
    ask(engine, list(range(20)), params={"prompt_logprobs": 1})
    ask(engine, list(range(30, 50)), params={"n": 2})
    engine.stop()
    assert [one["input_length"] for one in lines(path)] == [20]


def test_what_was_cut_is_there_and_what_failed_is_not(path: Path, clock: Clock) -> None:
    faults = Faults()
    engine = recording(path, clock, model=ToyModel(faults=faults))
    handle = engine.submit(Request(tuple(range(20)), SamplingParams(max_tokens=9)), lambda _: None)
    engine.step()
    engine.abort(handle)
    while engine.step():
        pass

    def break_it(ids: list[int]) -> None:
        raise RuntimeError("planted")

    faults.forward = break_it
    engine.submit(Request((7,) * 9, SamplingParams(max_tokens=9)), lambda event: None)
    while engine.step():
        pass
    engine.stop()
    assert [(one["input_length"], one["output_length"]) for one in lines(path)] == [(20, 1)]


def test_a_file_that_is_there_is_not_overwritten(path: Path, clock: Clock) -> None:
    path.write_text("mine")
    with pytest.raises(ConfigError, match="is there already; name a new file") as refused:
        recording(path, clock)
    assert refused.value.param == "record"
    assert path.read_text() == "mine"


def test_a_folder_that_is_not_there_is_told_at_the_start(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        recording(tmp_path / "absent" / "trace.jsonl", clock)


class FullDisk:
    """Takes so many bytes, the last of them in the middle of a line."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room
        self.tell, self.fileno, self.close = file.tell, file.fileno, file.close

    def write(self, data: memoryview) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = int(self.file.write(data[: self.room]))
        self.room -= taken
        return taken


def test_a_full_disk_ends_the_trace_with_one_warning_and_serving_goes_on(
    path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    engine = recording(path, clock)
    assert engine._recorder is not None
    ask(engine, list(range(20)))
    whole = _written(path)
    engine._recorder._file = FullDisk(engine._recorder._file, 50)  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING):
        for number in range(5):
            assert ask(engine, [number] * 20).usage.completion_tokens == 1
        engine.stop()
    told = [record.message for record in caplog.records if "record" in record.message]
    assert len(told) == 1
    assert "No space left on device" in told[0]
    assert str(path) in told[0]
    assert path.read_bytes() == whole  # no half line


def _written(path: Path) -> bytes:
    """The first line, once it is there."""
    pause = threading.Event()
    while not (text := path.read_bytes()).endswith(b"\n"):
        pause.wait(0.005)
    return text


def test_nobody_waits_for_a_slow_disk_and_what_is_left_out_is_told_once(
    path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "MOST_WAITING", 3)
    engine = recording(path, clock)
    assert engine._recorder is not None
    gate = threading.Event()
    write = engine._recorder._write

    def slow(line: bytes) -> None:
        gate.wait()
        write(line)

    monkeypatch.setattr(engine._recorder, "_write", slow)
    with caplog.at_level(logging.WARNING):
        for number in range(9):
            ask(engine, [number] * 20)
    assert len([record for record in caplog.records if "left out" in record.message]) == 1
    gate.set()
    engine.stop()
    assert 3 <= len(lines(path)) <= 4


def test_a_trace_has_a_greatest_size(
    path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "MOST_BYTES", 500)
    engine = recording(path, clock)
    with caplog.at_level(logging.WARNING):
        for number in range(9):
            ask(engine, [number] * 20)
        engine.stop()
    assert 200 < path.stat().st_size <= 500
    assert len(lines(path)) > 1
    assert len([one for one in caplog.records if "has reached 500 bytes" in one.message]) == 1


def test_a_threaded_engine_writes_everything_before_it_has_stopped(
    path: Path, clock: Clock
) -> None:
    engine = recording(path, clock)
    engine.start()
    ended = threading.Semaphore(0)

    def listen(event: object) -> None:
        if isinstance(event, RequestFinished):
            ended.release()

    for number in range(20):
        engine.submit(Request((number,) * 20, SamplingParams(max_tokens=3)), listen)
    for _ in range(20):
        assert ended.acquire(timeout=30)
    engine.stop()
    assert len(lines(path)) == 20
    assert not [one for one in threading.enumerate() if one.name == "kveik-recorder"]


def test_without_the_option_nothing_is_recorded(tmp_path: Path) -> None:
    engine = toy_engine(block_size=SIZE)
    ask(engine, list(range(20)))
    engine.stop()
    assert engine._recorder is None
    assert not list(tmp_path.iterdir())
