"""What the handlers of one server share: its phase, engine, bridge, keys and counters.

    loading -> ready -> draining -> (process ends)

Event loop only. Nothing here is global: two servers in one process do not see each other.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Literal

from kveik.config import ServerConfig
from kveik.engine.engine import Engine
from kveik.engine.manifest import Manifest
from kveik.engine.warm import WarmStart
from kveik.errors import ConfigError, Unavailable
from kveik.server.auth import KeyRing
from kveik.server.bridge import Bridge
from kveik.server.embedding_thread import EmbeddingThread
from kveik.server.keys_file import Tenant, read_keys_file, shares_of
from kveik.server.metrics import Metrics

_log = logging.getLogger("kveik.server")

PING_SECONDS = 15.0
"""A stream that says nothing for so long gets a comment, so that proxies keep it open."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What there is once the model is loaded."""

    engine: Engine
    bridge: Bridge
    embedding: EmbeddingThread | None = None


@dataclass(slots=True)
class Service:
    config: ServerConfig
    keys: KeyRing
    metrics: Metrics = field(default_factory=Metrics)
    ping_seconds: float = PING_SECONDS
    phase: Literal["loading", "ready", "draining"] = "loading"
    active: int = 0  # requests being answered
    watchers: int = 0  # streams of changes among them
    tenants: tuple[Tenant, ...] = ()  # of the keys file
    warm: WarmStart | None = None
    _serving: Serving | None = None

    @classmethod
    def of(cls, config: ServerConfig) -> Service:
        """Raises ConfigError for keys that cannot be used."""
        tenants = read_keys_file(config.keys_file) if config.keys_file else ()
        return cls(config, KeyRing(config.api_keys, config.admin_keys, tenants), tenants=tenants)

    @property
    def serving(self) -> Serving:
        """Raises Unavailable while the model loads and once the server drains."""
        if self.phase == "draining":
            raise Unavailable("the server is stopping; try another one or try later")
        if self._serving is None:
            raise Unavailable("the model is loading; try again in a moment", retry_after=1)
        return self._serving

    def ready(self, engine: Engine) -> None:
        """The engine is loaded and runs on its own thread. Call on the event loop.

        Raises ConfigError where the shares of the keys file do not fit the pool."""
        engine.set_shares(shares_of(self.tenants))
        beside = EmbeddingThread(engine.embedder, engine.config) if engine.embedder else None
        self._serving = Serving(engine, Bridge(engine, self.metrics), beside)
        self.metrics.watch(engine)
        if self.phase == "loading":
            self.phase = "ready"

    def start_warming(self, manifest: Manifest) -> None:
        """Compute a manifest in the background. Raises ConfigError for a tenant that is unknown."""
        self.warm = WarmStart(self.serving.engine, manifest, self.keys.warm_namespace)
        self.warm.start()

    def reload_keys(self) -> None:
        """Read the keys file again, on any thread. A broken one changes nothing and is told in one
        log line; requests that run go on, whatever became of their key."""
        if self.config.keys_file is None:
            return
        try:
            tenants = read_keys_file(self.config.keys_file)
            KeyRing(self.config.api_keys, self.config.admin_keys, tenants)
            if self._serving is not None:
                self._serving.engine.set_shares(shares_of(tenants))
            self.keys.replace(tenants)
        except ConfigError as error:
            _log.error("the keys stay as they were: %s", error.message)
            return
        self.tenants = tenants
        _log.info("keys file read again: %d keys", len(tenants))

    async def drain(self) -> None:
        """Refuse what is new, let what runs end for `drain_seconds`, then end it with an error."""
        self.phase = "draining"
        if self.warm is not None:
            self.warm.stop()
        deadline = asyncio.get_running_loop().time() + self.config.drain_seconds
        while self.active and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        if self._serving is not None:
            self._serving.bridge.fail_all(Unavailable("the server is stopping"))
            if self._serving.embedding is not None:
                self._serving.embedding.close()
        while self.active and asyncio.get_running_loop().time() < deadline + 1.0:
            await asyncio.sleep(0.02)
