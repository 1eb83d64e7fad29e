"""The push endpoint on Ray Serve: a deployment of its own beside the model's, so that neither waits for the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray import serve
from starlette.types import ASGIApp, Receive, Scope, Send

from streamcl.registry.backends import settle
from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.serve.keys import KeysConfig
from streamcl.serve.push import PATH, Samples, known, push_app
from streamcl.serve.quota import PushConfig
from streamcl.stream import Push
from streamcl.stream.limits import Limits
from streamcl.stream.segments import FOLDER, Segments
from streamcl.stream.wal import BucketShard, FolderShard, Wal

if TYPE_CHECKING:
    from streamcl.sections import Config  # only for a name: with it comes torch, which a replica does not need

APP = "streamcl-push"


def open_wal(store: str) -> Wal:
    """A writer to the log in a run's store."""
    if "://" not in store.removeprefix("file://"):
        return Wal(FolderShard(f"{store.removeprefix('file://')}/{FOLDER}"))
    objects = open_store(store)
    segments = Segments(f"{store.rstrip('/')}/{FOLDER}")
    return Wal(BucketShard(lambda key, data: settle(objects, f"{FOLDER}/{key}", data), segments))


class _AtRoot:
    """The app knows its whole path; Serve takes the prefix for a mount."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app({**scope, "root_path": ""}, receive, send)


@serve.ingress()
class Endpoint:
    """One writer of pushed samples. Knows the run's store, and nothing of its model."""

    def __init__(self, store: str, settings: PushConfig, keys: KeysConfig, limits: Limits) -> None:
        self.log = Log(open_store(store))
        wal, who = open_wal(store), known(keys.load())
        self.samples = Samples(wal, self._committed, who, config=settings, limits=limits)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return _AtRoot(push_app(self.samples))

    def _committed(self) -> dict[str, int]:
        head = self.log.head()
        return dict(head.state.get("sources", {})) if head else {}


def start(config: Config) -> Any:
    """Starts the endpoint on the port of `config.serve`, and waits until it is ready."""
    settings, source = config.serve, config.source
    assert isinstance(source, Push), source
    serve.start(http_options={"host": settings.host, "port": settings.port})
    deployment = serve.deployment(Endpoint).options(
        name=APP,
        max_ongoing_requests=32,
        max_queued_requests=256,
        ray_actor_options={"num_cpus": 0.1},
        graceful_shutdown_timeout_s=5.0,
    )
    bound = deployment.bind(config.store.path, settings.push, settings.keys, source.limits)
    return serve.run(bound, name=APP, route_prefix=PATH)
