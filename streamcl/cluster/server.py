"""The endpoint on Ray Serve: replicas around the engine, told of versions by broadcast, put right by the registry.

Truth is the registry. A broadcast is the fast way; a replica also reads the registry when it starts, before it is
ready, and with every health check, so one that missed a broadcast follows by itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError

from streamcl.errors import ConfigError, StoreError
from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.registry.versions import Registry
from streamcl.sections import Config
from streamcl.serve.engine import Engine, Request, Response
from streamcl.serve.openai import build_app
from streamcl.train.model import load_base

APP = "streamcl"
HEALTH_PERIOD_S = 5.0

log = logging.getLogger(__name__)


@serve.ingress()
class Replica:
    """One copy of the model. Answers with the live version; loads the next one beside it, then flips."""

    def __init__(self, config: Config) -> None:
        torch.set_num_threads(1)
        self.config = config
        base = load_base(config.model, device="cuda" if torch.cuda.is_available() else "cpu")
        self.base_digest = base.digest
        self.engine = Engine(base, config.model.lora, max_batch=config.serve.max_batch)
        self.registry = Registry(Log(open_store(config.store.path)), config.name)
        self.loading = asyncio.Lock()
        self._follow()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(self._answer, lambda: [self.engine.version], self.config.name)

    async def _answer(self, request: Request) -> Response:
        return await asyncio.wrap_future(await asyncio.to_thread(self.engine.submit, request))

    async def follow(self) -> int:
        """Brings the engine to the live version of the registry, and answers its number."""
        async with self.loading:
            return await asyncio.to_thread(self._follow)

    def _follow(self) -> int:
        version = self.registry.resolve("live")
        if version is not None and version.number != self.engine.version[0]:
            if version.base_digest != self.base_digest:
                raise ConfigError(
                    f"version {version.number} was trained on base {version.base_digest[:12]}, this replica has "
                    f"{self.base_digest[:12]}: serve it with the model that it was trained on"
                )
            self.engine.load(version.number, version.digest, self.registry.read(version))
        return self.engine.version[0]

    async def check_health(self) -> None:
        """A tiny forward pass through the compute thread, and a look at the registry. Raises if the model hangs."""
        await asyncio.to_thread(self.engine.check)
        try:
            await self.follow()
        except (OSError, StoreError) as error:  # the store is away: go on answering with the last good version
            log.warning("the registry cannot be read, the last good version goes on answering: %s", error)


def start(config: Config) -> Any:
    """Starts the endpoint, waits until its replicas are ready, and returns the handle of the deployment."""
    settings = config.serve
    serve.start(http_options={"host": settings.host, "port": settings.port})
    deployment = serve.deployment(Replica).options(
        name=APP,
        num_replicas=settings.replicas,
        max_ongoing_requests=4 * settings.max_batch,
        max_queued_requests=settings.max_queued,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=60.0,
        ray_actor_options={"num_cpus": 0.5, "num_gpus": 0},
        graceful_shutdown_timeout_s=5.0,
    )
    return serve.run(deployment.bind(config), name=APP, route_prefix="/")


def swap(handle: Any, *, number: int, timeout_s: float = 60.0) -> list[int]:
    """Tells every running replica to follow the registry; the versions they answer with now.

    If one dies meanwhile, the others are asked again; its successor reads the registry before it is ready.
    """
    due = time.monotonic() + timeout_s
    while True:
        try:
            answers = handle.broadcast("follow").results(timeout_s=timeout_s)
            break
        except RayActorError:
            if time.monotonic() > due:
                raise
            time.sleep(0.5)
    behind = [answer for answer in answers if answer < number]
    assert not behind, f"replicas answer with {behind} after version {number} was made live"
    return list(answers)
