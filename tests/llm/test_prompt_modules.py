"""Prompt modules through Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from kveik import (
    LLM,
    CacheOptions,
    InvalidRequest,
    Module,
    Parameter,
    Role,
    SamplingParams,
    Schema,
    SchemaPrompt,
    Union,
    Use,
    prompt_module,
)
from kveik.config import LIMITS, EngineConfig
from kveik.engine.engine import Engine
from kveik.errors import NotFound, UnsupportedFeature
from kveik.outputs import RequestOutput

PARAMS = SamplingParams(temperature=0, max_tokens=4, logprobs=3)


@prompt_module(days=8)
def plan(days: str) -> str:
    return f"A trip of {days} in simple words that everybody understands at once."


TRIPS = Schema(
    "trips",
    Role("system", "You plan trips for people who like the sea and good food."),
    Role("user", plan, Union(Module("surf", "waves " * 30), Module("food", "rice " * 30))),
)


@pytest.fixture
def llm(tiny_folder: Callable[..., Path]) -> Iterator[LLM]:
    config = EngineConfig(model=str(tiny_folder(max_position_embeddings=1024)), kv_memory=4 * 2**20)
    with LLM.from_engine(Engine.load(config)) as llm:
        llm.schemas.add(TRIPS)
        yield llm
        llm.engine.check()


def ask(llm: LLM, prompt: Any, **cache: Any) -> RequestOutput:
    return llm.generate(prompt, PARAMS, cache=CacheOptions(**cache))[0]


def bits(output: RequestOutput) -> Any:
    return [(one.token_ids, one.logprobs) for one in output.outputs]


def test_first_use_and_reuse_are_the_same_bits_in_every_way_of_joining(llm: LLM) -> None:
    prompt = SchemaPrompt("trips", (Use("plan", {"days": "3"}), Use("surf")), "Which board?")
    seen = []
    for join in ("independent", "link", "link2", "exact"):
        first = ask(llm, prompt, join=join, cache_salt=join)
        again = ask(llm, prompt, join=join, cache_salt=join)
        assert bits(first) == bits(again)
        assert first.num_approximate_cached_tokens == 0
        assert again.usage is not None
        assert again.usage.computed_prompt_tokens == 1
        assert (again.num_approximate_cached_tokens > 0) == (join != "exact")
        seen.append(bits(first))
    assert len({str(one) for one in seen[::3]}) == 2, "independent and exact differ"


def test_exact_is_the_ordinary_prompt_to_the_bit(llm: LLM) -> None:
    prompt = SchemaPrompt("trips", (Use("plan", {"days": "3"}), Use("surf")), "Which board?")
    exact = ask(llm, prompt, join="exact", cache_salt="a")
    plain = ask(llm, {"prompt_token_ids": exact.prompt_token_ids}, cache_salt="b")
    assert bits(exact) == bits(plain)


def test_markup_and_objects_say_the_same(llm: LLM) -> None:
    markup = {"prompt_markup": '<prompt schema="trips"><food/>Is it hot?</prompt>'}
    told = ask(llm, markup)
    made = ask(llm, SchemaPrompt("trips", (Use("food"),), "Is it hot?"))
    assert told.prompt_token_ids == made.prompt_token_ids
    assert told.prompt is not None
    assert "rice rice" in told.prompt
    assert "Is it hot?" in told.prompt


def test_a_fixed_schema_leaves_gaps_and_members_of_a_union_share_their_start(llm: LLM) -> None:
    fixed = Schema(
        "fixed",
        Role("user", Module("a", "apples " * 5), Union(Module("b", "bees"), Module("c", "c " * 9))),
        placement="fixed",
    )
    llm.schemas.add(fixed)
    engine = llm.engine
    layouts = [
        engine.schemas.layout("", SchemaPrompt("fixed", (Use(name),), "what?")) for name in "bc"
    ]
    first, second = (next(p.seen for p in one.pieces if p.owner) for one in layouts)
    assert first == second > 20
    [text] = {next(p.seen for p in one.pieces if p.kind == "text") for one in layouts}
    assert text > first + 5
    outputs = [ask(llm, SchemaPrompt("fixed", (Use("b"),), "what?")) for _ in range(2)]
    assert bits(outputs[0]) == bits(outputs[1])
    assert outputs[1].num_approximate_cached_tokens > 0


def passage(text: str) -> dict[str, str]:
    return {"type": "text", "text": text, "cache": "module"}


def test_passages_in_any_order_cost_their_question(llm: LLM) -> None:
    texts = [f"Passage {number}: " + f"fact{number} " * 20 for number in range(3)]
    computed = []
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        content = [{"type": "text", "text": "Use: "}, *(passage(texts[k]) for k in order)]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": " Why?"}]}]
        options = CacheOptions(join="independent")
        output = llm.chat(messages, PARAMS, cache=options)[0]
        assert output.usage is not None
        computed.append(output.usage.computed_prompt_tokens)
    assert computed[0] > 150
    assert max(computed[1:]) < 30


def test_a_session_with_modules_goes_on_from_its_recipe(llm: LLM) -> None:
    with llm.session() as session:
        content = [
            {"type": "text", "text": "Use: "},
            {"type": "module", "name": "surf"},
            {"type": "text", "text": "to answer in a friendly way."},
        ]
        session.chat({"role": "user", "content": content}, PARAMS)
        output = session.chat("And then?", PARAMS)
        assert output.usage is not None
        assert output.usage.computed_prompt_tokens < 60
        assert output.num_approximate_cached_tokens > 60


def test_updating_one_module_computes_that_one(llm: LLM) -> None:
    def schema(word: str) -> Schema:
        body = (Module("a", "apples " * 20), Module("b", f"{word} " * 20))
        return Schema("two", Role("user", "First. ", *body))

    prompt = SchemaPrompt("two", (Use("a"), Use("b")), "what?")
    llm.schemas.add(schema("bees"))
    ask(llm, prompt, join="independent")
    llm.schemas.add(schema("cows"))
    output = ask(llm, prompt, join="independent")
    apples = len(llm.engine.tokenizer.encode("apples " * 20, add_special_tokens=False))
    assert apples <= output.num_approximate_cached_tokens < apples + 20


def test_a_module_at_home_behind_the_lead_is_an_exact_prefix(llm: LLM) -> None:
    """Of a chat whose system prompt is a module nothing is approximate."""
    system = {"role": "system", "content": [passage("You help with televisions. " * 5)]}
    for question in ("How wide is it?", "Is it good?"):
        messages = [system, {"role": "user", "content": question}]
        output = llm.chat(messages, PARAMS)[0]
        assert output.num_approximate_cached_tokens == 0
    assert output.num_cached_tokens > 60
    plain = [{"role": "system", "content": "You help with televisions. " * 5}, messages[1]]
    assert llm.chat(plain, PARAMS)[0].num_cached_tokens > 60


def test_schemas_are_named_listed_and_forgotten(llm: LLM) -> None:
    assert llm.schemas.get("trips") == TRIPS
    assert llm.schemas.list() == [TRIPS]
    assert llm.schemas.list(namespace="other") == []
    text = '<schema name="s"><module name="m">x</module></schema>'
    assert llm.schemas.add(text) == Schema("s", Module("m", "x"))
    assert llm.schemas.add("name: y\nbody: [{module: m, body: [x]}]").name == "y"
    assert llm.schemas.add('{"name": "j", "body": [{"module": "m", "body": ["x"]}]}').name == "j"
    llm.schemas.delete("s")
    with pytest.raises(NotFound):
        llm.schemas.get("s")


def test_a_namespace_has_so_many_schemas(llm: LLM) -> None:
    most = int(LIMITS["schema_count"].high)
    for number in range(most - 1):  # one is there
        llm.schemas.add(Schema(f"s{number}", Module("m", "x")))
    llm.schemas.add(Schema("s0", Module("m", "y")))  # in place of another
    with pytest.raises(InvalidRequest, match=f"{most + 1} is outside"):
        llm.schemas.add(Schema("more", Module("m", "x")))
    llm.schemas.add(Schema("more", Module("m", "x")), namespace="other")


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (SchemaPrompt("trips", (Use("paris"),)), {}, "module paris"),
    (SchemaPrompt("trips", (Use("plan", {"days": "many " * 9}),)), {}, "module plan.days"),
    (SchemaPrompt("trips", (Use("surf"), Use("food"))), {}, "module food"),
    ("plain", {"join": "link"}, "join"),
    ({"prompt_markup": 5}, {}, "prompt_markup"),
    (SchemaPrompt("trips", text="x"), {"cached_content": "faq"}, "cached_content"),
    (SchemaPrompt("trips", (Use("surf"),), "x"), {"write": False}, "write"),
]


@pytest.mark.parametrize(("prompt", "cache", "field"), WRONG, ids=lambda one: str(one)[:30])
def test_what_is_wrong_is_named(llm: LLM, prompt: Any, cache: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ask(llm, prompt, **cache)
    assert caught.value.param == field


def test_a_module_where_nothing_is_joined_is_refused(llm: LLM) -> None:
    messages = [{"role": "user", "content": [passage("some text")]}]
    with pytest.raises(InvalidRequest, match="chat requests only") as caught:
        llm.caches.create("faq", messages=messages)
    assert caught.value.param == "messages[0].content[0].cache"


def test_a_way_of_joining_that_is_none() -> None:
    with pytest.raises(InvalidRequest, match="independent"):
        CacheOptions(join="loosely")  # type: ignore[arg-type]


def test_a_module_longer_than_the_context_is_refused_when_it_is_registered(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="context of this model") as caught:
        llm.schemas.add(Schema("long", Module("m", "word " * 1200)))
    assert caught.value.param == "module m"


def test_parameters_are_computed_in_the_prompt(llm: LLM) -> None:
    """Another argument costs the argument and what is computed behind it anyway."""
    prompts = [
        SchemaPrompt("trips", (Use("plan", {"days": days}), Use("surf")), "Go?")
        for days in ("3", "7")
    ]
    for prompt in prompts:
        output = ask(llm, prompt, join="independent")
    waves = len(llm.engine.tokenizer.encode("waves " * 30, add_special_tokens=False))
    assert output.num_approximate_cached_tokens >= waves
    assert Parameter("days", 8) in plan.body


def test_a_model_with_sliding_windows_joins_exactly_and_says_why(tmp_path: Path) -> None:
    folder = tiny.tiny_llama(tmp_path, model_type="mistral", sliding_window=24)
    passage = {"type": "text", "text": "The sea is blue. " * 4, "cache": "module"}
    messages = [{"role": "user", "content": [{"type": "text", "text": "Read: "}, passage]}]
    params = SamplingParams(temperature=0.0, max_tokens=3)
    with LLM(folder, kv_memory="4MiB") as llm:
        with pytest.raises(UnsupportedFeature, match="which keep nothing whole"):
            llm.chat(messages, params)
        [output] = llm.chat(messages, params, cache=CacheOptions(join="exact"))
        whole = [{"role": "user", "content": "Read: " + "The sea is blue. " * 4}]
        assert output.outputs[0].token_ids == llm.chat(whole, params)[0].outputs[0].token_ids


@pytest.mark.parametrize("end", [" ", "\n\n"])
def test_a_last_module_s_white_space_is_trimmed_with_its_message(
    tiny_folder: Callable[..., Path], tmp_path: Path, end: str
) -> None:
    """What docs/PROMPT_MODULES.md says of templates that trim."""
    template = tmp_path / "trims.jinja"
    template.write_text(
        tiny.CHAT_TEMPLATE.replace("message['content']", "(message['content'] | trim)")
    )
    text = "The tower stands over the bay."

    def prompt(llm: LLM, passage: str, *behind: str) -> list[int]:
        parts = [{"type": "text", "text": "Read: "}]
        parts += [{"type": "text", "text": passage, "cache": "module"}]
        parts += [{"type": "text", "text": one} for one in behind]
        messages = [{"role": "user", "content": parts}]
        return llm.chat(messages, SamplingParams(max_tokens=1))[0].prompt_token_ids

    with LLM(tiny_folder(), kv_memory="4MiB", chat_template=str(template)) as llm:
        assert prompt(llm, text + end) == prompt(llm, text)
        assert prompt(llm, text + end, "Why?") != prompt(llm, text, "Why?")
