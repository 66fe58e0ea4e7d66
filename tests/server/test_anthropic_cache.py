"""cache_control of POST /v1/messages through the real client: what is written, read and forgotten.

The engine's clock is a number of the test, so that five minutes and an hour pass at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import pytest
from server_harness import MODEL, RunningServer, running, tiny_engine

from kveik.config import ServerConfig

FIVE_MINUTES = {"type": "ephemeral"}
AN_HOUR = {"type": "ephemeral", "ttl": "1h"}
HANDBOOK = "The handbook of the sea begins with the wind and ends with the shore. " * 2
CHAPTER = "Chapter one: knots, ropes and how to tie them in the dark of the night. "


@dataclass
class Clock:
    """Seconds as the engine sees them."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Sea:
    """A server with two keys whose time the test moves."""

    server: RunningServer
    clock: Clock

    def ask(self, key: str = "alice", **fields: Any) -> anthropic.types.Message:
        known = {"system", "messages", "cache_control", "max_tokens"}
        asked: dict[str, Any] = {"model": MODEL, "max_tokens": 4, "messages": question("Why?")}
        asked |= {name: value for name, value in fields.items() if name in known}
        extra = {name: value for name, value in fields.items() if name not in known}
        with self.server.anthropic(key) as client:
            return client.messages.create(**asked, extra_body={"temperature": 0, **extra})

    def position(self, system: list[dict[str, Any]]) -> int:
        """Tokens up to the end of the last system block: what two questions share, less what the
        template puts between."""
        ids = self.server.engine.tokenizer.encode_chat_with_spans(
            [{"role": "system", "content": system}], [(0, len(system) - 1)]
        )
        return ids[1][0][1]


