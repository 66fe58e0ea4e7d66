"""kveik imports, generates and serves where torch and transformers cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import serving

BLOCKER = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "openai"}:
            raise ImportError(name + " is not installed here")

sys.meta_path.insert(0, NoTorch())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKER + code], capture_output=True, text=True, timeout=60
    )


def test_the_blocker_blocks() -> None:
    assert "torch is not installed here" in run("import torch").stderr


def test_generates_without_torch(tiny_folder: Callable[..., Path]) -> None:
    done = run(
        f"""
from kveik import LLM, SamplingParams
with LLM(model={str(tiny_folder())!r}) as llm:
    output = llm.generate("hello", SamplingParams(max_tokens=5, ignore_eos=True))[0]
print(len(output.outputs[0].token_ids))
"""
    )
    assert done.stdout.strip() == "5", done.stderr


def test_serves_without_torch(tiny_folder: Callable[..., Path]) -> None:
    code = BLOCKER + "from kveik.cli import main\nsys.exit(main())\n"
    port = serving.free_port()
    command = [sys.executable, "-c", code, "serve", str(tiny_folder()), "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            serving.wait_until_ready(process, url, 60)
            body = {"model": model_name(url), "prompt": "hello", "max_tokens": 4}
            request = urllib.request.Request(
                f"{url}/v1/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=30) as response:
                answer = json.load(response)
        finally:
            process.terminate()
            process.communicate(timeout=20)
    assert answer["usage"]["completion_tokens"] >= 1


def model_name(url: str) -> str:
    with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as response:
        return str(json.load(response)["data"][0]["id"])
