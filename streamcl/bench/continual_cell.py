"""One cell of the continual-learning table: one strategy, one order of tasks, one seed, in one process with one thread.

    python -m streamcl.bench.continual_cell CELL.json    # prints the result as JSON

The pictures of every task pass the frozen tower once; the encoded rows lie in the cache folder. A cell's file is named
after the digest of what determines it, so a bench that was interrupted goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from streamcl import zoo
from streamcl.bench.continual_windows import AtTheEnd, InEveryWindow
from streamcl.metrics import summarize
from streamcl.store.budget import pairs_of, recompress
from streamcl.store.keyed import derive
from streamcl.store.memory import TaskMemory
from streamcl.store.reservoir import Reservoir
from streamcl.strategies import KINDS, Strategy
from streamcl.strategies.stacked import Stacked
from streamcl.train.batch import TRAINED, Encoder, Row, to_rows
from streamcl.train.evaluate import accuracy, exact_match, marks
from streamcl.train.loop import Learning
from streamcl.train.model import base_digest, grow, load_base
from streamcl.train.settings import LoRA, ModelConfig, TrainConfig
from streamcl.types import Window

ORDERS: Mapping[str, tuple[str, ...]] = {
    "validation": ("maps", "digits", "icons_phosphor", "flags", "animals", "icons", "emoji_category", "maps"),
    "a": ("digits", "icons", "maps", "animals", "flags", "emoji_category", "icons_phosphor", "digits"),
    "b": ("flags", "animals", "icons_phosphor", "digits", "emoji_category", "maps", "icons", "flags"),
}
"""Seven tasks; two are of one kind in different hands, and the first returns at the end. Hyper-parameters were chosen
on "validation", which is scored on rows of the training split that no window holds."""
FORMAT = 2
"""Part of a cell's identity: raise it when the same settings would give other figures."""
Sets = dict[str, list[Row]]


@dataclass(frozen=True)
class Cell:
    """What determines a result."""

    strategy: str
    """A kind of `streamcl.strategies`, or "joint": all tasks at once, the ceiling."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the strategy that are not at their defaults."""
    order: str = "a"
    seed: int = 0
    rows: int = 480
    """Samples of a task."""
    windows: int = 1
    """Windows a task."""
    tests: int = 60
    """Test samples of a task."""
    buffer: int = 48
    """Replay rows kept of a task, where the strategy replays."""
    train: Mapping[str, Any] = field(default_factory=dict)
    """Fields of TrainConfig that differ from TRAIN."""
    checkpoint: str = "zoo:small"
    """A base of the zoo, or a folder with the zoo's vision tower."""
    device: str = "cpu"

    @property
    def path(self) -> str:
        return zoo.resolve(self.checkpoint) if self.checkpoint.startswith("zoo:") else self.checkpoint

    @property
    def digest(self) -> str:
        own = {name: value for name, value in asdict(self).items() if (name, value) != ("device", "cpu")}
        known = [FORMAT, own, asdict(strategy_of(self)), TRAIN, base_digest(self.path)]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


TRAIN: Mapping[str, Any] = {"epochs": 2, "batch_size": 8, "lr": 2e-3, "precision": "bfloat16", "probe_rows": 64}
PROMPTS: Mapping[str, Any] = {"lr": 0.05}
"""What differs for prompts, which learn at other rates than weights."""


@dataclass
class Data:
    """Encoded rows of all tasks. Mutable: fills itself."""

    encoder: Encoder
    cache: Path
    digest: str

    def rows(self, task: str, split: Literal["train", "test"]) -> list[Row]:
        path = self.cache / f"rows-{self.digest[:12]}-{task}-{split}.arrow"
        if not path.exists():
            samples = zoo.load_task(task, split).combine_chunks().to_batches()[0]
            encoded = self.encoder.encode(samples).batch.select(TRAINED)
            draft = path.with_suffix(f".{os.getpid()}")
            with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_file(sink, encoded.schema) as writer:
                writer.write_batch(encoded)
            draft.rename(path)
        with pa.memory_map(str(path)) as source:
            return to_rows(pa.ipc.open_file(source).read_all())


