"""generation_config.json: the ids that end a text, and the sampling defaults of the model's makers.

`do_sample` is not read: a request that sets no temperature gets the file's, or the server's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kveik.config import LIMITS
from kveik.errors import ModelLoadError
from kveik.models.fields import Fields, read_json

_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class Generation:
    """end_ids: in file order; sampling: only what the file sets, within config.LIMITS."""

    end_ids: tuple[int, ...] = ()
    sampling: dict[str, float] = field(default_factory=dict)


def read_generation(folder: Path, vocab_size: int) -> Generation:
    """From generation_config.json; end ids fall back to config.json, as in transformers."""
    file = folder / "generation_config.json"
    fields = Fields(str(file), read_json(file) if file.is_file() else {})
    config = Fields(str(folder / "config.json"), read_json(folder / "config.json"))
    end_ids = _end_ids(fields, vocab_size) or _end_ids(config, vocab_size)
    return Generation(end_ids, _sampling(fields))


def _end_ids(fields: Fields, vocab_size: int) -> tuple[int, ...]:
    value = fields.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        if type(token) is not int or not 0 <= token < vocab_size:
            raise fields.fail(f"eos_token_id {token!r} is not one of the {vocab_size} token ids")
    return tuple(dict.fromkeys(ids))


def _sampling(fields: Fields) -> dict[str, float]:
    defaults: dict[str, float] = {}
    for name in _DEFAULTS:
        limit = LIMITS[name]
        if fields.get(name) is None:
            continue
        value = fields.number(name, low=limit.low, high=limit.high)
        if limit.integer and value != int(value):
            raise ModelLoadError(f"{fields.where}: {name} is {value}; expected an integer")
        defaults[name] = int(value) if limit.integer else value
    return defaults