def question(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def block(text: str, mark: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "text", "text": text, **({"cache_control": mark} if mark else {})}


def figures(message: anthropic.types.Message) -> tuple[int, int, int]:
    """(read, written, the rest)"""
    usage = message.usage
    assert usage.cache_read_input_tokens is not None
    assert usage.cache_creation_input_tokens is not None
    return usage.cache_read_input_tokens, usage.cache_creation_input_tokens, usage.input_tokens


@pytest.fixture
def sea(tiny_folder: Callable[..., Path]) -> Iterator[Sea]:
    clock = Clock()
    engine = tiny_engine(tiny_folder(), clock=clock)
    config = ServerConfig(port=0, api_keys=("alice", "bob"), admin_keys=("admin",))
    with running(engine, config) as server:
        yield Sea(server, clock)
    engine.stop()
    engine.check()


MARKED = [block(HANDBOOK, FIVE_MINUTES)]


def test_first_written_then_read(sea: Sea) -> None:
    end = sea.position(MARKED)
    first = sea.ask(system=MARKED)
    read, written, rest = figures(first)
    assert (read, written) == (0, end)
    assert rest > 0
    second = figures(sea.ask(system=MARKED, messages=question("When?")))
    assert second[0] >= end
    assert second[1] == 0
    with sea.server.anthropic("alice") as client:
        counted = client.messages.count_tokens(
            model=MODEL, system=MARKED, messages=question("Why?")
        )
    assert read + written + rest == counted.input_tokens


def test_warmed_without_an_answer(sea: Sea) -> None:
    end = sea.position(MARKED)
    warmed = sea.ask(system=MARKED, max_tokens=0)
    assert warmed.content == []
    assert warmed.stop_reason == "max_tokens"
    assert warmed.usage.output_tokens == 0
    assert figures(warmed)[:2] == (0, end)
    asked = sea.ask(system=MARKED, messages=question("When?"))
    assert figures(asked)[0] >= end
    assert figures(asked)[1] == 0
    cold = sea.ask("bob", system=MARKED, messages=question("When?"))
    assert [one.model_dump() for one in asked.content] == [one.model_dump() for one in cold.content]


def test_a_warm_stream_has_no_block(sea: Sea) -> None:
    with sea.server.anthropic("alice") as client:
        events = list(
            client.messages.create(
                model=MODEL, max_tokens=0, system=MARKED, messages=question("Why?"), stream=True
            )
        )
    assert [event.type for event in events] == ["message_start", "message_delta", "message_stop"]


def test_without_a_breakpoint_nothing_is_promised_yet_read(sea: Sea) -> None:
    first = figures(sea.ask(system=[block(HANDBOOK)]))
    assert first[:2] == (0, 0)
    again = figures(sea.ask(system=[block(HANDBOOK)]))
    assert again[0] == first[2] - 1
    assert again[1:] == (0, 1)


def test_what_is_behind_the_last_breakpoint_is_not_counted_as_written(sea: Sea) -> None:
    system = [block(HANDBOOK, FIVE_MINUTES), block(CHAPTER)]
    read, written, rest = figures(sea.ask(system=system))
    assert (read, written) == (0, sea.position(MARKED))
    assert rest >= sea.position(system) - written
    again = figures(sea.ask(system=system))
    assert again[0] == written + rest - 1  # it was cached all the same


def test_written_by_lifetime(sea: Sea) -> None:
    system = [block(HANDBOOK, AN_HOUR), block(CHAPTER, FIVE_MINUTES)]
    usage = sea.ask(system=system).usage
    hour, both = sea.position(system[:1]), sea.position(system)
    assert usage.cache_creation is not None
    assert usage.cache_creation.ephemeral_1h_input_tokens == hour
    assert usage.cache_creation.ephemeral_5m_input_tokens == both - hour
    assert usage.cache_creation_input_tokens == both


def test_a_longer_prompt_writes_what_is_new(sea: Sea) -> None:
    sea.ask(system=MARKED)
    system = [block(HANDBOOK), block(CHAPTER, FIVE_MINUTES)]
    read, written, _ = figures(sea.ask(system=system))
    assert read >= sea.position(MARKED)
    assert read + written == sea.position(system)


def test_after_five_minutes_it_is_gone(sea: Sea) -> None:
    sea.ask(system=MARKED)
    sea.clock.now += 301
    read, written, _ = figures(sea.ask(system=MARKED, messages=question("When?")))
    assert (read, written) == (0, sea.position(MARKED))


def test_a_use_begins_the_five_minutes_anew(sea: Sea) -> None:
    sea.ask(system=MARKED)
    for number in range(4):
        sea.clock.now += 200
        read, written, _ = figures(sea.ask(system=MARKED, messages=question(f"Why {number}?")))
        assert read >= sea.position(MARKED)
        assert written == 0
    sea.clock.now += 301
    assert figures(sea.ask(system=MARKED))[0] == 0


def test_an_hour_outlives_five_minutes(sea: Sea) -> None:
    system = [block(HANDBOOK, AN_HOUR), block(CHAPTER, FIVE_MINUTES)]
    sea.ask(system=system)
    sea.clock.now += 301
    read, written, _ = figures(sea.ask(system=system))
    hour, both = sea.position(system[:1]), sea.position(system)
    block_size = 16
    assert hour - block_size < read <= hour + block_size  # lifetimes belong to blocks of 16 tokens
    assert read + written == both
    sea.clock.now += 3601
    assert figures(sea.ask(system=system))[0] == 0


def test_plain_use_lives_on_behind_an_hour(sea: Sea) -> None:
    system = [block(HANDBOOK, AN_HOUR)]
    first = figures(sea.ask(system=system))
    sea.clock.now += 301
    assert figures(sea.ask(system=system))[0] == sum(first) - 1


def test_the_whole_prompt_at_the_top_level(sea: Sea) -> None:
    """cache_control at the top level marks the last block."""
    read, written, rest = figures(sea.ask(system=HANDBOOK, cache_control=FIVE_MINUTES))
    own = figures(sea.ask("bob", system=HANDBOOK, messages=[
        {"role": "user", "content": [block("Why?", FIVE_MINUTES)]}
    ]))  # fmt: skip
    assert (read, written, rest) == own
    assert written > sea.position(MARKED)
    assert 0 < rest < 16  # the template's words behind the last block


def test_growing_conversation_with_a_moving_breakpoint(sea: Sea) -> None:
    turns: list[Any] = question("Tell me of knots.")
    before = 0
    for number in range(3):
        message = sea.ask(system=HANDBOOK, messages=turns, cache_control=FIVE_MINUTES)
        read, written, _ = figures(message)
        assert read >= before
        assert written > 0
        before = read + written
        turns = [*turns, {"role": "assistant", "content": message.content or "..."},
                 {"role": "user", "content": f"And {number}?"}]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"system": [block(text, FIVE_MINUTES) for text in "abcde"]}, "4"),
        (
            {
                "system": [block(text, FIVE_MINUTES) for text in "abcd"],
                "cache_control": FIVE_MINUTES,
            },
            "4",
        ),
        (
            {
                "system": [block(text, FIVE_MINUTES) for text in "abc"],
                "messages": [
                    {"role": "user", "content": [block(text, FIVE_MINUTES) for text in "de"]}
                ],
            },
            "4",
        ),
        ({"system": [block("a", FIVE_MINUTES), block("b", AN_HOUR)]}, "longer-lived"),
        ({"system": MARKED, "cache_control": AN_HOUR}, "longer-lived"),
        (
            {
                "messages": [{"role": "user", "content": [block("a", AN_HOUR)]}],
                "cache_control": FIVE_MINUTES,
            },
            "contradicts",
        ),
        ({"system": [block("a", {"type": "ephemeral", "ttl": "3h"})]}, "ephemeral"),
        ({"system": [block("a", {"type": "ephemeral", "scope": "all"})]}, "ephemeral"),
        ({"system": MARKED, "kveik": {"ttl": "10m"}}, "contradicts"),
        ({"kveik": {"context": "repo"}}, "kveik.session"),
        ({"cached_content": "no-such-cache"}, "no-such-cache"),
    ],
)
def test_breakpoints_that_are_refused(sea: Sea, fields: dict[str, Any], why: str) -> None:
    with pytest.raises(anthropic.APIStatusError) as caught:
        sea.ask(**fields)
    assert caught.value.status_code in (400, 404)
    assert why in (caught.value.api_message or "")