STRATEGIES: Mapping[str, type[Strategy]] = {
    **KINDS, "joint": Strategy, "hifgo at the end": AtTheEnd, "hifgo in every window": InEveryWindow,
}  # fmt: skip


def strategy_of(cell: Cell) -> Strategy:
    return STRATEGIES[cell.strategy](**cell.settings)


def stream_of(cell: Cell, data: Data) -> tuple[list[tuple[str, list[Row]]], Sets]:
    """The tasks' training rows, in order, and the rows that scores are taken on."""
    order, visits = ORDERS[cell.order], dict[str, int]()
    parts = []
    for task in order:
        first = visits.get(task, 0) * cell.rows
        visits[task] = visits.get(task, 0) + 1
        parts.append((task, _shuffled(data.rows(task, "train")[: 2 * cell.rows], cell.seed)[first : first + cell.rows]))
    held = {task: data.rows(task, "train")[-cell.tests :] for task in dict.fromkeys(order)}
    if cell.order != "validation":
        held = {task: data.rows(task, "test")[: cell.tests] for task in held}
    if cell.strategy == "joint":
        parts = [("joint", [row for _, rows in parts for row in rows])]
    return parts, held


def _shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return [rows[i] for i in order]


def run(cell: Cell, cache: Path) -> dict[str, Any]:
    """Trains and scores: the accuracy matrix [tasks, visits] (null: not yet met), metrics, seconds, bytes."""
    torch.set_num_threads(1)
    strategy, order = strategy_of(cell), ORDERS[cell.order]
    learning, data = model_of(cell, strategy, cache)
    parts, held = stream_of(cell, data)
    scored, replay = _Scored(learning, held), Replay(cell.buffer, cell.seed)
    zero, columns, seconds, leaks, shares = scored.now(held), [], 0.0, [0.0], []
    memory, served = TaskMemory(), None
    for visit, (task, rows) in enumerate(parts):
        for number in range(cell.windows):
            part = rows[number * len(rows) // cell.windows : (number + 1) * len(rows) // cell.windows]
            count = visit * cell.windows + number
            closes = number == cell.windows - 1
            seed = 1_000_003 * cell.seed + count
            window = Window(count, task, (), (), seed=seed, base=0, index=visit, closes_task=closes)
            began = time.process_time()
            learning.start(served, strategy=strategy, memory=memory, seed=cell.seed + visit)
            drawn = replay.draw(strategy.replay_rows, task)
            trained = learning.train(window, part, drawn, strategy=strategy, memory=memory)
            seconds += time.process_time() - began
            memory, served = trained.memory, trained.served
            leaks.append(trained.leak)
            shares.append(trained.penalties)
        replay.offer(task, rows)
        with learning.serving(trained.served):
            columns.append(scored.now(order[: visit + 2] if len(parts) > 1 else order))
    with learning.serving(served or {}):
        within = scored.within({task: data.rows(task, "train") for task in held})
    return _result(cell, zero, columns) | {
        "train_s": seconds, "memory_mb": memory.nbytes / 1e6, "replay_rows": replay.size * bool(strategy.replay_rows),
        "served_mb": sum(value.nbytes for value in (served or {}).values()) / 1e6, "leak": max(leaks), "within": within,
        "penalties": shares, "exact": _exact(learning, strategy, memory, scored, order),
    }  # fmt: skip


def model_of(cell: Cell, strategy: Strategy, cache: Path) -> tuple[Learning, Data]:
    """The base with what the strategy trains, and the rows encoded for it."""
    config = ModelConfig(cell.path, register="streamcl.zoo.tower", lora=LoRA(r=16, alpha=32), dtype="bfloat16")
    base = load_base(config, device=cell.device)
    if cell.device == "cpu":
        base.model.set_attn_implementation({"text_config": "eager"})  # the fastest there for sequences this short
    data = Data(Encoder(base), cache, base.digest)
    model = grow(base, config.prompts if strategy.adapter == "prompts" else config.lora, seed=cell.seed)
    train = TrainConfig(**{**TRAIN, **cell.train})
    return Learning(model, pad_id=base.processor.tokenizer.pad_token_id, config=train), data


def _exact(
    learning: Learning, strategy: Strategy, memory: TaskMemory, scored: _Scored, order: Sequence[str]
) -> dict[str, float] | None:
    """Of a sum of adapters without the rank budget: Last, and the relative distance of what is served; else None."""
    whole = strategy.frozen(memory)
    if not isinstance(strategy, Stacked) or not whole:
        return None
    with learning.serving(whole):
        last = scored.now(order)
    lost = [recompress([pair], strategy.served_rank)[2] for pair in pairs_of(whole).values()]
    return {
        "last": sum(last.values()) / len(last),
        "error": sum(lost) / len(lost),
        "rank": len(next(iter(whole.values()))),
    }


@dataclass(frozen=True)
class _Scored:
    """Scores under autocast, as training runs: of the tasks met so far and, for FWT, the next."""

    learning: Learning
    held: Sets

    def now(self, tasks: Iterable[str]) -> dict[str, float]:
        sets = {task: self.held[task] for task in dict.fromkeys(tasks)}
        return accuracy(marks(self.learning.model, sets, pad_id=self.learning.pad_id, bfloat16=True))

    def within(self, words: Sets) -> float:
        """Mean accuracy where an answer may only be one of its own task's, those in `words`: what is left when tasks
        are not taken for each other."""
        learning = self.learning
        hits = [
            exact_match(learning.model, rows, pad_id=learning.pad_id, bfloat16=True, among=words[task])
            for task, rows in self.held.items()
        ]
        return float(np.mean([hit.mean() for hit in hits]))


class Replay:
    """The run's reservoir, in memory. Mutable."""

    def __init__(self, capacity: int, seed: int) -> None:
        self.reservoir = Reservoir(capacity, key=derive(b"continual", str(seed)), heldout=0.0)
        self.rows: dict[str, list[Row]] = {}

    @property
    def size(self) -> int:
        return len(self.reservoir)

    def offer(self, task: str, rows: Sequence[Row]) -> None:
        known = self.rows.setdefault(task, [])
        at = range(len(known), len(known) + len(rows))
        known.extend(rows)
        self.reservoir.offer(task, [row.id for row in rows], [task] * len(rows), list(at))

    def draw(self, count: int, task: str) -> list[Row]:
        """Up to `count` rows of the tasks met before."""
        drawn = self.reservoir.sample(count, seed=len(self.rows), exclude=task) if count and self.rows else []
        return [self.rows[part.key][row] for part in drawn for row in part.rows]


def _result(cell: Cell, zero: Mapping[str, float], columns: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    tasks = list(dict.fromkeys(ORDERS[cell.order]))
    matrix = [[column.get(task) for column in columns] for task in tasks]
    learned = [0] * len(tasks) if cell.strategy == "joint" else [ORDERS[cell.order].index(task) for task in tasks]
    known = np.array(matrix, dtype=np.float64)
    metrics = summarize(
        known, learned=learned, zero_shot=None if cell.strategy == "joint" else [zero[t] for t in tasks]
    )
    return {"cell": asdict(cell), "tasks": tasks, "matrix": matrix, "zero_shot": [zero[t] for t in tasks], **metrics}


def published(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Cells' results as a result file shows them."""
    return [{name: value for name, value in result.items() if name != "penalties"} for result in results]


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    path = Path(sys.argv[1])
    result = run(Cell(**json.loads(path.read_text())), path.parent)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
