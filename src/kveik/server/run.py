"""One server process: bind, load, serve, drain, stop.

The socket is bound first (a taken port is told before a model is loaded), the model loads beside
the imports and the event loop, and /health answers meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import TextIO

from kveik import __version__
from kveik.config import EngineConfig, ServerConfig
from kveik.engine.engine import Engine
from kveik.engine.manifest import Manifest, read_manifest
from kveik.engine.parts import EngineInfo
from kveik.engine.warm import namespaces_of
from kveik.errors import ConfigError
from kveik.server import logs
from kveik.server.http_server import HttpServer
from kveik.server.origin import is_loopback
from kveik.server.service import Service

KERNEL_BUFFER_BYTES = 256 * 1024


def serve(
    engine_config: EngineConfig, server_config: ServerConfig, *, out: TextIO | None = None
) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises ConfigError (taken port, open door on a network
    address, empty key) and whatever `Engine.load` raises."""
    refuse_open_door(server_config)
    service = Service.of(server_config)
    manifest = read_warm_manifest(server_config, service)
    listener = bind(server_config)
    logs.configure(server_config.log_format)
    with listener:
        asyncio.run(_serve(service, engine_config, manifest, listener, out or sys.stdout))


def read_warm_manifest(config: ServerConfig, service: Service) -> Manifest | None:
    """Before a port is bound or a model loaded. Raises ConfigError, for unknown tenants too."""
    if config.warm is None:
        return None
    manifest = read_manifest(config.warm)
    namespaces_of(manifest, service.keys.warm_namespace)
    return manifest


def refuse_open_door(config: ServerConfig) -> None:
    """A network address without a key would let anybody in."""
    if not _has_keys(config) and not is_loopback(config.host):
        raise ConfigError(
            f"host: {config.host} can be reached from other machines, so a key is needed: add "
            "--api-key KEY or --keys-file FILE, or listen on --host 127.0.0.1",
            param="host",
        )


def _has_keys(config: ServerConfig) -> bool:
    return bool(config.api_keys or config.admin_keys or config.keys_file)


def bind(config: ServerConfig) -> socket.socket:
    """A bound socket. Raises ConfigError that names the remedy."""
    host = config.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # inherited by connections; else the kernel alone would take MiBs for a client that never reads
    kernel_bytes = min(config.send_buffer_bytes, KERNEL_BUFFER_BYTES)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, kernel_bytes)
    if sys.platform == "linux":  # ends a connection whose answer nobody takes, also after the end
        patience = int(config.slow_reader_seconds * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience)
    try:
        listener.bind((host, config.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {config.port} on {config.host} is taken by another program: stop it, or "
                f"choose another port with --port {config.port % 65535 + 1}",
                param="port",
            ) from None
        raise ConfigError(
            f"cannot listen on {config.host}:{config.port}: {error.strerror or error}",
            param="host",
        ) from None
    return listener


async def _serve(
    service: Service,
    engine_config: EngineConfig,
    manifest: Manifest | None,
    listener: socket.socket,
    out: TextIO,
) -> None:
    server = HttpServer(service)
    if service.config.keys_file is not None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(
            signal.SIGHUP, lambda: loop.run_in_executor(None, service.reload_keys)
        )
    outcome: list[Engine | Exception] = []

    def loaded(result: Engine | Exception) -> None:
        try:
            if isinstance(result, Exception):
                raise result
            outcome.append(result)
            result.start()
            service.ready(result)
            if manifest is not None:
                service.start_warming(manifest)
        except Exception as error:
            outcome.append(error)
            server.should_exit = True
            return
        out.write(greeting(result.info, service.config, listener.getsockname()))
        out.flush()

    await server.run_until_stopped(listener, lambda: _load(engine_config, loaded))
    for result in outcome:
        if isinstance(result, Engine):
            await asyncio.to_thread(result.stop)
    for result in outcome:
        if isinstance(result, Exception):
            raise result


def _load(config: EngineConfig, done: Callable[[Engine | Exception], None]) -> None:
    """Load the engine on its own thread; `done` is called on the event loop."""
    loop = asyncio.get_running_loop()

    def load() -> None:
        result: Engine | Exception
        try:
            result = Engine.load(config)
        except Exception as error:
            result = error
        with contextlib.suppress(RuntimeError):  # stopped meanwhile: nobody waits for it
            loop.call_soon_threadsafe(done, result)

    threading.Thread(target=load, name="kveik-load", daemon=True).start()


def greeting(info: EngineInfo, config: ServerConfig, address: tuple[str, int]) -> str:
    """What a started server prints: address, model, pool, kernel and one line to try."""
    host = f"[{config.host.strip('[]')}]" if ":" in config.host else config.host
    url = f"http://{host}:{address[1]}"
    key = " -H 'Authorization: Bearer YOUR_KEY'" if _has_keys(config) else ""
    body = json.dumps(
        {
            "model": info.model_id,
            "messages": [{"role": "user", "content": "Tell me a story."}],
            "max_tokens": 64,
        }
    )
    return (
        f"kveik {__version__} serves {info.model_id} on {url}\n"
        f"  KV pool  {info.pool_tokens:,} tokens ({info.pool_bytes / 2**20:,.0f} MiB, "
        f"{info.kv_dtype}), context {info.max_model_len:,}\n"
        f"  kernel   {info.kernel}, weights {info.weights}\n"
        f"  try      curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' "
        f"-d '{body}'\n"
    )
