"""What a training worker does with a window: load, train, score, and leave the result in the store. No Ray in here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch

from streamcl.cluster import media
from streamcl.events import TrainResult
from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.registry.versions import Registry
from streamcl.sections import Config
from streamcl.store.memory import TaskMemory
from streamcl.strategies.base import Params
from streamcl.stream import Files
from streamcl.train.batch import Encoder, Row, to_rows
from streamcl.train.evaluate import Flags, accuracy, marks
from streamcl.train.evidence import change, reach
from streamcl.train.gate import Evidence, Pairs
from streamcl.train.loop import ALONE, Learning, Trained, World
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


@dataclass(frozen=True)
class Marked:
    """What one adapter answers right."""

    ids: Mapping[str, list[str]] = field(default_factory=dict)
    """Ids of the held-out rows, by task."""
    heldout: Mapping[str, Flags] = field(default_factory=dict)
    """For each of these, whether it is answered right."""
    scores: Mapping[str, float] = field(default_factory=dict)


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
        self.encoder, self.base_digest = Encoder(base), base.digest
        self.pad_id: int = base.processor.tokenizer.pad_token_id
        model = grow(base, config.form, seed=config.seed)
        if shard:
            sharded(model, device=device, size=world.size)
        self.learning = Learning(model, pad_id=self.pad_id, config=config.train, world=world)
        self.reach = reach(model)
        self.scoring = world.rank == 0 or shard  # a pass through a sharded model takes all ranks
        self.store = open_store(config.store.path)
        self.log = Log(self.store)
        self.registry = Registry(self.log, config.name)
        self.tests = self._tests() if config.evaluate.path and self.scoring else None
        self.latest: tuple[Params, Mapping[str, bool]] = {}, {}
        """The adapter trained last, and which held-out rows it answers right, by id."""
        self.untrained = self._untrained()

    def run(self, window: Window, on_step: OnStep = lambda step, steps, log: None) -> TrainResult | None:
        """Trains the window from its base version; rank 0 scores and stores the result.  Raises NotFinite."""
        clock = [time.monotonic()]
        memory = self.memory.read(window.memory)
        base = self._start_from(window, memory)
        rows, replay = media.read(self.store, window.again + window.samples), media.read(self.store, window.replay)
        clock.append(time.monotonic())
        stood = self._marked(window, base, tests=window.base == 0 and not self.untrained)
        clock.append(time.monotonic())
        trained = self.learning.train(
            window, rows, replay, strategy=self.config.strategy, memory=memory, on_step=on_step
        )
        clock.append(time.monotonic())
        if not self.scoring:
            return None
        weights = to_bytes(trained.served)
        stands = self._marked(window, trained.served)
        self.latest = trained.served, _by_id(stands.ids, stands.heldout)  # on every rank: they score together
        if self.world.rank != 0:
            return None
        adapter = self.log.put_object("adapter", weights, "safetensors")
        kept = window.memory if trained.memory is memory else self.memory.write(trained.memory)
        evidence = self._evidence(stood, stands, base, trained)
        load, zero, train, score = (b - a for a, b in zip(clock, [*clock[1:], time.monotonic()], strict=True))
        seconds = {"load": load, "train": train, "score": zero + score}
        before = self.untrained or stood.scores if window.base == 0 else {}
        return TrainResult(adapter, kept, stands.scores, before, trained.loss, trained.steps, seconds, evidence)

    def _start_from(self, window: Window, memory: TaskMemory) -> Params | None:
        """Puts into the model what the window's training starts from; the adapter of its base version, None for 0."""
        served = from_files(self.registry.read(self.registry.get(window.base))) if window.base else None
        seed = self.config.seed + window.index
        self.learning.start(served, strategy=self.config.strategy, memory=memory, seed=seed)
        return served

    def _marked(self, window: Window, served: Params | None, *, tests: bool = True) -> Marked:
        """What an adapter (None: what the model has now) answers right. The test files only with `tests`."""
        if not self.scoring:
            return Marked()
        sets = {task: media.read(self.store, rows) for task, rows in window.heldout.items()}
        ids = {task: [row.id for row in rows] for task, rows in sets.items() if rows}
        known = self.latest[1] if served and _equal(served, self.latest[0]) else {}
        with self.learning.serving(served) if served else nullcontext():
            heldout = self._heldout(sets, known) if self._looks_at_heldout(tests) else {}
            scored = self._tested() if self.tests and tests else heldout
        return Marked(ids, heldout, accuracy(scored))

    def _tested(self) -> dict[str, Flags]:
        """Which rows of the test files the model answers right."""
        return marks(self.learning.model, self.tests or {}, pad_id=self.pad_id)

    def _untrained(self) -> dict[str, float]:
        """Scores before the first version, taken while its window is still to come; {} if there is a version."""
        return {} if self.tests is None or self.registry.newest() else accuracy(self._tested())

    def _heldout(self, sets: Mapping[str, Sequence[Row]], known: Mapping[str, bool]) -> dict[str, Flags]:
        """Which held-out rows the model answers right; what is known is not asked again."""
        new = {task: [row for row in rows if row.id not in known] for task, rows in sets.items()}
        found = marks(self.learning.model, new, pad_id=self.pad_id)
        flags = {**known, **_by_id({task: [row.id for row in rows] for task, rows in new.items()}, found)}
        return {task: np.array([flags[row.id] for row in rows], np.bool_) for task, rows in sets.items() if rows}

    def _looks_at_heldout(self, tests: bool) -> bool:
        """The gate compares held-out rows; without test files, they are the scores as well."""
        return self.config.gate.enabled or (tests and self.tests is None)

    def _evidence(self, stood: Marked, stands: Marked, base: Params | None, trained: Trained) -> Evidence:
        """The candidate beside the version it started from; each row's fate goes to the store."""
        fates = {
            task: {"ids": ids, "before": stood.heldout[task].tolist(), "after": stands.heldout[task].tolist()}
            for task, ids in stands.ids.items()
            if task in stood.heldout
        }
        size, moved = change(self.learning.model, base, trained.served, reach=self.reach)
        return Evidence(
            pairs={task: Pairs.of(stood.heldout[task], stands.heldout[task]) for task in fates},
            steps=trained.steps,
            base=self.base_digest,
            rows=self.log.put_object("gate", json.dumps(fates).encode(), "json") if fates else None,
            size=size,
            moved=moved,
        )

    def _tests(self) -> dict[str, list[Row]]:
        """The test files' rows, encoded, by task."""
        source = Files(path=str(self.config.evaluate.path))
        sets = {}
        for partition in source.partitions():
            polled = source.open(partition, 0).poll(self.config.evaluate.samples)
            rows: pa.RecordBatch = self.encoder.encode(polled.batch).batch if polled else None
            sets[partition.rsplit("/", 1)[-1].split(".", 1)[0]] = to_rows(rows) if polled else []
        return sets


def _by_id(ids: Mapping[str, Sequence[str]], flags: Mapping[str, Flags]) -> dict[str, bool]:
    """The flags of all tasks, by id of the row."""
    return {id: flag for task, hits in flags.items() for id, flag in zip(ids[task], hits.tolist(), strict=True)}


def _equal(one: Params, other: Params) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
