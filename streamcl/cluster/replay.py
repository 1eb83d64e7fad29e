"""The reservoir over shard actors by id. Its state is always rebuilt from the last commit, so calls may be repeated.

A window's draw is made of all shards' rows together and seeded by the window: it does not depend on how many there are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray

from streamcl.cluster.metrics import ShardMetrics
from streamcl.events import Freeze, Offer
from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.sections import Config
from streamcl.store.reservoir import Reservoir
from streamcl.types import Ref, Rows

PREFIX = "replay/"


@dataclass(frozen=True)
class Drawn:
    """What a window gets from the reservoir, and the reservoir's shards after it."""

    replay: tuple[Rows, ...]
    heldout: Mapping[str, tuple[Rows, ...]]
    refs: Mapping[str, Ref]


def empty(config: Config, key: bytes) -> Reservoir:
    """A reservoir with the run's settings."""
    settings = config.replay
    return Reservoir(settings.capacity, key=key, heldout=settings.heldout, per_source=settings.per_source)


def joined(config: Config, key: bytes, shards: Iterable[bytes]) -> Reservoir:
    """The whole reservoir that these are the shards of."""
    whole = empty(config, key)
    for data in shards:
        part = empty(config, key)
        part.restore(data)
        whole.merge(part)
    return whole


def committed(log: Log, config: Config, key: bytes) -> Reservoir:
    """The whole reservoir as the log's head has it."""
    head = log.head()
    refs = head.state.get("refs", {}) if head else {}
    return joined(config, key, [log.get_object(ref) for name, ref in refs.items() if name.startswith(PREFIX)])


class ReplayShard:
    """The rows whose ids belong to one shard. Mutable; begins, and begins again, with what the last commit has."""

    def __init__(self, config: Config, key: bytes, index: int) -> None:
        self.index, self.shards = index, config.store.shards
        self.log = Log(open_store(config.store.path))
        self.reservoir = committed(self.log, config, key).split(self.shards)[index]
        self.metrics = ShardMetrics(config.name, index)

    def take(self, offer: Offer) -> tuple[Ref, bytes]:
        """Takes in this shard's rows of the offer; the shard after it, stored, and its bytes."""
        mine = (self.reservoir.shards_of(offer.ids, self.shards) == self.index).nonzero()[0].tolist()
        self.reservoir.offer(
            offer.task,
            [offer.ids[i] for i in mine],
            [offer.keys[i] for i in mine],
            [offer.rows[i] for i in mine],
            [offer.sources[i] for i in mine],
        )
        data = self.reservoir.snapshot()
        self.metrics.replay(self.reservoir, len(data))
        return self.log.put_object("replay", data, "arrow"), data

    def purge(self, source: str) -> tuple[int, Ref]:
        """Drops a source's rows; how many they were, and the shard after it, stored."""
        dropped = self.reservoir.purge(source)
        return dropped, self.log.put_object("replay", self.reservoir.snapshot(), "arrow")

    def pid(self) -> int:
        return os.getpid()


ReplayActor: Any = ray.remote(max_restarts=-1, max_task_retries=-1)(ReplayShard)


class Replay:
    """The shards of one run as one reservoir."""

    def __init__(self, config: Config, key: bytes) -> None:
        self.config, self.key = config, key
        actor = ReplayActor.options(**config.placement.shards.options())
        self.actors = [actor.remote(config, key, index) for index in range(config.store.shards)]

    def freeze(self, action: Freeze) -> Drawn:
        """Takes in the window's rows, then draws for it: replay of other tasks, held-out rows of every known one."""
        window, samples = action.window, self.config.evaluate.samples
        taken = self.take(action.offer)
        whole = joined(self.config, self.key, [data for _, data in taken])
        return Drawn(
            tuple(whole.sample(action.replay_rows, window.seed, exclude=window.task)),
            {task: tuple(whole.heldout(task, samples, 0)) for task in window.known},
            {f"{PREFIX}{index}": ref for index, (ref, _) in enumerate(taken)},
        )

    def take(self, offer: Offer) -> list[tuple[Ref, bytes]]:
        """Every shard takes in its rows: the shards after it, stored, and their bytes."""
        return list(ray.get([actor.take.remote(offer) for actor in self.actors]))

    def purge(self, source: str) -> tuple[int, dict[str, Ref]]:
        """Every shard drops a source's rows: how many they were, and the shards after it."""
        purged = ray.get([actor.purge.remote(source) for actor in self.actors])
        return sum(dropped for dropped, _ in purged), {f"{PREFIX}{i}": ref for i, (_, ref) in enumerate(purged)}

    def pids(self) -> list[int]:
        """The shards' processes."""
        return list(ray.get([actor.pid.remote() for actor in self.actors]))

    def close(self) -> None:
        for actor in self.actors:
            ray.kill(actor)
