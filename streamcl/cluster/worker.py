"""What a training worker does with a window: load, train, score, and leave the result in the store. No Ray in here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import pyarrow as pa

from streamcl.cluster import media
from streamcl.events import TrainResult
from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.registry.versions import Registry
from streamcl.sections import Config
from streamcl.store.memory import TaskMemory
from streamcl.stream import Files
from streamcl.train.batch import Encoder, Row, to_rows
from streamcl.train.evaluate import scores
from streamcl.train.loop import ALONE, Learning, World
from streamcl.train.model import from_files, grow, load_base, to_bytes
from streamcl.train.sharding import sharded
from streamcl.train.step import StepLog
from streamcl.types import Refs, Window

OnStep = Callable[[int, int, StepLog], None]


class Memory(Protocol):
    """Where task memories lie."""

    def read(self, refs: Refs | None) -> TaskMemory:
        """The memory behind references; an empty one for None."""

    def write(self, memory: TaskMemory) -> Refs:
        """Stores a memory."""


class Worker:
    """One rank's model and data access, kept from window to window. Mutable: the adapter's parameters."""

    def __init__(
        self,
        config: Config,
        memory: Memory,
        world: World = ALONE,
        *,
        device: str = "cpu",
    ) -> None:
        self.config, self.memory, self.world = config, memory, world
        shard = config.train.shard
        base = load_base(config.model, device="cpu" if shard else device)
        self.encoder = Encoder(base)
        self.pad_id: int = base.processor.tokenizer.pad_token_id
        model = grow(base, config.form, seed=config.seed)
        if shard:
            sharded(model, device=device, size=world.size)
        self.learning = Learning(model, pad_id=self.pad_id, config=config.train, world=world)
        self.scoring = world.rank == 0 or shard  # a pass through a sharded model takes all ranks
        self.store = open_store(config.store.path)
        self.log = Log(self.store)
        self.registry = Registry(self.log, config.name)
        self.tests = self._tests() if config.evaluate.path and self.scoring else None

    def run(self, window: Window, on_step: OnStep = lambda step, steps, log: None) -> TrainResult | None:
        """Trains the window from its base version; rank 0 scores and stores the result.  Raises NotFinite."""
        clock = [time.monotonic()]
        memory = self.memory.read(window.memory)
        self._start_from(window, memory)
        rows, replay = media.read(self.store, window.samples), media.read(self.store, window.replay)
        sets = self._sets(window)
        clock.append(time.monotonic())
        first = window.base == 0 and self.scoring
        before = scores(self.learning.model, sets, pad_id=self.pad_id) if first else {}
        clock.append(time.monotonic())
        trained = self.learning.train(
            window, rows, replay, strategy=self.config.strategy, memory=memory, on_step=on_step
        )
        clock.append(time.monotonic())
        if not self.scoring:
            return None
        weights = to_bytes(trained.served)
        with self.learning.serving(trained.served):
            after = scores(self.learning.model, sets, pad_id=self.pad_id)
        if self.world.rank != 0:
            return None
        adapter = self.log.put_object("adapter", weights, "safetensors")
        kept = window.memory if trained.memory is memory else self.memory.write(trained.memory)
        load, zero, train, score = (b - a for a, b in zip(clock, [*clock[1:], time.monotonic()], strict=True))
        seconds = {"load": load, "train": train, "score": zero + score}
        return TrainResult(adapter, kept, after, before, trained.loss, trained.steps, seconds)

    def _start_from(self, window: Window, memory: TaskMemory) -> None:
        """Puts into the model what the window's training starts from."""
        served = from_files(self.registry.read(self.registry.get(window.base))) if window.base else None
        seed = self.config.seed + window.index
        self.learning.start(served, strategy=self.config.strategy, memory=memory, seed=seed)

    def _sets(self, window: Window) -> dict[str, Sequence[Row]]:
        """What to score on: the test files, or the held-out rows."""
        if self.tests is not None:
            return dict(self.tests)
        return {task: media.read(self.store, rows) for task, rows in window.heldout.items()}

    def _tests(self) -> dict[str, list[Row]]:
        """The test files' rows, encoded, by task."""
        source = Files(path=str(self.config.evaluate.path))
        sets = {}
        for partition in source.partitions():
            polled = source.open(partition, 0).poll(self.config.evaluate.samples)
            rows: pa.RecordBatch = self.encoder.encode(polled.batch).batch if polled else None
            sets[partition.rsplit("/", 1)[-1].split(".", 1)[0]] = to_rows(rows) if polled else []
        return sets
