"""What is read as a trace, and what is refused with the line and the reason."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kveik.errors import ConfigError
from kveik.lab.trace import parse_trace, read_trace


def line(**more: Any) -> str:
    entry = {"timestamp": 0, "input_length": 40, "output_length": 5, "hash_ids": [7, 8, 9]}
    return json.dumps(entry | more)


def test_a_trace_of_mooncake_has_blocks_of_512() -> None:
    lines = [line(input_length=1300), "", line(timestamp=2500, input_length=513, hash_ids=[7, 1])]
    trace = parse_trace(lines, "made")
    assert (trace.name, trace.block_size, trace.prompt_tokens) == ("made", 512, 1813)
    assert [request.blocks for request in trace.requests] == [(0, 1, 2), (0, 3)]
    assert [request.seconds for request in trace.requests] == [0.0, 2.5]
    assert trace.prompt_blocks == 5
    assert trace.first(1).prompt_blocks == 3


def test_requests_are_in_the_order_of_their_arrival() -> None:
    lines = [line(timestamp=9), line(timestamp=3, output_length=1), line(timestamp=9)]
    trace = parse_trace(lines, "made", 16)
    assert [request.seconds for request in trace.requests] == [0.003, 0.009, 0.009]


def test_what_kveik_writes_says_the_size_and_what_the_answer_filled() -> None:
    more = {"block_size": 16, "namespace": "a1", "session": "b2", "answer_ids": [5]}
    request = parse_trace([line(**more)], "made").requests[0]
    assert request.blocks == (0, 1, 2)
    assert request.answer == (3,)
    assert request.sequence(16) == (0, 1, 3)
    assert (request.namespace, request.session) == ("a1", "b2")


def test_the_same_number_in_another_namespace_is_another_block() -> None:
    lines = [line(block_size=16, namespace=name) for name in ("a", "b", "a")]
    first, second, third = (request.blocks for request in parse_trace(lines, "made").requests)
    assert first == third
    assert not set(first) & set(second)


def test_the_partial_block_at_the_end_need_not_be_named() -> None:
    request = parse_trace([line(hash_ids=[7, 8])], "made", 16).requests[0]
    assert (request.blocks, request.input_length) == ((0, 1), 40)


def test_resized_makes_every_block_whole() -> None:
    trace = parse_trace([line(input_length=1300)], "made").resized(16)
    assert (trace.block_size, trace.requests[0].input_length) == (16, 48)
    assert trace.requests[0].output_length == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "line 1: is not JSON"),
        ("[" * 100_000, "line 1: is not JSON"),
        ("[1]", "line 1: is not an object"),
        (line(timestamp=-1), "timestamp -1 is not"),
        (line(timestamp="0"), "timestamp '0' is not"),
        (line(input_length=0), "input_length 0 is not a whole number from 1 on"),
        (line(input_length=True), "input_length True is not"),
        (line(output_length=1.5), "output_length 1.5 is not"),
        (line(hash_ids=["a"]), "hash_ids is not a list of integers"),
        (line(hash_ids=[1]), "has 1 hash_ids for input_length 40; blocks of 16 tokens are 3"),
        (line(hash_ids=[1, 2, 3, 4]), "has 4 hash_ids"),
        (line(answer_ids=[1, 2]), "has 2 answer_ids where prompt and answer need 1"),
        (line(namespace=3), "namespace 3 is not a string"),
        (line(block_size=0), "block_size 0 is not"),
        (line(block_size=16) + "\n" + line(block_size=14), "mixes blocks of 14, 16 tokens"),
        ("", "holds no request"),
    ],
)
def test_what_is_no_trace_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(why)) as refused:
        parse_trace(text.splitlines(), "made", 16)
    assert refused.value.param == "trace"


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.jsonl cannot be read"):
        read_trace(tmp_path / "absent.jsonl")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"bytes\.jsonl cannot be read"):
        read_trace(tmp_path / "bytes.jsonl")
