"""The command line as a user meets it: real processes for what a shell sees, calls for the rest."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from kveik import LLM, SamplingParams, __version__
from kveik.commands import chat as chat_command
from kveik.commands.bench import BenchSizes, measure
from kveik.kernels.backend import native_levels
from kveik.kernels.cores import usable_cores
from kveik.kernels.extension import native_extension
from kveik.session import Forgets

Run = Callable[..., tuple[int, str, str]]


def process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kveik", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


@pytest.fixture(scope="module")
def folder(tiny_folder: Callable[..., Path]) -> str:
    return str(tiny_folder())


def test_version_and_help(kveik: Run) -> None:
    assert kveik("--version")[:2] == (0, f"kveik {__version__}\n")
    code, out, _ = kveik("--help")
    assert code == 0
    for command in ("serve", "chat", "generate", "plan", "info", "bench"):
        assert command in out
        code, text, _ = kveik(command, "--help")
        assert code == 0
        assert ("--kv-memory" in text) == (command != "plan")


def test_the_console_script_is_the_same_program() -> None:
    script = Path(sys.executable).with_name("kveik")
    done = subprocess.run([script, "--version"], capture_output=True, text=True)
    assert done.stdout == process("--version").stdout == f"kveik {__version__}\n"


def test_starting_up_loads_nothing_heavy() -> None:
    program = (
        "import sys\ntry:\n    from kveik.cli import main\n    main(['--version'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'starlette', 'fastapi', 'pydantic', 'tokenizers', 'rich',"
        " 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("generate", "a", "--model", "/nowhere"), ("/nowhere",)),
        (("generate", "a", "--block-size", "12"), ("block_size", "64")),
        (("generate", "a", "--temperature", "9"), ("temperature",)),
        (("generate", "a", "--input", "x"), ("--output",)),
        (("generate", "--input", "x"), ("--output",)),
        (("generate", "a", "--config", "/nowhere.toml"), ("/nowhere.toml",)),
        (("generate", "a", "--chat-template", "/nowhere.jinja"), ("chat_template",)),
        (("plan", "llama-9"), ("llama-3-70b",)),
        (("plan", "--layers", "3"), ("--heads",)),
        (("plan", "gpt-3", "--kv-dtype", "int3"), ("--kv-dtype", "int8")),
        (("chat", "--url", "ftp://x"), ("--url", "ftp://x")),
        (("bench", "--prompt-tokens", "9999"), ("--prompt-tokens", "9999")),
        (("serve", "--port", "99999"), ("port", "65535")),
    ],
)
def test_an_error_is_one_line_and_exit_code_two(
    kveik: Run, folder: str, arguments: tuple[str, ...], words: Sequence[str]
) -> None:
    if arguments[0] in ("generate", "bench") and "--model" not in arguments:
        arguments = (*arguments, "--model", folder)
    code, out, err = kveik(*arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    for word in ("kveik: ", *words):
        assert word in err


@pytest.mark.parametrize(
    "arguments", [("generat",), ("plan", "--nothing"), ("serve", "--port", "x")]
)
def test_usage_errors(kveik: Run, arguments: tuple[str, ...]) -> None:
    code, _, err = kveik(*arguments)
    assert code == 2
    assert "Usage" in err


def test_an_unreachable_server_is_exit_code_one(kveik: Run) -> None:
    code, _, err = kveik("chat", "--url", "http://127.0.0.1:1")
    assert (code, err.count("\n")) == (1, 1)
    assert "127.0.0.1:1" in err


def test_generate_prints_the_text(kveik: Run, folder: str) -> None:
    options = ("--model", folder, "--max-tokens", "5", "--temperature", "0")
    with LLM(folder) as llm:
        params = SamplingParams(temperature=0, max_tokens=5)
        expected = llm.generate("the end", params)[0].outputs[0].text
        as_chat = llm.chat([{"role": "user", "content": "the end"}], params)[0].outputs[0].text
        stopped = llm.generate("the end", SamplingParams(temperature=0, max_tokens=5, n=2))[0]
    assert kveik("generate", "the end", *options)[:2] == (0, expected + "\n")
    assert kveik("generate", "the end", "--chat", *options)[1] == as_chat + "\n"
    out = kveik("generate", "the end", "--n", "2", *options)[1]
    assert out == "".join(f"[{one.index}] {one.text}\n" for one in stopped.outputs)


def test_options_from_environment_and_file(
    kveik: Run, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kveik.toml"
    file.write_text(f'model = "{folder}"\nblock_size = 8\nmax_model_len = 64\n')
    monkeypatch.setenv("KVEIK_BLOCK_SIZE", "4")
    code, out, _ = kveik("info", "--config", str(file), "--kv-memory", "1MiB", "--json")
    facts = json.loads(out)
    assert code == 0
    assert (facts["block_size"], facts["max_model_len"]) == (4, 64)
    assert facts["pool_bytes"] <= 2**20


def test_a_prompt_from_standard_input(folder: str) -> None:
    options = ("--model", folder, "--max-tokens", "3", "--temperature", "0")
    piped = process("generate", *options, input="the end")
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout == process("generate", "the end", *options).stdout


def test_a_reader_that_leaves_is_no_noise(folder: str) -> None:
    command = [sys.executable, "-m", "kveik", "plan", "gpt-3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        assert started.stdout is not None
        started.stdout.close()
        assert started.stderr is not None
        assert started.stderr.read() == b""


def test_a_file_of_prompts(kveik: Run, folder: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "a"}\n{"prompt": 1}\n')
    options = ("--input", str(source), "--output", str(target), "--model", folder)
    code, _, err = kveik("generate", *options, "--max-tokens", "2")
    assert (code, err) == (0, f"1 done, 1 failed, 0 were there already: {target}\n")
    assert len(target.read_text().splitlines()) == 2
    assert "2 were there already" in kveik("generate", *options)[2]


def test_plan_shows_the_published_figures(kveik: Run) -> None:
    code, out, _ = kveik("plan", "llama-3-70b", "--context", "4000", "--memory", "160GB")
    assert code == 0
    for figure in ("2.62 MB (2.50 MiB)", "10.49 GB", "327,680 bytes", "1.31 GB", "fits"):
        assert figure in out
    shape = ("--layers", "80", "--heads", "64", "--kv-heads", "8", "--head-dim", "128")
    facts = json.loads(kveik("plan", *shape, "--context", "4000", "--users", "2", "--json")[1])
    assert (facts["kv_per_token"], facts["kv_total"]) == (327_680, 2 * 4000 * 327_680)


def test_info_names_model_kernel_and_machine(kveik: Run, folder: str) -> None:
    out = kveik("info", folder)[1]
    facts = dict(line.split(maxsplit=1) for line in out.splitlines() if len(line.split()) > 1)
    assert facts["kveik"] == __version__
    assert facts["architecture"].startswith("Llama") or "llama" in facts["architecture"].lower()
    assert facts["native_kernels"] == native_levels()
    assert int(facts["pool_tokens"].replace(",", "")) > 0
    assert facts["cores"] == str(usable_cores())


@pytest.mark.skipif(native_extension().module is None, reason=native_extension().missing)
@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_info_names_what_the_weights_are_kept_as(kveik: Run, folder: str, weights: str) -> None:
    facts = json.loads(kveik("info", folder, "--weights", weights, "--json")[1])
    assert facts["weights"] == weights


def test_bench_prints_figures(kveik: Run, folder: str) -> None:
    sizes = ("--prompt-tokens", "32", "--output-tokens", "4", "--batch", "2", "--repeat", "1")
    facts = json.loads(kveik("bench", folder, *sizes, "--json")[1])
    assert all(value > 0 for name, value in facts.items() if name.endswith(("second", "seconds")))
    table = kveik("bench", folder, *sizes)[1]
    assert "tokens/s" in table
    assert "KV cache off" in table


def test_bench_measures_what_it_says(folder: str) -> None:
    with LLM(folder) as llm:
        measure(llm, BenchSizes(prompt=32, output=4, batch=2, repeat=2))
        stats = llm.engine.stats().cache
    # Warm are the two repeated prompts of 32 tokens (each twice); no cold one begins like another.
    assert 4 * 31 <= stats.hit_tokens <= 4 * 31 + 20


# ---- chat


class ScriptedPartner:
    """Answers with the number of messages it was shown; `breaks` maps a question to an error."""

    name = "scripted"
    endless = False

    def __init__(self, breaks: Mapping[str, BaseException] | None = None) -> None:
        self.facts = chat_command.Facts(10, 4, 2)
        self.seen: list[list[dict[str, str]]] = []
        self.forgets: list[Forgets | None] = []
        self.closed = 0
        self._breaks = breaks or {}

    def reset(self) -> None:
        """It keeps nothing."""

    def answer(
        self, messages: chat_command.Messages, forget: Forgets | None = None
    ) -> Iterator[str]:
        self.seen.append([dict(message) for message in messages])
        self.forgets.append(forget)
        try:
            yield "I saw "
            if (error := self._breaks.get(messages[-1]["content"])) is not None:
                raise error
            yield str(len(messages))
        finally:
            self.closed += 1


def converse(
    monkeypatch: pytest.MonkeyPatch,
    partner: chat_command.Partner,
    lines: Sequence[Any],
    **options: Any,
) -> None:
    source = iter(lines)

    def read(prompt: str = "") -> str:
        line = next(source, None)
        if line is None:
            raise EOFError
        if isinstance(line, BaseException):
            raise line
        return str(line)

    monkeypatch.setattr("builtins.input", read)
    chat_command.chat(partner, **options)


def contents(messages: Sequence[Mapping[str, str]]) -> list[str]:
    return [message["content"] for message in messages]


def test_chat_keeps_its_history_and_shows_the_cost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    partner = ScriptedPartner()
    lines = ["one", "", "two", "/reset", "three", "/what", "/exit", "never"]
    converse(monkeypatch, partner, lines, system="Be brief.")
    assert [contents(messages) for messages in partner.seen] == [
        ["Be brief.", "one"],
        ["Be brief.", "one", "I saw 2", "two"],
        ["Be brief.", "three"],
    ]
    out = capsys.readouterr().out
    assert "4 of 10 prompt tokens cached" in out
    assert "tokens/s" in out


def test_ctrl_c_stops_the_answer_and_not_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kveik import ContextLengthExceeded

    breaks = {"long": KeyboardInterrupt(), "huge": ContextLengthExceeded("too long")}
    partner = ScriptedPartner(breaks)
    converse(monkeypatch, partner, ["one", "long", KeyboardInterrupt(), "huge", "two"])
    assert contents(partner.seen[-1]) == ["one", "I saw 1", "two"]
    assert partner.closed == 4
    captured = capsys.readouterr()
    assert "stopped" in captured.out
    assert "too long" in captured.err


def test_chat_with_a_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    with LLM(folder, kv_memory="1MiB") as llm:
        params = SamplingParams(temperature=0, max_tokens=8)
        partner = chat_command.LocalPartner(llm, params)
        converse(monkeypatch, partner, ["the first question of this chat", "and a second"])
    assert partner.facts.completion_tokens is not None
    assert partner.facts.cached_tokens > 0
    assert (
        f"{partner.facts.cached_tokens} of {partner.facts.prompt_tokens}" in capsys.readouterr().out
    )


def test_ctrl_c_in_a_real_terminal_session(folder: str) -> None:
    """The signal arrives while a long answer is written; the next question is answered."""
    options = ("--model", folder, "--max-tokens", "400", "--temperature", "0")
    command = [sys.executable, "-u", "-m", "kveik", "chat", *options]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:replace"}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
    ) as started:
        assert started.stdin is not None
        assert started.stdout is not None
        started.stdin.write(b"hello\n")
        started.stdin.flush()
        assert started.stdout.read(1)
        started.send_signal(signal.SIGINT)
        output, _ = started.communicate(b"again\n/exit\n", timeout=60)
        assert started.returncode == 0, output
    assert b"this turn is forgotten" in output
    assert b"prompt tokens cached" in output


class FakeServer(BaseHTTPRequestHandler):
    """Speaks just enough of the HTTP interface; remembers what it was sent."""

    seen: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    events: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self._answer(200, json.dumps({"data": [{"id": "remote-model"}]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.headers.get("Authorization", ""), body))
        if body["messages"][-1]["content"] == "refuse":
            self._answer(400, b'{"error": {"message": "no, thank you"}}')
        elif "lost" in body["messages"][-1]["content"] and "continue" in body.get("kveik", {}):
            self._answer(409, b'{"error": {"message": "nothing is kept of the session"}}')
        else:
            lines = "".join(f": ping\n\ndata: {event}\n\n" for event in self.events)
            self._answer(200, lines.encode())

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


@contextlib.contextmanager
def fake_server(events: list[str]) -> Iterator[str]:
    FakeServer.seen.clear()
    FakeServer.events[:] = events
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeServer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_chat_with_a_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def delta(text: str) -> str:
        return json.dumps({"choices": [{"delta": {"content": text}}], "usage": None})

    details = {"prompt_tokens_details": {"cached_tokens": 5}}
    usage = {"prompt_tokens": 9, "completion_tokens": 3, **details}
    events = [delta("Grüß "), delta("dich"), json.dumps({"choices": [], "usage": usage}), "[DONE]"]
    with fake_server(events) as url:
        partner = chat_command.RemotePartner(url + "/v1/", "secret", {"temperature": 0.5})
        assert partner.name == "remote-model"
        converse(monkeypatch, partner, ["one", "refuse", "two"])
    captured = capsys.readouterr()
    assert "Grüß dich" in captured.out
    assert "5 of 9 prompt tokens cached" in captured.out
    assert "400: no, thank you" in captured.err
    (key, body), _, (_, last) = FakeServer.seen
    assert key == "Bearer secret"
    assert (body["model"], body["stream"], body["temperature"]) == ("remote-model", True, 0.5)
    assert body["stream_options"] == {"include_usage": True}
    assert contents(last["messages"]) == ["one", "Grüß dich", "two"]


def test_a_stream_that_ends_too_soon_is_no_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with fake_server(['{"choices": [{"delta": {"content": "half"}}]}']) as url:
        converse(monkeypatch, chat_command.RemotePartner(url, None, {}), ["one", "two"])
    assert "middle of an answer" in capsys.readouterr().err
    assert contents(FakeServer.seen[-1][1]["messages"]) == ["two"]
