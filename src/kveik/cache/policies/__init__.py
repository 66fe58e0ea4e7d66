"""Eviction policies, one idea per file; `kveik.cache.policy` says what a policy is."""
