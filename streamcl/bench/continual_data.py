"""`streamcl bench continual --data DIR`: strategies through the tasks of a UCIT- or CoIN-shaped directory.

    UCIT: DIR/instructions/TASK/train*.json and test*.json, pictures under DIR/datasets
    CoIN: DIR/Instruction*/TASK/train.json and test.json, pictures under DIR or DIR/cl_dataset

Tasks come in the papers' order, others after them by name. After each task the model answers the tests of all tasks met
so far, greedily; questions are scored by exact match after upper-casing, CoIN's grounding by boxes, UCIT's captions by
the mean of BLEU-1 to 4, METEOR, ROUGE-L and CIDEr.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from streamcl import zoo
from streamcl.bench.captions import METRICS
from streamcl.bench.continual_cell import STRATEGIES, TRAIN, Replay
from streamcl.errors import ConfigError
from streamcl.metrics import DEFINITIONS, summarize
from streamcl.store.memory import TaskMemory
from streamcl.stream import Files, Merged
from streamcl.train.batch import Encoder, Row, collate, to_rows
from streamcl.train.loop import Learning
from streamcl.train.model import grow, load_base
from streamcl.train.prompts import prefixed
from streamcl.train.settings import LoRA, ModelConfig, TrainConfig
from streamcl.types import Sample, Window, from_batch, to_batch

ORDERS: Mapping[str, tuple[str, ...]] = {
    "UCIT": ("ImageNet-R", "ArxivQA", "VizWiz", "IconQA", "CLEVR-Math", "Flickr30k"),
    "CoIN": ("ScienceQA", "TextVQA", "ImageNet", "GQA", "VizWiz", "Grounding", "VQAv2", "OCR-VQA"),
}
SCORED: Mapping[tuple[str, str], str] = {
    ("UCIT", "VizWiz"): "captions", ("UCIT", "Flickr30k"): "captions", ("CoIN", "Grounding"): "box IoU >= 0.5"
}  # fmt: skip
ANSWER_TOKENS = {"captions": 64}
"""The longest answer to a question of this metric; FEW_TOKENS to others."""
FEW_TOKENS = 32
BATCH = 16


@dataclass(frozen=True)
class TaskData:
    """One task of a directory."""

    name: str
    metric: str
    train: list[Sample]
    test: list[Sample]


def read(folder: Path) -> tuple[str, list[TaskData]]:
    """Which benchmark a directory holds, and its tasks in order.  Raises ConfigError, SourceError."""
    places = [*sorted(folder.glob("[Ii]nstruction*")), folder]
    for place in places:
        names = [path.name for path in sorted(place.iterdir()) if path.is_dir() and _files(path, "train")]
        if names:
            break
    else:
        raise ConfigError(f"{folder}: no folder of a task with train*.json and test*.json, under instructions/ or here")
    kind = max(ORDERS, key=lambda kind: len({*map(_plain, ORDERS[kind])} & {*map(_plain, names)}))
    order = [_plain(name) for name in ORDERS[kind]]
    names.sort(key=lambda name: (order.index(_plain(name)) if _plain(name) in order else len(order), name))
    tasks = []
    for name in names:
        metric = SCORED.get((kind, name), "exact match")
        tasks.append(TaskData(name, metric, *(_samples(folder, place / name, split) for split in ("train", "test"))))
    return kind, tasks


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _files(task: Path, split: str) -> list[Path]:
    return sorted(task.glob(f"{split}*.json"))


def _samples(folder: Path, task: Path, split: str) -> list[Sample]:
    """A split's samples.  Raises ConfigError when one is refused: a benchmark is whole, or it is none."""
    found: list[Sample] = []
    if not _files(task, split):
        raise ConfigError(f"{task}: no {split}*.json; every task needs its train and its test file")
    for path in _files(task, split):
        merged = Merged(Files(str(path), images=str(_pictures(folder, path))), {})
        while (polled := merged.poll(256)) is not None:
            if polled.dead:
                raise ConfigError(f"{path}, row {polled.dead[0].position}: {polled.dead[0].reason}. Mend the directory")
            found += from_batch(polled.batch)
    return found


def _pictures(folder: Path, path: Path) -> Path:
    """The folder that the pictures' names begin in: the one that has the first of them."""
    first = next((row.get("image") for row in json.loads(path.read_text()) if row.get("image")), "")
    places = [folder / "datasets", folder / "cl_dataset", folder]
    return next((place for place in places if first and (place / str(first)).is_file()), folder)


@dataclass(frozen=True)
class Arena:
    """A base model and every task's rows, encoded for it."""

    encoder: Encoder
    tasks: list[TaskData]
    train: dict[str, list[Row]]
    test: dict[str, list[Row]]


def arena(tasks: list[TaskData], model: str) -> Arena:
    path, own = (zoo.resolve(model), "streamcl.zoo.tower") if model.startswith("zoo:") else (model, None)
    encoder = Encoder(load_base(ModelConfig(path, register=own)))
    return Arena(
        encoder,
        tasks,
        {t.name: _encoded(encoder, t.train) for t in tasks},
        {t.name: _encoded(encoder, t.test) for t in tasks},
    )


