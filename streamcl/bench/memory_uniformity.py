"""Is the reservoir uniform? χ² with finite-population correction over many trials, beside Algorithm R."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from streamcl.store.reservoir import Reservoir

Counts = npt.NDArray[np.int64]
_BATCH = 256


@dataclass(frozen=True)
class ChiSquare:
    statistic: float
    df: int
    p: float


def chi_square(counts: Counts, *, trials: int, kept: int) -> ChiSquare:
    """The test that each of n items was among the kept in kept/n of the trials.

    A draw without replacement always sums to `kept`: the sum of squares is χ² only after · (n − 1)/n and / (1 − p),
    the finite-population correction.
    """
    n = len(counts)
    p = kept / n
    statistic = float(((counts - trials * p) ** 2).sum() / (trials * p * (1 - p))) * (n - 1) / n
    tail = torch.special.gammaincc(*torch.tensor([(n - 1) / 2, statistic / 2], dtype=torch.float64))
    return ChiSquare(statistic, n - 1, float(tail))


def reservoir_counts(*, trials: int, items: int, kept: int, seed: int) -> tuple[Counts, int]:
    """How often each item was kept; and in how many trials shards, order, repeats or restarts changed the set.

    Every trial has its own secret key, 1, 3 or 8 shards, a shuffled order, 1-4 deliveries of each item, and shards that
    restart from their last snapshot.
    """
    chance = random.Random(seed)
    names = [f"item-{i}" for i in range(items)]
    counts, differing = np.zeros(items, dtype=np.int64), 0
    for trial in range(trials):
        key = chance.randbytes(16)
        plain = Reservoir(kept, key=key, heldout=0.0)
        plain.offer("task", names, ["file"] * items, range(items))
        whole = _disturbed(names, kept, key, shards=(1, 3, 8)[trial % 3], chance=chance)
        differing += whole.snapshot() != plain.snapshot()
        for part in whole.sample(kept, seed=trial):
            counts[list(part.rows)] += 1
    return counts, differing


def drawn_counts(*, trials: int, items: int, kept: int, drawn: int, seed: int) -> Counts:
    """How often each item came into a draw of `drawn` from a reservoir of `kept`; every trial has its own key."""
    chance = random.Random(seed)
    names = [f"item-{i}" for i in range(items)]
    counts = np.zeros(items, dtype=np.int64)
    for trial in range(trials):
        reservoir = Reservoir(kept, key=chance.randbytes(16), heldout=0.0)
        reservoir.offer("task", names, ["file"] * items, range(items))
        for part in reservoir.sample(drawn, seed=trial):
            counts[list(part.rows)] += 1
    return counts


def algorithm_r_counts(*, trials: int, items: int, kept: int, seed: int, repeated: int | None = None) -> Counts:
    """The control: Algorithm R, whose last `repeated` items (a quarter of them) come again after a crash."""
    chance = random.Random(seed)
    stream = list(range(items))
    stream += stream[items - (items // 4 if repeated is None else repeated) :]
    counts = np.zeros(items, dtype=np.int64)
    for _ in range(trials):
        reservoir: list[int] = []
        for seen, item in enumerate(stream):
            if seen < kept:
                reservoir.append(item)
            elif (slot := chance.randrange(seen + 1)) < kept:
                reservoir[slot] = item
        np.add.at(counts, reservoir, 1)
    return counts


def _disturbed(names: list[str], kept: int, key: bytes, *, shards: int, chance: random.Random) -> Reservoir:
    parts = [Reservoir(kept, key=key, heldout=0.0) for _ in range(shards)]
    deliveries = [i for i in range(len(names)) for _ in range(chance.randint(1, 4))]
    chance.shuffle(deliveries)
    for at in range(0, len(deliveries), _BATCH):
        for shard in range(shards):
            mine = [i for i in deliveries[at : at + _BATCH] if i % shards == shard]
            parts[shard].offer("task", [names[i] for i in mine], ["file"] * len(mine), mine)
        dies = chance.randrange(shards)
        again = Reservoir(kept, key=key, heldout=0.0)
        again.restore(parts[dies].snapshot())
        parts[dies] = again
    chance.shuffle(parts)
    for part in parts[1:]:
        parts[0].merge(part)
    return parts[0]
