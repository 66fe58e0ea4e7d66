"""`kveik serve`: the OpenAI-compatible server."""

from __future__ import annotations

from kveik.config import Settings


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    from kveik import server

    server.serve(settings.engine, settings.server)
