"""`kveik cache top`: the cache of a running server at a glance, again and again.

In a terminal it redraws one screen until Ctrl-C; elsewhere, and with once, it prints it once. A key
that is no operator's sees its own namespace and not the pool.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import typer

from kveik.commands.cache_screen import Look, screen
from kveik.commands.remote import Remote
from kveik.errors import ConfigError, KveikError, PermissionDenied

SHORTEST, LONGEST = 0.2, 3600.0
"""Seconds between two looks."""

_PIPE_WIDTH = 120


def top(
    remote: Remote,
    url: str,
    *,
    interval: float,
    once: bool,
    rows: int,
    as_json: bool,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Show the screen. Raises ConfigError for an interval that is none, KveikError where the first
    look fails; one that fails later is told on the screen, and tried again."""
    if not SHORTEST <= interval <= LONGEST:
        raise ConfigError(f"--interval: {interval:g} is not in {SHORTEST:g} .. {LONGEST:g} seconds")
    if rows < 1:
        raise ConfigError(f"--rows: {rows} is less than one")
    look = take(remote, url, rows)
    if as_json:
        _print_json(look)
    elif once or not sys.stdout.isatty():
        _print_once(look, rows)
    else:
        _watch(remote, look, interval, rows, pause)


def take(remote: Remote, url: str, rows: int) -> Look:
    """One look at the server. Raises KveikError."""
    scope = "all"
    try:
        history = remote.json("GET", "/v1/cache/history", query={"scope": scope})
        curve: Any = remote.json("GET", "/v1/cache/curve")
    except PermissionDenied:
        scope, curve = "own", None
        history = remote.json("GET", "/v1/cache/history")
    query = {"scope": scope, "top": min(rows, 1000)}
    return Look(
        url=url,
        history=history,
        curve=curve,
        caches=remote.json("GET", "/v1/caches")["data"],
        sessions=remote.json("GET", "/v1/sessions")["data"],
        requests=remote.json("GET", "/v1/cache/requests", query=query)["data"],
    )


def _watch(
    remote: Remote, look: Look, interval: float, rows: int, pause: Callable[[float], None]
) -> None:
    from rich.live import Live

    with Live(screen(look, rows), screen=True, auto_refresh=False) as live:
        while True:
            try:
                pause(interval)
            except KeyboardInterrupt:
                return
            try:
                look = take(remote, look.url, rows)
            except KveikError as error:
                look = replace(look, trouble=error.message)
            live.update(screen(look, rows), refresh=True)


def _print_once(look: Look, rows: int) -> None:
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    Console(width=width, highlight=False).print(screen(look, rows))


def _print_json(look: Look) -> None:
    names = ("history", "curve", "caches", "sessions", "requests")
    whole = {name: getattr(look, name) for name in names}
    typer.echo(json.dumps(whole, indent=2, ensure_ascii=False))
