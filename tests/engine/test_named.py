"""Named caches around a toy engine: computed once, found by name, renewed, expired, evicted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from toy import ByteTokenizer
from toy_model import toy_engine, toy_text

from kveik.cache.directive import DocumentSpan, Selector, Ttl
from kveik.config import LIMITS, Limit
from kveik.engine.engine import Engine
from kveik.engine.named_records import NamedCache, NamedSpec
from kveik.engine.request import Request, RequestFinished, SamplingParams
from kveik.errors import (
    Conflict,
    InvalidRequest,
    KveikError,
    NotFound,
    PinBudgetExceeded,
    Unavailable,
)

PROMPT = "The television has 55 inches and two years of warranty. "
LENGTH = len(PROMPT)
DAY = Ttl(86400.0, "last_use", "delete")


class ChatBytes(ByteTokenizer):
    """A byte tokenizer with a chat template; `drift` makes it depend on what follows."""

    drift = False

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        moment: datetime | None = None,
    ) -> list[int]:
        head = str(len(messages)) if self.drift else ""
        text = head + "".join(f"{one['role'][0]}:{one['content']}\n" for one in messages)
        return self.encode(text + ("a:" if add_generation_prompt else ""))


class Shop:
    """An engine with a clock that the test moves."""

    def __init__(self, **options: Any) -> None:
        self.now = 0.0
        self.tokenizer = ChatBytes()
        options = {"blocks": 64, "max_position": 2048, **options}
        self.engine: Engine = toy_engine(
            tokenizer=self.tokenizer, clock=lambda: self.now, blocks=options.pop("blocks")
        )
        self.named = self.engine.named

    def drain(self) -> None:
        while self.engine.step():
            pass
        self.engine.check()

    def create(self, name: str = "tv", **fields: Any) -> NamedCache:
        """Create and compute."""
        fields = {"namespace": "", "prompt": PROMPT, **fields}
        if "messages" in fields or "tokens" in fields:
            fields.pop("prompt")
        self.named.create(NamedSpec(name=name, **fields))
        self.drain()
        return self.named.get(fields["namespace"], name)

    def ask(self, text: str, namespace: str = "") -> RequestFinished:
        """The whole text as a plain request."""
        events: list[Any] = []
        params = SamplingParams(max_tokens=2, temperature=0.0)
        request = Request(tuple(text.encode()), params, namespace)
        self.engine.submit(request, events.append)
        self.drain()
        assert isinstance(events[-1], RequestFinished)
        return events[-1]

    def flood(self) -> None:
        """Other prompts until nothing of before is left in the pool."""
        for number in range(12):
            self.ask(chr(200 + number) * 80)


@pytest.fixture
def shop() -> Shop:
    return Shop()


def code_of(call: Callable[[], object]) -> str | None:
    with pytest.raises(KveikError) as caught:
        call()
    return caught.value.code


# ---- created and used


def test_a_name_is_computed_once_and_goes_before_requests(shop: Shop) -> None:
    started = shop.named.create(NamedSpec("", "tv", prompt=PROMPT))
    assert started.status == "computing"
    shop.drain()
    cache = shop.named.get("", "tv")
    assert (cache.status, cache.tokens, cache.kind) == ("ready", LENGTH, "prompt")
    assert cache.bytes == -(-LENGTH // 16) * 64
    assert cache.hits == 0
    assert cache.last_use is None
    expanded = shop.named.expand("", "tv", prompt="How wide is it?")
    assert expanded.prompt == PROMPT + "How wide is it?"
    answer = shop.ask(expanded.prompt)
    assert answer.usage.cached_tokens == LENGTH
    assert shop.named.get("", "tv").hits == 1
    assert shop.named.get("", "tv").last_use is not None


@pytest.mark.parametrize("length", [LENGTH, 10])
def test_a_request_that_finds_the_whole_of_a_name_is_a_use_of_it(shop: Shop, length: int) -> None:
    text = PROMPT[:length]
    shop.create(prompt=text)
    shop.ask("X" + text)
    shop.ask(text[: length // 2])  # a part of it
    shop.ask(text[: length // 2] + "Y" * 40)
    assert shop.named.get("", "tv").hits == 0
    shop.now += 60.0
    shop.ask(text + " How wide is it?")
    shop.ask(text + " And how high?")
    shop.now += 5.0
    cache = shop.named.get("", "tv")
    assert cache.hits == 2
    assert cache.last_use == pytest.approx(shop.named._shop.wall() - 5.0, abs=1.0)
    shop.named.create(NamedSpec("", "tv", prompt=text))  # it is renewed: no use
    shop.drain()
    assert shop.named.get("", "tv").hits == 2


def test_messages_are_joined_and_ids_are_those_of_the_plain_request(shop: Shop) -> None:
    cached = ({"role": "system", "content": PROMPT},)
    cache = shop.create(messages=cached)
    question = {"role": "user", "content": "How wide?"}
    expanded = shop.named.expand("", "tv", messages=[question])
    assert expanded.messages == (*cached, question)
    ids = shop.tokenizer.encode_chat(expanded.messages)
    assert shop.ask(bytes(ids).decode()).usage.cached_tokens == cache.tokens
    assert cache.tokens == len(shop.tokenizer.encode_chat(cached, add_generation_prompt=False))


def test_token_ids_take_token_ids(shop: Shop) -> None:
    shop.create(tokens=tuple(range(40)))
    assert shop.named.expand("", "tv", prompt=[7, 8]).prompt == (*range(40), 7, 8)


@pytest.mark.parametrize(
    ("made_of", "asked"),
    [
        ({"prompt": PROMPT}, {"prompt": [1]}),
        ({"prompt": PROMPT}, {"messages": [{"role": "user", "content": "a"}]}),
        ({"tokens": (1, 2)}, {"prompt": "text"}),
        ({"messages": ({"role": "user", "content": "a"},)}, {"prompt": "text"}),
    ],
)
def test_another_kind_of_request_is_refused(
    shop: Shop, made_of: dict[str, Any], asked: dict[str, Any]
) -> None:
    shop.create(**made_of)
    with pytest.raises(InvalidRequest) as caught:
        shop.named.expand("", "tv", **asked)
    assert caught.value.param == "cached_content"


@pytest.mark.parametrize("content", [{}, {"prompt": "a", "tokens": (1,)}, {"prompt": ""}])
def test_exactly_one_content(shop: Shop, content: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="one of them"):
        shop.named.create(NamedSpec("", "tv", **content))


def test_a_template_that_does_not_keep_the_beginning_is_refused(shop: Shop) -> None:
    shop.tokenizer.drift = True
    spec = NamedSpec("", "tv", messages=({"role": "user", "content": "a"},))
    assert code_of(lambda: shop.named.create(spec)) == "unstable_template"
    assert len(shop.named) == 0


def test_what_the_engine_refuses_leaves_no_name(shop: Shop) -> None:
    assert code_of(lambda: shop.create(prompt="a" * 2000)) == "context_length_exceeded"
    assert code_of(lambda: shop.named.get("", "tv")) == "cache_not_found"


def test_a_renewal_that_is_refused_changes_nothing(shop: Shop) -> None:
    shop.create(ttl=Ttl(100.0), tags=("a",))
    shop.engine.stop()
    with pytest.raises(Unavailable):
        shop.create(ttl=Ttl(500.0), tags=("b",))
    cache = shop.named.get("", "tv")
    assert (cache.time_left, cache.tags, cache.status) == (100.0, ("a",), "ready")


def test_whoever_waits_hears_once(shop: Shop) -> None:
    heard: list[NamedCache] = []
    shop.named.create(NamedSpec("", "tv", prompt=PROMPT), heard.append)
    shop.named.create(NamedSpec("", "tv", prompt=PROMPT), heard.append)
    shop.drain()
    assert [cache.status for cache in heard] == ["ready", "ready"]
    assert shop.engine.stats().requests_finished == {"length": 1}


# ---- renewed, changed, deleted


def test_the_same_content_renews_and_other_content_is_a_conflict(shop: Shop) -> None:
    shop.create(ttl=Ttl(100.0))
    shop.now = 90.0
    renewed = shop.create(ttl=Ttl(100.0), tags=("new",))
    assert renewed.time_left == 100.0
    assert renewed.tags == ("new",)
    shop.now = 150.0
    assert shop.named.get("", "tv").status == "ready"
    with pytest.raises(Conflict, match="other content") as caught:
        shop.create(prompt="something else")
    assert caught.value.status == 409
    with pytest.raises(Conflict):
        shop.create(tokens=tuple(PROMPT.encode()))
    assert shop.create("radio", prompt="something else").status == "ready"


def test_update_changes_what_is_given(shop: Shop) -> None:
    shop.create(ttl=Ttl(100.0), tags=("a",))
    shop.now = 60.0
    assert shop.named.update("", "tv", tags=("b",)).time_left == 40.0
    assert shop.named.update("", "tv", ttl=Ttl(500.0)).time_left == 500.0
    assert shop.named.update("", "tv", pin=True).pinned
    changed = shop.named.update("", "tv", ttl=None, pin=False)
    assert (changed.time_left, changed.pinned, changed.tags) == (None, False, ("b",))
    assert code_of(lambda: shop.named.update("", "radio", pin=True)) == "cache_not_found"
    shop.engine.invalidate(Selector(tag="a"))
    assert shop.named.get("", "tv").status == "ready"
    shop.engine.invalidate(Selector(tag="b"))
    shop.drain()
    assert shop.ask(PROMPT + "?").usage.cached_tokens == 0


def test_delete_ends_the_name(shop: Shop) -> None:
    shop.create()
    shop.named.delete("", "tv")
    assert code_of(lambda: shop.named.get("", "tv")) == "cache_not_found"
    assert code_of(lambda: shop.named.delete("", "tv")) == "cache_not_found"
    assert shop.named.list("") == []


def test_delete_while_computing_tells_whoever_waits(shop: Shop) -> None:
    heard: list[NamedCache] = []
    shop.named.create(NamedSpec("", "tv", prompt=PROMPT), heard.append)
    shop.named.delete("", "tv")
    shop.drain()
    assert [cache.status for cache in heard] == ["failed"]
    assert shop.engine.stats().requests_finished == {"abort": 1}
    assert shop.create().status == "ready"


# ---- time


@pytest.mark.parametrize(("clock", "left"), [("last_use", 100.0), ("first_use", 20.0)])
def test_both_clocks(shop: Shop, clock: Any, left: float) -> None:
    shop.create(ttl=Ttl(100.0, clock))
    shop.now = 80.0
    shop.ask(str(shop.named.expand("", "tv", prompt="?").prompt))
    assert shop.named.get("", "tv").time_left == left
    shop.now = 80.0 + left - 1
    assert shop.named.get("", "tv").status == "ready"
    shop.now = 80.0 + left
    assert code_of(lambda: shop.named.get("", "tv")) == "cache_expired"


def test_a_plain_request_for_the_same_prompt_is_a_use(shop: Shop) -> None:
    shop.create(ttl=Ttl(100.0, "last_use"))
    shop.now = 80.0
    shop.ask(PROMPT + "?")
    shop.now = 120.0
    assert shop.named.get("", "tv").time_left == 60.0


def test_plain_use_never_keeps_a_name_past_its_deadline(shop: Shop) -> None:
    shop.create(ttl=Ttl(100.0, "first_use"))
    shop.now = 80.0
    assert shop.ask(PROMPT + "?").usage.cached_tokens == LENGTH
    shop.now = 101.0
    assert shop.ask(PROMPT + "!").usage.cached_tokens == 0
    assert code_of(lambda: shop.named.get("", "tv")) == "cache_expired"


def test_a_longer_time_to_live_keeps_the_blocks(shop: Shop) -> None:
    shop.create(ttl=Ttl(100.0, "first_use"))
    shop.now = 60.0
    shop.named.update("", "tv", ttl=Ttl(500.0, "first_use"))
    shop.now = 300.0
    shop.drain()
    assert shop.named.get("", "tv").status == "ready"
    shop.now = 561.0
    shop.drain()
    assert shop.ask(PROMPT + "?").usage.cached_tokens == 0


def test_an_expired_name_is_told_from_an_unknown_one(shop: Shop) -> None:
    shop.create(ttl=Ttl(10.0))
    shop.now = 10.0
    shop.drain()
    assert len(shop.named) == 0
    assert shop.ask(PROMPT + "?").usage.cached_tokens == 0
    with pytest.raises(NotFound) as caught:
        shop.named.expand("", "tv", prompt="?")
    assert (caught.value.status, caught.value.code) == (404, "cache_expired")
    assert code_of(lambda: shop.named.get("", "radio")) == "cache_not_found"
    assert code_of(lambda: shop.named.get("other", "tv")) == "cache_not_found"
    shop.create()
    assert shop.named.get("", "tv").status == "ready"
    shop.named.delete("", "tv")
    assert code_of(lambda: shop.named.get("", "tv")) == "cache_not_found"


def test_the_memory_of_expired_names_is_bounded(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIMITS, "gone_names", Limit(0, 2))
    for number in range(3):
        shop.create(f"n{number}", prompt=f"{number}", ttl=Ttl(1.0))
    shop.now = 1.0
    shop.drain()
    codes = [code_of(lambda n=n: shop.named.get("", f"n{n}")) for n in range(3)]
    assert codes == ["cache_not_found", "cache_expired", "cache_expired"]


def test_demoted_names_last_as_long_as_their_blocks(shop: Shop) -> None:
    shop.create(ttl=Ttl(10.0, "last_use", "demote"))
    shop.now = 20.0
    assert shop.named.get("", "tv").status == "ready"
    assert shop.named.get("", "tv").time_left == 0.0
    shop.flood()
    assert code_of(lambda: shop.named.get("", "tv")) == "cache_expired"


# ---- evicted


def test_an_evicted_name_says_so_and_is_computed_again_on_use() -> None:
    shop = Shop(blocks=16)
    shop.create(ttl=Ttl(1000.0, "first_use"))
    shop.flood()
    shop.now = 100.0
    assert shop.named.get("", "tv").status == "evicted"
    expanded = shop.named.expand("", "tv", prompt="?")
    assert expanded.cache.status == "evicted"
    shop.ask(str(expanded.prompt))
    again = shop.named.get("", "tv")
    assert again.status == "ready"
    assert again.time_left == 900.0, "being computed again is no second first use"


def test_pinned_names_are_not_evicted() -> None:
    shop = Shop(blocks=16)
    shop.create(pin=True)
    shop.flood()
    assert shop.named.get("", "tv").status == "ready"


def test_a_pin_over_the_budget_is_refused() -> None:
    shop = Shop(blocks=16)
    with pytest.raises(PinBudgetExceeded):
        shop.create(prompt=PROMPT * 3, pin=True)
    assert len(shop.named) == 0
    assert shop.create(prompt=PROMPT * 3).status == "ready"
    with pytest.raises(PinBudgetExceeded):
        shop.named.update("", "tv", pin=True)
    assert not shop.named.get("", "tv").pinned


# ---- invalidated


GONE = {
    "its name": Selector(name="tv"),
    "its namespace": Selector(),
    "its tag": Selector(tag="news"),
    "its document": Selector(document="manual"),
    "an old version": Selector(document="manual", not_version="2"),
    "a prefix": Selector(prefix=tuple(b"The tele")),
    "its age": Selector(older_than=5.0),
}
KEPT = {
    "another name": Selector(name="radio"),
    "another namespace": Selector("other"),
    "another tag": Selector(tag="sports"),
    "another document": Selector(document="leaflet"),
    "this version": Selector(document="manual", not_version="1"),
    "a longer prefix": Selector(prefix=tuple(f"{PROMPT}x".encode())),
    "a session": Selector(session="tv"),
    "a higher age": Selector(older_than=50.0),
}


@pytest.mark.parametrize("case", [*GONE, *KEPT])
def test_invalidation_takes_the_names_that_come_under_it(shop: Shop, case: str) -> None:
    shop.create(tags=("news",), documents=(DocumentSpan("manual", "1", 0, LENGTH),))
    shop.now = 20.0
    shop.engine.invalidate((GONE | KEPT)[case])
    shop.drain()
    if case in KEPT:
        assert shop.named.get("", "tv").status == "ready"
    else:
        assert code_of(lambda: shop.named.get("", "tv")) == "cache_not_found"
        assert shop.ask(PROMPT + "?").usage.cached_tokens == 0


def test_a_new_version_takes_the_names_made_of_another(shop: Shop) -> None:
    for name, version in (("old", "1"), ("new", "2")):
        span = DocumentSpan("manual", version, 0, 16)
        shop.create(name, prompt=f"{version}{PROMPT}", documents=(span,))
    shop.engine.announce_document("", "manual", "2")
    assert code_of(lambda: shop.named.get("", "old")) == "cache_not_found"
    assert shop.named.get("", "new").status == "ready"


# ---- namespaces and bounds


def test_names_belong_to_one_namespace(shop: Shop) -> None:
    shop.create(namespace="a")
    assert code_of(lambda: shop.named.get("b", "tv")) == "cache_not_found"
    assert shop.named.list("b") == []
    shop.create(namespace="b", prompt="other content")
    assert [cache.tokens for cache in shop.named.list("a")] == [LENGTH]
    assert len(shop.named.list()) == 2


def test_public_names_are_found_by_all_and_changed_by_their_owner_only(shop: Shop) -> None:
    shop.named.create(NamedSpec("operator", "tv", prompt=PROMPT, public=True))
    shop.drain()
    found = shop.named.get("a", "tv")
    assert found.public
    assert shop.named.list("a") == [found]
    expanded = shop.named.expand("a", "tv", prompt="?")
    assert shop.ask(str(expanded.prompt), namespace="a").usage.cached_tokens == LENGTH
    assert code_of(lambda: shop.named.delete("a", "tv")) == "cache_not_found"
    shop.named.delete(found.namespace, "tv")
    assert code_of(lambda: shop.named.get("a", "tv")) == "cache_not_found"


def test_names_and_their_tokens_are_bounded(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIMITS, "named_caches", Limit(0, 2))
    shop.create("a", prompt="a")
    shop.create("b", prompt="b")
    with pytest.raises(Conflict, match="no room"):
        shop.create("c", prompt="c")
    shop.create("c", prompt="c", namespace="other")
    shop.create("a", prompt="a")
    monkeypatch.setitem(LIMITS, "named_caches", Limit(0, 9))
    monkeypatch.setitem(LIMITS, "named_tokens", Limit(0, 10))
    with pytest.raises(Conflict, match="no room"):
        shop.create("d", prompt="d" * 9)


def test_background_names_wait_for_live_requests(shop: Shop) -> None:
    shop.named.create(NamedSpec("", "tv", prompt=PROMPT, background=True))
    events: list[Any] = []
    params = SamplingParams(max_tokens=5, temperature=0.0)
    shop.engine.submit(Request(tuple(range(40)), params), events.append)
    while not (events and isinstance(events[-1], RequestFinished)):
        shop.engine.step()
        assert shop.named.get("", "tv").status == "computing"
    shop.drain()
    assert shop.named.get("", "tv").status == "ready"


def test_many_threads(shop: Shop) -> None:
    """Verbs from many threads while the engine's own thread computes."""
    shop.engine.start()
    failures: list[BaseException] = []

    def client(number: int) -> None:
        try:
            for turn in range(6):
                name = f"n{(number + turn) % 4}"
                done = threading.Event()
                try:
                    shop.named.create(
                        NamedSpec("", name, prompt=name * 20),
                        lambda cache, done=done: done.set(),  # type: ignore[misc]
                    )
                    assert done.wait(20)
                    shop.named.expand("", name, prompt="?")
                    shop.named.list("")
                    if turn % 3 == 2:
                        shop.named.delete("", name)
                except (NotFound, Conflict):
                    pass
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shop.engine.stop(drain_seconds=20)
    assert failures == []
    shop.engine.check()


def test_the_text_is_that_of_the_plain_request(shop: Shop) -> None:
    shop.create()
    text = str(shop.named.expand("", "tv", prompt="How wide?").prompt)
    events: list[Any] = []
    params = SamplingParams(max_tokens=6, temperature=0.0)
    shop.engine.submit(Request(tuple(text.encode()), params), events.append)
    shop.drain()
    tokens = [token for event in events for token in getattr(event, "token_ids", ())]
    assert tokens == toy_text(list(text.encode()), 6)
    assert replace(events[-1].usage, savings=None).cached_tokens == LENGTH
