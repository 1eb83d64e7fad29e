"""Shard actors on real Ray: neither SIGKILL amid updates nor another number of shards changes anything."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from streamcl.cluster.memory import Shards
from streamcl.cluster.replay import Drawn, Replay, committed
from streamcl.config import Config, ReplayConfig, StoreConfig
from streamcl.events import Checkpoint, Freeze, Offer
from streamcl.registry.log import Log
from streamcl.registry.stores import open_store
from streamcl.store.memory import TaskMemory
from streamcl.store.sharding import shards_of
from streamcl.stream import Files
from streamcl.train.model import ModelConfig
from streamcl.types import Window

KEY = b"k" * 32
ROWS = 60
CHECKPOINT = Checkpoint({}, {}, {}, 0.0)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def config(folder: Path, *, shards: int) -> Config:
    return Config(
        StoreConfig(str(folder), shards), ModelConfig("unused"), Files("unused"), replay=ReplayConfig(capacity=40)
    )


def freeze(number: int) -> Freeze:
    """Window `number`: its rows go to one of three tasks in turn."""
    task = f"task-{number % 3}"
    names = tuple(f"id-{number}-{i}" for i in range(ROWS))
    offer = Offer(task, names, (f"file-{number}",) * ROWS, tuple(range(ROWS)), ("s",) * ROWS)
    window = Window(number, task, (), (), number, 0, 0, False, known=("task-0", "task-1", "task-2"))
    return Freeze(window, offer, 24, CHECKPOINT)


def memory(number: int) -> TaskMemory:
    generator = torch.Generator().manual_seed(number)
    tensors = {f"layer-{i}.weight": torch.randn(8, 8, generator=generator) for i in range(12)}
    return TaskMemory({"anchor": tensors}, {"task": number})


def commit(log: Log, drawn: Drawn, refs: tuple[Any, ...]) -> None:
    named = {f"memory/{shard}": ref for shard, ref in enumerate(refs)}
    log.append("data", state={"refs": {**drawn.refs, **named}})


def pids(actors: list[Any]) -> list[int]:
    return ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in actors])


class Life:
    """A learner's use of its shards, window by window. `kill(point)` may kill shards at named points."""

    def __init__(self, folder: Path, *, shards: int) -> None:
        self.config = config(folder, shards=shards)
        self.log = Log(open_store(str(folder)))
        self.log.acquire("life")
        self.replay = Replay(self.config, KEY)
        self.memory = Shards(str(folder), shards)
        self.killed = 0

    def window(self, number: int, dice: random.Random | None) -> tuple[Drawn, TaskMemory]:
        """One window's use of the shards; with dice, three of them are killed on the way."""
        waiting = []
        if dice:
            self._kill(dice.choice(pids([*self.replay.actors, *self.memory.actors])))
            victims = pids(self.replay.actors)
            waiting = [actor.take.remote(freeze(number).offer) for actor in self.replay.actors]
            self._kill(dice.choice(victims))  # the call is under way, or has just ended without a commit
        drawn = self.replay.freeze(freeze(number))
        ray.get(waiting)
        refs = self.memory.write(memory(number))
        if dice:
            self._kill(dice.choice(pids(self.memory.actors)))
        kept = self.memory.read(refs)
        commit(self.log, drawn, refs)
        return drawn, TaskMemory.from_bytes(kept.to_bytes())

    def _kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self.killed += 1

    def close(self) -> None:
        self.replay.close()
        self.memory.close()


def lived(folder: Path, *, windows: int, shards: int, kill: random.Random | None = None) -> tuple[list[Any], int]:
    life = Life(folder, shards=shards)
    seen = []
    for number in range(windows):
        drawn, kept = life.window(number, kill)
        seen.append((drawn.replay, drawn.heldout, kept.to_bytes()))
    life.close()
    return seen, life.killed


@pytest.mark.chaos
def test_fifty_kills_between_and_during_updates_change_nothing(tmp_path: Path) -> None:
    calm, _ = lived(tmp_path / "calm", windows=24, shards=3)
    dice = random.Random(0)
    killed, count = lived(tmp_path / "killed", windows=24, shards=3, kill=dice)
    assert count >= 50
    assert killed == calm
    logs = [Log(open_store(str(tmp_path / name))) for name in ("calm", "killed")]
    first, second = (committed(log, config(tmp_path, shards=3), KEY).snapshot() for log in logs)
    assert first == second


def test_draws_and_memory_do_not_depend_on_the_number_of_shards(tmp_path: Path) -> None:
    one, _ = lived(tmp_path / "one", windows=4, shards=1)
    three, _ = lived(tmp_path / "three", windows=4, shards=3)
    assert one == three


def test_from_two_to_five_shards_nothing_is_lost_and_few_keys_move(tmp_path: Path) -> None:
    """Two windows with two shards, two more with five: the draws of an undisturbed run, and the memory is there."""
    calm, _ = lived(tmp_path / "calm", windows=4, shards=2)
    before, _ = lived(tmp_path / "changed", windows=2, shards=2)
    life = Life(tmp_path / "changed", shards=5)
    head = life.log.head()
    assert head is not None
    refs = tuple(head.state["refs"][f"memory/{shard}"] for shard in range(2))
    assert life.memory.read(refs).to_bytes() == memory(1).to_bytes()
    after = []
    for number in (2, 3):
        drawn, kept = life.window(number, None)
        after.append((drawn.replay, drawn.heldout, kept.to_bytes()))
    life.close()
    assert before + after == calm
    names = [f"layer-{i}.weight" for i in range(2000)]
    assert (shards_of(names, 2) != shards_of(names, 5)).mean() <= 0.65


def test_a_shard_that_forgets_the_commit_is_caught(tmp_path: Path) -> None:
    """The broken twin: after a restart it begins empty. The same comparison tells."""
    calm, _ = lived(tmp_path / "calm", windows=3, shards=1)
    life = Life(tmp_path / "twin", shards=1)
    life.window(0, None)
    life.replay.actors[0].__ray_call__.remote(lambda shard: shard.reservoir._heaps.clear())
    drawn, _ = life.window(1, None)
    life.close()
    assert replace(drawn, refs={}) != Drawn(calm[1][0], calm[1][1], {})
