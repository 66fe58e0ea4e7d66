"""A Llama in plain torch whose parameter names are those of a Hugging Face checkpoint.

Shapes: B sequences, T tokens, D hidden size, H query heads, K key/value heads, E head size.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ModelShape:
    """The numbers that fix the architecture."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 768
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int = 2
    context: int = 1024
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads


class RMSNorm(nn.Module):
    """Scale to unit root mean square, in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (self.weight * (wide * scale)).to(x.dtype)


def rope_tables(shape: ModelShape) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position, each [context, E]."""
    steps = torch.arange(0, shape.head_size, 2).float() / shape.head_size
    angles = torch.outer(torch.arange(shape.context).float(), shape.rope_theta**-steps)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding with the two halves of a head as pairs: [B, H, T, E]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Attention(nn.Module):
    """Grouped-query causal attention."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        hidden, kv_size = shape.hidden_size, shape.num_kv_heads * shape.head_size
        self.q_proj = nn.Linear(hidden, hidden, bias=False)
        self.k_proj = nn.Linear(hidden, kv_size, bias=False)
        self.v_proj = nn.Linear(hidden, kv_size, bias=False)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, hidden = x.shape
        size = self.shape.head_size
        q = self.q_proj(x).view(batch, length, -1, size).transpose(1, 2)  # [B, H, T, E]
        k = self.k_proj(x).view(batch, length, -1, size).transpose(1, 2)  # [B, K, T, E]
        v = self.v_proj(x).view(batch, length, -1, size).transpose(1, 2)  # [B, K, T, E]
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        mixed: Tensor = self.o_proj(out.transpose(1, 2).reshape(batch, length, hidden))
        return mixed


class MLP(nn.Module):
    """The gated feed-forward of Llama."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and beside a residual."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.norm_eps)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Backbone(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.norm_eps)


class LossHead(nn.Module):
    """Logits and cross entropy in one part, so that compiling can fuse them."""

    def forward(self, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        logits = F.linear(hidden, weight).flatten(0, 1)
        return F.cross_entropy(logits.float(), targets.flatten(), reduction="none")


class Llama(nn.Module):
    """The language model; the output matrix is the embedding."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Backbone(shape)
        self.loss_head = LossHead()
        cos, sin = rope_tables(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding | nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, Attention):
            nn.init.normal_(module.o_proj.weight, std=0.02 / (2 * self.shape.num_layers) ** 0.5)
        if isinstance(module, MLP):
            nn.init.normal_(module.down_proj.weight, std=0.02 / (2 * self.shape.num_layers) ** 0.5)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Token ids [B, T] to normed hidden states [B, T, D]."""
        length = tokens.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        out: Tensor = self.model.norm(x)
        return out

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids [B, T] to logits [B, T, vocabulary]."""
        return F.linear(self.hidden(tokens), self.model.embed_tokens.weight)

    def compile_parts(self) -> None:
        """Compile one layer's code, shared by all, which is far quicker than the whole model."""
        for layer in self.model.layers:
            layer.compile(dynamic=False)
        self.model.norm.compile(dynamic=False)
        self.loss_head.compile(dynamic=False)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def token_losses(model: Llama, tokens: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of each target, in float32: [B * T]."""
    losses: Tensor = model.loss_head(model.hidden(tokens), model.model.embed_tokens.weight, targets)
    return losses
