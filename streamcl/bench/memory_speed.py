"""How fast samples are offered and drawn, beside cpprb, TorchRL and Algorithm R in numpy; and memory over millions."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from streamcl.store.reservoir import Reservoir

BATCH = 1024
CAPACITY = 4096
KEY = b"bench"
Add = Callable[[int], object]
"""Adds the i-th batch of BATCH samples."""


def offers(*, batches: int, rounds: int) -> list[dict[str, Any]]:
    """Samples a CPU second of each, median of `rounds`. They take turns, so that a busy machine hurts all alike."""
    ids = [[f"source/part-0/{batch * BATCH + i:012d}" for i in range(BATCH)] for batch in range(batches)]
    contestants: list[tuple[str, str, Callable[[], Add]]] = []
    rows: list[dict[str, Any]] = []
    for name, note, make in _contestants(ids):
        try:
            make()
        except ImportError as error:
            rows.append({"what": name, "note": note, "not_run": f"{type(error).__name__}: {error}"})
        else:
            contestants.append((name, note, make))
    rates: dict[str, list[float]] = {name: [] for name, _, _ in contestants}
    for _ in range(rounds):
        for name, _, make in contestants:
            rates[name].append(_rate(make(), batches))
    for name, note, _ in contestants:
        middle = statistics.median(rates[name])
        every = [round(rate) for rate in rates[name]]
        rows.append({"what": name, "note": note, "offers_per_s": round(middle), "rounds": every})
    return rows


def draws(*, tasks: int, n: int, repeats: int) -> dict[str, Any]:
    """Milliseconds to draw `n` rows out of `tasks` full heaps."""
    reservoir = Reservoir(CAPACITY, key=KEY, heldout=0.0)
    for task in range(tasks):
        names = [f"{task}/{i}" for i in range(2 * CAPACITY)]
        reservoir.offer(f"task-{task}", names, [f"file-{i // BATCH}" for i in range(len(names))], range(len(names)))
    reservoir.sample(n, seed=0)
    times = []
    for seed in range(repeats):
        start = time.perf_counter()
        drawn = reservoir.sample(n, seed=seed)
        times.append(1000 * (time.perf_counter() - start))
        assert sum(map(len, drawn)) == n
    return {
        "tasks": tasks,
        "rows_held": len(reservoir),
        "drawn": n,
        "median_ms": round(statistics.median(times), 2),
        "worst_ms": round(max(times), 2),
        "draws": repeats,
    }


def flat_memory(*, samples: int, tasks: int, points: int = 50) -> list[dict[str, float]]:
    """Resident memory of this process as `samples` new samples are offered, dealt over `tasks`."""
    reservoir = Reservoir(CAPACITY, key=KEY)
    step = max(1, samples // BATCH // points)
    curve = [{"offered": 0, "held": 0, "rss_mb": _rss_mb()}]
    for batch in range(samples // BATCH):
        ids = [f"source/part-0/{batch * BATCH + i:012d}" for i in range(BATCH)]
        reservoir.offer(f"task-{batch % tasks}", ids, [f"file-{batch}"] * BATCH, range(BATCH))
        if (batch + 1) % step == 0:
            curve.append({"offered": (batch + 1) * BATCH, "held": len(reservoir), "rss_mb": _rss_mb()})
    return curve


def _contestants(ids: list[list[str]]) -> list[tuple[str, str, Callable[[], Add]]]:
    file, rows = ["file"] * BATCH, list(range(BATCH))
    arrow = [pa.array(some) for some in ids]
    weights = np.random.default_rng(0).uniform(0.5, 2.0, BATCH)

    def ours(batches: list[Any], weights: Any = None) -> Add:
        reservoir = Reservoir(CAPACITY, key=KEY)
        return lambda i: reservoir.offer("task", batches[i], file, rows, file, weights)

    return [
        ("streamcl", "ids as Python strings; uniform, deduplicated, held-out share, mergeable", lambda: ours(ids)),
        ("streamcl, Arrow ids", "the same, ids as an Arrow column, as ingest has them", lambda: ours(arrow)),
        ("streamcl, weighted", "the same, a weight for each sample", lambda: ours(ids, weights)),
        ("numpy Algorithm R", "row numbers; uniform, neither deduplicated nor mergeable", _algorithm_r),
        ("cpprb", "row numbers; a ring that keeps the last, not a sample of all", _cpprb),
        ("TorchRL, tensors", "row numbers; a ring that keeps the last (LazyTensorStorage)", _torchrl_tensors),
        ("TorchRL, objects", "references as Python tuples; a ring that keeps the last (ListStorage)", _torchrl_list),
    ]


def _rate(add: Add, batches: int) -> float:
    start = time.process_time()  # one core's seconds, whoever else uses the machine
    for i in range(batches):
        add(i)
    return batches * BATCH / (time.process_time() - start)


def _algorithm_r() -> Add:
    kept, chance, within = np.zeros(CAPACITY, dtype=np.int64), np.random.default_rng(0), np.arange(BATCH)

    def add(i: int) -> None:
        rows = i * BATCH + within
        slots = np.where(rows < CAPACITY, rows, chance.integers(0, rows + 1))
        chosen = slots < CAPACITY
        kept[slots[chosen]] = rows[chosen]

    return add


def _cpprb() -> Add:
    buffer = import_module("cpprb").ReplayBuffer(CAPACITY, {"row": {"dtype": np.int64}})
    within = np.arange(BATCH)
    return lambda i: buffer.add(row=i * BATCH + within)


def _torchrl_tensors() -> Add:
    data, tensordict = import_module("torchrl.data"), import_module("tensordict")
    buffer = data.ReplayBuffer(storage=data.LazyTensorStorage(CAPACITY), batch_size=BATCH)
    within = torch.arange(BATCH)
    return lambda i: buffer.extend(tensordict.TensorDict({"row": i * BATCH + within}, [BATCH]))


def _torchrl_list() -> Add:
    data = import_module("torchrl.data")
    buffer = data.ReplayBuffer(storage=data.ListStorage(CAPACITY), batch_size=BATCH)
    return lambda i: buffer.extend([("file", row) for row in range(i * BATCH, (i + 1) * BATCH)])


def peer_versions() -> dict[str, str]:
    """Versions of the peers that are installed."""
    found = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    return {name: found[name] for name in ("cpprb", "torchrl", "tensordict") if name in found}


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * 4096 / 2**20, 1)
