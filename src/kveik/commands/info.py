"""`kveik info`: version, kernel level, model facts, machine."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import typer

from kveik import __version__
from kveik.config import EngineConfig
from kveik.engine.engine import Engine
from kveik.engine.pool import free_memory
from kveik.kernels.backend import native_levels
from kveik.kernels.cores import usable_cores


def info(config: EngineConfig, *, as_json: bool) -> None:
    """Print what `kveik serve` would run with the same options."""
    facts: dict[str, object] = {"kveik": __version__}
    facts.update(asdict(Engine.load(config).info))
    facts |= machine()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        typer.echo(f"{name:<{width}}  {_text(value)}")


def machine() -> dict[str, object]:
    """What decides speed: processor, cores this process may use, kernels, memory, versions."""
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "native_kernels": native_levels(),
        "free_memory": free_memory(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": version("numpy"),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={item}" for name, item in value.items())
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
