"""Measures a base on the zoo's stream: before any training, each task alone, all together, and one after another.

    python -m streamcl.zoo.recipe.evaluate

LoRA of rank 16 on every linear layer of the language model and the projector, trained under bfloat16 autocast and
scored in float32; a score is the share of test samples whose greedy answer equals the label. The frozen tower looks at
each picture once. A GPU has room for several processes, each with some of the columns.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from time import perf_counter

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

import streamcl.zoo.tower  # noqa: F401  # lets transformers load the checkpoint
from streamcl.zoo.recipe import batches
from streamcl.zoo.stream import SIZES, TASKS, load_task, resolve

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "linear_1", "linear_2"]
ORDER = ("digits", "animals", "icons", "emoji_category", "flags", "maps")
"""The learnable six in the order of the sequential run."""
HARD = ("charts", "counting")
PARTS = ("zero_shot", "joint", "sequential", "single")
Scores = dict[str, float]


@dataclass(frozen=True)
class Training:
    """How an adapter is trained."""

    epochs: int = 3
    rate: float = 2e-3
    batch: int = 16
    rank: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Split:
    """The rows of one split of one task, and what the tower saw in its pictures."""

    rows: tuple[batches.Row, ...]
    features_NLC: torch.Tensor


Data = Mapping[tuple[str, str], Split]


def look(model: LlavaForConditionalGeneration, processor: LlavaProcessor, tasks: Sequence[str]) -> Data:
    """Every task's splits."""
    data = {}
    for name, split in [(name, split) for name in tasks for split in SIZES]:
        samples = load_task(name, "train" if split == "train" else "test").to_pylist()
        asked = [sample["messages"][0]["content"][1]["text"] for sample in samples]
        told = [sample["messages"][1]["content"][0]["text"] for sample in samples]
        rows = [batches.encode(processor, q, a, at) for at, (q, a) in enumerate(zip(asked, told, strict=True))]
        data[name, split] = Split(tuple(rows), batches.features(model, processor, [s["images"][0] for s in samples]))
    return data


def scores(model: LlavaForConditionalGeneration, data: Data, tasks: Sequence[str]) -> Scores:
    """Exact match on the test split of each task."""
    return {
        name: batches.exact_match(model, data[name, "test"].rows, data[name, "test"].features_NLC) for name in tasks
    }


@dataclass(frozen=True)
class Place:
    """Where the base lies, and on which device it is to run."""

    path: str
    device: str = "cpu"

    def load(self) -> LlavaForConditionalGeneration:
        return LlavaForConditionalGeneration.from_pretrained(self.path).to(self.device)


def learn(place: Place, data: Data, stages: Sequence[Sequence[str]], training: Training) -> tuple[Scores, Scores]:
    """Train one adapter on the stages in turn, each a set of tasks; scores after each task's stage, and at the end."""
    torch.manual_seed(training.seed)
    model = place.load()
    if place.device == "cpu":
        model.set_attn_implementation({"text_config": "eager"})  # this short, the fastest
    config = LoraConfig(r=training.rank, lora_alpha=2 * training.rank, target_modules=LINEAR, lora_dropout=0.0)
    adapted = get_peft_model(model, config)
    learned = [value for value in adapted.parameters() if value.requires_grad]
    random, then = Random(training.seed), Scores()
    for stage in stages:
        _epochs(model, learned, data, stage, training, random)
        then |= scores(model, data, stage)
    return then, scores(model, data, [name for stage in stages for name in stage])


def _epochs(
    model: LlavaForConditionalGeneration,
    learned: list[torch.nn.Parameter],
    data: Data,
    stage: Sequence[str],
    training: Training,
    random: Random,
) -> None:
    """Train `learned` in place with a new optimizer, its rate falling to nothing."""
    rows, features_NLC = _joined([data[name, "train"] for name in stage])
    plan = [batch for _ in range(training.epochs) for batch in batches.shuffled(rows, training.batch, random)]
    optimizer = torch.optim.AdamW(learned, lr=training.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.rate, total_steps=len(plan), pct_start=0.1)
    for batch in track(plan, "+".join(stage)):
        looked = features_NLC[[row.picture for row in batch]].float()
        with torch.autocast(looked.device.type, torch.bfloat16):
            loss = batches.loss(model, batch, looked)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def _joined(splits: Sequence[Split]) -> tuple[list[batches.Row], torch.Tensor]:
    rows: list[batches.Row] = []
    for split in splits:
        rows += [replace(row, picture=row.picture + len(rows)) for row in split.rows]
    return rows, torch.cat([split.features_NLC for split in splits])


def measure(place: Place, data: Data, training: Training, parts: Sequence[str]) -> Iterator[tuple[str, Scores]]:
    """The columns of the table, each as soon as it is measured: a name and the scores of its tasks."""
    if "zero_shot" in parts:
        yield "zero_shot", scores(place.load(), data, [*ORDER, *HARD])
    if "joint" in parts:
        yield "joint", learn(place, data, [ORDER], training)[1]
    if "sequential" in parts:
        then, last = learn(place, data, [[name] for name in ORDER], training)
        yield "sequential_just_learned", then
        yield "sequential_last", last
    if "single" in parts:
        yield "single", {name: learn(place, data, [[name]], training)[1][name] for name in [*ORDER, *HARD]}


def show(table: Mapping[str, Scores]) -> Table:
    """The scores, a row a task and a column a measurement; the last rows are means over the six and over all."""
    shown = Table("task", *table)
    for name in TASKS:
        if any(name in column for column in table.values()):
            shown.add_row(name, *(f"{column[name]:.3f}" if name in column else "" for column in table.values()))
    for title, names in (("mean of six", ORDER), ("mean of eight", (*ORDER, *HARD))):
        cells = [
            sum(column[n] for n in names) / len(names) if set(names) <= set(column) else None
            for column in table.values()
        ]
        shown.add_row(title, *("" if cell is None else f"{cell:.3f}" for cell in cells))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", default=resolve("zoo:small"), help="directory of the base; zoo:small by default"
    )
    parser.add_argument("--device", default=Place.device)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure; all by default")
    parser.add_argument("--epochs", type=int, default=Training.epochs)
    parser.add_argument("--seed", type=int, default=Training.seed)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    training, began, table = Training(epochs=arguments.epochs, seed=arguments.seed), perf_counter(), dict[str, Scores]()
    place = Place(arguments.checkpoint, arguments.device)
    data = look(place.load(), AutoProcessor.from_pretrained(place.path), [*ORDER, *HARD])
    for name, column in measure(place, data, training, arguments.parts):
        table[name] = column
        Console().print(show(table))
        measured = {"scores": table, "training": vars(training), "seconds": round(perf_counter() - began)}
        if arguments.out:
            arguments.out.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
