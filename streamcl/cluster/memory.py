"""What finished tasks leave, over shard actors by parameter name. State is named by references into the store.

A shard answers for the references it is asked about, not for what it happens to hold: after a crash, or when the number
of shards has changed, it rebuilds its part from the store. So every call may simply be repeated.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from streamcl.cluster.metrics import ShardMetrics
from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.sections import ANYWHERE, Resources
from streamcl.store.memory import TaskMemory
from streamcl.types import Ref, Refs

Bytes = npt.NDArray[np.uint8]
"""A part as bytes in an array: Ray hands arrays to readers without a copy."""


class MemoryShard:
    """One shard: the parameters that rendezvous hashing gives it. Mutable: the part it holds."""

    def __init__(self, store: str, index: int, shards: int, run: str) -> None:
        self.log = Log(open_store(store))
        self.index, self.shards = index, shards
        self.metrics = ShardMetrics(run, index)
        self.ref: Ref | None = None
        self.part = np.zeros(0, np.uint8)

    def read(self, refs: Refs) -> Bytes:
        """This shard's part of the memory that `refs` are the parts of."""
        if len(refs) != self.shards:
            whole = TaskMemory.join([TaskMemory.from_bytes(self.log.get_object(ref)) for ref in refs])
            return _array(whole.split(self.shards)[self.index].to_bytes())
        if refs[self.index] != self.ref:
            self._hold(_array(self.log.get_object(refs[self.index])), refs[self.index])
        return self.part

    def write(self, part: Bytes) -> Ref:
        """Stores a new part and holds it; its reference is part of the memory once a commit names it."""
        ref = self.log.put_object("memory", part.tobytes(), "safetensors")
        self._hold(part, ref)
        return ref

    def _hold(self, part: Bytes, ref: Ref) -> None:
        self.part, self.ref = part, ref
        self.metrics.memory(TaskMemory.from_bytes(part.data), len(part))

    def pid(self) -> int:
        return os.getpid()


MemoryActor: Any = ray.remote(max_restarts=-1, max_task_retries=-1)(MemoryShard)


class Shards:
    """The shards of one run as one memory. Can be sent to workers."""

    def __init__(self, store: str, shards: int, each: Resources = ANYWHERE, *, run: str) -> None:
        """`each`: what a shard takes of the cluster. `run`: the run's name, for its metrics."""
        actor = MemoryActor.options(**each.options())
        self.actors = [actor.remote(store, index, shards, run) for index in range(shards)]

    def read(self, refs: Refs | None) -> TaskMemory:
        """The memory behind `refs`, in one round trip; the tensors are views of shared memory. Empty for None."""
        if not refs:
            return TaskMemory()
        parts: Sequence[Bytes] = ray.get([actor.read.remote(tuple(refs)) for actor in self.actors])
        return TaskMemory.join([TaskMemory.from_bytes(part.data) for part in parts])

    def write(self, memory: TaskMemory) -> Refs:
        """Stores a memory; the references of its parts, one a shard."""
        parts = memory.split(len(self.actors))
        sent = [actor.write.remote(_array(part.to_bytes())) for actor, part in zip(self.actors, parts, strict=True)]
        return tuple(ray.get(sent))

    def pids(self) -> list[int]:
        """The shards' processes."""
        return list(ray.get([actor.pid.remote() for actor in self.actors]))

    def close(self) -> None:
        for actor in self.actors:
            ray.kill(actor)


def _array(data: bytes) -> Bytes:
    return np.frombuffer(data, np.uint8)
