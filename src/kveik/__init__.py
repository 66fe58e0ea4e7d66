"""kveik: an LLM inference and serving engine whose KV cache is a managed resource."""

__version__ = "0.1.0"
