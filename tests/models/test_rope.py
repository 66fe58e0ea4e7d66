"""Rotary frequencies: reach, old and new spelling, overrides from the command line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kveik.errors import ConfigError
from kveik.kernels.reference import reference_ops
from kveik.models import load_model
from kveik.models.architecture import Architecture, read_architecture
from kveik.models.rope import RopeOptions

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}


def read(folder: Path, options: RopeOptions | None = None) -> Architecture:
    return read_architecture(folder, options)


def test_default_frequencies(tiny_folder: Callable[..., Path]) -> None:
    spec = read(tiny_folder(rope_theta=100.0)).rope
    assert spec is not None
    assert spec.inverse_frequencies == pytest.approx([100.0 ** (-i / 8) for i in range(8)])
    assert spec.magnitude == 1.0


@pytest.mark.parametrize(
    ("scaling", "reach", "can_shift"),
    [
        ({"rope_type": "default"}, 512, True),
        ({"rope_type": "linear", "factor": 4.0}, 2048, True),
        ({"rope_type": "dynamic", "factor": 4.0}, 512, False),
        ({**YARN, "original_max_position_embeddings": 512}, 2048, True),
        (YARN, 512, True),
    ],
)
def test_reach_and_shift(
    tiny_folder: Callable[..., Path], scaling: dict[str, Any], reach: int, can_shift: bool
) -> None:
    found = read(tiny_folder(rope_scaling=scaling))
    assert (found.max_position, found.can_shift) == (reach, can_shift)


def test_beyond_the_original_length_of_dynamic_ntk(tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder(rope_scaling={"rope_type": "dynamic", "factor": 4.0})
    with pytest.raises(ConfigError, match=r"1 \.\. 512"):
        load_model(str(folder), reference_ops(), max_model_len=1000)


def test_old_and_new_spelling_agree(tiny_folder: Callable[..., Path]) -> None:
    old = {**YARN, "type": "yarn"}
    del old["rope_type"]
    theta = {"rope_theta": 5000.0}
    assert (
        read(tiny_folder(**theta, rope_scaling=old)).rope
        == read(tiny_folder(**theta, rope_scaling=YARN)).rope
        == read(tiny_folder(rope_theta=None, rope_parameters={**YARN, **theta})).rope
    )


def test_yarn_magnitude(tiny_folder: Callable[..., Path]) -> None:
    spec = read(tiny_folder(rope_scaling=YARN)).rope
    assert spec is not None
    assert spec.magnitude == pytest.approx(0.1 * math.log(4.0) + 1.0)


def test_yarn_factor_defaults_to_the_ratio_of_lengths(tiny_folder: Callable[..., Path]) -> None:
    without = {name: value for name, value in YARN.items() if name != "factor"}
    assert read(tiny_folder(rope_scaling=without)) == read(tiny_folder(rope_scaling=YARN))


def test_partial_rotary_turns_the_first_dimensions_only(tiny_folder: Callable[..., Path]) -> None:
    spec = read(tiny_folder(partial_rotary_factor=0.5)).rope
    assert spec is not None
    assert len(spec.inverse_frequencies) == 4  # head_dim 16: 8 dimensions turn


def test_options_override_the_file(tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder()
    theta = read(folder, RopeOptions.parse(777.0, None))
    assert theta.rope == read(tiny_folder(rope_theta=777.0)).rope
    scaled = read(folder, RopeOptions.parse(None, json.dumps(YARN)))
    assert scaled == read(tiny_folder(rope_scaling=YARN))
    both = read(tiny_folder(rope_scaling=YARN), RopeOptions.parse(777.0, '{"type": "default"}'))
    assert both.rope == theta.rope


def test_an_override_rescues_longrope(tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder(rope_scaling={"rope_type": "longrope"})
    plain = RopeOptions.parse(None, '{"rope_type": "default"}')
    assert read(folder, plain).rope == read(tiny_folder()).rope


@pytest.mark.parametrize(
    ("theta", "scaling", "param"),
    [
        (0.5, None, "rope_theta"),
        (math.nan, None, "rope_theta"),
        (None, "{", "rope_scaling"),
        (None, "[]", "rope_scaling"),
    ],
)
def test_impossible_options(theta: float | None, scaling: str | None, param: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RopeOptions.parse(theta, scaling)
    assert caught.value.param == param


def test_an_impossible_value_of_the_option_names_the_option(
    tiny_folder: Callable[..., Path],
) -> None:
    options = RopeOptions.parse(None, '{"rope_type": "linear", "factor": "big"}')
    with pytest.raises(ConfigError, match="rope_scaling: factor is 'big'"):
        read(tiny_folder(), options)


def test_llama3_needs_ordered_bounds(tiny_folder: Callable[..., Path]) -> None:
    scaling = '{"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}'
    with pytest.raises(ConfigError, match="high_freq_factor 1 must exceed"):
        read(tiny_folder(), RopeOptions.parse(None, scaling))
