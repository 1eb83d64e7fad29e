"""A learner behind Kafka, to be killed: the small learner of the reliability bench on another source.

Reader, merge, controller, commit log, registry are the real ones.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from streamcl.bench.reliability_learner import NAME, Small
from streamcl.bench.reliability_learner import config_of as small
from streamcl.learner import Learner, controller_of
from streamcl.registry.backends import LocalStore
from streamcl.registry.log import Log
from streamcl.registry.versions import Registry
from streamcl.sections import Config, ReplayConfig
from streamcl.stream import Kafka, Polled, Source
from streamcl.stream.kafka import HINT_S, KafkaReader
from streamcl.window import WindowConfig

WINDOW = 500
"""Samples of a window, and so about the rows between two commits."""


@dataclass(frozen=True)
class Whole(Source):
    """Topics that nobody writes to any more: they end."""

    kafka: Kafka

    @property
    def name(self) -> str:
        return self.kafka.name

    def partitions(self) -> list[str]:
        return self.kafka.partitions()

    def open(self, partition: str, position: int) -> UntilEnd:
        return UntilEnd(self.kafka, self.kafka.link(), partition, position)

    def committed(self, positions: Mapping[str, int]) -> None:
        self.kafka.committed(positions)


class UntilEnd(KafkaReader):
    """A reader that ends where its partition ended when it was opened."""

    def poll(self, limit: int) -> Polled | None:  # type: ignore[override]
        polled = super().poll(limit)
        if len(polled):
            return polled
        found = self.watermarks(HINT_S)
        return None if found is not None and self.position >= found[1] else polled


def config_of(store: Path, source: Source, *, samples: int = WINDOW) -> Config:
    window, replay = WindowConfig(samples=samples, age_s=1e9), ReplayConfig(capacity=7, heldout=0.0, key="seed")
    return replace(small(store, store), source=source, window=window, replay=replay, batch=256)


def learn(config: Config) -> None:
    """One life.  Raises SourceError."""
    log = Log(LocalStore(Path(config.store.path)), backoff=lambda attempt: None)
    log.acquire(f"process {os.getpid()}")
    runtime = Small(config, log, Registry(log, NAME), lambda point: None, None)
    for _ in Learner(config)._loop(runtime, controller_of(config), lambda happening: None):
        pass


def live(store: Path, hosts: str, topic: str, *, ends: bool) -> None:
    """Learns until it is killed; or, with `ends`, until each partition is where its topic ends now."""
    kafka = Kafka(hosts, (topic,), patience_s=120.0)
    learn(config_of(store, Whole(kafka) if ends else kafka))
