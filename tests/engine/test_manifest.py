"""The manifest of a warm start: everything it can say, and every way to say it wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kveik.cache.directive import Ttl
from kveik.engine.manifest import read_manifest, written
from kveik.errors import ConfigError

WHOLE = """
entries:
  - prompt: "What's the weather today?"
  - name: faq
    messages:
      - {role: system, content: You help with televisions.}
      - {role: user, file: texts/products.txt}
      - role: user
        content:
          - {type: text, text: The 55-inch TV., document: tv@3}
    ttl: 24h
    ttl_mode: demote
    clock: first_use
    tags: [faq, shop]
    priority: high
    pin: true
    public: true
    tenant: north
  - {file: texts/products.txt, ttl: 5m, tags: [shop]}
  - tokens: [1, 2, 3]
"""


def manifest(folder: Path, text: str, name: str = "warm.yaml") -> Path:
    (folder / "texts").mkdir(exist_ok=True)
    (folder / "texts" / "products.txt").write_text("The wall bracket.")
    path = folder / name
    path.write_text(text)
    return path


def test_everything_that_can_be_said(tmp_path: Path) -> None:
    read = read_manifest(manifest(tmp_path, WHOLE))
    first, faq, file, tokens = read.entries
    assert (first.prompt, first.name, first.ttl) == ("What's the weather today?", None, None)
    assert faq.messages is not None
    assert [message["content"] for message in faq.messages] == [
        "You help with televisions.",
        "The wall bracket.",
        [{"type": "text", "text": "The 55-inch TV.", "document": "tv@3"}],
    ]
    assert faq.ttl == Ttl(86400.0, "first_use", "demote")
    assert (faq.name, faq.tags, faq.priority, faq.tenant) == (
        "faq",
        ("faq", "shop"),
        "high",
        "north",
    )
    assert faq.pin
    assert faq.public
    assert (file.prompt, file.ttl, file.tags) == (
        "The wall bracket.",
        Ttl(300.0, "last_use", "delete"),
        ("shop",),
    )
    assert tokens.tokens == (1, 2, 3)
    assert read.label(1) == f"{tmp_path}/warm.yaml: entries[1] (faq)"


def test_json_says_the_same(tmp_path: Path) -> None:
    entries = [{"prompt": "Set a timer", "tags": ["voice"]}, {"tokens": [1, 2]}]
    as_json = read_manifest(manifest(tmp_path, json.dumps({"entries": entries}), "warm.json"))
    as_yaml = read_manifest(manifest(tmp_path, written(entries)))
    assert as_json.entries == as_yaml.entries
    assert as_json.entries[0].prompt == "Set a timer"


@pytest.mark.parametrize(
    "text", ["a: b\n\n  c", "- x", "tab\there", "ünïcode 雪", " x ", "yes", "7"]
)
def test_what_is_written_is_read(tmp_path: Path, text: str) -> None:
    assert read_manifest(manifest(tmp_path, written([{"prompt": text}]))).entries[0].prompt == text


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{prompt: a, prompt: b}", ("line 1", "twice")),
        ("{prompt: a, messages: []}", ("entries[0]", "prompt and messages")),
        ("{name: a}", ("entries[0]", "nothing to compute", "prompt, messages, file, tokens")),
        ("{prompt: a, colour: red}", ("entries[0]", "'colour'", "known are")),
        ("just text", ("entries[0]", "expected an object")),
        ("{prompt: 7}", ("entries[0]: prompt", "quotes")),
        ('{prompt: ""}', ("entries[0]: prompt",)),
        ("{prompt: a, name: two words}", ("entries[0]: name", "A-Z")),
        ("{prompt: a, tags: news}", ("entries[0]: tags", "list")),
        ("{prompt: a, tags: [two words]}", ("entries[0]: tags",)),
        ("{prompt: a, ttl: soon}", ("entries[0]: ttl", "5m")),
        ("{prompt: a, ttl: 0}", ("entries[0]: ttl",)),
        ("{prompt: a, ttl_mode: delete}", ("entries[0]: ttl_mode", "needs ttl")),
        ("{prompt: a, clock: last_use}", ("entries[0]: clock", "needs ttl")),
        ("{prompt: a, ttl: 5m, ttl_mode: hide}", ("entries[0]: ttl_mode", "delete, demote")),
        ("{prompt: a, ttl: 5m, clock: wall}", ("entries[0]: clock", "first_use")),
        ("{prompt: a, priority: urgent}", ("entries[0]: priority", "high, normal, low")),
        ("{prompt: a, pin: true}", ("entries[0]: pin", "needs a name")),
        ("{prompt: a, public: true}", ("entries[0]: public", "needs a name")),
        ("{prompt: a, name: x, pin: maybe}", ("entries[0]: pin", "true or false")),
        ("{prompt: a, tenant: 3}", ("entries[0]: tenant",)),
        ("{messages: hello}", ("entries[0]: messages",)),
        ("{messages: []}", ("entries[0]: messages",)),
        ("{messages: [{role: user}]}", ("messages[0]", "content or file")),
        ("{messages: [{role: cook, content: a}]}", ("messages[0].role", "system, user")),
        ("{messages: [{role: user, content: 5}]}", ("messages[0].content",)),
        ("{messages: [{role: user, content: [{text: 5}]}]}", ("content[0]",)),
        ("{messages: [{role: user, content: [{text: a, document: d}]}]}", ("content[0]", "@")),
        ("{tokens: [1, -2]}", ("entries[0]: tokens",)),
        ("{tokens: [1, true]}", ("entries[0]: tokens",)),
        ("{tokens: []}", ("entries[0]: tokens",)),
        ("{file: nowhere.txt}", ("entries[0]: file", "No such file")),
        ("{file: ../outside.txt}", ("entries[0]: file", "below the folder")),
        ("{file: /etc/hostname}", ("entries[0]: file", "below the folder")),
        ("{file: empty.txt}", ("entries[0]: file", "empty")),
        ("{file: binary.txt}", ("entries[0]: file", "UTF-8")),
    ],
)
def test_a_fault_names_file_entry_and_field(
    tmp_path: Path, entry: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError) as caught:
        read_manifest(manifest(tmp_path, f"entries: [{entry}]"))
    assert "\n" not in caught.value.message
    for word in ("warm.yaml", *words):
        assert word in caught.value.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("entries",)),
        ("[]", ("entries",)),
        ("entries: {}", ("entries",)),
        ("entries: []\nversion: 2", ("'version'",)),
        ("entries: [", ("line",)),
        ("a: &x [1]\nentries: [*x]", ("aliases",)),
        ("entries: [{prompt: !!python/object/apply:os.getcwd []}]", ("line 1",)),
        ("entries:\n- {prompt: a, name: x}\n- {prompt: b, name: x}", ("entries[1]", "entries[0]")),
    ],
)
def test_a_file_that_is_no_manifest(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        read_manifest(manifest(tmp_path, text))
    assert "\n" not in caught.value.message
    for word in ("warm.yaml", *words):
        assert word in caught.value.message


def test_json_faults(tmp_path: Path) -> None:
    for text in ('{"entries": [', '{"entries": [], "entries": []}', "[" * 100_000):
        with pytest.raises(ConfigError, match=r"warm\.json"):
            read_manifest(manifest(tmp_path, text, "warm.json"))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        read_manifest(tmp_path / "nowhere.yaml")


def test_two_tenants_may_use_one_name(tmp_path: Path) -> None:
    text = "entries:\n- {prompt: a, name: x, tenant: n}\n- {prompt: b, name: x, tenant: s}"
    assert len(read_manifest(manifest(tmp_path, text)).entries) == 2


def test_an_entry_does_not_show_its_text(tmp_path: Path) -> None:
    assert "weather" not in repr(read_manifest(manifest(tmp_path, WHOLE)).entries[0])
