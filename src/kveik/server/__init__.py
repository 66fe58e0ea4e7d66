"""The HTTP door: OpenAI's and Anthropic's APIs over the engine.

    table of routes (routes) -> gate: ids, limits, Host, keys, errors, log (gate)
        -> handlers: body -> record (json_body, protocol) -> job (jobs) -> bridge -> engine
        <- answers <- feed <- events

Knows the engine and nothing below it. `serve` is the door; importing this package loads nothing.
"""

from __future__ import annotations

from kveik.config import EngineConfig, ServerConfig


def serve(engine_config: EngineConfig, server_config: ServerConfig) -> None:
    """Serve until SIGTERM or Ctrl-C has drained the server; a second signal stops at once.

    Raises ConfigError (a taken port, a network address without a key) and ModelLoadError."""
    from kveik.server.run import serve as run  # loaded here: the other commands never need it

    run(engine_config, server_config)
