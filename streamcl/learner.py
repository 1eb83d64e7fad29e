"""Learner: the parts of a Config, joined. Decide in the controller, do in the runtime, tell whoever watches."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from streamcl import config as configuration
from streamcl import events as e
from streamcl.controller import Controller
from streamcl.errors import StoreError
from streamcl.registry.backends import CommitStore, probe
from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.sections import Config
from streamcl.stream import Push
from streamcl.stream.segments import FOLDER
from streamcl.types import Version, Window

if TYPE_CHECKING:
    from streamcl.cluster.runtime import Runtime

KEY = "secret/reservoir"


@dataclass(frozen=True)
class Learned:
    """A finished window: trained and published, and behind the endpoint unless the gate refused it."""

    window: Window
    version: Version
    refused: str = ""
    """Why the gate did not let it answer; empty: it is live."""

    @property
    def task(self) -> str:
        return self.window.task


class Learner:
    """Learns from a stream and serves what it has learned. `run` may be called once. Mutable.

    One a process: of a second Ray in the same process a thread remains (Ray 2.60) that can crash it when it exits.
    """

    def __init__(self, config: Config) -> None:
        self.config = resolve(config)
        self.stopping = False
        self.seconds: dict[str, float] = {}
        """Time by stage of this run, in seconds: start (until the first window trains), swap, wall."""
        self.url = f"http://{self.config.serve.host}:{self.config.serve.port}"
        self.serving = False
        """Whether the endpoint answers."""

    def stop(self) -> None:
        """Has `run` commit what it took in and end soon."""
        self.stopping = True

    def run(self, watch: Callable[[object], None] = lambda happening: None) -> Iterator[Learned]:
        """Learns until the stream ends or `stop`: one Learned a window. Goes on where the same store was left.

        `watch` hears every event, action and training progress, on this thread.
        """
        from streamcl.cluster.runtime import Runtime, start_ray  # importing ray takes its time

        started = time.monotonic()
        self.config.source.partitions()  # a source that is not there says so before anything is started
        store = open_store(self.config.store.path)
        probe(store)
        log = Log(store)
        owner = f"{self.config.name}-{uuid.uuid4().hex[:12]}"
        log.acquire(owner)
        start_ray(self.config)
        runtime = Runtime(self.config, log, key=reservoir_key(self.config, store), owner=owner)
        try:
            yield from self._loop(runtime, controller_of(self.config), watch)
        finally:
            self.serving = False
            self.seconds |= {"swap": sum(runtime.swap_s), "wall": time.monotonic() - started}
            runtime.close()

    def _loop(self, runtime: Runtime, controller: Controller, watch: Callable[[object], None]) -> Iterator[Learned]:
        """Events in, actions out, until Finish."""
        recovered = runtime.recover()
        actions = controller.restore(*recovered) if recovered else controller.handle(e.Ticked(0.0))
        events = runtime.events()
        windows: dict[int, Window] = {}
        while True:
            for action in actions:
                runtime.execute(action)
                watch(action)
                if isinstance(action, e.Train):
                    windows[action.window.id] = action.window
            if any(isinstance(action, e.Finish) for action in actions):
                return
            event = e.Stopping() if self.stopping else next(events)
            runtime.metrics.watch(event, controller, commits=runtime.log.seen)
            watch(event)
            watch(runtime.progress)
            self.serving = runtime.handle.done()
            actions = controller.handle(event)
            match event:
                case e.Published(version) if not event.promoted:
                    yield Learned(windows.pop(version.window), version, event.why)
                case e.Swapped(version) if version.window in windows:  # a rollback swaps too
                    yield Learned(windows.pop(version.window), version)


def load(path: str | Path, *overrides: str) -> Learner:
    """The learner of a YAML file, with `key.sub=value` overrides.  Raises ConfigError."""
    return Learner(configuration.load(path, overrides))


def controller_of(config: Config) -> Controller:
    """A new controller with the settings of `config`."""
    return Controller(
        config.detector.build(), window=config.window, gate=config.gate, replay_rows=config.strategy.replay_rows,
        seed=config.seed, prefetch=1 + config.encoders,
    )  # fmt: skip


def resolve(config: Config) -> Config:
    """`config` with the store's path made absolute and zoo names turned into paths.

    "zoo:small" is the model, "zoo:stream?tasks=digits,maps#train" a folder of the stream, written at its first use.
    """
    from streamcl import zoo

    def real(path: str) -> str:
        name, _, folder = path.partition("#")
        return os.path.join(zoo.resolve(name), folder) if name.startswith("zoo:") else path

    model, source, evaluate = config.model, config.source, config.evaluate
    if model.path.startswith("zoo:"):
        model = replace(model, path=real(model.path), register=model.register or "streamcl.zoo.tower")
    if isinstance(where := getattr(source, "path", None), str):
        source = replace(source, path=real(where))  # type: ignore[type-var]  # a source is a dataclass, its YAML section
    if evaluate.path:
        evaluate = replace(evaluate, path=real(evaluate.path))
    store = config.store
    if "://" not in store.path:
        store = replace(store, path=os.path.abspath(store.path))
    if isinstance(source, Push) and not source.path:
        source = replace(source, path=f"{store.path.rstrip('/')}/{FOLDER}")
    return replace(config, model=model, source=source, evaluate=evaluate, store=store)


def reservoir_key(config: Config, store: CommitStore) -> bytes:
    """The secret that chooses replay and held-out rows: from the seed, or drawn once and kept in the store."""
    if config.replay.key == "seed":
        return hashlib.sha256(f"streamcl reservoir {config.seed}".encode()).digest()
    store.put_if_absent(KEY, secrets.token_bytes(32))
    key = store.get(KEY)
    if key is None:
        raise StoreError(
            f"{config.store.path} does not keep what is written to it: {KEY} is missing right after its creation"
        )
    return key
