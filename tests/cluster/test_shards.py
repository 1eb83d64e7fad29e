"""Shard actors on real Ray: neither SIGKILL amid updates nor another number of shards changes anything."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from streamcl.bench.shards import Life, changed, lived, moved, reservoir
from streamcl.cluster.replay import Drawn

Apart = Callable[..., Any]


def start() -> None:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


@pytest.fixture(scope="module", autouse=True)
def cluster(apart: Apart) -> Iterator[None]:
    apart(start)
    yield
    apart(ray.shutdown)


@pytest.mark.chaos
def test_kills_between_and_during_updates_change_nothing(apart: Apart, tmp_path: Path) -> None:
    calm, _ = apart(lived, tmp_path / "calm", windows=range(6), shards=3)
    killed, kills = apart(lived, tmp_path / "killed", windows=range(6), shards=3, dice=random.Random(0))
    assert kills == 18  # `python -m streamcl.bench.shards` does 72
    assert killed == calm
    assert reservoir(tmp_path / "calm") == reservoir(tmp_path / "killed")


def test_from_two_to_five_shards_nothing_is_lost_and_few_keys_move(apart: Apart, tmp_path: Path) -> None:
    one, _ = apart(lived, tmp_path / "one", windows=range(4), shards=1)
    assert apart(changed, tmp_path / "changed") == one
    assert moved(2, 5) <= 0.65


def forgetful(folder: Path) -> Drawn:
    """The second window's draw, of a shard that has begun empty after the first."""
    life = Life(folder, shards=1)
    life.window(0, None)
    ray.get(life.replay.actors[0].__ray_call__.remote(lambda shard: shard.reservoir._heaps.clear()))
    drawn, _ = life.window(1, None)
    life.close()
    return drawn


def test_a_shard_that_begins_empty_after_a_restart_is_caught(apart: Apart, tmp_path: Path) -> None:
    """The broken twin of a restart: the same comparison tells."""
    calm, _ = apart(lived, tmp_path / "calm", windows=range(2), shards=1)
    drawn = apart(forgetful, tmp_path / "twin")
    assert (drawn.replay, drawn.heldout) != calm[1][:2]
