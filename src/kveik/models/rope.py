"""Rotary embeddings: from the parameters of config.json to a `RopeSpec` of ready frequencies.

Kinds: default (Su et al. 2021), linear (position interpolation, Chen et al. 2023), yarn (Peng et
al. 2023), llama3 (Llama 3.1), dynamic NTK up to its original length. Beyond that length the base
of dynamic NTK depends on the length of the sequence, and longrope switches its factors with it:
keys computed once could not be kept, so no cache can honour them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kveik.errors import ConfigError
from kveik.kernels.ops import RopeSpec
from kveik.models.fields import Fields


@dataclass(frozen=True, slots=True)
class RopeOptions:
    """What the command line sets in place of config.json. `scaling` replaces the whole object."""

    theta: float | None = None
    scaling: Mapping[str, object] | None = None

    @classmethod
    def parse(cls, theta: float | None, scaling: str | None) -> RopeOptions:
        """From --rope-theta and --rope-scaling (a JSON object). ConfigError on bad input."""
        if theta is not None and not (math.isfinite(theta) and theta > 1.0):
            raise ConfigError(f"rope_theta is {theta}; it must exceed 1", param="rope_theta")
        if scaling is None:
            return cls(theta)
        try:
            value = json.loads(scaling)
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"rope_scaling is not JSON ({error}); "
                'write for example {"rope_type": "linear", "factor": 2.0}',
                param="rope_scaling",
            ) from error
        if not isinstance(value, dict):
            raise ConfigError("rope_scaling must be a JSON object", param="rope_scaling")
        return cls(theta, value)


@dataclass(frozen=True, slots=True)
class Rope:
    """max_position: longest sequence in tokens. fixed: the frequencies hold at every length,
    so that keys may be seen at other positions than home (shift)."""

    spec: RopeSpec
    max_position: int
    fixed: bool = True


@dataclass(frozen=True, slots=True)
class _Shape:
    """rotary_dim: dimensions of a head that turn; trained: max_position_embeddings."""

    theta: float
    rotary_dim: int
    trained: int
    original: int

    def frequencies(self) -> list[float]:
        """theta ** (-2 i / rotary_dim) for i < rotary_dim / 2."""
        return [self.theta ** (-i / self.rotary_dim) for i in range(0, self.rotary_dim, 2)]


def read_rope(config: Fields, head_dim: int, trained: int, options: RopeOptions) -> Rope:
    """RoPE of a config.json. Accepts `rope_parameters` (transformers 5) and the older pair
    `rope_theta`, `rope_scaling`. `trained` is max_position_embeddings."""
    parameters = _parameters(config, options)
    # Older files keep these two beside the rope object, transformers 5 keeps them inside.
    outer = config.number("rope_theta", 10_000.0, low=1.001)
    theta = options.theta or parameters.number("rope_theta", outer, low=1.001)
    outer = config.number("partial_rotary_factor", 1.0, high=1.0)
    share = parameters.number("partial_rotary_factor", outer, high=1.0)
    rotary_dim = int(head_dim * share)
    if rotary_dim < 2 or rotary_dim % 2:
        raise config.fail(
            f"rotary embedding needs an even number of dimensions, found {rotary_dim} "
            f"(head_dim {head_dim}, partial_rotary_factor {share:g})"
        )
    original = parameters.integer(
        "original_max_position_embeddings",
        config.integer("original_max_position_embeddings", trained),
    )
    kind = parameters.text("rope_type", parameters.text("type", "default"))
    if kind not in _KINDS:
        raise parameters.fail(_refusal(kind))
    return _KINDS[kind](parameters, _Shape(theta, rotary_dim, trained, original))


def _parameters(config: Fields, options: RopeOptions) -> Fields:
    if options.scaling is not None:
        return Fields("rope_scaling", options.scaling, ConfigError)
    parameters = config.mapping("rope_parameters")
    scaling = config.mapping("rope_scaling")
    chosen = parameters if parameters is not None else scaling or {}
    if any(isinstance(value, dict) for value in chosen.values()):
        raise config.fail("rope_parameters that differ between layers are not supported")
    return Fields(f"{config.where}: rope", chosen)


def _refusal(kind: str) -> str:
    if kind in ("longrope", "su"):
        return (
            f"rope_type {kind} chooses its factors by the length of the whole sequence, which a "
            "cache of computed keys cannot honour; choose another model, or override it with "
            '--rope-scaling \'{"rope_type": "default"}\' for short texts'
        )
    return f"rope_type {kind!r} is unknown; supported: {', '.join(sorted(_KINDS))}"


def _default(parameters: Fields, shape: _Shape) -> Rope:
    return Rope(RopeSpec(tuple(shape.frequencies())), shape.trained)


def _linear(parameters: Fields, shape: _Shape) -> Rope:
    factor = parameters.number("factor", low=1.0)
    frequencies = tuple(frequency / factor for frequency in shape.frequencies())
    return Rope(RopeSpec(frequencies), int(shape.trained * factor))


def _dynamic(parameters: Fields, shape: _Shape) -> Rope:
    # Up to the trained length the NTK base equals theta, whatever the factor.
    parameters.number("factor", low=1.0)
    return Rope(RopeSpec(tuple(shape.frequencies())), shape.trained, fixed=False)


def _llama3(parameters: Fields, shape: _Shape) -> Rope:
    factor = parameters.number("factor", low=1.0)
    low = parameters.number("low_freq_factor", low=1e-6)
    high = parameters.number("high_freq_factor", low=1e-6)
    if high <= low:
        raise parameters.fail(f"high_freq_factor {high:g} must exceed low_freq_factor {low:g}")

    def scaled(frequency: float) -> float:
        turns = shape.original * frequency / (2 * math.pi)  # within the original context
        if turns > high:
            return frequency
        if turns < low:
            return frequency / factor
        smooth = (turns - low) / (high - low)
        return (1 - smooth) * frequency / factor + smooth * frequency

    frequencies = tuple(scaled(frequency) for frequency in shape.frequencies())
    return Rope(RopeSpec(frequencies), shape.trained)


def _yarn(parameters: Fields, shape: _Shape) -> Rope:
    factor = parameters.number("factor", shape.trained / shape.original, low=1.0)
    fast = parameters.number("beta_fast", 32.0, low=1e-6)
    slow = parameters.number("beta_slow", 1.0, low=1e-6)
    first, last = _dimension(fast, shape), _dimension(slow, shape)
    if parameters.flag("truncate", True):
        first, last = float(math.floor(first)), float(math.ceil(last))
    first, last = max(first, 0.0), min(last, shape.rotary_dim - 1.0)
    width = last - first or 0.001  # as in the reference code: no division by zero

    def mixed(index: int, frequency: float) -> float:
        interpolated = min(max((index - first) / width, 0.0), 1.0)
        return frequency / factor * interpolated + frequency * (1 - interpolated)

    frequencies = tuple(mixed(i, frequency) for i, frequency in enumerate(shape.frequencies()))
    reach = max(shape.trained, int(shape.original * factor))
    return Rope(RopeSpec(frequencies, _magnitude(parameters, factor)), reach)


def _dimension(turns: float, shape: _Shape) -> float:
    """The (fractional) dimension that turns `turns` times within the original context."""
    ratio = shape.original / (turns * 2 * math.pi)
    return shape.rotary_dim * math.log(ratio) / (2 * math.log(shape.theta))


def _magnitude(parameters: Fields, factor: float) -> float:
    """Yarn's attention factor: given, or 0.1 ln(factor) + 1 (with DeepSeek's two mscales)."""

    def grown(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0

    numerator = parameters.number("mscale", 0.0)
    denominator = parameters.number("mscale_all_dim", 0.0)
    inferred = grown(numerator) / grown(denominator) if numerator and denominator else grown(1.0)
    return parameters.number("attention_factor", inferred, high=1e3)


_KINDS: Mapping[str, Callable[[Fields, _Shape], Rope]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
}
