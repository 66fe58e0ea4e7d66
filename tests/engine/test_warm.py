"""The warm start: in the background, entry by entry; and the manifest of what is hot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kveik.cache.directive import BlockView, Ttl
from kveik.config import EngineConfig
from kveik.engine.engine import Engine
from kveik.engine.manifest import Entry, Manifest, read_manifest, written
from kveik.engine.request import Request
from kveik.engine.warm import WarmStart, hot_entries
from kveik.errors import ConfigError, Overloaded

TEXT = "The 55-inch television has a warranty of two years from the day of purchase."
OTHER = "Set a timer for ten minutes, and tell me when the bread is ready to be eaten."


@pytest.fixture
def engine(tiny_folder: Callable[..., Path]) -> Iterator[Engine]:
    engine = Engine.load(EngineConfig(model=str(tiny_folder()), kv_memory=2**21, block_size=8))
    engine.start()
    yield engine
    engine.stop()
    engine.check()


def warmed(engine: Engine, *entries: Entry) -> WarmStart:
    warm = WarmStart(engine, Manifest("warm.yaml", entries), lambda tenant: tenant or "")
    warm.run()
    return warm


def cached(engine: Engine, ids: list[int], namespace: str = "") -> int:
    return engine.explain([*ids, 5], namespace).cached_tokens


def test_every_kind_of_entry_is_computed(engine: Engine) -> None:
    user = ({"role": "user", "content": OTHER},)
    system = ({"role": "system", "content": TEXT},)
    tokenizer = engine.tokenizer
    prompts = [
        tokenizer.encode(TEXT),
        tokenizer.encode_chat(user),
        tokenizer.encode_chat(system, add_generation_prompt=False),
        list(range(50, 80)),
    ]
    progress = warmed(
        engine,
        Entry(prompt=TEXT),
        Entry(messages=user),
        Entry(messages=system),
        Entry(tokens=tuple(prompts[3])),
    ).progress()
    assert [cached(engine, prompt) for prompt in prompts] == list(map(len, prompts))
    assert (progress.done, progress.failed, progress.finished) == (4, 0, True)
    assert progress.tokens == sum(map(len, prompts))


def test_a_named_entry_becomes_a_named_cache(engine: Engine) -> None:
    warmed(engine, Entry(prompt=TEXT, name="faq", tags=("shop",)))
    cache = engine.named.get("", "faq")
    assert (cache.status, cache.tags, cache.tokens) == (
        "ready",
        ("shop",),
        len(engine.tokenizer.encode(TEXT)),
    )


def test_tenants_are_warmed_apart(engine: Engine) -> None:
    ids = engine.tokenizer.encode(TEXT)
    warmed(engine, Entry(prompt=TEXT, tenant="north"))
    assert cached(engine, ids, "north") == len(ids)
    assert cached(engine, ids) == 0


def test_an_unknown_tenant_is_told_at_once(engine: Engine) -> None:
    def namespace_of(tenant: str | None) -> str:
        raise ConfigError(f"tenant: {tenant} is not in the keys file")

    manifest = Manifest("warm.yaml", (Entry(prompt=TEXT, tenant="west"),))
    with pytest.raises(ConfigError, match=r"warm.yaml: entries\[0\]: tenant: west"):
        WarmStart(engine, manifest, namespace_of)
    public = Manifest("warm.yaml", (Entry(prompt=TEXT, name="faq", public=True),))
    warm = WarmStart(engine, public, namespace_of)  # belongs to no tenant
    warm.run()
    assert warm.progress().done == 1
    assert engine.named.get("anybody", "faq").public


def test_an_entry_that_fails_does_not_stop_the_others(engine: Engine) -> None:
    endless = Entry(tokens=tuple([50] * 10_000), name="endless")
    warm = warmed(engine, Entry(tokens=(10**6,)), endless, Entry(prompt=TEXT))
    progress = warm.progress()
    assert (progress.done, progress.failed, progress.finished) == (1, 2, True)
    labels = [label for label, _ in progress.errors]
    assert labels == ["warm.yaml: entries[0]", "warm.yaml: entries[1] (endless)"]
    assert "vocabulary" in progress.errors[0][1]


def test_it_is_background_work_that_carries_its_words(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Request] = []
    submit = engine.submit

    def spy(request: Request, sink: Any) -> int:
        seen.append(request)
        return submit(request, sink)

    monkeypatch.setattr(engine, "submit", spy)
    warmed(engine, Entry(prompt=TEXT, tags=("shop",), priority="high"))
    assert [one.background for one in seen] == [True]
    assert (seen[0].directive.tags, seen[0].directive.priority) == (("shop",), "high")


def test_it_waits_while_the_queue_is_full(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    submit, refusals = engine.submit, [Overloaded("full", retry_after=0)] * 3

    def busy(request: Request, sink: Any) -> int:
        if refusals:
            raise refusals.pop()
        return submit(request, sink)

    monkeypatch.setattr(engine, "submit", busy)
    assert warmed(engine, Entry(prompt=TEXT)).progress().done == 1


def test_it_runs_beside_and_can_be_stopped(engine: Engine) -> None:
    manifest = Manifest("warm.yaml", (Entry(prompt=TEXT), Entry(prompt=OTHER)))
    stopped = WarmStart(engine, manifest, lambda tenant: "")
    stopped.stop()
    stopped.run()
    assert not stopped.progress().finished
    warm = WarmStart(engine, manifest, lambda tenant: "")
    warm.start()
    warm.start()
    assert warm._thread is not None
    warm._thread.join(60)
    assert warm.progress().finished


def test_progress_tells_figures_only(engine: Engine) -> None:
    told = warmed(engine, Entry(prompt=TEXT, name="faq"), Entry(tokens=(10**6,))).progress()
    assert told.as_json() == {
        "total": 2,
        "done": 1,
        "failed": 1,
        "tokens": len(engine.tokenizer.encode(TEXT)),
        "finished": True,
    }


def test_an_empty_manifest_is_done(engine: Engine) -> None:
    assert warmed(engine).progress().finished


# ---- what is hot


def view(path: list[int], hits: int, *claims: str, **fields: Any) -> BlockView:
    values: dict[str, Any] = {
        "namespace": "",
        "tokens": 8,
        "depth": len(path),
        "hits": hits,
        "age": 1.0,
        "idle": 1.0,
        "time_left": None,
        "priority": "normal",
        "demoted": False,
        "pinned": False,
        "readers": 0,
        "claims": claims,
        "path": tuple(path),
    }
    return BlockView(**(values | fields))


def hot(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, views: list[BlockView], top: int = 20
) -> list[dict[str, Any]]:
    monkeypatch.setattr(engine, "cache_listing", lambda namespace, **options: views)
    return hot_entries(engine, "", top)


def test_a_prefix_goes_with_what_continues_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = engine.tokenizer.encode(TEXT)
    views = [view(ids[:8], 5), view(ids[:16], 5), view(ids, 5)]
    assert hot(engine, monkeypatch, views) == [{"prompt": TEXT}]


def test_a_prefix_that_is_hotter_stands_for_itself(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = engine.tokenizer.encode(TEXT)
    views = [view(ids[:16], 9), *(view([*ids[:16], n], 1) for n in range(60, 63))]
    texts = [entry["prompt"] for entry in hot(engine, monkeypatch, views, top=1)]
    assert texts == [engine.tokenizer.decode(ids[:16])]


def test_what_no_text_names_is_written_as_tokens(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = engine.tokenizer.encode_chat([{"role": "user", "content": "hello"}])
    assert hot(engine, monkeypatch, [view(ids, 1)]) == [{"tokens": ids}]


@pytest.mark.parametrize("kind", ["prompt", "messages", "tokens"])
def test_a_hot_name_is_written_as_it_was_made(engine: Engine, tmp_path: Path, kind: str) -> None:
    part = {"type": "text", "text": TEXT, "document": "faq@1"}
    contents: dict[str, Entry] = {
        "prompt": Entry(prompt=TEXT),
        "messages": Entry(messages=({"role": "system", "content": [part]},)),
        "tokens": Entry(tokens=tuple(range(5, 60))),
    }
    made = replace(
        contents[kind], name="faq", ttl=Ttl(60, "first_use", "demote"), tags=("tv",), pin=True
    )
    warmed(engine, made, Entry(prompt=OTHER))
    path = tmp_path / "warm.yaml"
    path.write_text(written(hot_entries(engine, "", 20)))
    assert read_manifest(path).entries == (made, Entry(prompt=OTHER))


def test_words_of_the_blocks_are_kept(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = engine.tokenizer.encode(TEXT)
    shown = view(ids, 1, "tag:shop", "session:s1", priority="high", time_left=59.6)
    assert hot(engine, monkeypatch, [shown]) == [
        {"prompt": TEXT, "tags": ["shop"], "priority": "high", "ttl": 60}
    ]
