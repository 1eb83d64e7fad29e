"""The sections of a run's configuration: a component's dataclass is its YAML section."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from streamcl import detect, strategies
from streamcl.detect import DetectorKind
from streamcl.errors import ConfigError
from streamcl.serve.keys import KeysConfig
from streamcl.serve.quota import PushConfig
from streamcl.strategies import Strategy
from streamcl.stream import Source
from streamcl.train.gate import GateConfig
from streamcl.train.settings import LoRA, ModelConfig, Prompts, TrainConfig
from streamcl.types import checked_name
from streamcl.window import WindowConfig


@dataclass(frozen=True)
class StoreConfig:
    """The run's store: log, versions, data, and what must not be forgotten. The same store continues the same run."""

    path: str
    """Folder or URL."""
    shards: int = 1
    """Actors that share what is remembered, at least 1. May change between two starts."""
    keep: int = 1000
    """Newest commits, at least 16, whose objects and versions stay; what is older, and neither live nor referred to, is
    deleted now and then. About three commits a window."""

    def __post_init__(self) -> None:
        if self.shards < 1 or self.keep < 16:
            raise ConfigError(f"shards {self.shards}, keep {self.keep}: at least 1 shard and 16 commits")


@dataclass(frozen=True)
class ReplayConfig:
    """The reservoir: what of earlier tasks may be seen again."""

    capacity: int = 1000
    """Rows kept of each task, at least 1."""
    heldout: float = 0.1
    """Share of the samples that is never trained on, for scoring; in [0, 1)."""
    per_source: float = 1.0
    """Largest share of a task's rows that one source may hold, in (0, 1]."""
    key: typing.Literal["random", "seed"] = "random"
    """Where the secret behind the choice of rows comes from: drawn at the first start and kept in the store (nobody
    can craft ids that are always kept), or derived from `seed` (runs can be repeated; for experiments)."""

    def __post_init__(self) -> None:
        if self.capacity < 1 or not 0 <= self.heldout < 1 or not 0 < self.per_source <= 1:
            raise ConfigError(
                f"capacity {self.capacity}, heldout {self.heldout}, per_source {self.per_source}: "
                "capacity is at least 1, heldout in [0, 1), per_source in (0, 1]"
            )


@dataclass(frozen=True)
class EvaluateConfig:
    """What tasks are scored on after each window: test files, or else each task's held-out rows."""

    path: str | None = None
    """A folder with one Parquet or JSON Lines file a task, named after the task; None scores held-out rows."""
    samples: int = 200
    """At most so many a task."""


@dataclass(frozen=True)
class AskConfig:
    """A client that goes on asking the endpoint while the run lasts: a smoke test that counts failures."""

    per_second: float = 0.0
    """Questions a second, from the evaluation files; 0 asks none."""


@dataclass(frozen=True)
class ServeConfig:
    """The endpoint."""

    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 1
    max_batch: int = 8
    """Requests answered in one forward pass."""
    max_queued: int = 256
    """Requests that may wait; more are refused with 503."""
    slots: int = 4
    """Versions that lie in memory side by side on each replica, at least 2; 3 where candidates are tried."""
    canary: float = 0.0
    """Share of callers whom a candidate answers, in [0, 1). A candidate is a version that the gate has held back; its
    trial ends when it or another is made live, the next one is held back, or a source is purged. A caller is the `user`
    that a request names, or else its API key; without either each request is a caller. Pinned requests are not meant.
    """
    shadow: float = 0.0
    """Share of the live version's answers that a candidate makes again, in [0, 1]: nobody sees or waits for them, and
    they are dropped while a batch is more than half full. /metrics says how many were the same."""
    keys: KeysConfig = field(default_factory=KeysConfig)
    push: PushConfig = field(default_factory=PushConfig)

    def __post_init__(self) -> None:
        if self.slots < 2:
            raise ConfigError(f"slots {self.slots}: at least 2, for a version is loaded beside the one that answers")
        if not (0 <= self.canary < 1 and 0 <= self.shadow <= 1):
            raise ConfigError(f"canary {self.canary}, shadow {self.shadow}: shares, canary in [0, 1), shadow in [0, 1]")
        if (self.canary or self.shadow) and self.slots < 3:
            raise ConfigError(f"slots {self.slots}: at least 3 with canary or shadow, for the candidate takes one")
        self.keys.check_host(self.host)


