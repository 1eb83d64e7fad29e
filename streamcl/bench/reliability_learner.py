"""A whole learner in one process, for kill -9 at any of its steps: `STREAMCL_KILL_AT=point:nth`.

    STREAMCL_KILL_AT="commits/window linked:3" python -m streamcl.bench.reliability_learner STREAM STORE

Everything that keeps or decides is the real thing: the Files source and its merge, the controller, the driver's loop
and what it does for each action, reservoir and task memory with their snapshots, commit log, registry, dead letters.
Three things are not: there is no Ray (actors are plain objects here), the encoder keeps ids only, and training is a
pure function of its window, whose "weights" are the sha256 of all that went into them.
"""

from __future__ import annotations

import json
import os
import queue
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamcl import events as e
from streamcl.bench.reliability_here import Here, MemoryHere, Pure, Reached, Reader, ReaderHere, ReplayHere
from streamcl.cluster.metrics import Metrics
from streamcl.cluster.runtime import Runtime
from streamcl.controller import Controller
from streamcl.detect import Labels
from streamcl.learner import Learner, controller_of, reservoir_key
from streamcl.registry import upkeep
from streamcl.registry.backends import LocalStore, Outcome
from streamcl.registry.log import Log
from streamcl.registry.versions import Registry
from streamcl.sections import Config, EvaluateConfig, ReplayConfig, StoreConfig
from streamcl.strategies import Replay as ReplayStrategy
from streamcl.stream import Files
from streamcl.testing.crash import KillPoint
from streamcl.train.model import base_digest
from streamcl.train.settings import ModelConfig
from streamcl.types import Version
from streamcl.window import WindowConfig

NAME = "small"


class Pointed(LocalStore):
    """A LocalStore whose points say what is being written: "commits/window linked", "data/replay synced"."""

    def __init__(self, root: Path, reached: Reached) -> None:
        super().__init__(root, reached=lambda point: reached(f"{self.about} {point}"))
        self.about = ""

    def put_if_absent(self, key: str, data: bytes) -> Outcome:
        self.about = about(key, data)
        return super().put_if_absent(key, data)

    def put(self, key: str, data: bytes) -> None:
        self.about = about(key, data)
        super().put(key, data)


def about(key: str, data: bytes) -> str:
    """The kind of an object: its folder, and for a commit the record's kind."""
    folder = key.split("/")[:-1]
    if folder[0] == "commits":
        return f"commits/{json.loads(data)['kind']}"
    return "/".join(folder[:2]) if folder[0] == "data" else folder[0]


def config_of(stream: Path, store: Path) -> Config:
    """The small learner's settings."""
    return Config(
        StoreConfig(str(store), shards=2),
        ModelConfig("none"),
        Files(str(stream)),
        name=NAME,
        seed=5,
        batch=7,
        detector=Labels(),
        strategy=ReplayStrategy(replay_rows=5),
        window=WindowConfig(samples=8, age_s=1e9),
        replay=ReplayConfig(capacity=7, heldout=0.2, key="seed"),
        evaluate=EvaluateConfig(samples=6),
    )


class Small(Runtime):
    """The driver's hands without Ray. Events come in the order in which they happened, or, with dice, in any."""

    def __init__(
        self, config: Config, log: Log, registry: Registry, reached: Reached, dice: random.Random | None
    ) -> None:
        self.config, self.log, self.registry, self.reached, self.dice = config, log, registry, reached, dice
        reached("before recover")
        self.recovered = upkeep.recover(registry)
        reached("after recover")
        self.key = reservoir_key(config, log.store)
        self.base_digest = base_digest(config.model.path)
        self.inbox = queue.Queue()
        self.resume, self.ingest, self.deaths, self.progress = {}, None, 0, None
        self.pulls, self.swap_s, self.metrics = deque(), [], Metrics(config.name)
        self.replay = ReplayHere(config, self.key, log, reached)
        self.memory: Any = MemoryHere(config, log)
        self.trainer: Any = Pure(log, registry, self.memory)
        self.pool: Any = Here()
        self.handle = self.pool.submit(lambda: None)

    def execute(self, action: e.Action) -> None:
        self.reached(f"before {type(action).__name__}")
        super().execute(action)
        self.reached(f"after {type(action).__name__}")

    def events(self) -> Iterator[e.Event]:
        happened: list[Callable[[], list[e.Event]]] = []
        while True:
            while not self.inbox.empty():
                happened.append(self.inbox.get())
            assert happened, "nothing is under way, but the learner has not finished"
            yield from happened.pop(self.dice.randrange(len(happened)) if self.dice else 0)()

    def _pull(self) -> None:
        if self.ingest is None:
            self.ingest = ReaderHere(Reader(self.config, self.resume, self.key, self.log.store))
        super()._pull()

    def _swap(self, version: Version) -> Version:
        """What a replica does when it is told of a version."""
        live = self.registry.resolve()
        assert live is not None, "no version is live"
        assert live.number >= version.number, f"{live.number} is live after {version.number} was made so"
        self.registry.read(live)
        return version


@dataclass(frozen=True)
class Parts:
    """What the learner is made of; a broken twin replaces one."""

    store: Callable[[Path, Reached], LocalStore] = Pointed
    log: type[Log] = Log
    registry: type[Registry] = Registry
    controller: Callable[[Config], Controller] = controller_of
    runtime: type[Small] = Small


HEALTHY = Parts()


def learn(
    stream: Path, root: Path, reached: Reached, parts: Parts = HEALTHY, dice: random.Random | None = None
) -> None:
    """Learns to the end of the stream, as `Learner.run` does.  Raises Fenced when a newer learner is there."""
    config = config_of(stream, root)
    log = parts.log(parts.store(root, reached), backoff=lambda attempt: None)
    log.acquire(f"process {os.getpid()}")
    runtime = parts.runtime(config, log, parts.registry(log, NAME), reached, dice)

    def watch(happening: object) -> None:
        if isinstance(happening, e.Event):
            reached(f"heard {type(happening).__name__}")

    for _ in Learner(config)._loop(runtime, parts.controller(config), watch):
        reached("learned")


if __name__ == "__main__":
    learn(Path(sys.argv[1]), Path(sys.argv[2]), KillPoint(os.environ.get("STREAMCL_KILL_AT", "")))
