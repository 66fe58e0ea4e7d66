from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
from server_harness import RunningServer, running, tiny_engine

from kveik.engine.engine import Engine


@pytest.fixture(scope="session")
def server_engine(tiny_folder: Callable[..., Path]) -> Iterator[Engine]:
    """One engine for the whole room; tests that need other settings build their own."""
    engine = tiny_engine(tiny_folder())
    yield engine
    engine.stop()
    engine.check()


@pytest.fixture(scope="session")
def server(server_engine: Engine) -> Iterator[RunningServer]:
    """Without keys, on a free loopback port."""
    with running(server_engine) as one:
        yield one


@pytest.fixture(scope="session")
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with server.openai() as one:
        yield one