@dataclass(frozen=True)
class RayConfig:
    """Where to run. With no address here or in RAY_ADDRESS: on a Ray of this machine that lives as long as the run."""

    address: str | None = None
    cpus: int | None = None
    """Logical CPUs of a local Ray; None: as many as the machine has, at least 4."""
    dashboard: bool = False
    json_logs: bool = False
    """Whether the run, its actors and its replicas log lines of JSON, with run, window and version, for a collector."""


@dataclass(frozen=True)
class Resources:
    """What one actor takes of the cluster, in Ray's counts: they place it, they do not limit it. Fractions count."""

    cpus: float = 0.0
    gpus: float = 0.0
    """With any, the model is on the GPU."""
    custom: Mapping[str, float] = field(default_factory=dict)
    """Amounts of what nodes were started with (`ray start --resources`), by name."""
    spread: bool = False
    """Over as many nodes as there are, instead of as few."""

    def __post_init__(self) -> None:
        if min(self.cpus, self.gpus, *self.custom.values()) < 0:
            raise ConfigError(f"cpus {self.cpus}, gpus {self.gpus}, custom {dict(self.custom)}: none below 0")

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    def options(self) -> dict[str, Any]:
        """The same as options of a Ray actor."""
        strategy = "SPREAD" if self.spread else "DEFAULT"
        return {**self.demand(), "scheduling_strategy": strategy}

    def demand(self) -> dict[str, Any]:
        """The amounts alone, as Ray Serve takes them."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "resources": dict(self.custom)}


ANYWHERE = Resources()


@dataclass(frozen=True)
class PlacementConfig:
    """What each part of a run takes of the cluster. What is not said stays as it is here."""

    ingest: Resources = field(default_factory=lambda: Resources(cpus=0.5))
    """The reader, which is the encoder too where there is one, and each encoder."""
    shards: Resources = field(default_factory=Resources)
    """Each shard of what is remembered: there are two actors a shard."""
    trainer: Resources = field(default_factory=lambda: Resources(cpus=1.0))
    """Each training worker; `train.use_gpu` is the short form of one GPU."""
    replicas: Resources = field(default_factory=lambda: Resources(cpus=0.5))
    """Each copy of the served model. Ray Serve spreads them by itself."""


@dataclass(frozen=True)
class Config:
    """A whole run. Relative paths are relative to the working directory."""

    store: StoreConfig
    model: ModelConfig
    source: Source
    name: str = "model"
    """What clients ask for: `model: NAME`."""
    seed: int = 0
    batch: int = 64
    """Samples read and encoded at a time."""
    encoders: int = 1
    """Actors that turn samples into the model's inputs and features, batch by batch in turn; at least 1. The stream is
    the same for any number of them."""
    detector: DetectorKind = field(default_factory=detect.Mmd)
    strategy: Strategy = field(default_factory=strategies.DGG)
    window: WindowConfig = field(default_factory=WindowConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    ask: AskConfig = field(default_factory=AskConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)

    def __post_init__(self) -> None:
        checked_name(self.name)
        if min(self.batch, self.encoders) < 1:
            raise ConfigError(f"batch {self.batch}, encoders {self.encoders}: each is at least 1")

    @property
    def form(self) -> LoRA | Prompts:
        """The form of what the strategy trains."""
        form: LoRA | Prompts = getattr(self.model, self.strategy.adapter)
        return form

    @property
    def trainer(self) -> Resources:
        """What each training worker takes."""
        trainer = self.placement.trainer
        return replace(trainer, gpus=1.0) if self.train.use_gpu and not trainer.gpus else trainer

    @property
    def scratch(self) -> str:
        """Where Ray Train keeps its own files: nothing that matters."""
        return f"{self.store.path.rstrip('/')}/scratch"
