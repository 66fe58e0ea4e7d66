"""The managed cache through Python: named caches, sessions, time to live, invalidation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kveik import LLM, CacheOptions, InvalidRequest, KveikError, SamplingParams
from kveik.config import EngineConfig
from kveik.engine.engine import Engine
from kveik.errors import Conflict, NotFound

PARAMS = SamplingParams(temperature=0, max_tokens=2)
TEXT = "Every television of this shop has a warranty of two years from the day of purchase. "
SYSTEM = {"role": "system", "content": TEXT}


@dataclass
class HandClock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def llm(tiny_folder: Callable[..., Path], clock: HandClock) -> Iterator[LLM]:
    config = EngineConfig(model=str(tiny_folder()), kv_memory=4 * 2**20, block_size=8)
    with LLM.from_engine(Engine.load(config, clock=clock)) as llm:
        yield llm
        llm.engine.check()


def cached(llm: LLM, prompt: str = TEXT, **fields: object) -> int:
    """Tokens of `prompt` that the cache serves now; leaves nothing behind."""
    options = CacheOptions(write=False, **fields)  # type: ignore[arg-type]
    return llm.generate(prompt, PARAMS, cache=options)[0].num_cached_tokens


def used_blocks(llm: LLM) -> int:
    stats = llm.cache.stats()
    return sum(stats.total_blocks) - sum(stats.free_blocks)


# ---- options of a call


def test_write_false_reads_and_leaves_nothing(llm: LLM) -> None:
    assert cached(llm) == 0
    assert cached(llm) == 0
    llm.generate(TEXT, PARAMS)
    assert cached(llm) > 0


def test_a_salt_shares_with_its_like_only(llm: LLM) -> None:
    llm.generate(TEXT, PARAMS, cache=CacheOptions(cache_salt="one"))
    assert cached(llm) == 0
    assert cached(llm, cache_salt="two") == 0
    assert cached(llm, cache_salt="one") > 0


def test_ttl_delete_is_gone_at_its_deadline(llm: LLM, clock: HandClock) -> None:
    llm.generate(TEXT, PARAMS, cache=CacheOptions(ttl="5m"))
    clock.now += 299
    assert cached(llm) > 0
    clock.now += 299  # the read was a use
    assert cached(llm) > 0
    clock.now += 301
    assert cached(llm) == 0
    llm.cache.expire()
    assert used_blocks(llm) == 0


def test_ttl_from_the_first_use(llm: LLM, clock: HandClock) -> None:
    llm.generate(TEXT, PARAMS, cache=CacheOptions(ttl="5m", clock="first_use"))
    clock.now += 299
    assert cached(llm) > 0
    clock.now += 2
    assert cached(llm) == 0


def test_ttl_demote_stays_usable(llm: LLM, clock: HandClock) -> None:
    llm.generate(TEXT, PARAMS, cache=CacheOptions(ttl="5m", ttl_mode="demote"))
    clock.now += 301
    assert cached(llm) > 0


# ---- invalidation


def test_invalidate_by_tag(llm: LLM) -> None:
    llm.generate(TEXT, PARAMS, cache=CacheOptions(tags=("news",)))
    llm.generate("Another text altogether, about cooking.", PARAMS)
    assert llm.invalidate(tag="sport").blocks == 0
    assert cached(llm) > 0
    receipt = llm.invalidate(tag="news")
    assert receipt.blocks + receipt.deferred > 0
    assert cached(llm) <= 1  # the token with which every text begins
    assert cached(llm, "Another text altogether, about cooking.") > 1


def test_invalidate_by_prefix_text_and_ids(llm: LLM) -> None:
    for prefix in (TEXT[:40], llm.get_tokenizer().encode(TEXT[:40])):
        llm.generate(TEXT, PARAMS)
        assert cached(llm) > 0
        llm.invalidate(prefix=prefix)
        assert cached(llm) < len(llm.get_tokenizer().encode(TEXT[:40]))


def test_invalidate_by_age(llm: LLM, clock: HandClock) -> None:
    llm.generate(TEXT, PARAMS)
    clock.now += 3600
    llm.generate("Something new about the moon.", PARAMS)
    llm.invalidate(older_than="30m")
    assert cached(llm, "Something new about the moon.") > 1
    assert cached(llm) <= 1


def test_invalidate_keeps_to_its_namespace(llm: LLM) -> None:
    options = CacheOptions(tags=("news",), namespace="north")
    llm.generate(TEXT, PARAMS, cache=options)
    llm.invalidate(tag="news")
    assert cached(llm, namespace="north") > 0
    llm.invalidate(tag="news", namespace="north")
    assert cached(llm, namespace="north") == 0


def test_invalidate_that_names_nothing(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="selects nothing"):
        llm.invalidate()


def test_a_new_version_of_a_document(llm: LLM) -> None:
    def ask(version: str) -> int:
        part = {"type": "text", "text": TEXT, "document": f"handbook@{version}"}
        messages = [{"role": "user", "content": [part]}]
        return llm.chat(messages, PARAMS)[0].num_cached_tokens

    ask("1")
    other = [{"role": "user", "content": "What is for dinner tonight, and who is cooking?"}]
    llm.chat(other, PARAMS)
    assert ask("1") > 30
    llm.document("handbook", version="1")
    assert ask("1") > 30
    llm.document("handbook", version="2")
    assert ask("2") < 30
    assert llm.chat(other, PARAMS)[0].num_cached_tokens > 20


# ---- sessions


def test_a_session_sends_what_is_new_and_keeps_the_rest(llm: LLM) -> None:
    with llm.session(system=TEXT) as session:
        first = session.chat("How long is the warranty?", PARAMS)
        second = session.chat("And of the wall bracket?", PARAMS)
        assert [message["role"] for message in session.messages] == [
            "system",
            *["user", "assistant"] * 2,
        ]
    assert first.outputs[0].text == session.messages[2]["content"]
    assert second.num_cached_tokens >= len(first.prompt_token_ids) - 8


def test_the_end_of_a_session_frees_what_it_alone_computed(llm: LLM) -> None:
    llm.chat([SYSTEM, {"role": "user", "content": "Hello"}], PARAMS)
    shared = used_blocks(llm)
    with llm.session("s1", system=TEXT) as session:
        session.chat("How long is the warranty of the big one?", PARAMS)
        assert used_blocks(llm) > shared
        assert [one.session for one in llm.cache.sessions()] == ["s1"]
    assert used_blocks(llm) == shared
    assert llm.cache.sessions() == []


def test_a_session_that_ended_is_over(llm: LLM) -> None:
    with llm.session() as session:
        session.chat("Hello", PARAMS)
    assert session.end() is None
    with pytest.raises(InvalidRequest, match="has ended"):
        session.chat("Hello again", PARAMS)
    assert llm.end_session(session.id) is None


def test_a_streamed_turn_counts_when_it_was_read(llm: LLM) -> None:
    with llm.session() as session:
        text = "".join(delta.text for delta in session.stream("Hello", PARAMS))
        assert session.messages[-1] == {"role": "assistant", "content": text}
        deltas = session.stream("More", SamplingParams(temperature=0, max_tokens=20))
        next(deltas)
        deltas.close()  # type: ignore[attr-defined]
        assert len(session.messages) == 2
        session.chat({"role": "user", "content": "Again"}, PARAMS)
        assert len(session.messages) == 4


def test_a_turn_that_fails_is_not_said(llm: LLM) -> None:
    with llm.session() as session:
        with pytest.raises(InvalidRequest):
            session.chat({"role": "no role at all", "content": "x"}, PARAMS)
        assert session.messages == []


def test_a_session_switches_its_context(llm: LLM) -> None:
    with llm.session(cache=CacheOptions(session="coder", relevance="delete")) as session:
        session.chat("This is the code of repo a: " + TEXT, PARAMS, context="repo-a")
        assert session.id == "coder"
        claims = {claim for view in llm.cache.listing() for claim in view.claims}
        assert "session:coder" in claims


# ---- named caches


def test_a_named_cache_serves_what_follows_it(llm: LLM) -> None:
    cache = llm.caches.create("faq", messages=[SYSTEM], tags=("shop",), ttl="1h")
    assert (cache.name, cache.status, cache.tags) == ("faq", "ready", ("shop",))
    assert cache.tokens > 20
    question = [{"role": "user", "content": "How long?"}]
    plain = llm.chat([SYSTEM, *question], PARAMS)[0]
    named = llm.chat(question, PARAMS, cache=CacheOptions(cached_content="faq"))[0]
    assert named.prompt_token_ids == plain.prompt_token_ids
    assert named.outputs[0].text == plain.outputs[0].text
    assert plain.num_cached_tokens >= cache.tokens
    assert llm.caches.get("faq").hits == 2  # by name or not
    assert [one.name for one in llm.caches.list()] == ["faq"]


def test_prompts_and_tokens_can_be_named_too(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode(TEXT)
    llm.caches.create("text", prompt=TEXT)
    llm.caches.create("ids", tokens=ids)
    for name, prompt in (("text", "And?"), ("ids", {"prompt_token_ids": [50, 51]})):
        output = llm.generate(prompt, PARAMS, cache=CacheOptions(cached_content=name))[0]
        assert output.prompt_token_ids[:20] == ids[:20]
        assert output.num_cached_tokens >= len(ids) - 1


def test_a_name_renews_or_conflicts(llm: LLM) -> None:
    llm.caches.create("faq", prompt=TEXT)
    assert llm.caches.create("faq", prompt=TEXT).status == "ready"
    with pytest.raises(Conflict):
        llm.caches.create("faq", prompt="something else")


def test_changing_and_deleting_a_name(llm: LLM, clock: HandClock) -> None:
    llm.caches.create("faq", prompt=TEXT, ttl="5m")
    assert llm.caches.update("faq", ttl="1h", tags=("a",)).time_left == pytest.approx(3600)
    assert llm.caches.get("faq").tags == ("a",)
    assert llm.caches.update("faq", pin=True).pinned
    assert llm.caches.update("faq", ttl=None).time_left is None
    receipt = llm.caches.delete("faq")
    assert receipt.blocks + receipt.deferred > 0
    with pytest.raises(NotFound):
        llm.caches.get("faq")
    llm.caches.create("faq", prompt=TEXT, ttl="5m")
    clock.now += 301
    with pytest.raises(NotFound) as caught:
        llm.generate("x", PARAMS, cache=CacheOptions(cached_content="faq"))
    assert caught.value.code == "cache_expired"


def test_a_public_cache_serves_every_namespace(llm: LLM) -> None:
    llm.caches.create("products", prompt=TEXT, public=True)
    blocks = used_blocks(llm)
    for namespace in ("north", "south"):
        options = CacheOptions(cached_content="products", namespace=namespace)
        output = llm.generate(" How long?", PARAMS, cache=options)[0]
        assert output.num_cached_tokens >= len(llm.get_tokenizer().encode(TEXT)) - 2
    assert used_blocks(llm) < 2 * blocks


def test_a_pin_that_does_not_fit_is_refused(llm: LLM) -> None:
    tokens = [50 + n % 100 for n in range(llm.engine.info.pool_tokens // 2)]
    with pytest.raises(KveikError):
        llm.caches.create("big", tokens=tokens, pin=True)


def test_nonsense_is_refused_before_anything_is_computed(llm: LLM) -> None:
    for fields in ({}, {"prompt": "a", "tokens": [1]}, {"prompt": "a", "ttl": "soon"}):
        with pytest.raises(InvalidRequest):
            llm.caches.create("faq", **fields)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest):
        llm.caches.create("two words", prompt="a")
    assert llm.cache.stats().queried_tokens == 0


# ---- explanations


def test_explain_says_where_and_why_and_leaves_no_trace(llm: LLM) -> None:
    assert llm.explain(TEXT * 5).reason == "new"
    assert llm.explain(TEXT * 5).reason == "new"
    assert llm.engine.token_memory.size == 0
    llm.generate(TEXT * 3 + "It is 12:03 now.", PARAMS)
    told = llm.explain(TEXT * 3 + "It is 12:04 now.")
    hits = dict(told.levels)
    assert told.reason == "diverged"
    assert hits["states"] > 100
    assert told.advice
    assert dict(llm.explain(TEXT * 3 + "It is 12:03 now.").levels)["tokens"] > 100
    assert llm.explain([{"role": "user", "content": TEXT}]).prompt_tokens > 40
    assert llm.explain(TEXT * 3, cache=CacheOptions(namespace="north")).reason == "new"
    llm.caches.create("faq", prompt="Something else. ")
    assert llm.explain("And", cache=CacheOptions(cached_content="faq")).position > 3


def test_an_output_explains_itself_where_asked(llm: LLM) -> None:
    llm.generate(TEXT, PARAMS)
    other = TEXT[:60] + "of three weeks."
    foreseen = llm.explain(other)
    asked = llm.generate(other, PARAMS, cache=CacheOptions(write=False, explain=True))[0]
    assert asked.explanation is not None
    assert asked.explanation.reason == "diverged"
    assert asked.explanation.cause == foreseen.cause
    assert dict(asked.explanation.levels)["states"] == asked.num_cached_tokens
    assert llm.generate(other, PARAMS)[0].explanation is None


def test_a_stream_explains_itself_at_its_end(llm: LLM) -> None:
    llm.generate(TEXT, PARAMS)
    llm.generate(TEXT * 4, PARAMS)
    *before, last = llm.stream(TEXT * 4, PARAMS, cache=CacheOptions(explain=True))
    assert last.explanation is not None
    assert dict(last.explanation.levels)["states"] > 40
    assert dict(last.explanation.levels)["tokens"] > 40
    assert all(delta.explanation is None for delta in before)
    *_, last = llm.stream(TEXT + "And?", PARAMS)
    assert last.explanation is None


def test_an_output_says_what_the_cache_saved(llm: LLM) -> None:
    cold = llm.generate(TEXT, PARAMS)[0].usage
    warm = llm.generate(TEXT, PARAMS)[0].usage
    assert cold is not None
    assert warm is not None
    assert warm.savings is not None
    assert cold.computed_prompt_tokens == cold.prompt_tokens
    assert warm.computed_prompt_tokens == 1
    assert warm.savings.flops > 0
    assert warm.savings.old_old > 0


# ---- the whole


def test_listing_and_reset(llm: LLM) -> None:
    llm.generate(TEXT, PARAMS, cache=CacheOptions(tags=("news",), priority="high"))
    views = llm.cache.listing(top=3)
    assert len(views) == 3
    assert all("tag:news" in view.claims and view.priority == "high" for view in views)
    assert llm.cache.reset()
    assert llm.cache.listing() == []
    assert used_blocks(llm) == 0


def test_a_session_has_the_name_that_its_options_say(llm: LLM) -> None:
    with llm.session(cache=CacheOptions(session="dev")) as session:
        assert session.id == "dev"
        session.chat("Hello", PARAMS)
        assert [one.session for one in llm.cache.sessions()] == ["dev"]
    with pytest.raises(InvalidRequest, match="id: "):
        llm.session("other", cache=CacheOptions(session="dev"))


def test_a_public_cache_is_changed_and_deleted_by_its_name(llm: LLM) -> None:
    llm.caches.create("products", prompt=TEXT, public=True)
    assert llm.caches.update("products", tags=["tv"]).tags == ("tv",)
    assert llm.caches.delete("products").blocks > 0
    assert llm.caches.list() == []
