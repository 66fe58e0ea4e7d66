"""Where endless streams and prompt modules meet, one gives way by name or without being asked."""

from __future__ import annotations

import pytest

from kveik import LLM, CacheOptions, InvalidRequest, SamplingParams

PASSAGE = "The captain lives in the harbour and the doctor in the village. " * 3
MESSAGES = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Read this. "},
            {"type": "text", "text": PASSAGE, "cache": "module"},
            {"type": "text", "text": "Where is the doctor?"},
        ],
    }
]
PLAIN = [{"role": "user", "content": "Where is the doctor?"}]
SHORT = SamplingParams(temperature=0, max_tokens=3)


def test_a_stream_of_modules_is_refused() -> None:
    with LLM() as llm, pytest.raises(InvalidRequest, match="joined from parts") as caught:
        llm.chat(MESSAGES, SHORT, cache=CacheOptions(stream_window="4+124"))
    assert caught.value.param == "stream_window"


def test_a_window_that_nobody_asked_for_leaves_modules_alone() -> None:
    with LLM(stream_window="4+124") as llm:
        llm.chat(MESSAGES, SHORT)
        usage = llm.chat(MESSAGES, SHORT)[0].usage
        assert llm.chat(PLAIN, SHORT)[0].usage.evicted_tokens == 0
    assert usage.approximate_cached_tokens > 0
    assert usage.evicted_tokens is None


def test_an_open_stream_takes_no_modules() -> None:
    with LLM() as llm:
        stays = CacheOptions(session="log", stream_window="4+124")
        llm.chat(PLAIN, SHORT, cache=stays)
        with pytest.raises(InvalidRequest, match="takes no modules"):
            llm.chat(MESSAGES, SHORT, cache=CacheOptions(session="log", resumes=True))
