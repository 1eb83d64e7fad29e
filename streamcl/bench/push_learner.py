"""A learner behind the push endpoint, and what its log holds in the end.

    python -m streamcl.bench.push_learner STORE [end]

It is the small learner of the reliability bench: reader, merge, controller, commit log, registry are the real ones.
With "end" the stream ends where the write-ahead log ends now; without, it goes on until it is killed.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from streamcl.bench.reliability_learner import NAME, Small
from streamcl.bench.reliability_learner import config_of as small
from streamcl.bench.reliability_state import ending
from streamcl.learner import Learner, controller_of
from streamcl.registry.backends import LocalStore
from streamcl.registry.log import Log
from streamcl.registry.versions import Registry
from streamcl.sections import Config, ReplayConfig
from streamcl.stream import Polled, Push, Reader
from streamcl.stream.segments import FOLDER
from streamcl.window import WindowConfig


@dataclass(frozen=True)
class Whole(Push):
    """A log that nobody writes to any more: it ends."""

    @property
    def idle_s(self) -> None:  # type: ignore[override]
        return None

    def open(self, partition: str, position: int) -> Reader:  # type: ignore[override]
        return UntilNothing(super().open(partition, position))


class UntilNothing:
    """A reader that ends where there is nothing now. Mutates: `position`."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    @property
    def position(self) -> int:
        return self.reader.position

    def poll(self, limit: int) -> Polled | None:
        polled = self.reader.poll(limit)
        return polled if polled else None


def config_of(store: Path, *, ends: bool) -> Config:
    source = (Whole if ends else Push)(str(store / FOLDER))
    window, replay = WindowConfig(samples=200, age_s=1e9), ReplayConfig(capacity=7, heldout=0.0, key="seed")
    return replace(small(store, store), source=source, window=window, replay=replay, batch=64)


def learn(store: Path, *, ends: bool) -> None:
    """One life."""
    config = config_of(store, ends=ends)
    log = Log(LocalStore(store), backoff=lambda attempt: None)
    log.acquire(f"process {os.getpid()}")
    runtime = Small(config, log, Registry(log, NAME), lambda point: None, None)
    for _ in Learner(config)._loop(runtime, controller_of(config), lambda happening: None):
        pass


def judged(store: Path, answered: Mapping[str, Iterable[str]], tried: Iterable[str]) -> dict[str, Any]:
    """What is wrong in the log of a learner that came to the end; and its counters.  Raises Violation, Corrupt.

    `answered`: ids by each key that got 202. `tried`: ids of every sample that was ever sent.
    """
    found = ending(config_of(store, ends=True))
    learned = Counter(id for window in found["windows"] for id in window["samples"])
    counters = found["counters"]
    promised = [id for ids in answered.values() for id in ids]
    return {
        "promised": len(promised),
        "missing": sum(id not in learned for id in promised),
        "twice": sum(count > 1 for count in learned.values()),
        "unknown": len({*learned} - {*tried}),
        "unbalanced": counters["in"] - sum(counters[name] for name in ("accepted", "dup", "late", "dead", "pending")),
        "uncounted": counters["accepted"] - learned.total(),
        "dead": counters["dead"] + counters["late"],
        "dup": counters["dup"],
    }


if __name__ == "__main__":
    learn(Path(sys.argv[1]), ends="end" in sys.argv[2:])
