"""Prompt modules over HTTP: schemas, parts of messages, whole prompts of a schema, errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cache_server import CHAT, TEXT, CacheServer, cache_server, fresh
from server_harness import MODEL

from kveik.config import ServerConfig

ADA, BO = "ada-key", "bo-key"
PML = """
<schema name="trips">
  <user>
    <module name="plan">A plan of <parameter name="days" length="12"/>: {plan}</module>
    <union>
      <module name="surf">{surf}</module>
      <module name="food">{food}</module>
    </union>
  </user>
</schema>
"""
TEXTS = {"plan": "one two three four five", "surf": "waves " * 30, "food": "rice " * 30}


@pytest.fixture(scope="module")
def one(
    tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CacheServer]:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    entries = [{"name": "ada", "key": ADA}, {"name": "bo", "key": BO}]
    path.write_text(json.dumps({"keys": entries}))
    config = ServerConfig(port=0, keys_file=str(path))
    with cache_server(tiny_folder(max_position_embeddings=1024), config, key=ADA) as server:
        server.post("/v1/schemas", {"pml": PML.format(**TEXTS)})
        yield server


def details(server: CacheServer, messages: Any, **fields: Any) -> tuple[int, int]:
    """(cached, approximately cached) tokens of one request."""
    told = server.usage(messages, **fields)["prompt_tokens_details"]
    return told["cached_tokens"], told.get("approximate_cached_tokens", 0)


def module(text: str, **labels: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, "cache": "module", **labels}


def said(*parts: Any, role: str = "user") -> list[dict[str, Any]]:
    content = [{"type": "text", "text": one} if isinstance(one, str) else one for one in parts]
    return [{"role": role, "content": content}]


def error(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["param"]


# --- schemas


def test_a_schema_from_its_making_to_its_end(one: CacheServer) -> None:
    body = {"name": "s", "placement": "fixed", "body": [{"module": "m", "body": ["a", "b"]}]}
    made = one.post("/v1/schemas", {"schema": body})
    assert (made["object"], made["name"], made["placement"]) == ("schema", "s", "fixed")
    assert made["modules"] == [{"name": "m", "cache": True, "parameters": []}]
    assert made["schema"] == body
    assert one.send("GET", "/v1/schemas/s").json() == made
    names = [each["name"] for each in one.send("GET", "/v1/schemas").json()["data"]]
    assert names == ["trips", "s"]
    assert one.send("GET", "/v1/schemas", key=BO).json()["data"] == []
    assert one.send("GET", "/v1/schemas/s", key=BO).status_code == 404
    assert one.send("DELETE", "/v1/schemas/s").json()["deleted"]
    assert one.send("GET", "/v1/schemas/s").status_code == 404
    assert one.send("DELETE", "/v1/schemas/s").status_code == 404


def test_yaml_is_read_as_well(one: CacheServer) -> None:
    made = one.post("/v1/schemas", {"yaml": "name: y\nbody: [{module: m, body: [x]}]"})
    assert made["modules"][0]["name"] == "m"
    one.send("DELETE", "/v1/schemas/y")


REFUSED = [
    ({}, "schema"),
    ({"pml": "<schema name='s'>x</schema>", "yaml": "x"}, "schema"),
    ({"pml": "<!DOCTYPE a><schema name='s'>x</schema>"}, "schema"),
    ({"pml": "<schema name='s'><b/></schema>"}, "<b>"),
    ({"schema": {"name": "s", "body": [{"include": "a"}], "definitions": [
        {"module": "a", "body": [{"include": "a"}]}]}}, "module a"),
    ({"schema": {"name": "s", "body": [{"module": "m", "body": ["word " * 1200]}]}}, "module m"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "element"), REFUSED, ids=lambda one: str(one)[:30])
def test_a_schema_that_is_wrong_names_the_element(
    one: CacheServer, body: dict[str, Any], element: str
) -> None:
    assert error(one.send("POST", "/v1/schemas", body)) == (400, element)


# --- parts of messages


def test_a_text_part_is_a_module_wherever_it_stands(one: CacheServer) -> None:
    first, second, question = fresh(40), fresh(40), fresh(4)
    cold = details(one, said("Read: ", module(first), module(second), question))
    assert cold[1] == 0
    exact, approximate = details(one, said("Read: ", module(second), module(first), fresh(4)))
    both = one.usage(said(first, second))["prompt_tokens"]
    assert approximate > both / 2 > exact


def test_a_module_s_text_is_remembered_for_its_own_namespace_and_salt(one: CacheServer) -> None:
    text = fresh(60)
    remembered = one.server.engine.token_memory

    def new(key: str | None = None, **fields: Any) -> int:
        """Tokens that were remembered instead of encoded."""
        before = remembered.remembered_tokens
        one.usage(said("Read: ", module(text), fresh(4)), key=key, **fields)
        return remembered.remembered_tokens - before

    assert new() == 0
    assert new() > 60
    assert new(BO) == 0
    assert new(cache_salt="pepper") == 0
    assert new(cache_salt="pepper") > 60
    assert new(kveik={"join": "exact"}) > 60


def test_the_second_turn_goes_on_from_the_recipe_of_the_first(one: CacheServer) -> None:
    conversation = said("Read: ", module(fresh(30)), "and answer", module(fresh(30)), fresh(30))
    answer = one.post(
        CHAT,
        {"model": MODEL, "messages": conversation, "max_tokens": 20, "temperature": 0},
    )["choices"][0]["message"]["content"]
    turn = [*conversation, *said(answer, role="assistant"), *said("And now?")]
    usage = one.usage(turn)
    told = usage["prompt_tokens_details"]
    left = usage["prompt_tokens"] - told["cached_tokens"] - told["approximate_cached_tokens"]
    plain = one.usage(said(answer, "And now?"))["prompt_tokens"]
    assert left < plain + 16


def test_a_session_continues_with_its_modules(one: CacheServer) -> None:
    messages = said("Read: ", module(fresh(30)), fresh(30))
    details(one, messages, kveik={"session": "trip"})
    turn = {"session": "trip", "continue": True}
    _, approximate = details(one, said("And now?"), kveik=turn)
    assert approximate > 60


def continued(one: CacheServer, session: str) -> dict[str, Any]:
    """Fields of a turn in a session that begins with a module."""
    details(one, said("Read: ", module(fresh(30)), fresh(30)), kveik={"session": session})
    return {"model": MODEL, "temperature": 0, "kveik": {"session": session, "continue": True}}


def test_responses_tell_what_was_reused_approximately(one: CacheServer) -> None:
    body = continued(one, "responses") | {"input": "And now?", "max_output_tokens": 2}
    usage = one.post("/v1/responses", body)["usage"]
    approximate = usage["input_tokens_details"]["approximate_cached_tokens"]
    assert approximate > 60
    assert usage["kveik"]["approximate_cached_tokens"] == approximate
    assert approximate + usage["input_tokens_details"]["cached_tokens"] < usage["input_tokens"]
    plain = one.post("/v1/responses", {"model": MODEL, "input": "Why?", "max_output_tokens": 2})
    assert "approximate_cached_tokens" not in plain["usage"]["input_tokens_details"]
    assert "approximate_cached_tokens" not in plain["usage"]["kveik"]


def test_anthropic_s_three_numbers_add_up_beside_what_was_reused_approximately(
    one: CacheServer,
) -> None:
    mark = {"type": "ephemeral"}
    body = continued(one, "messages") | {
        "messages": [{"role": "user", "content": "And now?"}],
        "max_tokens": 2,
        "cache_control": mark,
        "stream": True,
    }
    events = [
        json.loads(line[6:])
        for line in one.send("POST", "/v1/messages", body).text.splitlines()
        if line.startswith("data: ")
    ]
    [begun] = [event["message"]["usage"] for event in events if event["type"] == "message_start"]
    [ended] = [event["usage"] for event in events if event["type"] == "message_delta"]
    approximate = ended["kveik"]["approximate_cached_tokens"]
    assert approximate > 60
    parts = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    begun_sum, ended_sum = (sum(usage[name] for name in parts) for usage in (begun, ended))
    assert begun_sum == ended_sum
    assert approximate <= begun["input_tokens"]
    assert approximate <= ended["input_tokens"]


def test_exact_is_the_ordinary_prompt(one: CacheServer) -> None:
    text = fresh(40)
    exact = {"join": "exact"}
    first = one.usage(said("Read: ", module(text), "now"), kveik=exact)
    assert first["prompt_tokens_details"].get("approximate_cached_tokens", 0) == 0
    again = details(one, said("Read: ", module(text), "now"), kveik=exact)
    assert again == (first["prompt_tokens"] - 1, 0)


def test_independent_computes_less_than_link(one: CacheServer) -> None:
    text, question = fresh(60), "now"
    details(one, said("Read: ", module(text), question))
    shares = {
        join: details(one, said(f"Read {join}: ", module(text), question), kveik={"join": join})[1]
        for join in ("independent", "link", "link2", "exact")
    }
    assert shares["independent"] - shares["link"] == 16
    assert shares["link"] - shares["link2"] == 16
    assert shares["exact"] == 0


def test_a_module_of_a_schema_in_a_message(one: CacheServer) -> None:
    def ask(days: str) -> list[dict[str, Any]]:
        plan = {"type": "module", "name": "plan", "args": {"days": days}}
        surf = {"type": "module", "schema": "trips", "name": "surf"}
        return said("Hello. ", plan, surf, "Which board?")

    first = one.post(
        CHAT, {"model": MODEL, "messages": ask("three"), "max_tokens": 1, "temperature": 0}
    )
    _, approximate = details(one, ask("four"))
    surf = one.usage(said(TEXTS["surf"]))["prompt_tokens"]
    assert approximate > surf / 2
    assert first["usage"]["prompt_tokens"] > surf
    _, named = details(one, said("Hi. ", {"type": "module", "name": "trips/surf"}, "now"))
    assert named > surf / 2


def test_a_document_of_a_module_takes_its_recipes_along(one: CacheServer) -> None:
    text = fresh(40)
    messages = said("Read: ", module(text, document="book@1"), fresh(30))
    details(one, messages)
    assert details(one, messages)[1] > 40
    one.post("/v1/documents/book", {"version": "2"})
    assert details(one, messages)[1] == 0


def test_tags_of_the_request_are_those_of_its_modules(one: CacheServer) -> None:
    messages = said("Read: ", module(fresh(40)), fresh(30))
    details(one, messages, kveik={"tags": ["news"]})
    assert details(one, messages)[1] > 40
    one.post("/v1/cache/invalidate", {"tag": "news"})
    assert details(one, messages)[1] == 0


def test_modules_live_as_long_as_the_request_says(one: CacheServer) -> None:
    messages = said("Read: ", module(fresh(40)), fresh(30))
    details(one, messages, kveik={"ttl": "5m"})
    one.clock.advance(200)
    assert details(one, messages)[1] > 40
    one.clock.advance(301)
    exact, approximate = details(one, messages)
    assert approximate == 0
    assert exact < 16  # the lead, which others have used


PARTS = [
    ({"type": "module", "name": "paris"}, "module paris"),
    ({"type": "module", "name": "plan", "args": {"x": "y"}}, "module plan.x"),
    ({"type": "module", "name": "plan", "args": {"days": "many " * 40}}, "module plan.days"),
    ({"type": "module", "name": "plan", "text": "x"}, "messages[0].content[0].text"),
    ({"type": "module", "name": 5}, "messages[0].content[0].name"),
    ({"type": "module", "name": "plan", "args": {"days": 5}}, "messages[0].content[0].args"),
    ({"type": "text", "text": "x", "cache": "yes"}, "messages[0].content[0].cache"),
    (module(" "), "messages[0].content[0]"),
]


@pytest.mark.parametrize(("part", "element"), PARTS, ids=lambda one: str(one)[:40])
def test_a_part_that_is_wrong_is_named(one: CacheServer, part: Any, element: str) -> None:
    body = {"model": MODEL, "messages": said(part), "max_tokens": 1}
    assert error(one.send("POST", CHAT, body)) == (400, element)


def test_two_members_of_a_union_do_not_stand_in_one_message(one: CacheServer) -> None:
    surf, food = ({"type": "module", "name": name} for name in ("surf", "food"))
    body = {"model": MODEL, "messages": said(surf, food), "max_tokens": 1}
    assert error(one.send("POST", CHAT, body)) == (400, "module food")
    later = [*said(surf), *said("Fine.", role="assistant"), *said(food)]
    assert one.usage(later)["prompt_tokens"] > 100


def test_fields_about_modules_are_never_without_effect(one: CacheServer) -> None:
    plain = {"model": MODEL, "messages": said("x"), "max_tokens": 1}
    assert error(one.send("POST", CHAT, {**plain, "kveik": {"join": "link"}}))[1] == "kveik.join"
    for markup in (True, False):
        body = {**plain, "kveik": {"markup": markup}}
        assert error(one.send("POST", CHAT, body))[1] == "kveik.markup"
    text = {"model": MODEL, "prompt": "x", "max_tokens": 1}
    assert error(one.send("POST", TEXT, {**text, "kveik": {"join": "exact"}}))[1] == "kveik.join"
    modular = {**plain, "messages": said("Read: ", module(fresh(20)))}
    assert error(one.send("POST", CHAT, {**modular, "kveik": {"write": False}}))[1] == "write"
    assert error(one.send("POST", CHAT, {**modular, "prompt_logprobs": 1}))[1] == "prompt_logprobs"
    marked = said({"type": "text", "text": "x", "prompt_cache_breakpoint": {"mode": "explicit"}})
    marked += said(module(fresh(20)))
    chosen = {**plain, "messages": marked, "prompt_cache_options": {"mode": "explicit"}}
    assert error(one.send("POST", CHAT, chosen)) == (400, "join")
    tokens = {"messages": said(module("x"))}
    assert one.send("POST", "/tokenize", tokens).status_code == 400


# --- whole prompts


def test_a_whole_prompt_of_a_schema(one: CacheServer) -> None:
    def ask(days: str, question: str) -> tuple[int, int]:
        text = f'<prompt schema="trips"><plan days="{days}"/><surf/>{question}</prompt>'
        return details(one, text, kveik={"markup": True})

    ask("three", "where?")
    exact, approximate = ask("nine", "which board?")
    surf = one.usage(said(TEXTS["surf"]))["prompt_tokens"]
    assert approximate > surf / 2
    assert exact > 0  # up to the argument the prompt is an ordinary one


WHOLE = [
    ('<prompt schema="paris"/>', 404, "schema"),
    ('<prompt schema="trips"><surf/><food/></prompt>', 400, "module food"),
    ('<prompt schema="trips"><plan days="' + "day " * 40 + '"/></prompt>', 400, "module plan.days"),
    ('<!DOCTYPE x><prompt schema="trips"/>', 400, "prompt"),
    ("plain text", 400, "prompt"),
]


@pytest.mark.parametrize(("prompt", "status", "element"), WHOLE, ids=lambda one: str(one)[:30])
def test_a_whole_prompt_that_is_wrong(
    one: CacheServer, prompt: str, status: int, element: str
) -> None:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 1, "kveik": {"markup": True}}
    assert error(one.send("POST", TEXT, body)) == (status, element)
