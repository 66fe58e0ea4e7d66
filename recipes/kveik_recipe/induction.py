"""Plant a previous-token head and an induction head in a half-trained model.

Small models find copying late, if at all: two attention heads in two layers have to fit each
other before either helps. So the recipe lets the model learn English first, then sets the two
heads by least squares and goes on training, which turns the rough heads into good ones:

* early layer: queries and keys are constant and differ by one position of rotation, so that a
  token attends to the one before it; its value, a code of that token, goes to directions of the
  residual stream that were hardly used;
* middle layer: the query is the code of the current token, the key that of the previous one, in
  slowly rotating pairs only; the value raises the logit of the token attended to.

Query heads that share the first key/value head are set alike. Shapes: N tokens, D hidden size,
E head size, C code size.
"""

from typing import cast

import torch
from torch import Tensor

from .model import Attention, Layer, Llama

PREVIOUS_SHARPNESS = 96.0  # score by which the previous token leads, before scaling
MATCH_SCORE = 80.0  # score of a match, before scaling
PREVIOUS_GAIN = 0.6  # length of a written code, as a share of the residual's
COPY_GAIN = 0.5
RIDGE = 1e-2
FIRST_SCORED = 2  # positions before it have no previous token worth a code


@torch.no_grad()
def plant_induction(model: Llama, text: Tensor, random: Tensor) -> None:
    """Set both heads from the model's own states on text and on random ids, each [B, T]."""
    layers = model.shape.num_layers
    tokens = torch.cat([random, text])
    codes, directions = token_codes(model)
    _plant_previous(model, (layers - 1) // 4, tokens, codes)
    _plant_match(model, layers // 2, tokens, len(random), codes, directions)


def token_codes(model: Llama) -> tuple[Tensor, Tensor]:
    """A code of every token [vocabulary, E], and what each code entry adds up to [D, E]."""
    embedding = model.model.embed_tokens.weight
    centred = embedding - embedding.mean(0)
    unit = centred / centred.norm(dim=1, keepdim=True).clamp(min=1e-3)
    _, _, axes = torch.linalg.svd(unit, full_matrices=False)
    axes = axes[: model.shape.head_size]
    codes = unit @ axes.T
    spread = codes.std(0)
    return codes / spread, axes.T * spread


def residual(model: Llama, tokens: Tensor, layer: int) -> Tensor:
    """The residual stream before a layer: [B, T, D]."""
    length = tokens.shape[1]
    x: Tensor = model.model.embed_tokens(tokens)
    for part in model.model.layers[:layer]:
        x = part(x, model.cos[:length], model.sin[:length])
    return x


def fit(states: Tensor, targets: Tensor) -> Tensor:
    """The matrix [targets, D] that maps states [N, D] to targets by ridge regression."""
    gram = states.T @ states
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    solution: Tensor = torch.linalg.solve(gram, states.T @ targets)
    return solution.T


def _set_heads(attention: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> int:
    """Give the first key/value head and its query heads these rows; how many query heads."""
    shape = attention.shape
    sharing = shape.num_heads // shape.num_kv_heads
    for head in range(sharing):
        attention.q_proj.weight[head * shape.head_size : (head + 1) * shape.head_size] = queries
    attention.k_proj.weight[: shape.head_size] = keys
    attention.v_proj.weight[: shape.head_size] = values
    return sharing


def _set_output(attention: Attention, sharing: int, columns: Tensor) -> None:
    """What the first `sharing` query heads write together for a value: [D, E]."""
    attention.o_proj.weight[:, : sharing * columns.shape[1]] = (columns / sharing).repeat(
        1, sharing
    )


def _plant_previous(model: Llama, number: int, tokens: Tensor, codes: Tensor) -> None:
    shape, layer = model.shape, cast(Layer, model.model.layers[number])
    states = layer.input_layernorm(residual(model, tokens, number))[:, FIRST_SCORED:].flatten(0, 1)
    current = tokens[:, FIRST_SCORED:].flatten()
    constant = fit(states, torch.ones(len(states), 1))  # [1, D]
    pairs = shape.head_size // 2
    frequency = shape.rope_theta ** -(torch.arange(pairs) / pairs)
    fast = (torch.arange(pairs) < pairs // 4).float()
    scale = PREVIOUS_SHARPNESS**0.5
    query = torch.cat([fast, torch.zeros(pairs)])
    key = torch.cat([fast * frequency.cos(), fast * frequency.sin()])
    sharing = _set_heads(
        layer.self_attn,
        scale * query[:, None] * constant,
        scale * key[:, None] * constant,
        fit(states, codes[current]),
    )
    after = residual(model, tokens, number + 1)[:, FIRST_SCORED:].flatten(0, 1)
    _, axes = torch.linalg.eigh(after.T @ after)
    length = after.pow(2).sum(1).mean().sqrt()
    unused = axes[:, : shape.head_size]
    _set_output(layer.self_attn, sharing, unused * PREVIOUS_GAIN * length / shape.head_size**0.5)


def _plant_match(
    model: Llama, number: int, tokens: Tensor, random: int, codes: Tensor, directions: Tensor
) -> None:
    """The scale of a match is taken from the first `random` rows, whose ids are random."""
    shape, layer = model.shape, cast(Layer, model.model.layers[number])
    stream = layer.input_layernorm(residual(model, tokens, number))[:, FIRST_SCORED:]
    states = stream.flatten(0, 1)
    current, previous = tokens[:, FIRST_SCORED:].flatten(), tokens[:, 1:-1].flatten()
    pairs = shape.head_size // 2
    slow = torch.arange(pairs * 7 // 16, pairs)
    slow = torch.cat([slow, slow + pairs])
    to_query = fit(states, codes[current, : len(slow)])
    to_key = fit(states, codes[previous, : len(slow)])
    asking, asked = stream[:random, :-1] @ to_query.T, stream[:random, 1:] @ to_key.T
    match = (asking * asked).sum(-1).mean().clamp(min=1.0)
    scale = (MATCH_SCORE / match).sqrt()
    queries = torch.zeros(shape.head_size, shape.hidden_size)
    keys = torch.zeros_like(queries)
    queries[slow], keys[slow] = scale * to_query, scale * to_key
    sharing = _set_heads(layer.self_attn, queries, keys, fit(states, codes[current]))
    length = residual(model, tokens, shape.num_layers - 1).pow(2).sum(-1).mean().sqrt()
    _set_output(layer.self_attn, sharing, directions * length * COPY_GAIN)
