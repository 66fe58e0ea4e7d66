"""kveik: an LLM inference and serving engine whose KV cache is a managed resource.

The public names are loaded when they are first used, so that `import kveik` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kveik.cache.window import StreamWindow
    from kveik.engine.inspection import Inspection
    from kveik.engine.modules.function import prompt_module
    from kveik.engine.modules.prompt import SchemaPrompt, Use
    from kveik.engine.modules.schema import Module, Parameter, Role, Schema, Union
    from kveik.engine.request import SamplingParams
    from kveik.errors import (
        ConfigError,
        ContextLengthExceeded,
        InvalidRequest,
        KveikError,
        ModelLoadError,
        Overloaded,
        PromptTooLarge,
        Unavailable,
        UnsupportedFeature,
    )
    from kveik.llm import LLM
    from kveik.managed import CacheOptions
    from kveik.outputs import (
        CompletionOutput,
        EmbeddingRequestOutput,
        Logprob,
        RequestOutput,
        ScoreOutput,
        StreamDelta,
    )

__all__ = [
    "LLM",
    "CacheOptions",
    "CompletionOutput",
    "ConfigError",
    "ContextLengthExceeded",
    "EmbeddingRequestOutput",
    "Inspection",
    "InvalidRequest",
    "KveikError",
    "Logprob",
    "ModelLoadError",
    "Module",
    "Overloaded",
    "Parameter",
    "PromptTooLarge",
    "RequestOutput",
    "Role",
    "SamplingParams",
    "Schema",
    "SchemaPrompt",
    "ScoreOutput",
    "StreamDelta",
    "StreamWindow",
    "Unavailable",
    "Union",
    "UnsupportedFeature",
    "Use",
    "__version__",
    "prompt_module",
]

_HOMES = {
    "LLM": "kveik.llm",
    "CacheOptions": "kveik.managed",
    "SamplingParams": "kveik.engine.request",
    "StreamWindow": "kveik.cache.window",
    "Inspection": "kveik.engine.inspection",
    "SchemaPrompt": "kveik.engine.modules.prompt",
    "Use": "kveik.engine.modules.prompt",
    "prompt_module": "kveik.engine.modules.function",
}
_HOMES |= dict.fromkeys(
    ("Module", "Parameter", "Role", "Schema", "Union"), "kveik.engine.modules.schema"
)
_HOMES |= dict.fromkeys(
    (
        "CompletionOutput",
        "EmbeddingRequestOutput",
        "Logprob",
        "RequestOutput",
        "ScoreOutput",
        "StreamDelta",
    ),
    "kveik.outputs",
)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'kveik' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "kveik.errors")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
