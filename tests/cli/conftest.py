from __future__ import annotations

from collections.abc import Callable

import pytest

from kveik.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def kveik(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(list(arguments))
        captured = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, captured.out, captured.err

    return run
