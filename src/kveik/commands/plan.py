"""`kveik plan`: will a model and its KV cache fit?"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import typer

from kveik.config import parse_bytes
from kveik.engine.pool import free_memory
from kveik.errors import ConfigError
from kveik.memory_plan import (
    BYTES_PER_VALUE,
    PRESETS,
    MemoryPlan,
    ModelShape,
    memory_plan,
    read_shape,
)


@dataclass(frozen=True, slots=True)
class PlanQuestion:
    """The arguments of the command; None: not given."""

    source: str | None
    layers: int | None
    heads: int | None
    kv_heads: int | None
    head_dim: int | None
    parameters: float | None
    context: int | None
    users: int
    dtype: str
    kv_dtype: str
    memory: str | None


def plan(question: PlanQuestion, *, as_json: bool) -> None:
    """Print the answer. Raises ConfigError for a question that cannot be answered."""
    for name in ("dtype", "kv_dtype"):
        if getattr(question, name) not in BYTES_PER_VALUE:
            raise ConfigError(
                f"--{name.replace('_', '-')}: not one of {', '.join(BYTES_PER_VALUE)}"
            )
    shape = _shape(question)
    free = parse_bytes(question.memory, "--memory") if question.memory else free_memory()
    answer = memory_plan(
        shape,
        context=question.context or shape.max_positions or 4096,
        users=question.users,
        dtype=question.dtype,
        kv_dtype=question.kv_dtype,
        free=free,
    )
    where = "given" if question.memory else "free on this machine"
    typer.echo(json.dumps(_facts(answer), indent=2) if as_json else _report(answer, where))


def _shape(question: PlanQuestion) -> ModelShape:
    numbers = (question.layers, question.heads, question.head_dim)
    if question.source is not None:
        return read_shape(question.source)
    if None in numbers:
        raise ConfigError(
            f"plan: name a preset ({', '.join(PRESETS)}), a folder or a config.json, "
            "or give --layers, --heads and --head-dim (and --kv-heads)"
        )
    layers, heads, head_dim = numbers
    assert layers is not None
    assert heads is not None
    assert head_dim is not None
    kv_heads = heads if question.kv_heads is None else question.kv_heads
    parameters = None if question.parameters is None else int(question.parameters)
    return ModelShape("this model", layers, heads, kv_heads, head_dim, parameters)


def _facts(answer: MemoryPlan) -> dict[str, object]:
    return asdict(answer) | {"fits": answer.fits, "users_that_fit": answer.users_that_fit}


def _report(answer: MemoryPlan, where: str) -> str:
    shape = answer.shape
    lines = [
        f"{shape.name}: {shape.layers} layers, {shape.heads} heads, {shape.kv_heads} KV heads, "
        f"head size {shape.head_dim}"
    ]
    if shape.windowed_layers:
        lines.append(f"{shape.windowed_layers} layers see a window of {shape.window} tokens only")
    rows = [
        (
            "KV per token",
            answer.kv_per_token,
            f"= 2 x {shape.layers} layers x {shape.kv_heads} KV heads x {shape.head_dim} "
            f"x {answer.kv_value_bytes} bytes = {answer.kv_per_token:,} bytes",
        ),
        (f"KV of {answer.context:,} tokens", answer.kv_context, ""),
        (f"  x {answer.users:,} users", answer.kv_total, ""),
    ]
    if answer.weight_bytes is not None:
        rows.insert(0, ("weights", answer.weight_bytes, f"{shape.parameters:,} parameters"))
        rows.append(("together", answer.total, ""))
    if shape.kv_heads != shape.heads:
        rows.append(("if every head had its own K and V:", -1, ""))
        rows.append(("  KV per token", answer.kv_per_token_own, ""))
        rows.append((f"  KV of {answer.context:,} tokens", answer.kv_context_own, ""))
    width = max(len(label) for label, _, _ in rows if not label.endswith(":"))
    lines += [_row(label, size, note, width) for label, size, note in rows]
    if answer.free is not None:
        verdict = "fits" if answer.fits else "does not fit"
        lines.append(
            f"{verdict}: {size_text(answer.free)} {where}; {answer.users_that_fit:,} users of "
            f"{answer.context:,} tokens fit"
        )
    return "\n".join(lines)


def _row(label: str, size: int, note: str, width: int) -> str:
    if size < 0:
        return label
    return f"{label:<{width}}  {size_text(size):<24}  {note}".rstrip()


def size_text(size: int) -> str:
    """Both kinds of unit: 2.62 MB (2.50 MiB)."""
    unit, power = ("G", 3) if size >= 1e9 else ("M", 2) if size >= 1e5 else ("k", 1)
    return f"{size / 1000**power:,.2f} {unit}B ({size / 1024**power:,.2f} {unit.upper()}iB)"
