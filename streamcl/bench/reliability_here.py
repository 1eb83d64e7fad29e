"""What stands for Ray, the encoder and the trainer in the small learner: plain objects, called at once.

`Pure` is a training that is a pure function of its window: the "weights" are the sha256 of all that went into them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save as save_safetensors

from streamcl import events as e
from streamcl.cluster import media
from streamcl.cluster.ingest import Ingest
from streamcl.cluster.memory import MemoryShard
from streamcl.cluster.replay import Replay, ReplayShard
from streamcl.registry.backends import CommitStore
from streamcl.registry.log import Log
from streamcl.registry.versions import Registry
from streamcl.sections import Config
from streamcl.store.keyed import derive
from streamcl.store.memory import TaskMemory
from streamcl.store.reservoir import Reservoir
from streamcl.store.sharding import shards_of
from streamcl.stream import Merged
from streamcl.train.batch import ENCODED_SCHEMA, Encoded
from streamcl.train.gate import Evidence
from streamcl.train.model import base_digest, to_bytes
from streamcl.types import SAMPLE_SCHEMA, Ref, Refs, Window

Reached = Callable[[str], None]


class Now:
    """A remote method that has its answer at once."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method

    def remote(self, *args: Any) -> Now:
        return Now(lambda: self.method(*args))

    def future(self) -> Future[Any]:
        answer: Future[Any] = Future()
        answer.set_result(self.method())
        return answer


class Here(Executor):
    """Runs what is submitted on the calling thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        answer: Future[Any] = Future()
        answer.set_result(fn(*args, **kwargs))
        return answer


class IdsOnly:
    """An encoder that makes no tensors."""

    def encode(self, samples: pa.RecordBatch) -> Encoded:
        nothing = save_safetensors({})
        rows = [{"prompt_ids": [0], "answer_ids": [0], "inputs": nothing}] * samples.num_rows
        extra = pa.RecordBatch.from_pylist(rows, schema=pa.schema([*ENCODED_SCHEMA][len(SAMPLE_SCHEMA) :]))
        batch = pa.RecordBatch.from_arrays([*samples.columns, *extra.columns], schema=ENCODED_SCHEMA)
        return Encoded(batch, np.zeros((samples.num_rows, 1), np.float32))


class Reader(Ingest):
    """The ingest actor without a model."""

    def __init__(self, config: Config, positions: Mapping[str, int], key: bytes, store: CommitStore) -> None:
        self.encoder = IdsOnly()  # type: ignore[assignment]
        self.stream = Merged(config.source, positions)
        self.store = store
        self.reservoir = Reservoir(1, key=key, heldout=config.replay.heldout)
        self.id_key = derive(key, "ids")


class ReplayHere(Replay):
    """The reservoir's shards, called one after the other."""

    def __init__(self, config: Config, key: bytes, log: Log, reached: Reached) -> None:
        self.config, self.key, self.reached = config, key, reached
        self.parts = [ReplayShard(config, key, index) for index in range(config.store.shards)]
        for part in self.parts:
            part.log = Log(log.store)

    def take(self, offer: e.Offer) -> list[tuple[Ref, bytes]]:
        taken = []
        for part in self.parts:
            self.reached("before offer")
            taken.append(part.take(offer))
        self.reached("after offer")
        return taken


class MemoryHere:
    """The task memory's shards, called one after the other."""

    def __init__(self, config: Config, log: Log) -> None:
        shards = config.store.shards
        self.parts = [MemoryShard(config.store.path, i, shards, config.name) for i in range(shards)]
        for part in self.parts:
            part.log = Log(log.store)

    def read(self, refs: Refs | None) -> TaskMemory:
        parts = [part.read(tuple(refs)) for part in self.parts] if refs else []
        return TaskMemory.join([TaskMemory.from_bytes(part.tobytes()) for part in parts])

    def write(self, memory: TaskMemory) -> Refs:
        halves = [np.frombuffer(part.to_bytes(), np.uint8) for part in memory.split(len(self.parts))]
        return tuple(part.write(half) for part, half in zip(self.parts, halves, strict=True))


class Pure:
    """The trainer: a pure function of the window and of what it names. A sample whose id begins with nan/ diverges."""

    def __init__(self, log: Log, registry: Registry, memory: MemoryHere) -> None:
        self.log, self.registry, self.memory = log, registry, memory

    def submit(self, window: Window) -> Now:
        return Now(lambda: self.train(window))

    def warm(self) -> None:
        pass

    def progress(self) -> Now:
        return Now(lambda: None)

    def train(self, window: Window) -> e.TrainResult | str:
        store = self.log.store
        samples = [row.id for row in media.read(store, window.again + window.samples)]
        replay = sorted(row.id for row in media.read(store, window.replay))
        if any(id.startswith("nan/") for id in samples):
            return "loss is nan"
        memory = self.memory.read(window.memory)
        base = self.registry.read(self.registry.get(window.base)) if window.base else {}
        parts = [samples, replay, window.task, window.seed, sorted((k, v.hex()) for k, v in base.items())]
        weights = torch.tensor([[*digest(json.dumps(parts).encode() + memory.to_bytes())]], dtype=torch.float32)
        adapter = self.log.put_object("adapter", to_bytes({"layer.lora_A.weight": weights}), "safetensors")
        kept = window.memory
        if window.closes_task:
            layers = {f"layer-{i}": weights + i for i in range(6)}
            assert len({*shards_of([*layers], len(self.memory.parts))}) == len(self.memory.parts)
            kept = self.memory.write(memory.with_group(f"anchor/{window.index}", layers))
        held = {task: float(len(media.read(store, rows))) for task, rows in window.heldout.items()}
        return e.TrainResult(adapter, kept, held, {}, 0.0, len(samples), {}, Evidence(base=base_digest("none")))


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


class ReaderHere:
    """The ingest actor's handle."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def pull(self, limit: int) -> Future[e.Arrival]:
        return Now(self.reader.pull).remote(limit).future()

    def close(self) -> None:
        pass