def test_four_breakpoints(sea: Sea) -> None:
    system = [block(HANDBOOK, AN_HOUR), *(block(text, FIVE_MINUTES) for text in ("b ", "c ", "d "))]
    usage = sea.ask(system=system).usage
    assert usage.cache_creation_input_tokens == sea.position(system)
    same = {"role": "user", "content": [block("Why?", FIVE_MINUTES)]}
    sea.ask(system=system[:3], messages=[same], cache_control=FIVE_MINUTES)  # says it twice


def test_keys_do_not_share(sea: Sea) -> None:
    sea.ask("alice", system=MARKED)
    assert figures(sea.ask("bob", system=MARKED))[0] == 0
    assert figures(sea.ask("alice", system=MARKED))[0] > 0


def test_a_salt_divides_one_key(sea: Sea) -> None:
    sea.ask(system=MARKED, cache_salt="a")
    assert figures(sea.ask(system=MARKED, cache_salt="b"))[0] == 0
    assert figures(sea.ask(system=MARKED, cache_salt="a"))[0] > 0


def test_a_request_that_writes_nothing(sea: Sea) -> None:
    read, written, rest = figures(sea.ask(system=MARKED, kveik={"write": False}))
    assert (read, written) == (0, 0)
    assert figures(sea.ask(system=MARKED))[0] == 0
    assert rest > sea.position(MARKED)


def test_the_cache_is_shared_with_chat_completions(sea: Sea) -> None:
    sea.ask(system=MARKED)
    with sea.server.openai("alice") as other:
        chat = other.chat.completions.create(
            model=MODEL,
            messages=[
                {"role": "system", "content": HANDBOOK},
                {"role": "user", "content": "Why?"},
            ],
            max_tokens=4,
        )
    assert chat.usage is not None
    assert chat.usage.prompt_tokens_details is not None
    assert chat.usage.prompt_tokens_details.cached_tokens == chat.usage.prompt_tokens - 1


