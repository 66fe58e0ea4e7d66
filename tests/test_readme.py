"""The Python blocks of README and guide run as they stand; shell blocks name real commands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kveik.config import DEFAULT_MODEL_PATH

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "docs/DASHBOARD.md",
    "docs/FORGETTING.md",
    "docs/MANAGED_CACHE.md",
    "docs/MONITORING.md",
    "docs/POLICY_LABORATORY.md",
    "docs/PROMPT_MODULES.md",
    "docs/RELEVANCE.md",
    "docs/SCALE.md",
    "docs/STREAMS.md",
)
TEXT = "\n".join((ROOT / page).read_text() for page in PAGES)
BLOCKS = re.findall(r"^```python *(\w*)\n(.*?)^```", TEXT, re.M | re.S)
OFFLINE = [code for kind, code in BLOCKS if kind == ""]
SERVER = [code for kind, code in BLOCKS if kind == "server"]

needs_model = pytest.mark.skipif(
    not (DEFAULT_MODEL_PATH / "model.safetensors").exists(), reason="no embedded model here"
)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, cwd=ROOT
    )


@needs_model
@pytest.mark.parametrize("number", range(len(OFFLINE)))
def test_offline_blocks_run(number: int) -> None:
    done = run_python(OFFLINE[number])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@needs_model
@pytest.mark.parametrize("number", range(len(SERVER)))
def test_client_blocks_run_against_a_server(number: int, default_server: str) -> None:
    done = run_python(SERVER[number].replace("http://127.0.0.1:8000", default_server))
    assert done.returncode == 0, done.stderr
    assert "from the cache" in done.stdout


def test_the_blocks_were_found() -> None:
    assert len(OFFLINE) >= 9
    assert len(SERVER) >= 5


def shell_commands() -> list[list[str]]:
    text = "\n".join(re.findall(r"^```sh\n(.*?)^```", TEXT, re.M | re.S)).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in text.splitlines() if line.strip()]


def test_shell_blocks_name_real_make_targets() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    used = {words[1] for words in shell_commands() if words[0] == "make"}
    assert used
    assert used <= targets


def test_shell_blocks_use_real_options() -> None:
    for words in shell_commands():
        if words[0] != "kveik":
            continue
        command = words[1:3] if words[1] == "cache" else words[1:2]
        done = subprocess.run(
            [sys.executable, "-m", "kveik", *command, "--help"],
            capture_output=True,
            text=True,
            env={"PATH": "", "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
        )
        assert done.returncode == 0, (words, done.stderr)
        for word in words:
            if word.startswith("--"):
                assert word in done.stdout, (words, word)
