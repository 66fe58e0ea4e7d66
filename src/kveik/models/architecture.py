"""config.json -> `Architecture`: everything the networks need to know, checked, in one record.

Each supported model_type has one reader. Only keys that a reader asks for have an effect; keys
known to change the arithmetic of some checkpoint are refused unless they are neutral.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kveik.cache.segments import KvGroup
from kveik.errors import ConfigError, ModelLoadError
from kveik.kernels.ops import AttentionSpec, RopeSpec
from kveik.models.fields import Fields, read_json
from kveik.models.quantization_config import Quantization, read_quantization
from kveik.models.rope import RopeOptions, read_rope

_LARGEST = 1 << 24  # no width, vocabulary or layer count of a real checkpoint comes near


@dataclass(frozen=True, slots=True)
class Architecture:
    """windows[layer]: how many of the last tokens a layer sees, its own included; None: all.
    scales[layer]: factor on query-key products. inner_size: width of the MLP."""

    model_type: str
    vocab_size: int
    hidden_size: int
    inner_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    windows: tuple[int | None, ...]
    scales: tuple[float, ...]
    norm_eps: float
    tied_head: bool
    rope: RopeSpec | None = None
    can_shift: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    gelu: Literal["tanh", "erf"] = "tanh"
    quantization: Quantization | None = None

    @property
    def num_layers(self) -> int:
        return len(self.windows)

    def attention(self, layer: int) -> AttentionSpec:
        return AttentionSpec(
            self.num_heads, self.num_kv_heads, self.head_dim, self.scales[layer], self.rope
        )

    def groups(self, block_size: int, itemsize: int) -> tuple[KvGroup, ...]:
        """Layers by what they see, full attention first. itemsize: bytes per K or V number."""
        kinds = sorted(set(self.windows), key=lambda window: (window is not None, window or 0))
        groups = []
        for window in kinds:
            layers = tuple(i for i, other in enumerate(self.windows) if other == window)
            token = 2 * self.num_kv_heads * self.head_dim * itemsize  # K and V of one layer
            groups.append(
                KvGroup(
                    layers=layers,
                    kind="full" if window is None else "window",
                    window=window,
                    bytes_per_block=len(layers) * block_size * token,
                )
            )
        return tuple(groups)


def read_architecture(folder: Path, options: RopeOptions | None = None) -> Architecture:
    """Read and check `folder`/config.json. ModelLoadError (or ConfigError for options)."""
    file = folder / "config.json"
    if not file.is_file():
        raise ModelLoadError(
            f"{file}: not found; give a folder in Hugging Face format (config.json, "
            "model.safetensors, tokenizer.json)"
        )
    fields = Fields(str(file), read_json(file))
    model_type = fields.text("model_type", "")
    if model_type not in _FAMILIES:
        raise fields.fail(
            f"model_type {model_type!r} is not supported; supported: {', '.join(_FAMILIES)}"
        )
    _refuse_arithmetic(fields)
    quantization = read_quantization(fields)
    if quantization is not None and model_type not in _QUANTIZED:
        raise fields.fail(
            f"quantization_config is set, which is read for {', '.join(_QUANTIZED)} only, not for "
            f"{model_type}; use a checkpoint without it"
        )
    architecture = _FAMILIES[model_type](fields, options or RopeOptions())
    return replace(architecture, quantization=quantization)


# Keys that would change the arithmetic, with the values that do not.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "quantization": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "logit_scale": (None, 1),
    "logits_scaling": (None, 1),
    "embedding_multiplier": (None, 1),
    "residual_multiplier": (None, 1),
    "attention_multiplier": (None,),
    "no_rope_layers": (None, []),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "add_cross_attention": (None, False),
    "alibi": (None, False),
}


def _refuse_arithmetic(fields: Fields) -> None:
    for name, neutral in _NEUTRAL.items():
        value = fields.get(name)
        if value not in neutral:
            raise fields.fail(
                f"{name} is set, which kveik does not compute; use a checkpoint without it"
            )


@dataclass(frozen=True, slots=True)
class _Traits:
    """How one member of the Llama family differs from the first Llama."""

    one_kv_per_head: bool = False  # when num_key_value_heads is absent; False: it is required
    head_dim: int | None = None  # when head_dim is absent; None: hidden_size / heads
    trained: int = 2048  # max_position_embeddings when absent
    biases: Literal["flags", "qkv", "none"] = "none"
    qk_norm: bool = False
    windows: Literal["none", "all", "some"] = "none"


def _llama_family(fields: Fields, options: RopeOptions, traits: _Traits) -> Architecture:
    heads, kv_heads, head_dim, hidden = _heads(fields, traits)
    layers = fields.integer("num_hidden_layers", high=4096)
    trained = fields.integer("max_position_embeddings", traits.trained)
    rope = read_rope(fields, head_dim, trained, options)
    activation = fields.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise fields.fail(f"hidden_act {activation!r} is not supported in this family; silu is")
    flags = traits.biases == "flags"
    attention_bias = flags and fields.flag("attention_bias", False)
    return Architecture(
        model_type=fields.text("model_type"),
        vocab_size=fields.integer("vocab_size", high=_LARGEST),
        hidden_size=hidden,
        inner_size=fields.integer("intermediate_size", high=_LARGEST),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position=rope.max_position,
        windows=_clip(_windows(fields, layers, traits), rope.max_position),
        scales=(head_dim**-0.5,) * layers,
        norm_eps=fields.number("rms_norm_eps", 1e-6, high=1.0),
        tied_head=fields.flag("tie_word_embeddings", False),
        rope=rope.spec,
        can_shift=rope.fixed,
        qkv_bias=traits.biases == "qkv" or attention_bias,
        output_bias=attention_bias,
        mlp_bias=flags and fields.flag("mlp_bias", False),
        qk_norm=traits.qk_norm,
    )


def _heads(fields: Fields, traits: _Traits) -> tuple[int, int, int, int]:
    """(heads, KV heads, head size, hidden size)."""
    hidden = fields.integer("hidden_size", high=_LARGEST)
    heads = fields.integer("num_attention_heads", high=_LARGEST)
    absent = heads if traits.one_kv_per_head else None
    kv_heads = fields.integer("num_key_value_heads", absent, high=_LARGEST)
    if heads % kv_heads:
        raise fields.fail(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    if fields.get("head_dim") is None and traits.head_dim is None and hidden % heads:
        raise fields.fail(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    head_dim = fields.integer("head_dim", traits.head_dim or hidden // heads, high=1 << 16)
    return heads, kv_heads, head_dim, hidden


def _windows(fields: Fields, layers: int, traits: _Traits) -> tuple[int | None, ...]:
    kinds = _layer_types(fields, layers)
    if traits.windows == "none":
        if "sliding_attention" in kinds:
            raise fields.fail("layer_types: sliding_attention is not part of this model_type")
        return (None,) * layers
    if traits.windows == "all":
        if len(set(kinds)) > 1:
            raise fields.fail("layer_types: all layers of this model_type must be alike")
        return (_window(fields),) * layers
    if not fields.flag("use_sliding_window", False):
        if "sliding_attention" in kinds:
            raise fields.fail("layer_types has sliding_attention, but use_sliding_window is false")
        return (None,) * layers
    window, first = _window(fields), fields.integer("max_window_layers", 28, low=0)
    if kinds:
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return tuple(window if layer >= first else None for layer in range(layers))


def _window(fields: Fields) -> int | None:
    """null: no window. Absent: 4096, the default of the Mistral and Qwen configurations."""
    if fields.has("sliding_window") and fields.get("sliding_window") is None:
        return None
    return fields.integer("sliding_window", 4096)


def _layer_types(fields: Fields, layers: int) -> tuple[str, ...]:
    kinds = fields.items("layer_types") or []
    known = ("full_attention", "sliding_attention")
    if any(kind not in known for kind in kinds) or len(kinds) not in (0, layers):
        raise fields.fail(f"layer_types: expected {layers} entries, each one of {known}")
    return tuple(str(kind) for kind in kinds)


def _clip(windows: tuple[int | None, ...], longest: int) -> tuple[int | None, ...]:
    """A window that no sequence can leave is full attention."""
    return tuple(None if window is None or window >= longest else window for window in windows)


_GELUS: Mapping[str, Literal["tanh", "erf"]] = {
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "gelu_fast": "tanh",
    "gelu": "erf",
}


def _gelu(fields: Fields) -> Literal["tanh", "erf"]:
    name = fields.text("activation_function", "gelu_new")
    if name not in _GELUS:
        raise fields.fail(
            f"activation_function {name!r} is not supported; supported: {', '.join(_GELUS)}"
        )
    return _GELUS[name]


def _head_dim(fields: Fields, hidden: int, heads: int) -> int:
    if hidden % heads:
        raise fields.fail(f"width {hidden} is not a multiple of the {heads} heads")
    return hidden // heads


def _gpt2(fields: Fields, options: RopeOptions) -> Architecture:
    """GPT-2. reorder_and_upcast_attn changes rounding only, and float32 needs no upcast."""
    _refuse_rope(options)
    hidden = fields.integer("n_embd", 768, high=_LARGEST)
    heads = fields.integer("n_head", 12, high=_LARGEST)
    layers = fields.integer("n_layer", 12, high=4096)
    head_dim = _head_dim(fields, hidden, heads)
    scale = head_dim**-0.5 if fields.flag("scale_attn_weights", True) else 1.0
    by_layer = fields.flag("scale_attn_by_inverse_layer_idx", False)
    return Architecture(
        model_type="gpt2",
        vocab_size=fields.integer("vocab_size", 50257, high=_LARGEST),
        hidden_size=hidden,
        inner_size=fields.integer("n_inner", 4 * hidden, high=_LARGEST),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        max_position=fields.integer("n_positions", 1024),
        windows=(None,) * layers,
        scales=tuple(scale / (layer + 1 if by_layer else 1) for layer in range(layers)),
        norm_eps=fields.number("layer_norm_epsilon", 1e-5, high=1.0),
        tied_head=fields.flag("tie_word_embeddings", True),
        can_shift=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        gelu=_gelu(fields),
    )


def _gpt_neo(fields: Fields, options: RopeOptions) -> Architecture:
    """GPT-Neo: query-key products are not scaled; local layers see `window_size` tokens."""
    _refuse_rope(options)
    hidden = fields.integer("hidden_size", 2048, high=_LARGEST)
    heads = fields.integer("num_heads", 16, high=_LARGEST)
    longest = fields.integer("max_position_embeddings", 2048)
    kinds = _attention_types(fields, fields.integer("num_layers", 24, high=4096))
    window = fields.integer("window_size", 256)
    return Architecture(
        model_type="gpt_neo",
        vocab_size=fields.integer("vocab_size", 50257, high=_LARGEST),
        hidden_size=hidden,
        inner_size=fields.integer("intermediate_size", 4 * hidden, high=_LARGEST),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=_head_dim(fields, hidden, heads),
        max_position=longest,
        windows=_clip(tuple(window if kind == "local" else None for kind in kinds), longest),
        scales=(1.0,) * len(kinds),
        norm_eps=fields.number("layer_norm_epsilon", 1e-5, high=1.0),
        tied_head=fields.flag("tie_word_embeddings", True),
        can_shift=False,
        output_bias=True,
        mlp_bias=True,
        gelu=_gelu(fields),
    )


def _attention_types(fields: Fields, layers: int) -> tuple[str, ...]:
    """[[["global", "local"], 12]] -> global, local, global, ... one entry per layer."""
    kinds: list[str] = []
    for item in fields.items("attention_types") or [[["global", "local"], 12]]:
        match item:
            case [list(pattern), int(repeats)] if repeats * len(pattern) <= layers:
                kinds.extend(str(kind) for kind in pattern * repeats)
            case _:
                kinds.append("")
    if len(kinds) != layers or not set(kinds) <= {"global", "local"}:
        raise fields.fail(
            f"attention_types: expected [[kinds, repeats], ...] of global and local for {layers} "
            "layers"
        )
    return tuple(kinds)


def _refuse_rope(options: RopeOptions) -> None:
    if options != RopeOptions():
        raise ConfigError(
            "rope_theta and rope_scaling do not apply: this model has learned absolute positions",
            param="rope_scaling",
        )


def _family(traits: _Traits) -> Callable[[Fields, RopeOptions], Architecture]:
    return lambda fields, options: _llama_family(fields, options, traits)


_FAMILIES: Mapping[str, Callable[[Fields, RopeOptions], Architecture]] = {
    "llama": _family(_Traits(one_kv_per_head=True, biases="flags")),
    "mistral": _family(_Traits(trained=131072, windows="all")),
    "qwen2": _family(_Traits(trained=32768, biases="qkv", windows="some")),
    "qwen3": _family(
        _Traits(head_dim=128, trained=32768, biases="flags", qk_norm=True, windows="some")
    ),
    "gpt2": _gpt2,
    "gpt_neo": _gpt_neo,
}

_QUANTIZED = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose matrices are linear layers [out, in] of which each has a name of its own."""