def test_in_a_chat_the_longest_lifetime_behind_holds(sea: Sea) -> None:
    """OpenAI's API has no order of lifetimes: what lies before several lives as long as the last
    of them that matters."""
    parts: list[Any] = [block(HANDBOOK, FIVE_MINUTES), block(CHAPTER, AN_HOUR)]
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "system", "content": parts}, *question("Why?")],
        "max_tokens": 4,
    }
    with sea.server.openai("alice") as client:
        client.chat.completions.create(**asked)
        sea.clock.now += 301
        usage = client.chat.completions.create(**asked).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1


def test_a_stream_tells_the_same_figures(sea: Sea) -> None:
    system = [block(HANDBOOK, AN_HOUR), block(CHAPTER, FIVE_MINUTES)]
    asked: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 4,
        "system": system,
        "messages": question("Why?"),
    }
    with sea.server.anthropic("alice") as one, sea.server.anthropic("bob") as other:
        for _ in range(2):
            whole = one.messages.create(**asked)
            with other.messages.stream(**asked) as stream:
                final = stream.get_final_message()
            assert figures(final) == figures(whole)
            assert final.usage.cache_creation == whole.usage.cache_creation


def test_what_the_cache_saved(sea: Sea) -> None:
    sea.ask(system=MARKED)
    usage = sea.ask(system=MARKED).usage.to_dict()
    saved: Any = usage["kveik"]
    assert saved["token_pairs"]["old_old"] > 0
    with sea.server.anthropic("alice") as client:
        stream = client.messages.create(
            model=MODEL, max_tokens=4, system=MARKED, messages=question("Why?"), stream=True
        )
        told: Any = [event.usage.to_dict() for event in stream if event.type == "message_delta"]
    assert told[0]["kveik"]["token_pairs"] == saved["token_pairs"]


def test_the_native_object(sea: Sea) -> None:
    """A session ends, and what only it computed is gone."""
    sea.ask(system=MARKED, kveik={"session": "s1", "tags": ["sea"]})
    assert figures(sea.ask(system=MARKED, kveik={"session": "s1"}))[0] > 0
    with sea.server.http(headers={"x-api-key": "alice"}) as http:
        assert http.delete("/v1/sessions/s1").status_code == 200
    assert figures(sea.ask(system=MARKED))[0] == 0


def test_a_session_is_continued(sea: Sea) -> None:
    """Only the new turn is sent; the session knows what came before."""
    first = sea.ask(system=HANDBOOK, kveik={"session": "s1"})
    second = sea.ask(messages=question("And?"), kveik={"session": "s1", "continue": True})
    assert sum(figures(second)) > sum(figures(first)) + first.usage.output_tokens
    assert figures(second)[0] >= sum(figures(first))


def test_a_new_version_of_a_document(sea: Sea) -> None:
    system = [{**block(HANDBOOK, AN_HOUR), "document": "handbook@1"}]
    sea.ask(system=system)
    assert figures(sea.ask(system=system))[0] > 0
    with sea.server.http(headers={"x-api-key": "alice"}) as http:
        receipt = http.post("/v1/documents/handbook", json={"version": "2"})
    assert receipt.status_code == 200
    assert figures(sea.ask(system=system))[0] < 16


def test_a_named_cache_comes_before_the_messages(sea: Sea) -> None:
    body = {
        "model": MODEL,
        "name": "handbook",
        "messages": [{"role": "system", "content": HANDBOOK}],
        "wait": True,
    }
    with sea.server.http(headers={"x-api-key": "alice"}) as http:
        assert http.post("/v1/caches", json=body).status_code in (200, 201)
    named = sea.ask(cached_content="handbook", cache_control=FIVE_MINUTES)
    read, written, rest = figures(named)
    assert read >= sea.position(MARKED)
    assert written > 0
    plain = sea.ask("bob", system=HANDBOOK)
    assert read + written + rest == sum(figures(plain))
    assert named.content == plain.content


def test_a_miss_is_explained(sea: Sea) -> None:
    sea.ask(system="The time is 10:31:07. " + HANDBOOK)
    later = sea.ask(system="The time is 10:31:09. " + HANDBOOK, kveik={"explain": True})
    told: Any = later.usage.to_dict()["kveik"]
    assert told["explanation"]["advice"]
    assert "explanation" not in sea.ask(system=HANDBOOK).usage.to_dict()["kveik"]  # type: ignore[operator]
