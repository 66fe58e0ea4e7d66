"""The server call and client program of the article on vLLM, with the module and model changed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
import serving


@pytest.fixture(scope="module")
def model(tiny_folder: Callable[..., Path]) -> str:
    return str(tiny_folder())


@pytest.fixture(scope="module")
def url(model: str) -> Iterator[str]:
    port = str(serving.free_port())
    call = ["-m", "kveik.server", "--model", model, "--dtype", "auto", "--api-key", "token-abc123"]
    command = [sys.executable, *call, "--port", port]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            serving.wait_until_ready(process, f"http://127.0.0.1:{port}", 60)
            yield f"http://localhost:{port}"
        finally:
            process.terminate()
            process.communicate(timeout=20)


def test_the_client_program_of_the_article(url: str, model: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="token-abc123")
    completion = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Hello!"}], max_tokens=20
    )
    message = completion.choices[0].message
    assert message.role == "assistant"
    assert isinstance(message.content, str)
    stranger = openai.OpenAI(base_url=f"{url}/v1", api_key="another")
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_kveik_chat_talks_to_it(url: str, model: str) -> None:
    options = ("--url", url, "--api-key", "token-abc123", "--max-tokens", "5", "--temperature", "0")
    command = [sys.executable, "-m", "kveik", "chat", *options]
    done = subprocess.run(command, input="Hello!\nAnd now?\n", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("prompt tokens cached") == 2
    assert "0 of" not in done.stdout.splitlines()[-1], "the second turn reuses the first"
    wrong = subprocess.run([*command[:4], "--url", url], input="", capture_output=True, text=True)
    assert wrong.returncode == 1
    assert "401" in wrong.stderr
