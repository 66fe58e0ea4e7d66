"""`kveik cache ...` against a scripted server: what is asked, what is shown, what goes wrong."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from cache_cli import Run, runner

from kveik.commands.cache import span

RECEIPT = {"blocks": 1200, "tokens": 19200, "bytes": {"memory": 4096}, "deferred": 7}
CACHE = {
    "object": "cache",
    "name": "faq",
    "status": "ready",
    "kind": "messages",
    "tokens": 1234,
    "bytes": 2_500_000,
    "seconds": 0.5,
    "hits": 3,
    "created": 1,
    "last_use": None,
    "time_left": 5400.0,
    "tags": ["shop", "tv"],
    "priority": "high",
    "pinned": True,
    "public": False,
    "error": None,
}
BLOCK = {
    "tokens": 16,
    "depth": 64,
    "hits": 9,
    "age": 30.0,
    "idle": 2.0,
    "time_left": None,
    "priority": "normal",
    "demoted": False,
    "pinned": True,
    "readers": 2,
    "claims": ["session:s1", "tag:news"],
}
EXPLANATION = {
    "prompt_tokens": 1050,
    "hit_tokens": {
        "by_level": {"tokens": 0, "encodings": 1050, "states": 1024},
        "by_tier": {"memory": 1024},
    },
    "blocks_shared": 64,
    "position": 1024,
    "reason": "diverged",
    "cause": "timestamp",
    "advice": "move it to the end",
    "cached": {"text": "12:03\n", "token": "3"},
    "wanted": {"text": "12:04\n", "token": "4"},
    "role": None,
}
USAGE = {"prompt_tokens": 40, "prompt_tokens_details": {"cached_tokens": 32}}


SENTENCES = """\
1,024 of 1,050 prompt tokens would come from the cache (64 blocks)
from token 1,024 on not: diverged
  cached  '12:03\\n'
  here    '12:04\\n'
