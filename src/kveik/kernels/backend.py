"""Which backend computes: the native kernels where they are and can, else numpy."""

from __future__ import annotations

import logging

from kveik.config import EngineConfig
from kveik.errors import ConfigError
from kveik.kernels.extension import native_extension
from kveik.kernels.ops import Ops
from kveik.kernels.reference import reference_ops

_log = logging.getLogger(__name__)


def choose_ops(config: EngineConfig) -> Ops:
    """The backend that `config` asks for. float32 weights are computed with by numpy only.

    Raises ConfigError for kernels that this machine or this install does not have."""
    asked = config.kernels
    if asked == "reference" or (asked == "auto" and config.dtype == "float32"):
        field = "kernels" if asked == "reference" else "dtype"
        return _reference(config, f"{field} is {getattr(config, field)!r}: leave it out")
    module, missing = native_extension()
    if module is None:
        if asked != "auto":
            raise ConfigError(f"kernels is {asked!r}: {missing}", param="kernels")
        ops = _reference(config, f"they are {missing}")
        _log.warning("computing with numpy, slower: native kernels %s", missing)
        return ops
    if config.dtype == "float32":
        raise ConfigError(
            f"kernels is {asked!r} but dtype is 'float32': they keep weights in bfloat16; "
            "leave dtype out, or use kernels reference",
            param="kernels",
        )
    found = [level for level in module.levels() if level != "scalar"]
    if asked not in ("auto", *found):
        raise ConfigError(
            f"kernels is {asked!r}: this machine has {', '.join(found)}", param="kernels"
        )
    from kveik.kernels.native import native_ops  # only where the extension is

    weights = "bf16" if config.weights == "auto" else config.weights
    return native_ops(None if asked == "auto" else asked, config.threads, weights)


def _reference(config: EngineConfig, instead: str) -> Ops:
    """numpy keeps every weight in float32; instead: why it computes, and what to do about it."""
    if config.weights == "auto":
        return reference_ops()
    rounding = "; dtype 'bfloat16' rounds weights for numpy too" if config.weights == "bf16" else ""
    raise ConfigError(
        f"weights is {config.weights!r}: only the native kernels keep weights so, but {instead}, "
        f"or leave weights out{rounding}",
        param="weights",
    )


def native_levels() -> str:
    """For people: the native levels that run on this machine, best first, or why none does."""
    module, missing = native_extension()
    if module is None:
        return missing
    return ", ".join(level for level in module.levels() if level != "scalar")
