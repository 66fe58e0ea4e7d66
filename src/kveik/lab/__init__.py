"""The policy laboratory: traces of requests, replayed through the cache room without a model."""
