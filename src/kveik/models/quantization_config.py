"""`quantization_config` of config.json -> `Quantization`: which matrices are stored quantised, how.

Three methods are read: gptq, awq, compressed-tensors (int8 and int4). What a method may say but
kveik does not compute is refused by name and value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kveik.errors import KveikError
from kveik.models.fields import Fields
from kveik.models.quantized import Layout, Scheme

_REMEDY = (
    "use a GPTQ, AWQ or compressed-tensors checkpoint of 4 or 8 bit integers, or the original one"
)
_LARGEST_GROUP = 1 << 24


@dataclass(frozen=True, slots=True)
class Rule:
    """pattern: a regular expression that is matched from the start of a module's name.
    scheme None: stored as it is."""

    pattern: str
    scheme: Scheme | None


@dataclass(frozen=True, slots=True)
class Quantization:
    """The first rule that matches decides; what none matches is stored as it is.

    ignored: endings of tensors that go with a method and are not read."""

    method: str
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()

    def scheme(self, module: str) -> Scheme | None:
        """module: e.g. "model.layers.0.mlp.up_proj"."""
        for rule in self.rules:
            if re.match(rule.pattern, module):
                return rule.scheme
        return None


def read_quantization(config: Fields) -> Quantization | None:
    """None where config.json has no such key. ModelLoadError names key, value and remedy."""
    for name in ("quantization_config", "compression_config"):  # the latter in old checkpoints
        values = config.mapping(name)
        if values is not None:
            fields = Fields(f"{config.where}: {name}", values)
            method = fields.text("quant_method", "").lower()
            if method not in _METHODS:
                raise _refusal(fields, "quant_method", tuple(_METHODS))
            return _METHODS[method](fields)
    return None


def _refusal(fields: Fields, name: str, supported: Sequence[object]) -> KveikError:
    values = ", ".join(str(value) for value in supported)
    return fields.fail(f"{name} is {fields.get(name)!r}; kveik reads {values}: {_REMEDY}")


# ---- gptq --------------------------------------------------------------------------------------


def _gptq(fields: Fields) -> Quantization:
    """sym and desc_act are not read: zero points and g_idx of the weights say the same."""
    form = "checkpoint_format" if fields.get("checkpoint_format") is not None else "format"
    version = fields.text(form, "gptq").lower()
    if version not in ("gptq", "gptq_v2"):
        raise _refusal(fields, form, ("gptq", "gptq_v2"))
    if fields.flag("is_marlin_format", False):
        raise _refusal(fields, "is_marlin_format", (False,))
    if fields.text("pack_dtype", "int32") != "int32":
        raise _refusal(fields, "pack_dtype", ("int32",))
    if fields.mapping("dynamic"):
        raise _refusal(fields, "dynamic", ("one setting for all layers",))
    scheme = Scheme("gptq", _bits(fields, "bits"), _group(fields), less_one=version == "gptq")
    names = _names(fields, "modules_in_block_to_quantize")
    inside = "|".join(re.escape(name) for name in names) if names else ".*"
    rules = [Rule(rf"model\.layers\.\d+\.(?:{inside})\Z", scheme)]
    if fields.flag("lm_head", False):
        rules.append(Rule(r"lm_head\Z", scheme))
    return Quantization("gptq", tuple(rules))


# ---- awq ---------------------------------------------------------------------------------------


def _awq(fields: Fields) -> Quantization:
    """zero_point is not read: the zero points of the weights say the same."""
    form = "version" if fields.get("version") is not None else "format"
    if fields.text(form, "gemm").lower() != "gemm":
        raise _refusal(fields, form, ("gemm",))
    if fields.get("backend") == "llm-awq":
        raise _refusal(fields, "backend", ("autoawq",))
    scheme = Scheme("awq", _bits(fields, "bits", (4,)), _group(fields))
    # a part of a name, as those who write these checkpoints take it
    kept = [Rule(".*" + re.escape(part), None) for part in _names(fields, "modules_to_not_convert")]
    return Quantization("awq", (*kept, Rule(r"model\.layers\.", scheme)))


# ---- compressed-tensors ------------------------------------------------------------------------

_LAYOUTS: Mapping[str, Layout] = {
    "pack-quantized": "packed",
    "int-quantized": "int8",
    "naive-quantized": "int8",
}
_ACTIVATIONS = (".input_scale", ".input_zero_point", ".output_scale", ".output_zero_point")


def _compressed(fields: Fields) -> Quantization:
    """Scales of activations are ignored: kveik rounds activations less than these schemes do."""
    if fields.get("kv_cache_scheme") is not None:
        raise _refusal(fields, "kv_cache_scheme", ("null",))
    sparsity = Fields(f"{fields.where}: sparsity_config", fields.mapping("sparsity_config") or {})
    if sparsity.text("format", "dense") != "dense":
        raise _refusal(sparsity, "format", ("dense",))
    if (fields.mapping("transform_config") or {}).get("config_groups"):
        raise _refusal(fields, "transform_config", ("none",))
    ignored = [Rule(_pattern(fields, name), None) for name in _names(fields, "ignore")]
    targets: list[tuple[str, Scheme]] = []
    for name, group in (fields.mapping("config_groups") or {}).items():
        where = f"{fields.where}: config_groups: {name!r}"
        if not isinstance(group, dict):
            raise fields.fail(f"config_groups: {name!r} is {group!r}; expected an object")
        targets += _group_targets(Fields(where, group), fields)
    if not targets:
        raise fields.fail(f"config_groups quantises no weights; {_REMEDY}")
    # names win over patterns, patterns over the class of a layer
    targets.sort(key=lambda target: (target[0] == "Linear", target[0].startswith("re:")))
    rules = [Rule(_pattern(fields, target), scheme) for target, scheme in targets]
    return Quantization("compressed-tensors", (*ignored, *rules), _ACTIVATIONS)


def _group_targets(group: Fields, top: Fields) -> list[tuple[str, Scheme]]:
    weights = group.mapping("weights")
    if weights is None:
        return []
    holder = group if group.get("format") is not None else top
    layout = _LAYOUTS.get(holder.text("format", ""))
    if layout is None:
        raise _refusal(holder, "format", tuple(_LAYOUTS))
    scheme = _compressed_scheme(Fields(f"{group.where}: weights", weights), layout)
    return [(target, scheme) for target in _names(group, "targets")]


def _compressed_scheme(weights: Fields, layout: Layout) -> Scheme:
    if weights.text("type", "int") != "int":
        raise _refusal(weights, "type", ("int",))
    size = weights.get("group_size")
    strategy = weights.text(
        "strategy", "tensor" if size is None else "channel" if size == -1 else "group"
    )
    if strategy not in ("tensor", "channel", "group"):
        raise _refusal(weights, "strategy", ("tensor", "channel", "group"))
    return Scheme(
        layout,
        _bits(weights, "num_bits"),
        weights.integer("group_size", high=_LARGEST_GROUP) if strategy == "group" else None,
        asymmetric=not weights.flag("symmetric", True),
        one_scale=strategy == "tensor",
    )


def _pattern(fields: Fields, target: str) -> str:
    """A target or an exception -> a regular expression: a name, "re:" and one, or "Linear"."""
    if not target.startswith("re:"):
        return r"(?!model\.embed_tokens\Z)" if target == "Linear" else re.escape(target) + r"\Z"
    pattern = target.removeprefix("re:")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise fields.fail(f"{target!r} is not a regular expression ({error})") from error
    return pattern


# ---- common ------------------------------------------------------------------------------------

_METHODS: Mapping[str, Callable[[Fields], Quantization]] = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed,
}


def _bits(fields: Fields, name: str, supported: tuple[int, ...] = (4, 8)) -> Literal[4, 8]:
    value = fields.get(name)
    if type(value) is not int or value not in supported:
        raise _refusal(fields, name, supported)
    return 4 if value == 4 else 8


def _group(fields: Fields) -> int | None:
    """group_size; -1: all of a row."""
    if fields.get("group_size") == -1:
        return None
    return fields.integer("group_size", 128, high=_LARGEST_GROUP)


def _names(fields: Fields, name: str) -> list[str]:
    """A list of strings, or a list of such lists."""
    names: list[str] = []
    for item in fields.items(name) or ():
        for inner in item if isinstance(item, list) else (item,):
            if not isinstance(inner, str):
                raise fields.fail(f"{name} holds {inner!r}; expected names")
            names.append(inner)
    return names
