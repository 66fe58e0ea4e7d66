"""Runs `kveik cache ...` in this process, as a terminal would see it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kveik.cli import main

Run = Callable[..., tuple[int, str, str]]
"""Of arguments: (exit code, stdout, stderr)."""


def runner(url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Against the server at `url`, without a key."""
    monkeypatch.setenv("KVEIK_URL", url)
    monkeypatch.delenv("KVEIK_API_KEY", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["cache", *arguments])
        captured = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, captured.out, captured.err

    return run
