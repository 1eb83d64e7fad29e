"""The streams of `bench/boundaries.py`: the zoo's embeddings, and Gaussian rows.  Shapes: N rows, D features."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from streamcl.train.batch import Encoder
from streamcl.train.model import load_base
from streamcl.train.settings import ModelConfig
from streamcl.zoo import TASKS, load_task, resolve

Tasks = dict[str, np.ndarray]
CALIBRATION = ("icons_phosphor", "charts", "counting")
"""Tasks that the detector's constant was chosen on: `boundaries_calibrate.py`. Claims are measured on the others."""


@dataclass(frozen=True)
class Change:
    """Rows of one task, then rows of another from `start` on."""

    x_ND: np.ndarray
    start: int


def embeddings() -> Tasks:
    """What the learner's detector would see of the zoo's training samples, by task; kept among the temporary files."""
    path = resolve("zoo:small")
    digest = hashlib.sha256(Path(path, "model.safetensors").read_bytes()).hexdigest()[:12]
    cache = Path(tempfile.gettempdir()) / f"streamcl-boundaries-{digest}.npz"
    if not cache.exists():
        encoder = Encoder(load_base(ModelConfig(path, register="streamcl.zoo.tower")))
        encoded = {}
        for name in TASKS:
            batches = load_task(name, "train").to_batches(max_chunksize=64)
            encoded[name] = np.concatenate([encoder.encode(batch).embeddings_NE for batch in batches])
        np.savez(cache, **encoded)  # type: ignore[arg-type]
    with np.load(cache) as stored:
        return {name: stored[name] for name in stored.files}


def draw(x_ND: np.ndarray, rows: int, random: np.random.Generator) -> np.ndarray:
    """A stream of one task without end in sight: independent draws from its samples."""
    drawn_ND: np.ndarray = x_ND[random.integers(len(x_ND), size=rows)]
    return drawn_ND


def order(tasks: Tasks, random: np.random.Generator, *, twice: bool = False) -> list[tuple[str, np.ndarray]]:
    """Every task once (or twice, not in a row) in random order, 300 to 1,200 of its samples each."""
    names = [str(name) for name in random.permutation(list(tasks))]
    if twice:
        again = [str(name) for name in random.permutation(list(tasks))]
        names += again if again[0] != names[-1] else [*again[1:], again[0]]
    return [(name, tasks[name][random.permutation(len(tasks[name]))[: random.integers(300, 1201)]]) for name in names]


def real_changes(tasks: Tasks, count: int) -> list[Change]:
    """Neighbours in random orders."""
    changes: list[Change] = []
    for seed in range(count):
        parts = [x_ND for _, x_ND in order(tasks, np.random.default_rng((1, seed)))]
        changes += [Change(np.concatenate(pair), len(pair[0])) for pair in pairwise(parts)]
    return changes[:count]


def gaussian_changes(shift: float, count: int) -> list[Change]:
    """Standard normal rows in 64 dimensions whose mean moves by `shift` in all, in one random direction."""
    changes = []
    for seed in range(count):
        random = np.random.default_rng((2, seed))
        x_ND, direction_D = random.standard_normal((2500, 64)), random.standard_normal(64)
        x_ND[500:] += shift * direction_D / np.linalg.norm(direction_D)
        changes.append(Change(x_ND.astype(np.float32), 500))
    return changes


def null_stream(x_ND: np.ndarray, rows: int, random: np.random.Generator, *, shuffled: bool = False) -> np.ndarray:
    """A stream of one task: independent draws of its samples, or all of them shuffled, again and again."""
    if not shuffled:
        return draw(x_ND, rows, random)
    order_N = np.concatenate([random.permutation(len(x_ND)) for _ in range(rows // len(x_ND) + 1)])
    stream_ND: np.ndarray = x_ND[order_N[:rows]]
    return stream_ND


def null_streams(tasks: Tasks, count: int, rows: int, *, shuffled: bool = False) -> Iterator[np.ndarray]:
    """`count` streams without change, of each task in turn."""
    names = list(tasks)
    for seed in range(count):
        yield null_stream(tasks[names[seed % len(names)]], rows, np.random.default_rng((3, seed)), shuffled=shuffled)


def gaussian_nulls(count: int, rows: int) -> list[np.ndarray]:
    randoms = (np.random.default_rng((5, s)) for s in range(count))
    return [random.standard_normal((rows, 64), dtype=np.float32) for random in randoms]


def gradual_stream(old_ND: np.ndarray, new_ND: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """600 samples of one task, 300 over which the share of the other grows from none to all, 700 of the other."""
    share_N = np.clip((np.arange(1600) - 600) / 300, 0, 1)
    turn_N = random.random(1600) < share_N
    stream_ND: np.ndarray = np.where(turn_N[:, None], draw(new_ND, 1600, random), draw(old_ND, 1600, random))
    return stream_ND