cause   timestamp
advice  move it to the end
"""


class Server:
    """Answers by (method, path); anything else is 404. `asked` is what came."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], Any] = {}
        self.status = 200
        self.asked: list[tuple[str, str, Any]] = []
        self.keys: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.asked.append((self.command, self.path, json.loads(body) if body else None))
                outer.keys.append(self.headers.get("Authorization"))
                found = outer.answers.get((self.command, self.path.partition("?")[0]))
                status = outer.status if found is not None else 404
                if found is None or status != 200:
                    found = {"error": {"message": "there is\nno such thing"}}
                data = found if isinstance(found, bytes) else json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = answer  # noqa: N815

            def log_message(self, *unused: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.fixture
def cache(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    return runner(server.url + "/v1", capsys, monkeypatch)


def table(out: str) -> list[list[str]]:
    """Cells of a table, which are apart by two spaces at least."""
    return [[cell for cell in line.split("  ") if cell.strip()] for line in out.splitlines()]


def test_ls_shows_named_caches(server: Server, cache: Run) -> None:
    server.answers["GET", "/v1/caches"] = {"object": "list", "data": [CACHE]}
    code, out, _ = cache("ls")
    assert code == 0
    heads, row = table(out)
    cells = dict(zip([head.strip() for head in heads], [c.strip() for c in row], strict=True))
    assert cells == {
        "name": "faq",
        "status": "ready",
        "tokens": "1,234",
        "bytes": "2.50 MB",
        "hits": "3",
        "last use": "-",
        "expires in": "90 min",
        "priority": "high",
        "pinned": "yes",
        "public": "no",
        "tags": "shop, tv",
    }
    assert json.loads(cache("ls", "--json")[1])["data"] == [CACHE]


def test_ls_of_nothing(server: Server, cache: Run) -> None:
    for path, flag in (
        ("/v1/caches", None),
        ("/v1/cache", "--blocks"),
        ("/v1/sessions", "--sessions"),
    ):
        server.answers["GET", path] = {"data": []}
        code, out, _ = cache("ls", *([flag] if flag else []))
        assert code == 0
        assert out.startswith("no")


def test_ls_of_blocks_and_sessions(server: Server, cache: Run) -> None:
    server.answers["GET", "/v1/cache"] = {"data": [BLOCK]}
    out = cache("ls", "--blocks", "--top", "5")[1]
    assert server.asked[-1][1] == "/v1/cache?top=5"
    assert "pinned, session:s1, tag:news" in out
    session = {"session": "s1", "idle": 200.0, "blocks": 4, "tokens": 60}
    server.answers["GET", "/v1/sessions"] = {"data": [session]}
    assert [c.strip() for c in table(cache("ls", "--sessions")[1])[1]] == ["s1", "3 min", "4", "60"]


def test_a_name_is_shown_as_it_is_whatever_it_holds(server: Server, cache: Run) -> None:
    server.answers["GET", "/v1/caches"] = {"data": [CACHE | {"name": "a/b[bold]"}]}
    assert "a/b[bold]" in cache("ls")[1]


def test_show(server: Server, cache: Run) -> None:
    server.answers["GET", "/v1/caches/a%2Fb"] = CACHE
    code, out, _ = cache("show", "a/b")
    assert code == 0
    assert "tokens      1,234\n" in out
    assert "made of     messages\n" in out
    assert "last use    -\n" in out
    server.answers["GET", "/v1/caches/a%2Fb"] = CACHE | {"last_use": time.time() - 300}
    assert "last use    5 min ago\n" in cache("show", "a/b")[1]
    server.answers["GET", "/v1/caches/a%2Fb"] = CACHE
    assert json.loads(cache("show", "a/b", "--json")[1]) == CACHE


def test_rm_tells_what_went(server: Server, cache: Run) -> None:
    server.answers["DELETE", "/v1/caches/faq"] = RECEIPT
    code, out, _ = cache("rm", "faq")
    assert code == 0
    for figure in (
        "faq: 1,200 blocks",
        "19,200 tokens",
        "4,096 bytes of memory",
        "7 blocks in the next steps",
    ):
        assert figure in out
    server.answers["DELETE", "/v1/caches/one"] = RECEIPT | {"blocks": 1, "tokens": 1, "deferred": 0}
    assert cache("rm", "one")[1] == "one: 1 block, 1 token, 4,096 bytes of memory\n"
    code, out, err = cache("rm", "faq", "nothing")
    assert (code, out.count("\n"), err.count("\n")) == (1, 1, 1)


def test_invalidate_sends_every_condition(server: Server, cache: Run) -> None:
    server.answers["POST", "/v1/cache/invalidate"] = RECEIPT
    words = {
        "tag": "news",
        "document": "handbook",
        "version": "2",
        "not_version": "3",
        "session": "s1",
        "context": "repo-b",
        "name": "faq",
        "prefix": "Once upon",
    }
    flags = [part for name in words for part in ("--" + name.replace("_", "-"), words[name])]
    assert cache("invalidate", *flags, "--older-than", "2h")[0] == 0
    assert server.asked[-1][2] == words | {"older_than": 7200.0}
    assert json.loads(cache("invalidate", "--tag", "news", "--json")[1]) == RECEIPT


def test_invalidate_needs_a_condition(server: Server, cache: Run) -> None:
    code, out, err = cache("invalidate")
    assert (code, out, server.asked) == (2, "", [])
    assert "--tag" in err
    assert cache("invalidate", "--older-than", "soon")[0] == 2


def test_explain_reads_texts_and_conversations(server: Server, cache: Run, tmp_path: Path) -> None:
    server.answers["POST", "/v1/cache/explain"] = EXPLANATION
    messages = [{"role": "user", "content": "Hello"}]
    chat, whole, text = tmp_path / "c.json", tmp_path / "w.json", tmp_path / "t.txt"
    chat.write_text(json.dumps(messages))
    whole.write_text(json.dumps({"model": "m", "messages": messages, "max_tokens": 5}))
    text.write_text("Once upon a time")
    for source, body in (
        ("Hello there", {"prompt": "Hello there"}),
        (str(text), {"prompt": "Once upon a time"}),
        (str(chat), {"messages": messages}),
        (str(whole), {"messages": messages}),
        ("x" * 5000, {"prompt": "x" * 5000}),
    ):
        code, out, _ = cache("explain", source)
        assert code == 0
        assert server.asked[-1][2] == body
        assert out == SENTENCES
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    assert cache("explain", str(bad))[0] == 2


def test_explain_leaves_out_what_is_not_known(server: Server, cache: Run) -> None:
    nothing = {"text": "", "token": ""}
    server.answers["POST", "/v1/cache/explain"] = EXPLANATION | {
        "cached": nothing,
        "wanted": nothing,
        "cause": None,
        "advice": "",
    }
    assert len(cache("explain", "hello")[1].splitlines()) == 2
    assert json.loads(cache("explain", "hello", "--json")[1])["prompt_tokens"] == 1050


def test_warm_computes_every_entry(server: Server, cache: Run, tmp_path: Path) -> None:
    file = tmp_path / "warm.yaml"
    file.write_text(
        "entries:\n"
        "- {name: faq, prompt: hello, ttl: 1h, clock: first_use, tags: [shop], pin: true}\n"
        "- {prompt: hi, priority: high}\n"
        "- {messages: [{role: user, content: hi}]}\n"
        "- {tokens: [1, 2]}\n"
    )
    server.answers["GET", "/v1/models"] = {"data": [{"id": "m"}]}
    server.answers["POST", "/v1/caches"] = CACHE
    for path in ("/v1/completions", "/v1/chat/completions"):
        server.answers["POST", path] = {"usage": USAGE}
    code, out, err = cache("warm", str(file))
    assert (code, err) == (0, "")
    bodies = {path: body for method, path, body in server.asked if method == "POST"}
    prompts = [body["prompt"] for _, path, body in server.asked if path == "/v1/completions"]
    assert bodies["/v1/caches"] == {
        "name": "faq",
        "prompt": "hello",
        "ttl": 3600.0,
        "ttl_mode": "delete",
        "clock": "first_use",
        "tags": ["shop"],
        "pin": True,
    }
    assert prompts == ["hi", [1, 2]]
    assert all(body["max_tokens"] == 0 for path, body in bodies.items() if path != "/v1/caches")
    first = next(body for _, path, body in server.asked if path == "/v1/completions")
    assert first["kveik"] == {"priority": "high"}
    assert bodies["/v1/chat/completions"]["messages"] == [{"role": "user", "content": "hi"}]
    assert [line[0].strip() for line in table(out)[1:]] == [f"entries[{n}]" for n in range(4)]


def test_an_entry_that_fails_does_not_stop_the_others(
    server: Server, cache: Run, tmp_path: Path
) -> None:
    file = tmp_path / "warm.yaml"
    file.write_text("entries:\n- {name: faq, prompt: a}\n- {prompt: b}\n")
    server.answers["GET", "/v1/models"] = {"data": [{"id": "m"}]}
    server.answers["POST", "/v1/completions"] = {"usage": USAGE}
    code, out, err = cache("warm", str(file), "--json")
    assert code == 1
    assert "1 of 2 entries" in err
    failed, computed = json.loads(out)["entries"]
    assert failed["error"] == "404: there is no such thing"
    assert (computed["tokens"], computed["cached"], computed["error"]) == (40, 32, None)


def test_warm_refuses_what_a_key_cannot_do(server: Server, cache: Run, tmp_path: Path) -> None:
    file = tmp_path / "warm.yaml"
    file.write_text("entries:\n- {prompt: a, tenant: north}\n")
    code, _, err = cache("warm", str(file))
    assert (code, server.asked) == (2, [])
    assert "entries[0]: tenant" in err


def test_manifest_prints_yaml_that_warm_reads(server: Server, cache: Run, tmp_path: Path) -> None:
    entries = [{"prompt": "Set a timer: now", "tags": ["voice"]}, {"tokens": [1, 2, 3]}]
    server.answers["GET", "/v1/cache/manifest"] = {"entries": entries}
    code, out, _ = cache("manifest", "--top", "2")
    assert (code, server.asked[-1][1]) == (0, "/v1/cache/manifest?top=2")
    file = tmp_path / "warm.yaml"
    file.write_text(out)
    server.answers["GET", "/v1/models"] = {"data": [{"id": "m"}]}
    server.answers["POST", "/v1/completions"] = {"usage": USAGE}
    assert cache("warm", str(file))[0] == 0
    assert server.asked[-1][2]["prompt"] == [1, 2, 3]


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_refusal_is_one_line(server: Server, cache: Run, status: int) -> None:
    server.status = status
    server.answers["GET", "/v1/caches"] = {}
    assert cache("ls") == (1, "", f"kveik: {status}: there is no such thing\n")


def test_the_key_is_sent(server: Server, cache: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers["GET", "/v1/caches"] = {"data": []}
    cache("ls", "--api-key", "alice")
    monkeypatch.setenv("KVEIK_API_KEY", "bob, carol")
    cache("ls")
    assert server.keys == ["Bearer alice", "Bearer bob"]


def test_nobody_there(cache: Run) -> None:
    code, out, err = cache("ls", "--url", "http://127.0.0.1:1")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "http://127.0.0.1:1" in err
    assert "kveik serve" in err


def test_a_server_that_is_something_else(server: Server, cache: Run) -> None:
    server.answers["GET", "/v1/caches"] = b"<html>"
    code, _, err = cache("ls")
    assert code == 1
    assert "is it kveik?" in err


def test_warming_stops_where_the_server_is_gone(cache: Run, tmp_path: Path) -> None:
    file = tmp_path / "warm.yaml"
    file.write_text("entries:\n- {prompt: a}\n- {prompt: b}\n")
    code, _, err = cache("warm", str(file), "--url", "http://127.0.0.1:1")
    assert code == 1
    assert "no answer" in err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.2, "0 s"),
        (119, "119 s"),
        (240, "4 min"),
        (7200, "2.0 h"),
        (259_200, "3.0 d"),
    ],
)
def test_lengths_of_time(seconds: float | None, text: str) -> None:
    assert span(seconds) == text