def _encoded(encoder: Encoder, samples: list[Sample]) -> list[Row]:
    encoded = encoder.encode(to_batch(samples))
    if encoded.refused:
        raise ConfigError(f"the model cannot take {samples[encoded.refused[0][0]].id}: {encoded.refused[0][1]}")
    return to_rows(encoded.batch)


@torch.no_grad()
def answers(learning: Learning, rows: Sequence[Row], tokenizer: Any, *, most: int) -> list[str]:
    """The greedy answers."""
    said: list[str] = []
    for start in range(0, len(rows), BATCH):
        part = [Row(row.id, row.prompt_ids, row.answer_ids[:0], row.inputs) for row in rows[start : start + BATCH]]
        batch = collate(part, pad_id=learning.pad_id, device=learning.device)
        batch.pop("labels")
        inputs = prefixed(learning.model, batch)
        made = learning.model.generate(
            **inputs, max_new_tokens=most, do_sample=False, pad_token_id=learning.pad_id,
            eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        said += tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in said]


def through(name: str, on: Arena, *, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """One strategy through all tasks: the matrix of scores (None: not yet met), zero-shot, the papers' metrics."""
    strategy = STRATEGIES[name](**settings)
    base, config = on.encoder.base, ModelConfig("", lora=LoRA(r=16, alpha=32))
    model = grow(base, config.prompts if strategy.adapter == "prompts" else config.lora, seed=seed)
    learning = Learning(model, pad_id=base.processor.tokenizer.pad_token_id, config=TrainConfig(**TRAIN))
    tasks = [task.name for task in on.tasks]
    zero = _scores(learning, on, tasks)
    matrix = np.full((len(tasks), len(tasks)), np.nan)
    memory, served, replay = TaskMemory(), None, Replay(max(1, len(on.train[tasks[0]]) // 10), seed)
    for number, task in enumerate(tasks):
        window = Window(number, task, (), (), seed=1_000_003 * seed + number, base=0, index=number, closes_task=True)
        learning.start(served, strategy=strategy, memory=memory, seed=seed + number)
        drawn = replay.draw(strategy.replay_rows, task)
        trained = learning.train(window, on.train[task], drawn, strategy=strategy, memory=memory)
        memory, served = trained.memory, trained.served
        replay.offer(task, on.train[task])
        with learning.serving(served):
            now = _scores(learning, on, tasks[: number + 2])
        matrix[: len(now), number] = list(now.values())
    metrics = summarize(matrix, zero_shot=[zero[task] for task in tasks])
    rows = [[None if np.isnan(score) else float(score) for score in row] for row in matrix]
    return {"strategy": name, "matrix": rows, "zero_shot": zero, **metrics}


def _scores(learning: Learning, on: Arena, names: Sequence[str]) -> dict[str, float]:
    tokenizer = on.encoder.base.processor.tokenizer
    found = {}
    for task in on.tasks:
        if task.name in names:
            references = [[sample.answer] for sample in task.test]
            most = ANSWER_TOKENS.get(task.metric, FEW_TOKENS)
            said = answers(learning, on.test[task.name], tokenizer, most=most)
            found[task.name] = METRICS[task.metric](said, references)
    return found


def compare(folder: str, strategies: Sequence[str], *, model: str, as_json: bool) -> None:
    """Every strategy through the directory's tasks; prints the papers' metrics.  Raises ConfigError, SourceError."""
    if unknown := sorted({*strategies} - {*STRATEGIES} | {"joint"} & {*strategies}):
        raise ConfigError(f"--strategies: no {unknown[0]!r}; there are {', '.join(sorted({*STRATEGIES} - {'joint'}))}")
    torch.manual_seed(0)
    kind, tasks = read(Path(folder))
    rows = max(1, sum(len(task.train) for task in tasks) // 10)
    results = []
    for name in strategies:
        settings = {"replay_rows": rows} if name in ("replay", "dgg") else {}
        results.append(through(name, arena(tasks, model), seed=0, settings=settings))
    if as_json:
        print(json.dumps({"benchmark": kind, "tasks": {t.name: t.metric for t in tasks}, "results": results}, indent=1))
        return
    console = Console(width=160)
    for result in results:
        console.print(_matrix(kind, tasks, result))
    console.print(_summary(results))


def _matrix(kind: str, tasks: Sequence[TaskData], result: Mapping[str, Any]) -> Table:
    table = Table("score on", "metric", "zero-shot", *(f"after {task.name}" for task in tasks))
    table.title = f"{kind}, {result['strategy']}, x 100"
    for task, row in zip(tasks, result["matrix"], strict=True):
        cells = ["" if score is None else f"{100 * score:.1f}" for score in row]
        table.add_row(task.name, task.metric, f"{100 * result['zero_shot'][task.name]:.1f}", *cells)
    return table


def _summary(results: Sequence[Mapping[str, Any]]) -> Table:
    names = ("last", "avg", "imd", "maa", "bwt", "bwt_octopus", "forgetting", "fwt")
    table = Table(
        "strategy", *names, title="x 100", caption="\n".join(f"{name}: {DEFINITIONS[name]}" for name in names)
    )
    for result in results:
        table.add_row(result["strategy"], *(f"{100 * result[n]:.1f}" if n in result else "" for n in names))
    return table
