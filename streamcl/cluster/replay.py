"""The reservoir as an actor. Its state is always rebuilt from the last commit, so a call may simply be repeated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from streamcl.config import Config
from streamcl.events import Freeze
from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.store.reservoir import Reservoir
from streamcl.types import Rows


@dataclass(frozen=True)
class Drawn:
    """What a window gets from the reservoir, and the reservoir after it."""

    replay: tuple[Rows, ...]
    heldout: Mapping[str, tuple[Rows, ...]]
    snapshot: bytes


class Replay:
    """Holds the reservoir. A restarted actor begins with what the log's head refers to."""

    def __init__(self, config: Config, key: bytes) -> None:
        settings = config.replay
        self.reservoir = Reservoir(settings.capacity, key=key, heldout=settings.heldout, per_source=settings.per_source)
        self.samples = config.evaluate.samples
        log = Log(open_store(config.store))
        head = log.head()
        if head is not None and (ref := head.state.get("refs", {}).get("replay")):
            self.reservoir.restore(log.get_object(ref))

    def freeze(self, action: Freeze) -> Drawn:
        """Takes in the window's rows, then draws for it: replay of other tasks, held-out rows of every known one."""
        offer, window = action.offer, action.window
        self.reservoir.offer(offer.task, offer.ids, offer.keys, offer.rows, offer.sources)
        replay = self.reservoir.sample(action.replay_rows, window.seed, exclude=window.task)
        heldout = {task: tuple(self.reservoir.heldout(task, self.samples, 0)) for task in window.known}
        return Drawn(tuple(replay), heldout, self.reservoir.snapshot())

    def sizes(self) -> dict[str, int]:
        """Rows that may be replayed, by task."""
        return self.reservoir.tasks()


ReplayActor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Replay)
