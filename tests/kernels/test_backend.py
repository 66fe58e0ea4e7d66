"""Which kernels compute: what was asked for, what this machine has, and what is said about it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from kveik.config import EngineConfig
from kveik.errors import ConfigError
from kveik.kernels import backend
from kveik.kernels.backend import choose_ops, native_levels
from kveik.kernels.extension import NOT_BUILT, Extension, native_extension

Install = Callable[..., None]

built = pytest.mark.skipif(native_extension().module is None, reason=native_extension().missing)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Pretend that the extension has these levels; none: that it was not built."""

    def pretend(*levels: str) -> None:
        module = SimpleNamespace(levels=lambda: [*levels, "scalar"])
        found = Extension(module, "") if levels else Extension(None, NOT_BUILT)
        monkeypatch.setattr(backend, "native_extension", lambda: found)

    return pretend


def test_without_the_extension_numpy_computes_and_one_line_says_so(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install()
    with caplog.at_level(logging.WARNING, "kveik"):
        assert choose_ops(EngineConfig()).name == "reference"
    assert [record.getMessage() for record in caplog.records] == [
        f"computing with numpy, slower: native kernels {NOT_BUILT}"
    ]


@pytest.mark.parametrize("asked", [{"kernels": "reference"}, {"dtype": "float32"}])
def test_numpy_asked_for_is_no_news(
    install: Install, caplog: pytest.LogCaptureFixture, asked: dict[str, str]
) -> None:
    install()
    assert choose_ops(EngineConfig(**asked)).name == "reference"  # type: ignore[arg-type]
    assert not caplog.records


def test_a_level_asked_for_needs_the_extension(install: Install) -> None:
    install()
    with pytest.raises(ConfigError, match=r"kernels is 'avx2': not built.*make clean install"):
        choose_ops(EngineConfig(kernels="avx2"))


def test_a_level_that_the_machine_lacks_is_refused_with_those_it_has(install: Install) -> None:
    install("avx2", "portable")
    with pytest.raises(ConfigError, match="kernels is 'amx': this machine has avx2, portable"):
        choose_ops(EngineConfig(kernels="amx"))


def test_a_native_level_and_float32_weights_exclude_each_other(install: Install) -> None:
    install("portable")
    with pytest.raises(ConfigError, match="kernels is 'portable' but dtype is 'float32'"):
        choose_ops(EngineConfig(kernels="portable", dtype="float32"))


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
@pytest.mark.parametrize(
    ("asked", "levels", "message"),
    [
        ({"kernels": "reference"}, ["avx2"], "but kernels is 'reference': leave it out, or leave"),
        ({"dtype": "float32"}, ["avx2"], "but dtype is 'float32': leave it out, or leave weights"),
        ({}, [], "but they are not built: .*, or leave weights out"),
    ],
)
def test_numpy_keeps_no_weights_but_its_own(
    install: Install, asked: dict[str, str], levels: list[str], message: str, weights: str
) -> None:
    install(*levels)
    with pytest.raises(ConfigError, match=f"^weights is '{weights}': .*{message}") as caught:
        choose_ops(EngineConfig(weights=weights, **asked))  # type: ignore[arg-type]
    assert ("dtype 'bfloat16' rounds" in str(caught.value)) == (weights == "bf16")
    assert caught.value.param == "weights"


@built
def test_the_best_level_is_taken_and_a_lower_one_when_it_is_asked_for() -> None:
    levels = native_levels().split(", ")
    assert "scalar" not in levels
    assert choose_ops(EngineConfig()).level.startswith(levels[0])
    for level in levels:
        ops = choose_ops(EngineConfig(kernels=level, threads=1))  # type: ignore[arg-type]
        assert (ops.name, ops.level.partition(",")[0]) == ("native", level)


def test_what_kveik_info_says_of_them(install: Install) -> None:
    install("avx512", "avx2", "portable")
    assert native_levels() == "avx512, avx2, portable"
    install()
    assert native_levels() == NOT_BUILT
