"""The endpoint on Ray Serve: replicas around the engine, told of versions by broadcast, put right by the registry.

Truth is the registry. A broadcast is the fast way; a replica also reads the registry when it starts, before it is
ready, and with every health check, so one that missed a broadcast follows by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException

from streamcl.cluster import push
from streamcl.cluster.follow import Follower
from streamcl.cluster.metrics import REPLICA_GAUGES, gauges, tell_tried
from streamcl.errors import StoreError, StreamclError
from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.registry.versions import Registry
from streamcl.sections import Config
from streamcl.serve.local import Local
from streamcl.serve.openai import build_app
from streamcl.stream import Push
from streamcl.train.model import load_base

APP = "streamcl"
HEALTH_PERIOD_S = 5.0
LOOK_S = 1.0
"""How often a replica looks at the registry by itself."""

log = logging.getLogger(__name__)


@serve.ingress()
class Replica:
    """One copy of the model. Answers with the live version, or the one a request is pinned to; loads others beside."""

    def __init__(self, config: Config) -> None:
        torch.set_num_threads(1)
        self.config = config
        self.keys = config.serve.keys.load()
        base = load_base(config.model, device=config.placement.replicas.device)
        registry = Registry(Log(open_store(config.store.path)), config.name)
        self.follower = Follower(registry, base, config.model.lora, config.serve)
        self.engine = self.follower.engine
        self.loading = asyncio.Lock()
        self.metrics = gauges(REPLICA_GAUGES, config.name)
        self._follow()
        threading.Thread(target=self._keep_up, name="streamcl-keep-up", daemon=True).start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        where = serve.get_replica_context().replica_id.unique_id
        backend = Local(self.engine, self.follower.published, trial=self.follower.trial)
        return build_app(backend, self.config.name, keys=self.keys, replica=where)

    async def follow(self) -> int:
        """Brings the engine to the live version of the registry, and answers its number."""
        async with self.loading:
            return await asyncio.to_thread(self._follow)

    async def prepare(self, number: int) -> int:
        """Loads version `number` beside the live one and runs a token through it; answers its number.

        Raises NoSuchVersion, Corrupt, ConfigError, NotFinite or Busy. It stays in memory while no other wants its slot.
        """
        async with self.loading:
            await asyncio.to_thread(self.follower.prepare, number)
        return number

    def _follow(self) -> int:
        number = self.follower.follow()
        self.metrics["replica_version"].set(number)
        tell_tried(self.metrics, self.follower.trial)
        return number

    def _keep_up(self) -> None:
        """Looks at the registry every second: whoever moved `live` may not have been able to tell the replicas."""
        while True:
            time.sleep(LOOK_S)
            with contextlib.suppress(OSError, StreamclError):  # the health check says what is wrong
                self._follow()
                self.follower.admit()

    async def check_health(self) -> None:
        """A tiny forward pass through the compute thread, and a look at the registry. Raises if the model hangs."""
        await asyncio.to_thread(self.engine.check)
        try:
            await self.follow()
        except (OSError, StoreError) as error:  # the store is away: go on answering with the last good version
            about = {"run": self.config.name, "version": self.engine.version[0]}
            log.warning("the registry cannot be read, the last good version goes on answering: %s", error, extra=about)


def application(config: Config) -> Any:
    """The endpoint, not yet running."""
    settings = config.serve
    deployment = serve.deployment(Replica).options(
        name=APP,
        num_replicas=settings.replicas,
        max_ongoing_requests=4 * settings.max_batch,
        max_queued_requests=settings.max_queued,
        backpressure_config={"retry_after_s": 1},
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=60.0,
        ray_actor_options=config.placement.replicas.demand(),
        graceful_shutdown_timeout_s=5.0,
    )
    return deployment.bind(config)


def start(config: Config) -> Any:
    """Starts the endpoint, waits until its replicas are ready, and returns the handle of the deployment."""
    serve.start(http_options={"host": config.serve.host, "port": config.serve.port})
    if isinstance(config.source, Push):
        push.start(config)
    return serve.run(application(config), name=APP, route_prefix="/")


def running() -> Any:
    """The handle of the endpoint that runs on this Ray, or None."""
    try:
        return serve.get_app_handle(APP)
    except RayServeException:
        return None


def swap(handle: Any, *, number: int, timeout_s: float = 60.0) -> list[int]:
    """Tells every running replica to follow the registry; the versions they answer with now.

    `number` was made live before. Another may have been since, and is then what they answer with.
    """
    answers = tell(handle, "follow", timeout_s=timeout_s)
    if set(answers) != {number}:
        log.info("replicas answer with %s after version %d was made live: it was moved again", answers, number)
    return answers


def tell(handle: Any, method: str, *args: Any, timeout_s: float = 60.0) -> list[Any]:
    """Calls a method of every running replica: "follow", or "prepare" with a number. What they answer.

    If one dies meanwhile, the others are asked again; its successor reads the registry before it is ready.
    """
    due = time.monotonic() + timeout_s
    while True:
        try:
            return list(handle.broadcast(method, *args).results(timeout_s=timeout_s))
        except RayActorError:
            if time.monotonic() > due:
                raise
            time.sleep(0.5)
